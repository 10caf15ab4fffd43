#pragma once
#include <memory>

#include "scoreprior/core/config.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/priors/detail/evaluation_log.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior::detail {

/// The model of a prior's [score] table. Fails with the table's line where it is for images of
/// another shape than the problem's; throws DataError for another range of pixels.
std::unique_ptr<ScoreModel> score_of(const Config& prior, const PriorContext& context);

/// What the priors on a score model share, whichever way they compute log p: the model, and draws
/// given a noisy image by its reverse diffusion (diffusion/denoising_draw.h) down to t0.
class ScorePrior : public LogDensity, public DenoisingPrior {
 public:
  ScorePrior(std::unique_ptr<ScoreModel> model, double weight, double t0)
      : model_(std::move(model)), weight_(weight), t0_(t0) {}
  Shape event_shape() const override { return model_->event_shape(); }
  /// Throws UsageError unless weight is 1: p^weight has another score at every noise.
  at::Tensor draw_given_noisy(const at::Tensor& noisy, double sigma, double steps,
                              const Rng& rng) const override;
  Summary diagnostics() const override { return log_.summary(); }

 protected:
  /// What every evaluation of log p adds to.
  EvaluationLog& log() const { return log_; }
  const ScoreModel& model() const { return *model_; }
  double weight() const { return weight_; }

 private:
  std::unique_ptr<ScoreModel> model_;
  double weight_, t0_;
  mutable EvaluationLog log_;
};

}  // namespace scoreprior::detail
