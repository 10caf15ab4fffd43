#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace scoreprior {

using Shape = std::vector<int64_t>;

/// "[3,32,32]"
std::string to_string(const Shape& shape);

/// Number of elements of one event.
int64_t numel(const Shape& shape);

/// {batch, event...}
Shape batched(int64_t batch, const Shape& event);

/// Throws std::invalid_argument "[where] expected x [B,1,16,16], got [16,16]" unless x is [B,
/// event...].
void check_batched(const char* where, const char* name, const at::Tensor& x, const Shape& event);

/// Sum over every axis but the first: [B, ...] -> [B].
at::Tensor sum_event(const at::Tensor& x);

/// a [B] reshaped to [B,1,1,...] so that it broadcasts against x [B, ...].
at::Tensor expand_like_batch(const at::Tensor& a, const at::Tensor& x);

}  // namespace scoreprior
