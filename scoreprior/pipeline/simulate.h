#pragma once
#include <filesystem>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"

namespace scoreprior {

/// An image ([truth]: a data set's test image or a file) through an instrument ([observe] for interferometry, else
/// [forward] and [likelihood]): writes observation.uvfits or observation.npz, truth.npy, truth.png (and truth.fits for
/// sky images) into `folder`.
void simulate(const Config& config, const std::filesystem::path& folder, Observer& observer);

}  // namespace scoreprior
