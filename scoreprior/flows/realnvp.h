#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "scoreprior/flows/detail/parameter_map.h"
#include "scoreprior/flows/detail/realnvp_engine.h"
#include "scoreprior/flows/flow.h"

namespace scoreprior {

struct RealNvpOptions {
  int64_t dim = 0;
  int64_t n_flow = 16;
  double seqfrac = 4;
  bool batch_norm = true;
  double norm_clip = 8;
  bool softplus = false;
  int64_t order_seed = 0;
  double init_mean = 0;
  double init_std = 0;

  template <class F>
  void fields(F&& f) {
    f("dim", dim, "number of pixels; 0 = as the image asks");
    f("n_flow", n_flow, "flow steps, two couplings each");
    f("seqfrac", seqfrac, "hidden width is dim / (2 seqfrac), at least 1");
    f("batch_norm", batch_norm, "batch normalisation inside the coupling networks");
    f("norm_clip", norm_clip, "bound on normalised activations [standard deviations]; 0 = none");
    f("softplus", softplus, "positive pixels: x = exp(a) softplus(u)");
    f("order_seed", order_seed, "seed of the pixel permutations");
    f("init_mean", init_mean, "mean of the untrained draws; 0 = the flow's own");
    f("init_std", init_std, "standard deviation of the untrained draws; 0 = the flow's own");
  }
};

/// RealNVP [Dinh17] as used for image posteriors [Sun21]. From the image to the latent, for k =
/// 0..n_flow-1:
///   actnorm1, coupling1, reversal of the pixels, actnorm2, coupling2, reversal, permutation
///   orders[k]
/// with actnorm y = (x + loc) exp(-log_scale_inv) (scalars) and coupling y_b = (x_b + t) exp(tanh
/// s), where [s, t] = net(x_a): dense, leaky-ReLU(0.01), batch norm, dense, leaky-ReLU, batch norm,
/// dense times exp(3 scale). Batch norm uses eps 1e-2 and running = 0.9 running + 0.1 batch with
/// the biased variance. `softplus` appends x = exp(a) softplus(u) on the way to the image.
///
/// With batch statistics a normalised activation cannot exceed sqrt(B-1); with running statistics
/// nothing bounds it, and couplings amplify what lies outside the training range from one to the
/// next: without further measures some draws explode. `norm_clip` bounds it in both cases (never
/// active in training while B <= norm_clip^2 + 1).
///
///   Cost of sample + backward: 6 B (number of weights) operations; the tape holds about 3 n_flow D
///   B numbers. CPU, float32 and float64.
class RealNvp final : public Flow {
 public:
  /// orders[k]: permutation of 0..dim-1; empty = drawn from options.order_seed.
  RealNvp(const RealNvpOptions& options, at::ScalarType dtype,
          std::vector<std::vector<int64_t>> orders = {});
  RealNvp(RealNvp&&) noexcept;
  ~RealNvp() override;

  int64_t dim() const override { return options_.dim; }
  Sample sample(const at::Tensor& z, bool train) override;
  void backward(const at::Tensor& x_bar, const at::Tensor& log_det_bar) override;
  Sample inverse(const at::Tensor& x) const override;

  at::Tensor& flat_parameters() override { return parameters_; }
  at::Tensor& flat_grad() override { return gradient_; }
  std::map<std::string, at::Tensor> named_tensors() const override;
  std::map<std::string, at::Tensor> named_gradients() const;
  /// Accepts files with or without the permutations ("flow.{k}.order").
  void load(const std::map<std::string, at::Tensor>& weights, const std::string& file) override;
  void initialize(const Rng& rng) override;

  void calibrate(const at::Tensor& z) override;
  void freeze(bool on) override { frozen_ = on; }
  at::Tensor flat_statistics() override { return statistics_; }

  const RealNvpOptions& options() const { return options_; }

 private:
  Sample run(const at::Tensor& z, bool batch_statistics, double momentum, bool keep) const;
  void make_plan();
  void make_engine();

  RealNvpOptions options_;
  at::ScalarType dtype_;
  std::vector<std::vector<int64_t>> orders_;
  detail::RealNvpPlan plan_;
  detail::ParameterMap parameter_map_, statistics_map_;
  at::Tensor parameters_, gradient_, statistics_;
  bool frozen_ = false;
  mutable std::unique_ptr<detail::RealNvpEngine<float>> engine_f32_;
  mutable std::unique_ptr<detail::RealNvpEngine<double>> engine_f64_;
};

}  // namespace scoreprior
