#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "scoreprior/core/config.h"

namespace scoreprior::io {

/// Throws MissingFileError, or ConfigError with the line of a syntax error.
Config read_toml(const std::filesystem::path& path);
/// `name` stands for the file in messages; relative paths inside stay relative to the current
/// folder.
Config parse_toml(const std::string& text, const std::string& name = "");

/// Applies "a.b.c=value" to the configuration; a bare word is a string. Throws UsageError without
/// "=".
void apply_override(Config& config, const std::string& assignment);
void apply_overrides(Config& config, const std::vector<std::string>& assignments);

}  // namespace scoreprior::io
