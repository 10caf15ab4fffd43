#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {
namespace {

// The bound at times and noises from outside, or at its own draws.
io::Arrays eval_score_elbo(const EvalRequest& r, const Config& prior, const ScoreModel& model) {
  const auto options = prior.read<ElboOptions>();
  const at::Tensor x = r.input("x");
  check_batched("eval logp", "x", x, model.event_shape());
  ElboDraws draws;
  if (r.has("times") || r.has("noise")) {
    draws.times = r.in.count("times") ? r.in.at("times").to(r.device, at::kDouble) : r.input("times");
    draws.noise = r.input("noise");
    if (r.has("noise_prior")) draws.noise_prior = r.input("noise_prior");
    if (options.offset) draws.noise_offset = r.input("noise_offset");
  } else {
    const auto seed = static_cast<uint64_t>(r.config.get<int64_t>("seed", 0));
    draws = draw_elbo(model, options, x.size(0), Rng(seed).split("eval.logp"));
  }
  io::Arrays out;
  ElboTerms terms;
  if (r.wants("grad")) {
    std::tie(terms, out["grad"]) = elbo_and_grad(model, options, x, draws);
  } else {
    at::NoGradGuard off;
    terms = elbo(model, options, x, draws);
  }
  out["logp"] = terms.value();
  out["terms"] = at::stack({terms.prior, terms.integral, terms.offset}, 1);
  const int64_t evaluations = draws.times.size(0) + (draws.noise_offset.defined() ? 1 : 0);
  out["nfe"] = at::full({x.size(0)}, evaluations, at::kLong);
  return out;
}

struct LogpMethod {
  const char* name;
  io::Arrays (*evaluate)(const EvalRequest&, const Config& prior, const ScoreModel&);
};
constexpr LogpMethod kLogpMethods[] = {{"score_elbo", eval_score_elbo}};

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
