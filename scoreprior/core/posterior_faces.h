#pragma once
/// Optional second faces of a LogDensity, found by dynamic_cast: what a sampler can do better with
/// than with values and scores alone.

#include <ATen/core/Tensor.h>

#include "scoreprior/core/log_density.h"
#include "scoreprior/core/rng.h"

namespace scoreprior {

/// A prior that draws from its own posterior under white noise.
class DenoisingPrior {
 public:
  virtual ~DenoisingPrior() = default;
  /// Draws x ~ p(x) N(noisy; x, sigma^2 I) / Z, [B,event...] -> [B,event...]. `steps` is the work
  /// per e-fold of noise; row b depends on row b of rng only.
  virtual at::Tensor draw_given_noisy(const at::Tensor& noisy, double sigma, double steps,
                                      const Rng& rng) const = 0;
  /// log p(x) = (the law of draw_given_noisy) + rest(x); null for none.
  virtual const LogDensity* rest() const { return nullptr; }
};

/// A log-density -|r(T x)|^2/2 + const that sees x [B,event...] through a matrix T only.
class ResidualJacobian {
 public:
  virtual ~ResidualJacobian() = default;
  /// T [K,D] for images of D pixels, in the density's dtype and on its device.
  virtual at::Tensor linear_part() const = 0;
  /// dr/d(T x) [B,N,K] (the sign of a row is free), or undefined where r = T x + const. The Hessian
  /// is about T^T slopes^T slopes T (Gauss-Newton).
  virtual at::Tensor slopes(const at::Tensor& x) const = 0;
};

}  // namespace scoreprior
