#pragma once
/// Are two samples from the same law? [Szekely13]

#include <ATen/core/Tensor.h>

#include "scoreprior/core/rng.h"

namespace scoreprior::stats {

/// 2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples x [N, event...] and y [M, event...],
/// Euclidean norm; 0 for equal laws. `unbiased` leaves out the zero distances of a draw to itself,
/// so the estimate may be negative. O((N+M)^2 D).
double energy_distance(const at::Tensor& x, const at::Tensor& y, bool unbiased = true);

/// The share of random relabellings of the pooled sample with at least the observed distance, (1 +
/// k) / (1 + n).
double energy_test_p_value(const at::Tensor& x, const at::Tensor& y, const Rng& rng,
                           int64_t permutations = 199);

}  // namespace scoreprior::stats
