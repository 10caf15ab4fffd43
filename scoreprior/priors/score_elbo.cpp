/** score_elbo: a score model as prior through its evidence lower bound [Song21ml, Feng24], see
 * diffusion/elbo.h. log_prob is an unbiased estimate of weight times the bound; its draws come from
 * the rng that is passed. [prior.score] names the model (weights = "model.safetensors", or an
 * analytic law). Cost: n_times network evaluations per image, one more with the offset. */
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/priors/detail/score_prior.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

struct ScoreElboOptions : ElboOptions {
  double weight = 1;
  template <class F>
  void fields(F&& f) {
    ElboOptions::fields(f);
    f("weight", weight, "factor on the bound");
  }
};

class ScoreElbo final : public detail::ScorePrior {
 public:
  ScoreElbo(std::unique_ptr<ScoreModel> model, const ScoreElboOptions& options)
      : ScorePrior(std::move(model), options.weight, options.t0), options_(options) {}

  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    return elbo(model(), options_, x, draws(x, rng)).value() * weight();
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    auto [terms, grad] = elbo_and_grad(model(), options_, x, draws(x, rng));
    return {terms.value() * weight(), grad * weight()};
  }

  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override {
    at::NoGradGuard off;
    const ElboTerms t = elbo(model(), options_, x, draws(x, rng));
    const double w = weight();
    return {{"score_elbo.prior", t.prior * w},
            {"score_elbo.integral", t.integral * w},
            {"score_elbo.offset", t.offset * w}};
  }

 private:
  ElboDraws draws(const at::Tensor& x, const Rng& rng) const {
    detail::EvaluationLog::Entry e;
    e.images = x.size(0);
    e.means["nfe"] = static_cast<double>(options_.n_times + (options_.offset ? 1 : 0));
    log().add(e);
    return draw_elbo(model(), options_, x.size(0), rng);
  }

  ScoreElboOptions options_;
};

}  // namespace

std::unique_ptr<LogDensity> make_score_elbo(const Config& config, const PriorContext& context) {
  const auto o = config.read<ScoreElboOptions>();
  checked_weight(config, o.weight);
  check_options(config, o);
  return std::make_unique<ScoreElbo>(detail::score_of(config, context), o);
}

}  // namespace scoreprior
