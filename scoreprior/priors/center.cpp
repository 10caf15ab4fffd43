/** center: centre of light in the middle of the image; closure quantities do not fix the position
 * [Sun21]. log p(x) = -weight/2 ( (r - (H-1)/2)^2 + (c - (W-1)/2)^2 )   [pixels^2], (r, c) =
 * intensity-weighted mean row and column over all channels. Undefined (NaN) for images of zero
 * total flux. */
#include <ATen/ATen.h>

#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

class CenterPenalty final : public Penalty {
 public:
  using Penalty::Penalty;
  at::Tensor penalty(const at::Tensor& x) const override {
    const at::Tensor light = x.sum(1);  // [B,H,W]
    const at::Tensor total = light.sum({1, 2});
    const auto offset = [&](int64_t axis) {
      const int64_t n = light.size(axis);
      const at::Tensor index = at::arange(n, x.options()) - 0.5 * static_cast<double>(n - 1);
      return light.sum(axis == 1 ? 2 : 1).matmul(index) / total;
    };
    return (offset(1).square() + offset(2).square()) * 0.5;
  }
};

}  // namespace

std::unique_ptr<LogDensity> make_center_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<PenaltyOptions>();
  return std::make_unique<CenterPenalty>(penalty_shape(config, context),
                                         checked_weight(config, o.weight));
}

}  // namespace scoreprior
