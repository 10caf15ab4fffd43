#pragma once
/// Sampling masks of Cartesian k-space: float64 zeros and ones, [H,W], zero frequency at (H/2,
/// W/2).

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "scoreprior/forward/forward_model.h"

namespace scoreprior {

/// Whole columns: `centre_lines` around zero frequency, and equispaced ones whose spacing is set so
/// that about width/acceleration columns are sampled in all, as fastMRI does. Throws
/// std::invalid_argument unless acceleration >= 1 and 0 <= centre_lines < width/acceleration.
at::Tensor cartesian_mask(int64_t height, int64_t width, double acceleration, int64_t centre_lines);

/// Whole columns: `centre_lines` around zero frequency, and others at random without replacement,
/// column c with weight (1 - |c - W/2| / (W/2 + 1))^power, until round(width/acceleration) are
/// sampled. power 0 is uniform. Throws as cartesian_mask does.
at::Tensor random_lines_mask(int64_t height, int64_t width, double acceleration,
                             int64_t centre_lines, double power, uint64_t seed);

/// The grid points nearest to `spokes` lines through zero frequency, line k at k * 180/spokes
/// degrees (or k * 111.246 degrees, the golden angle [Winkelmann07]), sampled every half pixel, and
/// a fully sampled square of `centre` pixels.
at::Tensor radial_mask(int64_t height, int64_t width, int64_t spokes, bool golden_angle,
                       int64_t centre);

struct PoissonMaskOptions {
  double acceleration = 4;
  int64_t centre = 0;  ///< side of the fully sampled square at zero frequency
  uint32_t seed = 0;
  bool crop_corner = true;  ///< nothing outside the ellipse that touches the edges
  int max_attempts = 30;    ///< darts per active point
  double tolerance = 0.1;   ///< on the acceleration
};

/// Variable-density Poisson discs (Bridson 2007): the distance to the nearest sample grows linearly
/// with the distance from zero frequency, with the slope bisected until the acceleration is met;
/// the closest mask when no slope meets it. The numbers come from one Mersenne twister, which makes
/// masks equal to score_prior's for a seed wherever that ends (its list of active points can
/// overflow; here new points must then be on new pixels).
at::Tensor poisson_mask(int64_t height, int64_t width, const PoissonMaskOptions& options);

/// The mask of an MRI model's table for images {C,H,W}: a file `mask` [H,W] (any weights), or a
/// `pattern` of the above. ConfigError, DataError.
at::Tensor sampling_mask(const Config& config, const Shape& shape, const ForwardContext& context);

}  // namespace scoreprior
