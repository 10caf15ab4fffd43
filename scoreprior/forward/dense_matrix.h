#pragma once
#include <ATen/core/Tensor.h>

#include "scoreprior/forward/forward_model.h"

namespace scoreprior {

/// y = M x for a dense real matrix, x flattened (H,W,C) with C fastest; linear; cost 2 B M N.
class DenseMatrix final : public ForwardModel {
 public:
  /// matrix [rows, H*W*C] float64; the run computes in the context's dtype.
  DenseMatrix(const char* name, Shape shape, at::Tensor matrix, double noise_scale,
              const ForwardContext& context);
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override;
  int64_t output_channels() const override { return 1; }
  bool linear() const override { return true; }
  double noise_scale() const override { return noise_scale_; }
  at::Tensor apply(const at::Tensor& x) const override;
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override;
  /// Least squares of minimum norm, by singular value decomposition at every call: for pictures.
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override;

 private:
  const char* name_;
  Shape shape_;
  double noise_scale_;
  at::Tensor matrix64_;  ///< on the CPU
  at::Tensor matrix_;    ///< in the dtype and device of the run
};

/// The matrix that `key` names: [rows, pixels], finite. ConfigError, DataError.
at::Tensor read_matrix(const Config& config, const char* key, const Shape& shape,
                       const ForwardContext& context);

}  // namespace scoreprior
