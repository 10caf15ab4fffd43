#pragma once
/// What a set of draws [N, event...] says about each pixel, and whether it is right about the
/// truth.

#include <ATen/core/Tensor.h>

#include <vector>

namespace scoreprior::stats {

struct PixelSummary {
  at::Tensor mean, std;  ///< [event...] float64; std divides by N - 1
  at::Tensor quantiles;  ///< [Q, event...]
};
PixelSummary summarize_pixels(const at::Tensor& draws,
                              const std::vector<double>& probabilities = {0.05, 0.5, 0.95});

/// [Q, event...]; order statistic (N+1) p, linearly interpolated and clamped (Weibull, "type 6"):
/// the truth of a calibrated posterior lies between two of them with exactly the nominal
/// probability when (N+1) p are whole numbers.
at::Tensor draw_quantiles(const at::Tensor& draws, const std::vector<double>& probabilities);

/// Pixels where mean > fraction * max(mean): the part of a sky image that is source.
at::Tensor bright_mask(const at::Tensor& mean, double fraction = 0.05);

/// Per level, the fraction of pixels (of the mask if one is given) whose truth lies in the central
/// credible interval of that probability. NaN for an empty mask.
std::vector<double> coverage(const at::Tensor& draws, const at::Tensor& truth,
                             const std::vector<double>& levels, const at::Tensor& mask = {});

/// Number of draws below the truth, per pixel: uniform on 0..N when calibrated [Talts18]. Ties
/// count half, rounded down.
at::Tensor ranks(const at::Tensor& draws, const at::Tensor& truth);

struct UniformityTest {
  double statistic = 0, p_value = 1;
};
/// Chi-squared test that ranks in 0..draws are uniform, in `bins` equal groups; the ranks must be
/// independent (one problem each, not neighbouring pixels).
UniformityTest rank_uniformity(const at::Tensor& ranks, int64_t draws, int64_t bins = 10);

/// TARP [Lemos23]: draws [T,N,D], truths [T,D], random reference points [T,D] -> [T], the share of
/// draws nearer to the reference than the truth is; uniform on [0,1] when calibrated.
at::Tensor tarp_fractions(const at::Tensor& draws, const at::Tensor& truths,
                          const at::Tensor& references);

/// Kolmogorov-Smirnov distance of values from U[0,1] and its asymptotic p-value.
UniformityTest ks_uniform(const at::Tensor& values);

}  // namespace scoreprior::stats
