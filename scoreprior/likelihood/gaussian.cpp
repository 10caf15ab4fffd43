/// gaussian: independent Gaussian noise on any forward model.
///   log p(y|x) = -sum ((y - A x)/sigma)^2 / 2  [- sum ln(sigma sqrt(2 pi)) if normalized] [nats]
/// sigma is a number (the user's noise level; one real entry then has sigma * noise_scale of the
/// forward model, i.e. sigma/sqrt(2) for complex measurements), or a file or the observation's own
/// sigma: a scalar or one standard deviation per real entry, taken as it is.

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/likelihood/likelihood.h"

namespace scoreprior {
namespace {

class GaussianLikelihood : public Likelihood {
 public:
  GaussianLikelihood(std::unique_ptr<ForwardModel> forward, at::Tensor y, at::Tensor sigma,
                     bool normalized, const LikelihoodContext& context)
      : forward_(std::move(forward)) {
    const at::Tensor s = sigma.expand_as(y);
    if (normalized) log_constant_ = -(s.log() + std::log(2 * M_PI) / 2).sum().item<double>();
    y_ = y.to(context.device, context.dtype).unsqueeze(0);
    sigma_ = s.to(context.device, context.dtype).unsqueeze(0);
    inverse_sigma_ = s.reciprocal().to(context.device, context.dtype).unsqueeze(0);
  }

  Shape event_shape() const override { return forward_->input_shape(); }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    return residuals(x).square().sum(1) * -0.5 + log_constant_;
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    if (!forward_->linear()) return LogDensity::value_and_score(x, rng);
    at::NoGradGuard no_grad;
    const at::Tensor r = residuals(x.detach());
    return {r.square().sum(1) * -0.5 + log_constant_,
            forward_->adjoint((r * inverse_sigma_).reshape(measured(x)))->contiguous()};
  }

  /// [B,M] (y - A x)/sigma.
  at::Tensor residuals(const at::Tensor& x) const override {
    return (y_ - forward_->apply(x).flatten(1)) * inverse_sigma_;
  }

  /// Mean squared residual per real entry; 1 is expected under the truth.
  ChiSquares chi2(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    return {{"chi2", residuals(x).square().mean(1)}};
  }

  Observation simulate(const at::Tensor& x, const Rng& rng) const override {
    at::NoGradGuard no_grad;
    const at::Tensor clean = forward_->apply(x);
    const at::Tensor noise =
        rng.split("noise").normal(Shape{1, y_.size(1)}, clean.scalar_type()).to(clean.device());
    Observation out;
    out.y = (clean + (noise * sigma_).reshape_as(clean)).squeeze(0);
    out.sigma = sigma_.reshape_as(clean).squeeze(0).clone();
    out.truth = x.squeeze(0).detach().clone();
    return out;
  }

  at::Tensor naive_image() const override {
    at::NoGradGuard no_grad;
    const auto image = forward_->naive_inverse(y_.reshape(measured(y_)));
    return image ? image->contiguous() : at::Tensor();
  }

  std::vector<DataFit> data_fits(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    return {{"y", "entry", "measurement", at::arange(y_.size(1), y_.options()), y_.squeeze(0),
             sigma_.squeeze(0), forward_->apply(x).flatten(1)}};
  }

 protected:
  const at::Tensor& measurement() const { return y_; }

 private:
  Shape measured(const at::Tensor& a) const { return batched(a.size(0), forward_->output_shape()); }
  std::unique_ptr<ForwardModel> forward_;
  at::Tensor y_, sigma_, inverse_sigma_;  // [1,M]
  double log_constant_ = 0;
};

/// A linear forward model: T = -A / sigma.
class LinearGaussianLikelihood final : public GaussianLikelihood, public ResidualJacobian {
 public:
  using GaussianLikelihood::GaussianLikelihood;
  at::Tensor linear_part() const override {
    at::NoGradGuard no_grad;
    const int64_t pixels = numel(event_shape());
    const at::Tensor zero = at::zeros(batched(1, event_shape()), measurement().options());
    const at::Tensor unit = at::eye(pixels, measurement().options()).view(batched(pixels, event_shape()));
    return (residuals(unit) - residuals(zero)).t();
  }
  at::Tensor slopes(const at::Tensor&) const override { return {}; }
};

}  // namespace

std::unique_ptr<Likelihood> make_gaussian_likelihood(const Config& config, const Observation& data,
                                                     const LikelihoodContext& context) {
  const ForwardContext forward_context{context.dtype, context.device, context.read_array,
                                       context.image_shape};
  std::unique_ptr<ForwardModel> forward =
      forward_models().make(context.forward, "identity", forward_context);
  const auto normalized =
      config.get<bool>("normalized", true, "include the constant -sum ln(sigma sqrt(2 pi))");
  const int64_t entries = numel(forward->output_shape());
  if (!data.y.defined()) throw DataError("[gaussian] the observation has no measurement vector y");
  const at::Tensor y = data.y.detach().to(at::kCPU, at::kDouble).flatten();
  if (y.numel() != entries)
    throw DataError("[gaussian] the forward model gives " + std::to_string(entries) +
                    " numbers, the observation has " + std::to_string(y.numel()));
  if (!at::isfinite(y).all().item<bool>())
    throw DataError("[gaussian] the measurement has entries that are not finite");
  at::Tensor sigma;
  if (config.is_number("sigma")) {
    const auto level = config.get<double>("sigma");
    if (!(level > 0) || !std::isfinite(level)) config.fail("sigma", "sigma must be positive");
    sigma = at::full({1}, level * forward->noise_scale(), at::kDouble);
  } else if (config.has("sigma")) {
    sigma = read_array(config, "sigma", context.read_array).to(at::kDouble).flatten();
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
  if (forward->linear())
    return std::make_unique<LinearGaussianLikelihood>(std::move(forward), y, sigma, normalized,
                                                      context);
  return std::make_unique<GaussianLikelihood>(std::move(forward), y, sigma, normalized, context);
}

}  // namespace scoreprior
