/// poisson: counts.
///   log p(y|x) = sum y ln mu - mu [- ln y! if normalized]  [nats],  mu = exposure * A x +
///   background
/// with y whole numbers, mu expected counts. `exposure` and `background` are numbers, files of one
/// number per entry, or the observation's own arrays of these names.
///
/// Rates below `floor` counts. A posterior sampler tries images that no count can come from. There
/// y ln mu - mu goes on, for mu < e = floor, as the parabola that keeps value and slope at e and
/// has curvature -y/e^2 (that of the law itself) or, where y = 0, -1/e, which puts the maximum of
/// an empty entry at mu = 0. So log p is once differentiable everywhere, falls towards negative
/// rates, and is the Poisson law wherever every rate is above the floor. negative_rates =
/// "impossible" makes log p = -infinity where any rate is negative instead; the gradient stays that
/// of the parabola, which points back.
///
/// Residuals are signed roots of the deviance, r = sign(y - mu) sqrt(2 (l(y; y) - l(y; mu))): their
/// squares sum to twice the log-likelihood that is missing to a perfect fit, and they are about
/// N(0,1) from some five counts on. chi^2 is Pearson's, (y - mu)^2/mu, whose mean is exactly 1
/// under the truth for any rate.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/measurement_likelihood.h"

namespace scoreprior {
namespace {

struct PoissonSettings {
  at::Tensor exposure, background;  // [1] or [M], float64
  double floor = 1e-2;
  bool impossible = false, normalized = true;
};

class PoissonLikelihood : public MeasurementLikelihood {
 public:
  PoissonLikelihood(MeasuredVector measured, const PoissonSettings& s,
                    const LikelihoodContext& context)
      : MeasurementLikelihood(measured_copy(measured), context),
        floor_(s.floor),
        impossible_(s.impossible) {
    const at::Tensor y = measured.y;
    // l(y; y) = y ln y - y; where that is below the parabola's top it is the top that counts.
    const at::Tensor saturated = at::xlogy(y, y) - y;
    if (s.normalized) log_constant_ = -(y + 1).lgamma().sum().item<double>();
    const auto row = [&](const at::Tensor& a) {
      return a.expand({y.numel()}).to(context.device, context.dtype).unsqueeze(0);
    };
    exposure_ = row(s.exposure);
    background_ = row(s.background);
    saturated_ = row(saturated);
    curvature_ = row(at::where(y.gt(0), y / (floor_ * floor_), at::full_like(y, 1 / floor_)));
  }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override { return value(rate(x)); }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    if (!forward_model().linear()) return LogDensity::value_and_score(x, rng);
    at::NoGradGuard no_grad;
    const at::Tensor mu = rate(x.detach());
    return {value(mu), transposed(slope(mu) * exposure_)};
  }

  at::Tensor residuals(const at::Tensor& x) const override {
    const at::Tensor mu = rate(x);
    return at::sign(measurement() - mu) * deviance(mu).sqrt();
  }

  /// "chi2": mean of (y - mu)^2/mu (mu at least the floor); "chi2_deviance": mean squared residual.
  ChiSquares chi2(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    const at::Tensor mu = rate(x);
    return {{"chi2", ((measurement() - mu).square() / mu.clamp_min(floor_)).mean(1)},
            {"chi2_deviance", deviance(mu).mean(1)}};
  }

  /// DataError for a negative rate: no counts come from it.
  Observation simulate(const at::Tensor& x, const Rng& rng) const override {
    at::NoGradGuard no_grad;
    const at::Tensor mu = rate(x).to(at::kCPU, at::kDouble).flatten().contiguous();
    const double least = mu.min().item<double>();
    if (!(least >= 0))
      throw DataError("[poisson] the image gives a negative rate of " + std::to_string(least) +
                      " counts; counts need a non-negative image and model, or a background");
    const Rng noise = rng.split("noise");
    at::Tensor counts = at::empty_like(mu);
    for (int64_t k = 0; k < mu.numel(); ++k)
      counts.data_ptr<double>()[k] = draw_count(mu.data_ptr<double>()[k], noise.at(k));
    Observation out = observed(counts, x);
    out.extra["exposure"] = exposure_.squeeze(0).to(at::kCPU, at::kDouble);
    out.extra["background"] = background_.squeeze(0).to(at::kCPU, at::kDouble);
    return out;
  }

  /// The naive inverse of (y - background)/exposure.
  at::Tensor naive_image() const override {
    at::NoGradGuard no_grad;
    const at::Tensor a = (measurement() - background_) / exposure_;
    const auto image =
        forward_model().naive_inverse(a.reshape(batched(1, forward_model().output_shape())));
    return image ? image->contiguous() : at::Tensor();
  }

 protected:
  at::Tensor expected(const at::Tensor& x) const override { return rate(x); }
  at::Tensor spread() const override { return measurement().squeeze(0).clamp_min(1).sqrt(); }
  const at::Tensor& exposure() const { return exposure_; }

  at::Tensor rate(const at::Tensor& x) const { return clean(x) * exposure_ + background_; }

  /// d residual / d mu, [B,M]; -1/sqrt(mu) is its limit at a perfect fit.
  at::Tensor residual_slope(const at::Tensor& mu) const {
    const at::Tensor r = deviance(mu).sqrt() * at::sign(measurement() - mu);
    const at::Tensor limit = -mu.clamp_min(floor_).rsqrt();
    return at::where(r.abs().gt(1e-3), -slope(mu) / r, limit);
  }

 private:
  static MeasuredVector measured_copy(MeasuredVector& m) { return {std::move(m.forward), m.y}; }

