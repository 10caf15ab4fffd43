#pragma once
/// A mixture of isotropic Gaussians: images of a law whose density is known exactly.
///
///   p(x) = sum_k w_k N(x; m_k, s_k^2 I)
///
/// The default is the two-component mixture of `scoreprior demo 2d`.

#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

struct GmmOptions {
  std::vector<int64_t> shape = {2, 1, 1};
  std::vector<double> weights = {0.5, 0.5};
  std::vector<double> means = {0.5, 0.5, -0.5, -0.5};
  std::vector<double> sigmas = {0.1, 0.1};
  uint64_t seed = 0;
  template <class F>
  void fields(F&& f) {
    f("shape", shape, "shape of an image [channels, height, width]");
    f("weights", weights, "weights of the components; they are normalised");
    f("means", means, "means of the components, one after the other");
    f("sigmas", sigmas, "standard deviation of each component's entries");
    f("seed", seed, "the family's seed");
  }
};

class Gmm final : public Dataset {
 public:
  /// std::invalid_argument for options that do not fit together.
  Gmm(const GmmOptions& options, const std::string& split);

  Shape image_shape() const override { return options_.shape; }
  int64_t size() const override { return 0; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string describe() const override;

  /// Exact log-density in nats, x [B,C,H,W] -> [B], in x's own precision; differentiable.
  at::Tensor log_prob(const at::Tensor& x) const;

 private:
  GmmOptions options_;
  std::string split_;
  Rng rng_;
  std::vector<double> cumulative_;
};

}  // namespace scoreprior
