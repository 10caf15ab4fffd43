#include "scoreprior/priors/detail/score_prior.h"

#include <string>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/denoising_draw.h"
#include "scoreprior/diffusion/model_file.h"

namespace scoreprior::detail {

std::unique_ptr<ScoreModel> score_of(const Config& prior, const PriorContext& context) {
  auto model = make_score_model(prior.table("score"), context.dtype, context.device);
  if (!context.image_shape.empty() && context.image_shape != model->event_shape())
    prior.fail("score", "the score model is for images " + to_string(model->event_shape()) +
                            ", the problem has " + to_string(context.image_shape));
  check_model_images("the score model", model->event_shape(), model->range(), model->event_shape(),
                     context.range);
  return model;
}

at::Tensor ScorePrior::draw_given_noisy(const at::Tensor& noisy, double sigma, double steps,
                                        const Rng& rng) const {
  if (weight_ != 1)
    throw UsageError(
        "draws by denoising are those of the score model itself: its prior must have weight 1");
  return draw_denoised(*model_, noisy, sigma, t0_, steps, rng);
}

}  // namespace scoreprior::detail
