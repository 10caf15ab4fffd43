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

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
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

  /// numbers: nfe (right-hand sides), forwards, vjps, second_order (network rows) per image; the
  /// errors of weight * log p; gradient_difference of check_gradient.
  Summary diagnostics() const override {
    Summary s = ScorePrior::diagnostics();
    const auto at = [&](const char* name) {
      const auto found = s.numbers.find(name);
      return found == s.numbers.end() ? 0.0 : found->second;
    };
    if (at("gradient_difference_max") > options_.gradient_tolerance)
      s.warnings.push_back(detail::concat(
          "two gradients differed by up to ", at("gradient_difference_max"),
          " (gradient_tolerance ", options_.gradient_tolerance, "), on average by ",
          at("gradient_difference_mean"), ": tighten rtol and atol or take more steps"));
    for (const auto& [name, what] :
         {std::make_pair("grad_failed_mean", "the gradient"),
          std::make_pair("gradient_unchecked_mean", "the second gradient")})
      if (at(name) > 0)
        s.warnings.push_back(detail::concat(what, " did not arrive in ",
                                            std::round(at(name) * at("images")), " of ",
                                            at("images"), " evaluations"));
    return s;
  }

 private:
  ProbabilityFlow solve(const at::Tensor& x, const Rng& rng, bool with_grad) const {
    ProbabilityFlow flow = probability_flow_log_prob(
        model(), options_, x, draw_probes(model(), options_, x.size(0), rng), with_grad);
    detail::EvaluationLog::Entry e;
    e.images = x.size(0);
    e.failed = static_cast<int64_t>(flow.summary.numbers.at("failed"));
    e.status = flow.summary.status;
    e.failure = flow.failure;
    e.values = {{"nfe", at::tensor(flow.evaluations, at::kDouble)},
                {"standard_error", flow.standard_error * std::abs(weight())},
                {"solver_error", flow.solver_error * std::abs(weight())},
                {"gradient_difference", flow.gradient_difference}};
    const double images = static_cast<double>(std::max<int64_t>(e.images, 1));
    for (const char* name : {"forwards", "vjps", "second_order"})
      e.means[name] = flow.summary.numbers.at(name);
    for (const char* name : {"grad_failed", "gradient_unchecked"}) {
      const auto n = flow.summary.numbers.find(name);
      e.means[name] = n == flow.summary.numbers.end() ? 0.0 : n->second / images;
    }
    log().add(e);
    return flow;
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
