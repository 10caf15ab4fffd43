#pragma once
#include "scoreprior/core/config.h"
#include "scoreprior/core/observation.h"
#include "scoreprior/likelihood/likelihood.h"

namespace scoreprior {

/// The observation of [data] `kspace` for the MRI model of [forward] (`mri`, `multicoil_mri`, or
/// any other KSpaceModel). Where [forward] leaves it open it is completed by what the file says, so
/// that the written configuration shows it:
///   mask         without a mask or pattern: FILE:sampled, the points that were measured
///   calibration  multicoil_mri without coil_maps, calibration or coils: FILE, maps from the data
/// `context.read_array` then serves FILE and FILE:sampled as they are on the images' grid, beside
/// every other file. ConfigError for another model; DataError when a mask or pattern of [forward]
/// asks for points that were not measured, or maps and data have different numbers of coils.
Observation load_kspace_observation(const Config& config, LikelihoodContext& context);

}  // namespace scoreprior
