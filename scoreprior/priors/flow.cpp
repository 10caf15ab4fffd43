/** flow: weight times log q(x) = log N(z; 0, I) + log |dz/dx|, z = flow^-1(x), of a normalising
 * flow from a weight file. `weights` is a .safetensors file, [prior.flow] the flow (name = realnvp
 * | gaussian_diagonal | gaussian_low_rank and its options). Exact and normalised; batch statistics
 * are the stored ones. Cost: one pass through the couplings. */
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <filesystem>

#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/flows/realnvp.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

constexpr double kBatchNormEps = 1e-2;  // [Sun21]

// The image-to-latent pass of RealNvp in operations that autograd knows; RealNvp::inverse itself is
// a fused kernel without a gradient in x.
class RealNvpInverse {
 public:
  explicit RealNvpInverse(const RealNvp& flow) : o_(flow.options()), w_(flow.named_tensors()) {}

  Flow::Sample operator()(at::Tensor x) const {
    at::Tensor log_det = x.new_zeros({x.size(0)});
    if (o_.softplus) {
      const at::Tensor a = w_.at("softplus.log_scale");
      const at::Tensor positive = x * (-a).exp(), u = positive + at::log(-at::expm1(-positive));
      log_det = log_det - a * static_cast<double>(o_.dim) - (u - positive).sum(1);
      x = u;
    }
    for (int64_t k = 0; k < o_.n_flow; ++k) {
      const std::string step = "flow." + std::to_string(k) + ".";
      for (const char* which : {"1", "2"}) {
        const at::Tensor log_scale = w_.at(step + "actnorm" + which + ".log_scale_inv");
        x = (x + w_.at(step + "actnorm" + which + ".loc")) * (-log_scale).exp();
        log_det = log_det - log_scale * static_cast<double>(o_.dim);
        x = couple(x, step + "coupling" + which, log_det).flip(1);
      }
      x = x.index_select(1, w_.at(step + "order"));
    }
    return {x, log_det};
  }

 private:
  at::Tensor couple(const at::Tensor& x, const std::string& net, at::Tensor& log_det) const {
    const int64_t changed = o_.dim / 2, kept = o_.dim - changed;
    const at::Tensor a = x.slice(1, 0, kept), b = x.slice(1, kept);
    at::Tensor h = a;
    for (const char* i : {"0", "1"}) {
      h = at::leaky_relu(
          at::linear(h, w_.at(net + ".dense" + i + ".weight"), w_.at(net + ".dense" + i + ".bias")),
          0.01);
      if (!o_.batch_norm) continue;
      const std::string bn = net + ".bn" + i;
      h = (h - w_.at(bn + ".running_mean")) * (w_.at(bn + ".running_var") + kBatchNormEps).rsqrt();
      if (o_.norm_clip > 0) h = h.clamp(-o_.norm_clip, o_.norm_clip);
      h = h * w_.at(bn + ".weight") + w_.at(bn + ".bias");
    }
    h = at::linear(h, w_.at(net + ".zerofc.weight"), w_.at(net + ".zerofc.bias")) *
        (w_.at(net + ".zerofc.scale") * 3).exp();
    const at::Tensor s = h.slice(1, 0, changed).tanh();
    log_det = log_det + s.sum(1);
    return at::cat({a, (b + h.slice(1, changed)) * s.exp()}, 1);
  }

  RealNvpOptions o_;
  std::map<std::string, at::Tensor> w_;
};

struct FlowPriorOptions {
  std::filesystem::path weights;
  double weight = 1;
  template <class F>
  void fields(F&& f) {
    f("weights", weights, "weight file of the flow (.safetensors)");
    f("weight", weight, "factor on the log-density");
  }
};

class FlowPrior final : public LogDensity {
 public:
  FlowPrior(std::unique_ptr<Flow> flow, Shape shape, double weight)
      : flow_(std::move(flow)), shape_(std::move(shape)), weight_(weight) {
    if (const auto* nvp = dynamic_cast<const RealNvp*>(flow_.get()))
      differentiable_ = std::make_unique<RealNvpInverse>(*nvp);
  }
  Shape event_shape() const override { return shape_; }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    check_batched("flow prior", "x", x, shape_);
    const at::Tensor flat = x.flatten(1);
    const bool graph = x.requires_grad() && at::GradMode::is_enabled();
    const Flow::Sample latent =
        graph && differentiable_ ? (*differentiable_)(flat) : flow_->inverse(flat);
    return (base_log_prob(latent.x) + latent.log_det) * weight_;
  }

 private:
  std::unique_ptr<Flow> flow_;
  std::unique_ptr<RealNvpInverse> differentiable_;
  Shape shape_;
  double weight_;
};

}  // namespace

std::unique_ptr<LogDensity> make_flow_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<FlowPriorOptions>();
  checked_weight(config, o.weight);
  if (o.weights.empty())
    config.fail("weights", "a flow prior needs `weights = \"flow.safetensors\"`");
  FlowContext flow_context;
  flow_context.dim = context.image_shape.empty() ? 0 : numel(context.image_shape);
  flow_context.dtype = context.dtype;
  flow_context.device = context.device;
  flow_context.event = context.image_shape;
  auto flow = flows().make(config.table("flow"), "realnvp", flow_context);
  flow->load(read_model_file(o.weights).weights, o.weights.string());
  const Shape shape = context.image_shape.empty() ? Shape{flow->dim()} : context.image_shape;
  return std::make_unique<FlowPrior>(std::move(flow), shape, o.weight);
}

}  // namespace scoreprior
