/** center: centre of light in the middle of the image; closure quantities do not fix the position
 * [Sun21]. log p(x) = -weight/2 ( (r - (H-1)/2)^2 + (c - (W-1)/2)^2 )   [pixels^2], (r, c) =
 * intensity-weighted mean row and column over all channels. Undefined (NaN) for images of zero
 * total flux. */
#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

class CenterPenalty final : public Penalty, public ResidualJacobian {
 public:
  CenterPenalty(Shape shape, double weight) : Penalty(std::move(shape), weight), weight_(weight) {}
  at::Tensor penalty(const at::Tensor& x) const override {
    const auto [row, column, total] = offsets(x);
    return (row.square() + column.square()) * 0.5;
  }
  /// Total flux and its first moments.
  at::Tensor linear_part() const override {
    const Shape shape = event_shape();
    const at::Tensor one = at::ones(shape, at::kDouble);
    const at::Tensor y = from_middle(one, shape[1]).view({1, -1, 1}).expand_as(one);
    const at::Tensor z = from_middle(one, shape[2]).view({1, 1, -1}).expand_as(one);
    return at::stack({one.flatten(), y.flatten(), z.flatten()}, 0);
  }
  /// offset = moment / total
  at::Tensor slopes(const at::Tensor& x) const override {
    const auto [row, column, total] = offsets(x);
    const at::Tensor scale = std::sqrt(weight_) / total, none = at::zeros_like(scale);
    return at::stack(
        {at::stack({-row * scale, scale, none}, 1), at::stack({-column * scale, none, scale}, 1)},
        1);
  }

 private:
  struct Offsets {
    at::Tensor row, column, total;  // [B]
  };
  static at::Tensor from_middle(const at::Tensor& x, int64_t n) {
    return at::arange(n, x.options()) - 0.5 * static_cast<double>(n - 1);
  }
  static Offsets offsets(const at::Tensor& x) {
    const at::Tensor light = x.sum(1);  // [B,H,W]
    const at::Tensor total = light.sum({1, 2});
    return {light.sum(2).matmul(from_middle(x, light.size(1))) / total,
            light.sum(1).matmul(from_middle(x, light.size(2))) / total, total};
  }
  double weight_;
};

}  // namespace

std::unique_ptr<LogDensity> make_center_prior(const Config& config, const PriorContext& context) {
  const auto o = config.read<PenaltyOptions>();
  return std::make_unique<CenterPenalty>(penalty_shape(config, context),
                                         checked_weight(config, o.weight));
}

}  // namespace scoreprior
