/// matrix: any linear measurement with real results, from a file.
///   y = A x, x flattened (H,W,C) with C fastest
///   Shapes [B,C,H,W] -> [B,M] for A [M,H*W*C]; linear; naive inverse: least squares of minimum
///   norm. Units are the matrix's own; noise levels are those of one entry.

#include <ATen/ATen.h>

#include "scoreprior/forward/dense_matrix.h"

namespace scoreprior {

std::unique_ptr<ForwardModel> make_matrix(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context, 8);
  const at::Tensor matrix = read_matrix(config, "matrix", shape, context);
  return std::make_unique<DenseMatrix>("matrix", std::move(shape), matrix, 1.0, context);
}

}  // namespace scoreprior
