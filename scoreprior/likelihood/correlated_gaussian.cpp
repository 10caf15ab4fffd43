/// correlated_gaussian: Gaussian noise with a given covariance C on any forward model.
///   log p(y|x) = -r^T r / 2  [- ln det(2 pi C) / 2 if normalized]  [nats],  L r = y - A x, C = L
///   L^T
/// `covariance` is a file [M,M] in the units of y squared and in the order of y (real then
/// imaginary parts), or the observation's own array of that name. The Cholesky factor is inverted
/// once, in float64; every evaluation is then one product with a triangular matrix, M^2
/// multiply-adds an image.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/measurement_likelihood.h"

namespace scoreprior {
namespace {

class CorrelatedGaussian : public MeasurementLikelihood {
 public:
  CorrelatedGaussian(MeasuredVector measured, const at::Tensor& covariance,
                     const at::Tensor& factor, bool normalized, const LikelihoodContext& context)
      : MeasurementLikelihood(std::move(measured), context), covariance_(covariance) {
    const int64_t m = factor.size(0);
    if (normalized)
      log_constant_ = -(factor.diagonal().log() + std::log(2 * M_PI) / 2).sum().item<double>();
    factor_ = factor.to(context.device, context.dtype);
    whitening_ = at::linalg_solve_triangular(factor, at::eye(m, at::kDouble), /*upper=*/false)
                     .to(context.device, context.dtype);
    sigma_ = covariance.diagonal().sqrt().to(context.device, context.dtype);
  }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    return residuals(x).square().sum(1) * -0.5 + log_constant_;
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    if (!forward_model().linear()) return LogDensity::value_and_score(x, rng);
    at::NoGradGuard no_grad;
    const at::Tensor r = residuals(x.detach());
    return {r.square().sum(1) * -0.5 + log_constant_, transposed(r.matmul(whitening_))};
  }

  /// [B,M] L^-1 (y - A x): independent and of unit variance under the truth.
  at::Tensor residuals(const at::Tensor& x) const override {
    return (measurement() - clean(x)).matmul(whitening_.t());
  }

  /// r^T r / M; 1 is expected under the truth.
  ChiSquares chi2(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    return {{"chi2", residuals(x).square().mean(1)}};
  }

  Observation simulate(const at::Tensor& x, const Rng& rng) const override {
    at::NoGradGuard no_grad;
    const at::Tensor y = clean(x);
    const at::Tensor white =
        rng.split("noise").normal(Shape{1, y.size(1)}, y.scalar_type()).to(y.device());
    Observation out = observed(y + white.matmul(factor_.t()), x);
    out.sigma = sigma_.reshape(forward_model().output_shape()).clone();
    out.extra["covariance"] = covariance_.clone();
    return out;
  }

 protected:
  at::Tensor spread() const override { return sigma_; }
  const at::Tensor& whitening() const { return whitening_; }

 private:
  at::Tensor covariance_;                  // [M,M] float64 on the CPU
  at::Tensor factor_, whitening_, sigma_;  // L, L^-1 [M,M], [M]
  double log_constant_ = 0;
};

/// A linear forward model: T = -L^-1 A.
class LinearCorrelatedGaussian final : public CorrelatedGaussian, public ResidualJacobian {
 public:
  using CorrelatedGaussian::CorrelatedGaussian;
  at::Tensor linear_part() const override { return -whitening().matmul(matrix()); }
  at::Tensor slopes(const at::Tensor&) const override { return {}; }
};

}  // namespace

std::unique_ptr<Likelihood> make_correlated_gaussian(const Config& config, const Observation& data,
                                                     const LikelihoodContext& context) {
  const auto normalized =
      config.get<bool>("normalized", true, "include the constant -ln det(2 pi covariance)/2");
  const auto stored = data.extra.find("covariance");
  at::Tensor c;
  if (config.has("covariance")) {
    c = read_array(config, "covariance", context.read_array);
  } else if (stored != data.extra.end()) {
    c = stored->second;
  } else {
    config.fail("covariance",
                "covariance is neither in the table (a file [M,M]) nor in the observation");
  }
  MeasuredVector measured = measured_vector("correlated_gaussian", data, context);
  const int64_t m = measured.y.numel();
  if (c.dim() != 2 || c.size(0) != m || c.size(1) != m || c.is_complex())
    throw DataError("[correlated_gaussian] the covariance has the shape " +
                    to_string(Shape(c.sizes().begin(), c.sizes().end())) + ", expected real [" +
                    std::to_string(m) + "," + std::to_string(m) + "]");
  c = c.detach().to(at::kCPU, at::kDouble).contiguous();
  if (!at::isfinite(c).all().item<bool>())
    throw DataError("[correlated_gaussian] the covariance has entries that are not finite");
  // Files in float32 are symmetric to their rounding.
  if ((c - c.t()).abs().max().item<double>() > 1e-6 * c.abs().max().item<double>())
    throw DataError("[correlated_gaussian] the covariance is not symmetric");
  c = (c + c.t()) / 2;
  const auto [factor, info] = at::linalg_cholesky_ex(c);
  if (info.item<int64_t>() != 0)
    throw DataError("[correlated_gaussian] the covariance is not positive definite (its leading " +
                    std::to_string(info.item<int64_t>()) +
                    " rows are not); add the variance of the noise to its diagonal");
  if (measured.forward->linear())
    return std::make_unique<LinearCorrelatedGaussian>(std::move(measured), c, factor, normalized,
                                                      context);
  return std::make_unique<CorrelatedGaussian>(std::move(measured), c, factor, normalized, context);
}

}  // namespace scoreprior
