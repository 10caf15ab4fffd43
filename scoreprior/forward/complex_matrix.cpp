/// complex_matrix: any linear measurement with complex results, e.g. visibilities with a
/// precomputed matrix.
///   y = [Re A x, Im A x], x flattened (H,W,C) with C fastest
///   Shapes [B,C,H,W] -> [B,2K] for A [K,H*W*C]; linear; naive inverse: least squares of minimum
///   norm
/// Noise levels are those of one real entry.

#include <ATen/ATen.h>

#include "scoreprior/forward/dense_matrix.h"

namespace scoreprior {

std::unique_ptr<ForwardModel> make_complex_matrix(const Config& config,
                                                  const ForwardContext& context) {
  Shape shape = image_shape(config, context, 8);
  const at::Tensor re = read_matrix(config, "matrix_real", shape, context);
  const at::Tensor im = read_matrix(config, "matrix_imag", shape, context);
  if (im.sizes() != re.sizes())
    config.fail("matrix_imag", "real and imaginary part differ in shape");
  return std::make_unique<DenseMatrix>("complex_matrix", std::move(shape), at::cat({re, im}, 0),
                                       1.0, context);
}

}  // namespace scoreprior
