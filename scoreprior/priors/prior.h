#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <memory>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/log_density.h"

namespace scoreprior {

struct PriorContext {
  Shape image_shape;  ///< {C,H,W}; empty when the prior's own model says
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  /// Reads the array of a file; programs pass io::read_npy. Needed by priors whose table names
  /// array files.
  std::function<at::Tensor(const std::filesystem::path&)> read_array = {};
  /// Range of the problem's pixels, "unit" or "centered", which a score model must share; empty =
  /// any.
  std::string range = {};
};

/// Priors by name: score_elbo, score_ode, gaussian, tv, tsv, l1, center, flux, flow, sum. All are
/// LogDensity.
const Catalog<LogDensity, const PriorContext&>& priors();
Catalog<LogDensity, const PriorContext&>& mutable_priors();

}  // namespace scoreprior
