#include "scoreprior/priors/penalty.h"

#include <ATen/ATen.h>

#include <cmath>

namespace scoreprior {

at::Tensor Penalty::log_prob(const at::Tensor& x, const Rng&) const {
  check_batched("prior", "x", x, shape_);
  return penalty(x) * -weight_;
}

Shape penalty_shape(const Config& config, const PriorContext& context) {
  if (context.image_shape.size() != 3)
    config.fail("name",
                "this prior takes its image size from elsewhere: a score model, a forward model or "
                "data must come first");
  return context.image_shape;
}

double checked_weight(const Config& config, double weight) {
  if (!(weight >= 0) || std::isinf(weight)) config.fail("weight", "weight must be a number >= 0");
  return weight;
}

}  // namespace scoreprior
