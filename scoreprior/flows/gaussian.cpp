#include <ATen/ATen.h>

#include <cmath>
#include <tuple>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/flows/detail/gaussian_options.h"
#include "scoreprior/flows/detail/parameter_map.h"
#include "scoreprior/flows/detail/softplus_output.h"
#include "scoreprior/flows/flow.h"

namespace scoreprior {
namespace {

struct LowRankGaussianOptions : detail::GaussianOptions {
  int64_t rank = 8;
  template <class F>
  void fields(F&& f) {
    GaussianOptions::fields(f);
    f("rank", rank, "rank of the mixing");
  }
};

// u = mean + exp(log_std) * (z + U V^T z), x = u or softplus(u);
// log|det du/dz| = sum log_std + log|det(I + V^T U)| (matrix determinant lemma). rank 0: no U, V.
class GaussianFlow final : public Flow {
 public:
  GaussianFlow(const detail::GaussianOptions& o, int64_t rank, const FlowContext& context)
      : o_(o), rank_(rank), output_(o.softplus) {
    type_ = at::TensorOptions().dtype(context.dtype).device(context.device);
    map_.add("mean", {o.dim});
    map_.add("log_std", {o.dim});
    if (rank > 0) {
      map_.add("mix_out", {o.dim, rank});
      map_.add("mix_in", {o.dim, rank});
    }
    parameters_ = at::zeros({map_.size()}, type_);
    gradient_ = at::zeros({map_.size()}, type_);
    initialize(Rng(0));
  }

  int64_t dim() const override { return o_.dim; }

  Sample sample(const at::Tensor& z_in, bool train) override {
    check_batched("gaussian flow", "z", z_in, {o_.dim});
    const at::Tensor z = z_in.to(type_);
    at::Tensor inner = z, projected, log_det = part("log_std").sum().expand({z.size(0)});
    if (rank_ > 0) {
      projected = z.matmul(part("mix_in"));
      inner = z + projected.matmul(part("mix_out").t());
      log_det = log_det + std::get<1>(at::slogdet(capacitance()));
    }
    const at::Tensor spread = part("log_std").exp() * inner, u = part("mean") + spread;
    Sample out{u, log_det.contiguous()};
    output_.apply(out.x, out.log_det);
    if (train) kept_ = {z, projected, spread, u};
    return out;
  }

  void backward(const at::Tensor& x_bar, const at::Tensor& log_det_bar) override {
    SP_CHECK(kept_.z.defined() && kept_.z.sizes() == x_bar.sizes(), "gaussian flow",
             "backward() needs a preceding sample(z, true) of as many rows");
    const at::Tensor ld = log_det_bar.to(type_);
    const at::Tensor g = output_.backward(kept_.u, x_bar.to(type_), ld);
    const at::Tensor ld_sum = ld.sum();
    grad("mean").copy_(g.sum(0));
    grad("log_std").copy_((g * kept_.spread).sum(0) + ld_sum);
    if (rank_ == 0) return;
    const at::Tensor h = g * part("log_std").exp();  // gradient in z + U V^T z
    const at::Tensor inverse = at::linalg_inv(capacitance());
    grad("mix_out").copy_(h.t().matmul(kept_.projected) +
                          ld_sum * part("mix_in").matmul(inverse.t()));
    grad("mix_in").copy_(kept_.z.t().matmul(h.matmul(part("mix_out"))) +
                         ld_sum * part("mix_out").matmul(inverse));
  }

  Sample inverse(const at::Tensor& x_in) const override {
    check_batched("gaussian flow", "x", x_in, {o_.dim});
    at::Tensor u = x_in.to(type_);
    at::Tensor log_det = -part("log_std").sum().expand({u.size(0)});
    output_.invert(u, log_det);
    at::Tensor z = (u - part("mean")) * (-part("log_std")).exp();
    if (rank_ > 0) {
      // Woodbury: (I + U V^T)^-1 = I - U (I + V^T U)^-1 V^T
      const at::Tensor c = capacitance();
      z = z - z.matmul(part("mix_in")).matmul(at::linalg_inv(c).t()).matmul(part("mix_out").t());
      log_det = log_det - std::get<1>(at::slogdet(c));
    }
    return {z, log_det.contiguous()};
  }

  at::Tensor& flat_parameters() override { return parameters_; }
  at::Tensor& flat_grad() override { return gradient_; }
  std::map<std::string, at::Tensor> named_tensors() const override {
    return map_.views(parameters_);
  }
  void load(const std::map<std::string, at::Tensor>& weights, const std::string& file) override {
    map_.load(weights, file, parameters_);
  }

  void initialize(const Rng& rng) override {
    parameters_.zero_();
    double mean = o_.init_mean, std = o_.init_std;
    output_.unmap(mean, std);
    part("mean").fill_(mean);
    part("log_std").fill_(std::log(std));
    if (rank_ == 0) return;
    // One side zero: the mixing starts absent but with a gradient.
    part("mix_in").copy_(rng.split("mix_in").normal({o_.dim, rank_}, at::kDouble) /
                         std::sqrt(static_cast<double>(o_.dim)));
  }

 private:
  at::Tensor part(const std::string& name) const { return map_.view(parameters_, name); }
  at::Tensor grad(const std::string& name) { return map_.view(gradient_, name); }
  at::Tensor capacitance() const {
    return at::eye(rank_, type_) + part("mix_in").t().matmul(part("mix_out"));
  }

  struct Kept {
    at::Tensor z, projected, spread, u;
  };
  detail::GaussianOptions o_;
  int64_t rank_;  // 0: independent pixels
  detail::SoftplusOutput output_;
  at::TensorOptions type_;
  detail::ParameterMap map_;
  at::Tensor parameters_, gradient_;
  Kept kept_;
};

}  // namespace

std::unique_ptr<Flow> make_gaussian_diagonal(const Config& config, const FlowContext& context) {
  auto o = config.read<detail::GaussianOptions>();
  complete(o, config, context);
  return std::make_unique<GaussianFlow>(o, 0, context);
}

/// A full Gaussian up to rank `rank`: covariance S (I + U V^T)(I + U V^T)^T S with S = diag(exp
/// log_std).
std::unique_ptr<Flow> make_gaussian_low_rank(const Config& config, const FlowContext& context) {
  auto o = config.read<LowRankGaussianOptions>();
  if (o.rank < 1) config.fail("rank", "rank must be at least 1");
  complete(o, config, context);
  return std::make_unique<GaussianFlow>(o, o.rank, context);
}

}  // namespace scoreprior
