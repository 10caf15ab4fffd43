#include "scoreprior/forward/dense_matrix.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {

DenseMatrix::DenseMatrix(const char* name, Shape shape, at::Tensor matrix, double noise_scale,
                         const ForwardContext& context)
    : name_(name),
      shape_(std::move(shape)),
      noise_scale_(noise_scale),
      matrix64_(std::move(matrix)),
      matrix_(matrix64_.to(context.device, context.dtype)) {
  SP_CHECK(matrix64_.dim() == 2 && matrix64_.size(1) == numel(shape_), name_,
           "expected a matrix [M,", numel(shape_), "], got ", matrix64_.sizes());
}

Shape DenseMatrix::output_shape() const { return {matrix_.size(0)}; }

at::Tensor DenseMatrix::apply(const at::Tensor& x) const {
  check_batched(name_, "x", x, shape_);
  return at::mm(to_measurement(x), matrix_.t());
}

std::optional<at::Tensor> DenseMatrix::adjoint(const at::Tensor& y) const {
  check_batched(name_, "y", y, output_shape());
  return from_measurement(at::mm(y, matrix_), shape_);
}

std::optional<at::Tensor> DenseMatrix::naive_inverse(const at::Tensor& y) const {
  check_batched(name_, "y", y, output_shape());
  const at::Tensor pinv = at::linalg_pinv(matrix64_).to(y.device(), y.scalar_type());
  return from_measurement(at::mm(y, pinv.t()), shape_);
}

at::Tensor read_matrix(const Config& config, const char* key, const Shape& shape,
                       const ForwardContext& context) {
  const at::Tensor m = read_array(config, key, context.read_array);
  const int64_t pixels = numel(shape);
  if (m.is_complex())
    config.fail(key, "the matrix is complex; complex_matrix takes two real files");
  if (m.dim() != 2 || m.size(1) != pixels)
    config.fail(key, "the matrix is not [K," + std::to_string(pixels) + "]");
  const at::Tensor m64 = m.to(at::kDouble);
  if (!at::isfinite(m64).all().item<bool>())
    throw DataError(std::string("[") + key + "] the matrix has entries that are not finite");
  return m64;
}

}  // namespace scoreprior
