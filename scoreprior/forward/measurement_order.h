#pragma once
/// Image-like arrays as measurement vectors: flattened (H,W,C) with C fastest, complex numbers as
/// real then imaginary halves.

#include <ATen/core/Tensor.h>

#include "scoreprior/core/shape.h"

namespace scoreprior {

/// [B,C,H,W] -> [B,H*W*C].
at::Tensor to_measurement(const at::Tensor& image);
/// [B,H*W*C] -> [B,C,H,W] for shape {C,H,W}.
at::Tensor from_measurement(const at::Tensor& vector, const Shape& shape);
/// Complex [B,C,H,W] -> [B,2*H*W*C].
at::Tensor complex_to_measurement(const at::Tensor& image);
/// [B,2*H*W*C] -> complex [B,C,H,W].
at::Tensor complex_from_measurement(const at::Tensor& vector, const Shape& shape);

}  // namespace scoreprior
