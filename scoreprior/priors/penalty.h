#pragma once
#include <ATen/core/Tensor.h>

#include "scoreprior/core/config.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {

struct PenaltyOptions {
  double weight = 1;
  template <class F>
  void fields(F&& f) {
    f("weight", weight, "nats per unit of the penalty");
  }
};

/// log p(x) = -weight R(x) + const, unnormalised, for images [B,C,H,W].
class Penalty : public LogDensity {
 public:
  Penalty(Shape image_shape, double weight) : shape_(std::move(image_shape)), weight_(weight) {}
  Shape event_shape() const override { return shape_; }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const final;
  /// R(x), [B].
  virtual at::Tensor penalty(const at::Tensor& x) const = 0;

 private:
  Shape shape_;
  double weight_;
};

/// {C,H,W} of the context; ConfigError where the program does not know it.
Shape penalty_shape(const Config& config, const PriorContext& context);
/// ConfigError unless weight is a finite number >= 0.
double checked_weight(const Config& config, double weight);

}  // namespace scoreprior
