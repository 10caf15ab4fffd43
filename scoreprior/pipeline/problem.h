#pragma once
#include <memory>
#include <optional>

#include "scoreprior/core/config.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/core/observation.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/session.h"

namespace scoreprior {

/// How pixel values of a sky image become Jy/pixel, and how large the sky is.
struct Sky {
  double fov_uas = 0;
  double jy_per_unit = 1;  ///< image value x this = Jy/pixel
};

/// The data and their likelihood, from the tables [image], [data], [forward] and [likelihood].
struct Measurement {
  Observation observation;
  std::unique_ptr<Likelihood> likelihood;
  at::Tensor truth;         ///< [C,H,W] in the units of x, if [data] names one
  std::optional<Sky> sky;   ///< interferometry
};

/// The prior from [prior]; its image shape is that of its model, else [image] size and channels.
std::unique_ptr<LogDensity> load_prior(const Config& config, const Session& session);

/// `shape` {C,H,W} is the prior's. Throws DataError when data and images do not fit.
Measurement load_measurement(const Config& config, const Shape& shape, const Session& session);

}  // namespace scoreprior
