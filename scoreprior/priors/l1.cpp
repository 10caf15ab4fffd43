/** l1: sparsity.   log p(x) = -weight mean |x|,   mean over C, H, W of one image [Sun21].
 *  The score is 0 where x = 0. */
#include <ATen/ATen.h>

#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

class L1Penalty final : public Penalty {
 public:
  using Penalty::Penalty;
  at::Tensor penalty(const at::Tensor& x) const override { return x.abs().flatten(1).mean(1); }
};

}  // namespace

std::unique_ptr<LogDensity> make_l1_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<PenaltyOptions>();
  return std::make_unique<L1Penalty>(penalty_shape(config, context),
                                     checked_weight(config, o.weight));
}

}  // namespace scoreprior
