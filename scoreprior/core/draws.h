#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "scoreprior/core/summary.h"

namespace scoreprior {

/// Posterior draws and how they were obtained.
struct Draws {
  at::Tensor x;      ///< [N, event...]
  at::Tensor log_q;  ///< [N] log-density of the sampler's own law, if known
  std::map<std::string, at::Tensor> history;  ///< per-step curves, e.g. "loss" [steps]
  Summary summary;
};

}  // namespace scoreprior
