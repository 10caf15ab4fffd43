#pragma once
#include <ATen/core/Tensor.h>

namespace scoreprior::nets {

/// 2-D convolution of channels-last x with weight [O,I,k,k] and bias [O], zero padding; channels-last out.
at::Tensor conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  int64_t stride = 1, int64_t padding = 1);

}  // namespace scoreprior::nets
