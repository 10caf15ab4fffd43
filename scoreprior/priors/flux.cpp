/** flux: total flux near a target [Sun21].   log p(x) = -weight (sum x - target_flux)^2,   sum over
 * C, H, W, in the units of the image (Jy for sky images). weight = 1 / (2 sigma_flux^2) is a normal
 * law for the total flux. */
#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

struct FluxOptions {
  double target_flux = 1;
  double weight = 1;
  template <class F>
  void fields(F&& f) {
    f("target_flux", target_flux, "total flux of the image [its own units]");
    f("weight", weight, "nats per squared unit of flux");
  }
};

class FluxPenalty final : public Penalty, public ResidualJacobian {
 public:
  FluxPenalty(Shape shape, const FluxOptions& o)
      : Penalty(std::move(shape), o.weight), target_(o.target_flux), weight_(o.weight) {}
  at::Tensor penalty(const at::Tensor& x) const override {
    return (sum_event(x) - target_).square();
  }
  at::Tensor linear_part() const override {
    return at::full({1, numel(event_shape())}, std::sqrt(2 * weight_), at::kDouble);
  }
  at::Tensor slopes(const at::Tensor&) const override { return {}; }

 private:
  double target_, weight_;
};

}  // namespace

std::unique_ptr<LogDensity> make_flux_prior(const Config& config, const PriorContext& context) {
  auto o = config.read<FluxOptions>();
  o.weight = checked_weight(config, o.weight);
  return std::make_unique<FluxPenalty>(penalty_shape(config, context), o);
}

}  // namespace scoreprior
