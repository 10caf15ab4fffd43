#pragma once
#include <filesystem>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observation.h"

namespace scoreprior {

/// The measurement that the table [data] names, by the extension of `file` (relative to the
/// configuration file):
///
///   .uvfits   visibilities, prepared by VisibilityOptions whose keys stand in the same table;
///   `files` = [...] joins
///             several bands or nights of one source
///   .npz      arrays y (required), sigma (a number or the shape of y), truth, anything else goes
///   to `extra` .npy      y alone
///
/// Integers become float64. MissingFileError; DataError in one sentence for NaN or infinite values,
/// sigma that is not positive, no data; ConfigError for another extension.
Observation load_observation(const Config& config);

/// y, sigma, truth and extra as one .npz that load_observation reads. Visibilities go to
/// io::write_uvfits instead.
void save_observation(const std::filesystem::path& path, const Observation& observation);

}  // namespace scoreprior
