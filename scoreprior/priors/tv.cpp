/** tv: anisotropic total variation [Rudin92, Sun21].
 *  log p(x) = -weight ( mean |x[h+1,w] - x[h,w]| + mean |x[h,w+1] - x[h,w]| ),   each mean over its
 * own difference image. The score is 0 where neighbours agree. */
#include <ATen/ATen.h>

#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

class TvPenalty final : public Penalty {
 public:
  using Penalty::Penalty;
  at::Tensor penalty(const at::Tensor& x) const override {
    return x.diff(1, 2).abs().flatten(1).mean(1) + x.diff(1, 3).abs().flatten(1).mean(1);
  }
};

}  // namespace

std::unique_ptr<LogDensity> make_tv_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<PenaltyOptions>();
  return std::make_unique<TvPenalty>(penalty_shape(config, context),
                                     checked_weight(config, o.weight));
}

}  // namespace scoreprior
