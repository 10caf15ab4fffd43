#pragma once
#include <filesystem>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"

namespace scoreprior {

/// An image ([truth]: a data set's test image or a file) through an instrument, into `folder`:
///
///   [observe]                       an array of telescopes; observation.uvfits, truth.fits
///   [likelihood] interferometry     at the (u,v), times and sigmas of [data] file;
///   observation.uvfits else [forward], [likelihood]    any forward model with the noise of any
///   likelihood;
///                                   observation.npz: y, sigma, truth, and covariance, or exposure
///                                   and background
///
/// and truth.npy, truth.png. The tables of `run` may stand in the same file.
void simulate(const Config& config, const std::filesystem::path& folder, Observer& observer);

/// Reads every setting of [truth] and [observe], for help: nothing is simulated.
void read_simulation_settings(const Config& config);

}  // namespace scoreprior
