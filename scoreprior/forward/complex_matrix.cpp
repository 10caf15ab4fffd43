/// complex_matrix: any linear measurement with complex results, e.g. visibilities with a
/// precomputed matrix.
///   y = [Re A x, Im A x], x flattened (H,W,C) with C fastest
///   Shapes [B,C,H,W] -> [B,2K] for A [K,H*W*C]; linear; naive inverse: least squares of minimum
///   norm
/// Noise levels are those of one real entry.

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

class ComplexMatrix final : public ForwardModel {
 public:
  ComplexMatrix(Shape shape, const at::Tensor& re, const at::Tensor& im,
                const ForwardContext& context)
      : shape_(std::move(shape)), stacked64_(at::cat({re, im}, 0)) {
    stacked_ = stacked64_.to(context.device, context.dtype);
  }
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {stacked_.size(0)}; }
  bool linear() const override { return true; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("complex_matrix", "x", x, shape_);
    return at::mm(to_measurement(x), stacked_.t());
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("complex_matrix", "y", y, output_shape());
    return from_measurement(at::mm(y, stacked_), shape_);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("complex_matrix", "y", y, output_shape());
    // A singular value decomposition, for pictures only: not kept.
    const at::Tensor pinv = at::linalg_pinv(stacked64_).to(y.device(), y.scalar_type());
    return from_measurement(at::mm(y, pinv.t()), shape_);
  }

 private:
  Shape shape_;
  at::Tensor stacked64_;  ///< [2K,N] on the CPU
  at::Tensor stacked_;    ///< [2K,N] in the dtype and device of the run
};

}  // namespace

std::unique_ptr<ForwardModel> make_complex_matrix(const Config& config,
                                                  const ForwardContext& context) {
  Shape shape = image_shape(config, context, 8);
  const at::Tensor re = read_array(config, "matrix_real", context.read_array).to(at::kDouble);
  const at::Tensor im = read_array(config, "matrix_imag", context.read_array).to(at::kDouble);
  const int64_t pixels = numel(shape);
  if (re.dim() != 2 || re.size(1) != pixels)
    config.fail("matrix_real", "the matrix is not [K," + std::to_string(pixels) + "]");
  if (im.sizes() != re.sizes())
    config.fail("matrix_imag", "real and imaginary part differ in shape");
  if (!at::isfinite(re).all().item<bool>() || !at::isfinite(im).all().item<bool>())
    throw DataError("[complex_matrix] the matrix has entries that are not finite");
  return std::make_unique<ComplexMatrix>(std::move(shape), re, im, context);
}

}  // namespace scoreprior
