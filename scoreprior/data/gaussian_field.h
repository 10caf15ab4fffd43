#pragma once
/// A stationary Gaussian random field on the periodic pixel grid: an image law whose density is
/// known exactly, for oracles and for judging a learnt prior.
///
///   x = mean + F^-1(sqrt(S) F(w)), w white; cov(x_p, x_q) = C(p - q) = F^-1(S)(p - q),
///   S(k) proportional to (|k|^2 + k0^2)^(-slope/2), k in cycles per image, normalised to C(0) =
///   std^2.

#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

struct GaussianFieldOptions {
  int64_t image_size = 32, channels = 1;
  double mean = 0.5, std = 0.15, slope = 3, k0 = 2;
  uint64_t seed = 0;
  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("channels", channels, "independent channels of one law");
    f("mean", mean, "mean of every pixel");
    f("std", std, "standard deviation of every pixel");
    f("slope", slope, "exponent of the power spectrum, positive for smooth fields");
    f("k0", k0, "wave number below which the spectrum is flat [cycles per image]");
    f("seed", seed, "the family's seed");
  }
};

class GaussianField final : public Dataset {
 public:
  GaussianField(const GaussianFieldOptions& options, const std::string& split);

  Shape image_shape() const override;
  int64_t size() const override { return 0; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string describe() const override;

  /// Eigenvalues of the covariance in FFT order, [H,W] float64.
  const at::Tensor& spectrum() const { return spectrum_; }
  /// Covariance of one flattened channel, [HW,HW] float64.
  at::Tensor covariance() const;
  /// Exact log-density in nats, x [B,C,H,W] -> [B], in x's own precision; differentiable.
  at::Tensor log_prob(const at::Tensor& x) const;

 private:
  GaussianFieldOptions options_;
  std::string split_;
  Rng rng_;
  at::Tensor spectrum_;
};

}  // namespace scoreprior