  at::Tensor value(const at::Tensor& mu) const {
    at::Tensor v = level(mu).sum(1) + log_constant_;
    // Added, so that the gradient stays.
    if (impossible_) v = v + at::zeros_like(v).masked_fill_(mu.detach().lt(0).any(1), -INFINITY);
    return v;
  }

  /// y ln mu - mu and its continuation, [B,M].
  at::Tensor level(const at::Tensor& mu) const {
    const at::Tensor safe = mu.clamp_min(floor_), below = (mu - floor_).clamp_max(0);
    const at::Tensor at_floor = measurement() / floor_ - 1;
    return at::xlogy(measurement(), safe) - safe + below * (at_floor - below * curvature_ / 2);
  }

  at::Tensor slope(const at::Tensor& mu) const {
    const at::Tensor below = (mu - floor_).clamp_max(0);
    return measurement() / mu.clamp_min(floor_) - 1 - below * curvature_;
  }

  // Near a perfect fit l(y;y) - l(y;mu) is a difference of large numbers; with t = mu/y - 1 it is
  // y (t - ln(1 + t)) = y t^2/2 (1 - 2t/3 + ...).
  at::Tensor deviance(const at::Tensor& mu) const {
    const at::Tensor y = measurement(), t = (mu - y) / y.clamp_min(1);
    const at::Tensor plain = saturated_ - level(mu);
    const at::Tensor near = y * t.square() * (0.5 - t / 3 + t.square() / 4);
    return (2 * at::where(t.abs().lt(1e-2).logical_and(mu.ge(floor_)).logical_and(y.ge(1)), near,
                          plain))
        .clamp_min(0);
  }

  // Knuth's product of uniforms in chunks for small rates; for large ones the transformed rejection
  // of [Hormann93] (PTRS). One stream per entry, so that no entry depends on another.
  static double draw_count(double mu, const Rng& rng) {
    if (mu == 0) return 0;
    int64_t used = 0;
    std::vector<double> pool;
    const auto uniform = [&] {
      if (used % 64 == 0) pool = rng.at(used / 64).uniforms(64);
      return pool[static_cast<size_t>(used++ % 64)];
    };
    if (mu < 10) {
      const double limit = std::exp(-mu);
      double product = uniform(), k = 0;
      for (; product > limit; ++k) product *= uniform();
      return k;
    }
    const double slam = std::sqrt(mu), log_mu = std::log(mu), b = 0.931 + 2.53 * slam,
                 a = -0.059 + 0.02483 * b, inverse_alpha = 1.1239 + 1.1328 / (b - 3.4),
                 v_r = 0.9277 - 3.6224 / (b - 2);
    for (;;) {
      const double u = uniform() - 0.5, v = uniform(), us = 0.5 - std::abs(u);
      const double k = std::floor((2 * a / us + b) * u + mu + 0.43);
      if (us >= 0.07 && v <= v_r) return k;
      if (k < 0 || (us < 0.013 && v > us)) continue;
      if (std::log(v) + std::log(inverse_alpha) - std::log(a / (us * us) + b) <=
          -mu + k * log_mu - std::lgamma(k + 1))
        return k;
    }
  }

  double floor_;
  bool impossible_;
  at::Tensor exposure_, background_, saturated_, curvature_;  // [1,M]
  double log_constant_ = 0;
};

/// A linear forward model: T = A, and the residuals bend.
class LinearPoisson final : public PoissonLikelihood, public ResidualJacobian {
 public:
  using PoissonLikelihood::PoissonLikelihood;
  at::Tensor linear_part() const override { return matrix(); }
  at::Tensor slopes(const at::Tensor& x) const override {
    at::NoGradGuard no_grad;
    return at::diag_embed(residual_slope(rate(x)) * exposure());
  }
};

}  // namespace

std::unique_ptr<Likelihood> make_poisson(const Config& config, const Observation& data,
                                         const LikelihoodContext& context) {
  PoissonSettings s;
  s.normalized = config.get<bool>("normalized", true, "include the constant -sum ln y!");
  s.floor =
      config.get<double>("floor", s.floor, "log p goes on as a parabola below this rate [counts]");
  if (!(s.floor > 0) || !std::isfinite(s.floor)) config.fail("floor", "floor must be positive");
  s.impossible =
      config.one_of("negative_rates", "continue", {"continue", "impossible"}) == "impossible";
  MeasuredVector measured = measured_vector("poisson", data, context);
  const int64_t entries = measured.y.numel();
  s.exposure = measured_numbers("poisson", config, "exposure", data, context, entries, 1,
                                "expected counts per unit of A x: a number or a file");
  s.background = measured_numbers("poisson", config, "background", data, context, entries, 0,
                                  "expected counts without any image: a number or a file");
  if (!s.exposure.gt(0).all().item<bool>()) config.fail("exposure", "exposure must be positive");
  if (!s.background.ge(0).all().item<bool>())
    config.fail("background", "background must not be negative");
  if (!measured.y.ge(0).all().item<bool>())
    throw DataError("[poisson] the measurement has negative entries; counts are 0, 1, 2, ...");
  if (!measured.y.eq(measured.y.round()).all().item<bool>())
    throw DataError(
        "[poisson] the measurement is not whole numbers; give counts, and put their scale into "
        "exposure");
  if (measured.forward->linear())
    return std::make_unique<LinearPoisson>(std::move(measured), s, context);
  return std::make_unique<PoissonLikelihood>(std::move(measured), s, context);
}

}  // namespace scoreprior
