#pragma once
#include <ATen/core/Tensor.h>

#include <memory>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/log_density.h"

namespace scoreprior {

struct PriorContext {
  Shape image_shape;  ///< {C,H,W}; empty when the prior's own model says
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

/// Priors by name: score_elbo, gaussian, tv, tsv, l1, center, flux, flow, sum. All are LogDensity.
const Catalog<LogDensity, const PriorContext&>& priors();
Catalog<LogDensity, const PriorContext&>& mutable_priors();

}  // namespace scoreprior
