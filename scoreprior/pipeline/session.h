#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "scoreprior/core/config.h"

namespace scoreprior {

/// Where and in which precision a command computes.
struct Session {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

/// device: "" | auto | cpu | cuda; dtype: "" | float32 | float64. Throws UsageError.
Session make_session(const std::string& device, const std::string& dtype);
/// From the table [run].
Session make_session(const Config& run);

}  // namespace scoreprior
