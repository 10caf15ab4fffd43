/// gaussian: independent Gaussian noise on any forward model.
///   log p(y|x) = -sum ((y - A x)/sigma)^2 / 2  [- sum ln(sigma sqrt(2 pi)) if normalized] [nats]
/// sigma is
///   a number        the user's noise level; one real entry then has sigma * noise_scale of the
///                   forward model, i.e. sigma/sqrt(2) for complex measurements
///   a list          such a level for each channel of y, its fastest index: image channels, coils
///   a file, or the  a scalar or one standard deviation per real entry, taken as it is
///   observation's

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/measurement_likelihood.h"

namespace scoreprior {
namespace {

class GaussianLikelihood : public MeasurementLikelihood {
 public:
  GaussianLikelihood(MeasuredVector measured, const at::Tensor& sigma, bool normalized,
                     const LikelihoodContext& context)
      : MeasurementLikelihood(std::move(measured), context) {
    const at::Tensor s = sigma.expand({measurement().size(1)});
    if (normalized) log_constant_ = -(s.log() + std::log(2 * M_PI) / 2).sum().item<double>();
    sigma_ = s.to(context.device, context.dtype).unsqueeze(0);
    inverse_sigma_ = s.reciprocal().to(context.device, context.dtype).unsqueeze(0);
  }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    return residuals(x).square().sum(1) * -0.5 + log_constant_;
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    if (!forward_model().linear()) return LogDensity::value_and_score(x, rng);
    at::NoGradGuard no_grad;
    const at::Tensor r = residuals(x.detach());
    return {r.square().sum(1) * -0.5 + log_constant_, transposed(r * inverse_sigma_)};
  }

  /// [B,M] (y - A x)/sigma.
  at::Tensor residuals(const at::Tensor& x) const override {
    return (measurement() - clean(x)) * inverse_sigma_;
  }

  /// Mean squared residual per real entry; 1 is expected under the truth.
  ChiSquares chi2(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    return {{"chi2", residuals(x).square().mean(1)}};
  }

  Observation simulate(const at::Tensor& x, const Rng& rng) const override {
    at::NoGradGuard no_grad;
    const at::Tensor y = clean(x);
    const at::Tensor noise =
        rng.split("noise").normal(Shape{1, y.size(1)}, y.scalar_type()).to(y.device());
    Observation out = observed(y + noise * sigma_, x);
    out.sigma = sigma_.reshape(forward_model().output_shape()).clone();
    return out;
  }

 protected:
  at::Tensor spread() const override { return sigma_.squeeze(0); }
  const at::Tensor& inverse_sigma() const { return inverse_sigma_; }

 private:
  at::Tensor sigma_, inverse_sigma_;  // [1,M]
  double log_constant_ = 0;
};

/// A linear forward model: T = -A / sigma.
class LinearGaussianLikelihood final : public GaussianLikelihood, public ResidualJacobian {
 public:
  using GaussianLikelihood::GaussianLikelihood;
  at::Tensor linear_part() const override { return -matrix() * inverse_sigma().t(); }
  at::Tensor slopes(const at::Tensor&) const override { return {}; }
};

// [M] standard deviations from a level per channel.
at::Tensor channel_levels(const Config& config, const ForwardModel& forward, int64_t entries) {
  const auto levels = config.get<std::vector<double>>("sigma");
  const int64_t channels = forward.output_channels();
  if (static_cast<int64_t>(levels.size()) != channels)
    config.fail("sigma", "sigma lists " + std::to_string(levels.size()) +
                             " levels, the measurement has " + std::to_string(channels) +
                             (channels == 1 ? " channel; write one number, or the name of a file "
                                              "with a level for each entry"
                                            : " channels; list a level for each, or one number"));
  return (at::tensor(levels, at::kDouble) * forward.noise_scale()).repeat({entries / channels});
}

}  // namespace

std::unique_ptr<Likelihood> make_gaussian_likelihood(const Config& config, const Observation& data,
                                                     const LikelihoodContext& context) {
  const auto normalized =
      config.get<bool>("normalized", true, "include the constant -sum ln(sigma sqrt(2 pi))");
  MeasuredVector measured = measured_vector("gaussian", data, context);
  const ForwardModel& forward = *measured.forward;
  const int64_t entries = measured.y.numel();
  at::Tensor sigma;
  if (config.is_number("sigma")) {
    const auto level = config.get<double>("sigma");
    if (!(level > 0) || !std::isfinite(level)) config.fail("sigma", "sigma must be positive");
    sigma = at::full({1}, level * forward.noise_scale(), at::kDouble);
  } else if (config.is_string("sigma")) {
    sigma = read_array(config, "sigma", context.read_array).to(at::kDouble).flatten();
  } else if (config.has("sigma")) {
    sigma = channel_levels(config, forward, entries);
  } else {
    if (!data.sigma.defined())
      config.fail("sigma", "sigma is neither in the table nor in the observation");
    sigma = data.sigma.detach().to(at::kCPU, at::kDouble).flatten();
  }
  if (sigma.numel() != 1 && sigma.numel() != entries)
    throw DataError("[gaussian] sigma has " + std::to_string(sigma.numel()) + " entries for " +
                    std::to_string(entries) + " measurements");
  if (!at::isfinite(sigma).all().item<bool>() || !sigma.gt(0).all().item<bool>())
    throw DataError("[gaussian] sigma has entries that are not positive and finite");
  if (forward.linear())
    return std::make_unique<LinearGaussianLikelihood>(std::move(measured), sigma, normalized,
                                                      context);
  return std::make_unique<GaussianLikelihood>(std::move(measured), sigma, normalized, context);
}

}  // namespace scoreprior
