#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {
namespace {

// The images and what belongs to them in the model's event shape: analytic laws may be written for
// flat vectors.
class LogpInputs {
 public:
  LogpInputs(const EvalRequest& r, const ScoreModel& model)
      : r_(r), event_(model.event_shape()), x_(r.input("x")) {
    if (x_.dim() < 2 || x_.numel() != x_.size(0) * numel(event_))
      throw DataError("eval logp: expected x [B,C,H,W] for a model of images " + to_string(event_) +
                      ", got " + to_string(x_.sizes().vec()));
  }
  at::Tensor x() const { return x_.reshape(batched(x_.size(0), event_)); }
  /// Input `name` [lead...,event...] with `lead` leading axes.
  at::Tensor images(const std::string& name, int64_t lead) const {
    const at::Tensor a = r_.input(name);
    Shape shape(a.sizes().begin(), a.sizes().begin() + std::min<int64_t>(lead, a.dim()));
    shape.insert(shape.end(), event_.begin(), event_.end());
    if (a.dim() < lead || numel(shape) != a.numel())
      throw DataError("eval logp: " + name + " " + to_string(a.sizes().vec()) +
                      " does not hold images " + to_string(event_));
    return a.reshape(shape);
  }
  at::Tensor like_x(const at::Tensor& a) const { return a.reshape(x_.sizes()); }
  Rng rng() const {
    return Rng(static_cast<uint64_t>(r_.config.get<int64_t>("seed", 0))).split("eval.logp");
  }

 private:
  const EvalRequest& r_;
  Shape event_;
  at::Tensor x_;
};

// An image without a value does not take the others with it: its value is NaN and the sentence goes
// to the caller. Throws DataError when no image has one.
void report_failed(const EvalRequest& r, const at::Tensor& log_prob, const std::string& why) {
  const int64_t n = log_prob.numel(),
                failed = at::isfinite(log_prob).logical_not().sum().item<int64_t>();
  if (failed == 0) return;
  const std::string sentence =
      detail::concat("eval logp: ", why, " in ", failed, " of ", n, " images");
  if (failed == n) throw DataError(sentence);
  r.note(sentence);
}

// The bound at times and noises from outside, or at its own draws.
io::Arrays eval_score_elbo(const EvalRequest& r, const Config& prior, const ScoreModel& model) {
  const auto options = prior.read<ElboOptions>();
  check_options(prior, options);
  const LogpInputs inputs(r, model);
  const at::Tensor x = inputs.x();
  ElboDraws draws;
  if (r.has("times") || r.has("noise")) {
    draws.times = r.input("times");
    draws.noise = inputs.images("noise", 2);
    if (r.has("noise_prior")) draws.noise_prior = inputs.images("noise_prior", 1);
    if (options.offset) draws.noise_offset = inputs.images("noise_offset", 1);
  } else {
    draws = draw_elbo(model, options, x.size(0), inputs.rng());
  }
  io::Arrays out;
  ElboTerms terms;
  if (r.wants("grad")) {
    at::Tensor grad;
    std::tie(terms, grad) = elbo_and_grad(model, options, x, draws);
    out["grad"] = inputs.like_x(grad);
  } else {
    at::NoGradGuard off;
    terms = elbo(model, options, x, draws);
  }
  out["logp"] = terms.value();
  report_failed(r, out["logp"], "the bound is not finite");
  out["terms"] = at::stack({terms.prior, terms.integral, terms.offset}, 1);
  const int64_t evaluations = draws.times.size(0) + (draws.noise_offset.defined() ? 1 : 0);
  out["nfe"] = at::full({x.size(0)}, evaluations, at::kLong);
  return out;
}

// The probability-flow value with probes [n,C,H,W] from outside (shared by the images), or with its
// own.
io::Arrays eval_score_ode(const EvalRequest& r, const Config& prior, const ScoreModel& model) {
  const auto options = prior.read<ProbabilityFlowOptions>();
  check_options(prior, options);
  const LogpInputs inputs(r, model);
  const at::Tensor x = inputs.x();
  const at::Tensor probes = r.has("probes") ? inputs.images("probes", 1).unsqueeze(1)
                                            : draw_probes(model, options, x.size(0), inputs.rng());
  const ProbabilityFlow flow =
      probability_flow_log_prob(model, options, x, probes, r.wants("grad"));
  report_failed(r, flow.log_prob, flow.failure);
  for (const auto& warning : flow.summary.warnings) r.note("eval logp: warning: " + warning);
  const at::Tensor prior_term = model.sde().prior_log_prob(flow.latent);
  io::Arrays out;
  out["logp"] = flow.log_prob;
  out["latent"] = inputs.like_x(flow.latent);
  out["standard_error"] = flow.standard_error;
  out["solver_error"] = flow.solver_error;
  out["bits_per_dim"] = bits_per_dim(flow.log_prob, model.event_shape());
  out["nfe"] = at::tensor(flow.evaluations, at::kLong);
  out["terms"] = at::stack({prior_term, flow.log_prob - prior_term}, 1);
  if (flow.grad.defined()) out["grad"] = inputs.like_x(flow.grad);
  return out;
}

struct LogpMethod {
  const char* name;
  io::Arrays (*evaluate)(const EvalRequest&, const Config& prior, const ScoreModel&);
};
constexpr LogpMethod kLogpMethods[] = {{"score_elbo", eval_score_elbo},
                                       {"score_ode", eval_score_ode}};

}  // namespace

io::Arrays eval_logp(const EvalRequest& r) {
  const Config prior = r.config.table("prior");
  std::vector<std::string> names;
  for (const auto& m : kLogpMethods) names.push_back(m.name);
  const std::string name = prior.one_of("name", names.front(), names);
  const auto model = make_score_model(prior.table("score"), r.dtype, r.device);
  for (const auto& m : kLogpMethods)
    if (name == m.name) return m.evaluate(r, prior, *model);
  prior.fail("name", "unknown method");
}

}  // namespace scoreprior
