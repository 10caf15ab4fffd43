#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "scoreprior/core/shape.h"

namespace scoreprior {

/// The images `indices` of a generated set, [n,C,H,W] float32: render(index, pixels) fills one
/// image and is called in parallel. Throws std::invalid_argument naming `set` for an index below 0.
at::Tensor rendered_batch(const char* set, const std::vector<int64_t>& indices, const Shape& image,
                          const std::function<void(int64_t index, float* pixels)>& render);

}  // namespace scoreprior
