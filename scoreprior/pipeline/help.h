#pragma once
#include <string>

namespace scoreprior {

/// What exists and which settings it reads, as TOML that can be pasted into a configuration.
/// Nothing is written down twice: a component is made from an empty table, which then holds the
/// keys, defaults and help its options declared.

/// The families and the names in each.
std::string help_families();
/// The names of one family, or with `name` the settings of that entry. Throws UsageError for
/// unknown words.
std::string help_family(const std::string& family, const std::string& name = "");
/// The tables that a command reads, with the components it takes by default.
/// command: run | train | simulate.
std::string help_command(const std::string& command);

}  // namespace scoreprior
