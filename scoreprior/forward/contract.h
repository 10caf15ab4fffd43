#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/forward/forward_model.h"

namespace scoreprior {

/// One promise of a forward model and how well it is kept: error <= limit.
struct ContractFinding {
  std::string name;
  double error = 0;
  double limit = 0;
  std::string text;  ///< what was compared, or what went wrong
  bool kept() const { return error <= limit; }
};

struct ContractOptions {
  int64_t batch = 3;    ///< images looked at together
  double centre = 0.5;  ///< images are centre + spread * N(0,1): inside a nonlinear model's domain
  double spread = 0.25;
};

/// Holds a model that computes in `dtype` against what ForwardModel promises. Errors are relative
/// to the norm of what is compared:
///
///   shapes        apply gives [B, output_shape] in the model's dtype, finite; output_image and
///                 output_channels fit it
///   batch         apply(stack) = stacked singles                  1e-12 (double), 1e-5 (float)
///   wrong input   an unbatched x is std::invalid_argument
///   linear        A(2a - 3b) = 2 A(a) - 3 A(b), linear models     1e-12, 1e-5
///   dot test      |<Ax,y> - <x,A^T y>| / (|Ax||y|), linear models 1e-12, 1e-5
///   gradient      reverse mode = adjoint (linear models)          1e-12, 1e-5
///                 reverse mode = central difference (others)      1e-6, float: 2e-2
///   naive inverse image-shaped and finite, where there is one
///
/// The limits leave room for rounding. It moves a sum of N numbers, whose order batch size and
/// adjoint may change, by about sqrt(N) eps of their size (an FFT by log2(N) eps): 1e-12 allows
/// 2e7 of them in double and 1e-5 7000 in float, before the sizes of what cancels come in.
///
/// A model that throws breaks the promise that was looked at, with the exception's words as text.
std::vector<ContractFinding> check_contract(const ForwardModel& model, at::ScalarType dtype,
                                            at::Device device, const Rng& rng,
                                            const ContractOptions& options = {});

}  // namespace scoreprior
