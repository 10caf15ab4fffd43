#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "scoreprior/core/visibility_table.h"

namespace scoreprior {

/// Sites of a telescope array: geocentric positions [m] and system equivalent flux densities [Jy].
/// "eht2017" is the Event Horizon Telescope of April 2017 [EHT19II] with two-letter codes: PV
/// (IRAM 30 m), AZ (SMT), SM (SMA), LM (LMT), AA (ALMA), SP (SPT), AP (APEX), JC (JCMT).
/// ConfigError for another name.
std::vector<Site> array_sites(const std::string& name);
std::vector<std::string> array_names();

/// A text table, one site a line: NAME X Y Z SEFD_R SEFD_L, further columns and lines beginning
/// with # ignored (ehtim's array files). MissingFileError; DataError with the line of a mistake.
std::vector<Site> read_array(const std::filesystem::path& path);

}  // namespace scoreprior
