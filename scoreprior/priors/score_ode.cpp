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

#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/priors/detail/score_prior.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

struct ScoreOdeOptions : ProbabilityFlowOptions {
  double weight = 1;
  template <class F>
  void fields(F&& f) {
    ProbabilityFlowOptions::fields(f);
    f("weight", weight, "factor on the log-density");
  }
};

class ScoreOde final : public detail::ScorePrior {
 public:
  ScoreOde(std::unique_ptr<ScoreModel> model, const ScoreOdeOptions& options)
      : ScorePrior(std::move(model), options.weight, options.t0), options_(options) {}

  /// Differentiable once: the gradient is the adjoint's, attached to the value.
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    if (!(x.requires_grad() && at::GradMode::is_enabled()))
      return solve(x, rng, false).log_prob * weight();
    const auto [value, score] = value_and_score(x, rng);
    return value + sum_event((x - x.detach()) * score);
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    const ProbabilityFlow flow = solve(x, rng, true);
    return {flow.log_prob * weight(), flow.grad * weight()};
  }

  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override {
    const ProbabilityFlow flow = solve(x, rng, false);
    const at::Tensor prior = model().sde().prior_log_prob(flow.latent);
    return {{"score_ode.prior", prior * weight()},
            {"score_ode.volume", (flow.log_prob - prior) * weight()}};
  }

 private:
  ProbabilityFlow solve(const at::Tensor& x, const Rng& rng, bool with_grad) const {
    return probability_flow_log_prob(model(), options_, x,
                                     draw_probes(model(), options_, x.size(0), rng), with_grad);
  }

  ScoreOdeOptions options_;
};

}  // namespace

std::unique_ptr<LogDensity> make_score_ode(const Config& config, const PriorContext& context) {
  const auto o = config.read<ScoreOdeOptions>();
  checked_weight(config, o.weight);
  check_options(config, o);
  if (config.table("score").get<bool>("bfloat16", false))
    config.table("score").fail("bfloat16", "the exact log-density needs float32 convolutions");
  return std::make_unique<ScoreOde>(detail::score_of(config, context), o);
}

}  // namespace scoreprior
