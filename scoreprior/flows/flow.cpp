#include "scoreprior/flows/flow.h"

#include <ATen/ATen.h>

#include <cmath>

namespace scoreprior {

at::Tensor base_log_prob(const at::Tensor& z) {
  constexpr double kLog2Pi = 1.8378770664093454836;
  return z.square().flatten(1).sum(1) * -0.5 - 0.5 * kLog2Pi * static_cast<double>(z[0].numel());
}

}  // namespace scoreprior
