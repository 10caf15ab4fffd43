/** score_ode: a score model as prior through the probability-flow ODE [Song21, Feng23], see
 * diffusion/probability_flow.h and docs/logp.md. log_prob is weight times the density at t0 of x,
 * in nats, over the model's own real pixels (no dequantisation, no change of data range): exact up
 * to the solver's error (trace = exact) or unbiased in the trace (hutchinson; probes from
 * the rng that is passed). An image whose solver does not arrive, or that is not finite, has log p
 * = NaN. The gradient is the one of the computed number (adjoint = checkpoint, direct) or the
 * adjoint ODE's (backsolve). [prior.score] names the model. Cost: right-hand sides x (one network
 * forward + n_probes vector-Jacobian products) for a value; the gradient goes through each once
 * more with the derivative of these products. A batch beyond max_batch, or beyond memory, is
 * split. */
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

struct ScoreOdeOptions : ProbabilityFlowOptions {
  double weight = 1;
  ScoreOdeOptions() {
    solver = "exp4m";
    rtol = atol = 1e-4;
  }
  template <class F>
  void fields(F&& f) {
    ProbabilityFlowOptions::fields(f);
    f("weight", weight, "factor on the log-density");
  }
};

class ScoreOde final : public LogDensity {
 public:
  ScoreOde(std::unique_ptr<ScoreModel> model, const ScoreOdeOptions& options)
      : model_(std::move(model)), options_(options) {}
  Shape event_shape() const override { return model_->event_shape(); }

  /// Differentiable once: the gradient is the adjoint's, attached to the value.
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    if (!(x.requires_grad() && at::GradMode::is_enabled()))
      return solve(x, rng, false).log_prob * options_.weight;
    const auto [value, score] = value_and_score(x, rng);
    return value + sum_event((x - x.detach()) * score);
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    const ProbabilityFlow flow = solve(x, rng, true);
    return {flow.log_prob * options_.weight, flow.grad * options_.weight};
  }

  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override {
    const ProbabilityFlow flow = solve(x, rng, false);
    const at::Tensor prior = model_->sde().prior_log_prob(flow.latent);
    return {{"score_ode.prior", prior * options_.weight},
            {"score_ode.volume", (flow.log_prob - prior) * options_.weight}};
  }

 private:
  ProbabilityFlow solve(const at::Tensor& x, const Rng& rng, bool with_grad) const {
    return probability_flow_log_prob(*model_, options_, x,
                                     draw_probes(*model_, options_, x.size(0), rng), with_grad);
  }

  std::unique_ptr<ScoreModel> model_;
  ScoreOdeOptions options_;
};

}  // namespace

std::unique_ptr<LogDensity> make_score_ode(const Config& config, const PriorContext& context) {
  const auto o = config.read<ScoreOdeOptions>();
  checked_weight(config, o.weight);
  check_options(config, o);
  if (config.table("score").get<bool>("bfloat16", false))
    config.table("score").fail("bfloat16", "the exact log-density needs float32 convolutions");
  auto model = make_score_model(config.table("score"), context.dtype, context.device);
  if (!context.image_shape.empty() && context.image_shape != model->event_shape())
    config.fail("score", "the score model is for images " + to_string(model->event_shape()) +
                             ", the problem has " + to_string(context.image_shape));
  check_model_images("the score model", model->event_shape(), model->range(), model->event_shape(),
                     context.range);
  return std::make_unique<ScoreOde>(std::move(model), o);
}

}  // namespace scoreprior
