/** score_elbo: a score model as prior through its evidence lower bound [Song21ml, Feng24], see
 * diffusion/elbo.h. log_prob is an unbiased estimate of weight times the bound; its draws come from
 * the rng that is passed. [prior.score] names the model (weights = "model.safetensors", or an
 * analytic law). Cost: n_times network evaluations per image, one more with the offset. */
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/diffusion/denoising_draw.h"
#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/model_file.h"
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

class ScoreElbo final : public LogDensity, public DenoisingPrior {
 public:
  ScoreElbo(std::unique_ptr<ScoreModel> model, const ScoreElboOptions& options)
      : model_(std::move(model)), options_(options) {}
  Shape event_shape() const override { return model_->event_shape(); }

  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    return elbo(*model_, options_, x, draw_elbo(*model_, options_, x.size(0), rng)).value() *
           options_.weight;
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    auto [terms, grad] =
        elbo_and_grad(*model_, options_, x, draw_elbo(*model_, options_, x.size(0), rng));
    return {terms.value() * options_.weight, grad * options_.weight};
  }

  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override {
    at::NoGradGuard off;
    const ElboTerms t = elbo(*model_, options_, x, draw_elbo(*model_, options_, x.size(0), rng));
    const double w = options_.weight;
    return {{"score_elbo.prior", t.prior * w},
            {"score_elbo.integral", t.integral * w},
            {"score_elbo.offset", t.offset * w}};
  }

  at::Tensor draw_given_noisy(const at::Tensor& noisy, double sigma, double steps,
                              const Rng& rng) const override {
    return draw_denoised(*model_, noisy, sigma, options_.t0, steps, rng);
  }

 private:
  std::unique_ptr<ScoreModel> model_;
  ScoreElboOptions options_;
};

}  // namespace

std::unique_ptr<LogDensity> make_score_elbo(const Config& config, const PriorContext& context) {
  const auto o = config.read<ScoreElboOptions>();
  checked_weight(config, o.weight);
  check_options(config, o);
  auto model = make_score_model(config.table("score"), context.dtype, context.device);
  if (!context.image_shape.empty() && context.image_shape != model->event_shape())
    config.fail("score", "the score model is for images " + to_string(model->event_shape()) +
                             ", the problem has " + to_string(context.image_shape));
  check_model_images("the score model", model->event_shape(), model->range(), model->event_shape(),
                     context.range);
  return std::make_unique<ScoreElbo>(std::move(model), o);
}

}  // namespace scoreprior
