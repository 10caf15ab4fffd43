/** tsv: total squared variation, for smooth images [Kuramochi18, Sun21].
 *  log p(x) = -weight ( mean (x[h+1,w] - x[h,w])^2 + mean (x[h,w+1] - x[h,w])^2 ),   each mean over
 * its own difference image. */
#include <ATen/ATen.h>

#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

class TsvPenalty final : public Penalty {
 public:
  using Penalty::Penalty;
  at::Tensor penalty(const at::Tensor& x) const override {
    return x.diff(1, 2).square().flatten(1).mean(1) + x.diff(1, 3).square().flatten(1).mean(1);
  }
};

}  // namespace

std::unique_ptr<LogDensity> make_tsv_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<PenaltyOptions>();
  return std::make_unique<TsvPenalty>(penalty_shape(config, context),
                                      checked_weight(config, o.weight));
}

}  // namespace scoreprior
