#pragma once
#include <filesystem>
#include <optional>
#include <string>

namespace scoreprior::io {

/// A number of the first unit's header, as it stands in the file; nullopt when absent.
/// MissingFileError, DataError.
std::optional<double> read_fits_number(const std::filesystem::path& path, const std::string& key);

}  // namespace scoreprior::io
