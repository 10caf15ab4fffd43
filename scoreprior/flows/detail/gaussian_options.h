#pragma once
#include <cstdint>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/flows/flow.h"

namespace scoreprior::detail {

/// What the keys of every Gaussian family have in common.
struct GaussianOptions {
  int64_t dim = 0;
  bool softplus = false;
  double init_mean = 0;
  double init_std = 1;
  template <class F>
  void fields(F&& f) {
    f("dim", dim, "number of pixels; 0 = as the image asks");
    f("softplus", softplus, "positive pixels: x = softplus(u)");
    f("init_mean", init_mean, "mean of the untrained draws");
    f("init_std", init_std, "standard deviation of the untrained draws");
  }
};

/// Takes a dim of 0 from the image. Fails with the key's line where the options contradict the
/// image or each other.
inline void complete(GaussianOptions& o, const Config& config, const FlowContext& context) {
  if (o.dim == 0) o.dim = context.dim;
  if (context.dim != 0 && o.dim != context.dim)
    config.fail("dim", "the flow has " + std::to_string(o.dim) + " pixels, the image has " +
                           std::to_string(context.dim));
  if (o.dim < 1) config.fail("dim", "the number of pixels is not known here; give dim");
  if (o.init_std <= 0) config.fail("init_std", "init_std must be positive");
  if (o.softplus && o.init_mean < 0)
    config.fail("init_mean", "softplus pixels have a positive mean");
}

}  // namespace scoreprior::detail
