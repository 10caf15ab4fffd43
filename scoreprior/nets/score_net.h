#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// A network ([B,C,H,W], label [B]) -> [B,C,H,W]. Knows no SDE: the label is whatever
/// Sde::network_label says. Parameters by the clear names of the weight files
/// ("down.0.block.1.conv0.weight").
class ScoreNet {
 public:
  virtual ~ScoreNet() = default;

  virtual Shape image_shape() const = 0;  ///< {C,H,W}
  /// Differentiable in x, and in the parameters unless frozen. `dropout` gives the masks of a
  /// training pass; null is evaluation.
  virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& label,
                             const Rng* dropout = nullptr) const = 0;

  /// Live parameters, by clear name; changing them changes the network.
  virtual std::map<std::string, at::Tensor> parameters() const = 0;
  /// Fixed tensors that belong to the weights (fourier.W).
  virtual std::map<std::string, at::Tensor> buffers() const = 0;
  /// Throws DataError naming the first missing, surplus or wrongly shaped tensor.
  void load(const std::map<std::string, at::Tensor>& weights, const std::string& file);
  /// Fresh weights from rng.
  virtual void initialize(const Rng& rng) = 0;
  /// Cast and move parameters and buffers.
  virtual void to(at::ScalarType dtype, at::Device device) = 0;
  /// No parameter asks for a gradient any more; lets the implementation drop what only training
  /// needs.
  virtual void freeze() = 0;
  /// float32 networks: operands, results and their gradients rounded to bfloat16 in every
  /// convolution, sums in float32; norms, attention and embeddings are as before. Uses the
  /// processor's or GPU's bfloat16 units where there are any, otherwise rounds and is no faster.
  /// Relative error of the output about 1 %: for training and bounds, not for exact log p.
  virtual void use_bfloat16_convolutions() = 0;
  /// Raw parameter storage was changed outside autograd (optimiser): drop packed copies.
  virtual void parameters_changed() {}
};

/// name = ncsnpp | ddpm, with the options of the weight file's own metadata.
const Catalog<ScoreNet>& score_nets();
Catalog<ScoreNet>& mutable_score_nets();

}  // namespace scoreprior
