#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// y = A(x), noise-free. x [B,C,H,W]; y [B,M] or [B,out...], real numbers (complex data as real then imaginary parts).
class ForwardModel {
 public:
  virtual ~ForwardModel() = default;
  virtual Shape input_shape() const = 0;
  virtual Shape output_shape() const = 0;
  virtual bool linear() const = 0;
  /// Differentiable in x.
  virtual at::Tensor apply(const at::Tensor& x) const = 0;
  /// A^T y for linear models, else nullopt.
  virtual std::optional<at::Tensor> adjoint(const at::Tensor& y) const { return std::nullopt; }
  /// A cheap picture of what was measured (zero-filled inverse, dirty image), [B,C,H,W], if there is one.
  virtual std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const { return std::nullopt; }
  /// How the noise level a user states becomes the standard deviation of one real entry of y: 1, or 1/sqrt(2) for
  /// complex measurements.
  virtual double noise_scale() const { return 1.0; }
};

/// Every maker sees the dtype and device the run computes in.
struct ForwardContext {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

const Catalog<ForwardModel, const ForwardContext&>& forward_models();
Catalog<ForwardModel, const ForwardContext&>& mutable_forward_models();

}  // namespace scoreprior
