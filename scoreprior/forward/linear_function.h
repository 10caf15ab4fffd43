#pragma once
#include <ATen/core/Tensor.h>

namespace scoreprior {

/// A linear map given by its two products, for models whose adjoint is faster than reverse mode
/// through `product`. Neither product need be differentiable itself.
class LinearMap {
 public:
  virtual ~LinearMap() = default;
  virtual at::Tensor product(const at::Tensor& x) const = 0;             ///< A x
  virtual at::Tensor transposed_product(const at::Tensor& y) const = 0;  ///< A^T y
};

/// A x, or A^T x, with derivatives of every order in x. The map must outlive the graph.
at::Tensor apply_linear(const LinearMap& map, const at::Tensor& x, bool transposed = false);

}  // namespace scoreprior
