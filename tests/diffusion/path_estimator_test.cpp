#include "scoreprior/diffusion/path_estimator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

const char* kPathSdes[] = {"vp", "subvp", "ve", "linear_ve"};

// sigma_max 20 keeps the prior of VE near the law at t = 1 of unit data.
std::unique_ptr<Sde> path_sde(const std::string& type) {
  return make_sde(io::parse_toml("type = \"" + type + "\"\nsigma_max = 20.0"));
}

// Equal mixture of N(m_k, diag(variances)); `inflate` makes the score wrong: that of variances
// inflate * (alpha^2 variances + std^2).
class DiagonalMixture : public ScoreModel {
 public:
  DiagonalMixture(const std::string& sde, at::Tensor means, at::Tensor variances,
                  double inflate = 1, at::ScalarType dtype = at::kDouble)
      : sde_(path_sde(sde)),
        means_(std::move(means)),
        variances_(std::move(variances)),
        inflate_(inflate),
        dtype_(dtype) {}
  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return {1, 1, means_.size(1)}; }
  at::ScalarType dtype() const override { return dtype_; }
  at::Device device() const override { return at::kCPU; }

  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override {
    rows += x.size(0);
    largest_call = std::max(largest_call, x.size(0));
    const auto [y, v] = residual(x.to(at::kDouble), t.to(at::kDouble));
    const at::Tensor share = (-0.5 * (y.square() / v + v.log()).sum(2)).softmax(1).unsqueeze(2);
    return (share * (-y / v)).sum(1).reshape_as(x).to(x.scalar_type());
  }
  // log p_t(x), [B].
  at::Tensor log_density(const at::Tensor& x, double t) const {
    const auto [y, v] = residual(x, at::full({x.size(0)}, t, at::kDouble));
    const at::Tensor each = -0.5 * (y.square() / v + v.log() + std::log(2 * M_PI)).sum(2);
    return each.logsumexp(1) - std::log(static_cast<double>(means_.size(0)));
  }
  mutable int64_t rows = 0, largest_call = 0;

 private:
  // x - alpha m and the variances, [B,K,D].
  std::pair<at::Tensor, at::Tensor> residual(const at::Tensor& x, const at::Tensor& t) const {
    const at::Tensor alpha = sde_->mean_coeff(t).reshape({-1, 1, 1});
    const at::Tensor noise = sde_->std(t).square().reshape({-1, 1, 1});
    return {x.flatten(1).unsqueeze(1) - alpha * means_.unsqueeze(0),
            inflate_ * (alpha.square() * variances_ + noise)};
  }
  std::unique_ptr<Sde> sde_;
  at::Tensor means_, variances_;
  double inflate_;
  at::ScalarType dtype_;
};

DiagonalMixture gaussian(const std::string& sde, int64_t d, double inflate = 1) {
  return {sde, at::full({1, d}, 0.4, at::kDouble), at::logspace(-3, 0, d, 10.0, at::kDouble),
          inflate};
}

at::Tensor draws_near(int64_t batch, int64_t d) {
  return 0.4 + at::logspace(-1.5, 0, d, 10.0, at::kDouble) *
                   Rng(11).normal({batch, 1, 1, d}, at::kDouble);
}

// What the prior's law at t = 1 costs one Gaussian, E[log prior(x_1) - log p_1(x_1)] over x_1 ~
// N(r x, sigma^2).
at::Tensor prior_mismatch(const DiagonalMixture& model, const at::Tensor& x, double mean,
                          const at::Tensor& variances, double t0) {
  const at::Tensor t = at::tensor({t0, 1.0}, at::kDouble);
  const at::Tensor a = model.sde().mean_coeff(t), s = model.sde().std(t);
  const at::Tensor r = a[1] / a[0], noise = s[1].square() - (r * s[0]).square();
  const at::Tensor v = a[1].square() * variances + s[1].square();
  const at::Tensor at_end = r * x.flatten(1);
  const double p = model.sde().prior_std() * model.sde().prior_std();
  return (-0.5 * ((at_end.square() + noise) / p + std::log(p)) +
          0.5 * (((at_end - a[1] * mean).square() + noise) / v + v.log()))
      .sum(1);
}

TEST(PathEstimator, TimesAreEqualInLogSnr) {
  for (const char* type : kPathSdes) {
    const auto sde = path_sde(type);
    const at::Tensor t = path_times(*sde, 1e-3, 40);
    EXPECT_EQ(t[0].item<double>(), 1e-3);
    EXPECT_EQ(t[40].item<double>(), 1.0);
    const at::Tensor step = (2 * (sde->std(t) / sde->mean_coeff(t)).log()).diff();
    EXPECT_LT((step / step.mean() - 1).abs().max().item<double>(), 1e-9) << type;
  }
}

// z-test against the closed form: mean of 200 paths within 4 standard errors, for a spectrum over
// three decades. The extrapolated bias at N = 256 is below 0.05 nats (see the order test), well
// under one standard error of some 0.15 nats.
TEST(PathEstimator, MatchesAGaussian) {
  constexpr int64_t kD = 12;
  for (const char* type : kPathSdes) {
    const DiagonalMixture model = gaussian(type, kD);
    PathOptions o;
    o.steps = 256;
    o.paths = 200;
    const at::Tensor x = draws_near(3, kD);
    const at::Tensor exact =
        model.log_density(x, o.t0) +
        prior_mismatch(model, x, 0.4, at::logspace(-3, 0, kD, 10.0, at::kDouble), o.t0);
    const PathEstimate e = path_log_prob(model, o, x, Rng(2));
    const at::Tensor z = (e.log_prob - exact) / e.standard_error;
    EXPECT_LT(z.abs().max().item<double>(), 4) << type << z;
    EXPECT_LT(e.standard_error.max().item<double>(), 0.3) << type;
    EXPECT_EQ(e.evaluations, 256 * 200);
    EXPECT_EQ(model.rows, 3 * 256 * 200);
    EXPECT_LE(model.largest_call, o.max_batch);
  }
}

TEST(PathEstimator, MatchesAMixture) {
  for (const char* type : {"vp", "ve"}) {
    const DiagonalMixture model(type,
                                at::tensor({0.5, 0.5, -0.5, -0.5}, at::kDouble).reshape({2, 2}),
                                at::full({2}, 0.01, at::kDouble));
    PathOptions o;
    o.steps = 512;
    o.paths = 100;
    const at::Tensor x =
        at::tensor({0.5, 0.45, -0.4, -0.6, 0.0, 0.0, 0.7, 0.3}, at::kDouble).reshape({4, 1, 1, 2});
    // The prior differs from the law at t = 1 by alpha_1^2, or (1/sigma_max)^2: a few 1e-3 nats.
    const PathEstimate e = path_log_prob(model, o, x, Rng(4));
    const at::Tensor error = (e.log_prob - model.log_density(x, o.t0)).abs();
    EXPECT_LT(((error - 5e-3) / e.standard_error).max().item<double>(), 4) << type;
  }
}

// The chain's gap falls as 1/N, the extrapolated one as 1/N^2 or faster.
TEST(PathEstimator, OrderOfTheBias) {
  constexpr int64_t kD = 6;
  const DiagonalMixture model = gaussian("vp", kD);
  const at::Tensor x = draws_near(1, kD);
  PathOptions o;
  o.paths = 4000;
  const double exact =
      (model.log_density(x, o.t0) +
       prior_mismatch(model, x, 0.4, at::logspace(-3, 0, kD, 10.0, at::kDouble), o.t0))
          .item<double>();
  std::vector<double> plain, better, error;
  for (const int64_t n : {16, 32, 64}) {
    o.steps = n;
    const PathEstimate e = path_log_prob(model, o, x, Rng(6));
    plain.push_back(exact - e.bound.item<double>());
    better.push_back(exact - e.log_prob.item<double>());
    error.push_back(e.standard_error.item<double>());
    EXPECT_GT(plain.back(), -4 * error.back()) << "a lower bound at N = " << n;
    EXPECT_LE(e.bound.item<double>(), e.importance.item<double>());
    RecordProperty("bias_" + std::to_string(n), std::to_string(plain.back()) + " " +
                                                    std::to_string(better.back()) + " +- " +
                                                    std::to_string(error.back()));
  }
  EXPECT_NEAR(plain[0] / plain[1], 2, 0.4);  // the standard errors allow 0.15
  EXPECT_NEAR(plain[1] / plain[2], 2, 0.4);
  EXPECT_LT(std::abs(better[1]), 0.35 * std::abs(better[0]) + 3 * error[1]);
  EXPECT_LT(std::abs(better[2]), 0.15 * plain[2] + 3 * error[2]);
}

// For a wrong score the mean over paths is the bound
//   E log prior(x_1) + int E[ D c - g^2 div s - g^2 |s|^2 / 2 ] dt,
// which is in closed form up to one quadrature for a linear score.
TEST(PathEstimator, WrongScoresGiveTheVariationalBound) {
  constexpr int64_t kD = 4, kPoints = 200001;
  const double inflate = 1.3;
  const at::Tensor variances = at::logspace(-3, 0, kD, 10.0, at::kDouble);
  const DiagonalMixture model = gaussian("vp", kD, inflate);
  PathOptions o;
  o.steps = 512;
  o.paths = 400;
  const at::Tensor x = draws_near(1, kD);
  const Sde& sde = model.sde();
  // Equal in ln t: the integrand is 1/t-like at small times.
  const at::Tensor t = at::exp(at::linspace(std::log(o.t0), 0, kPoints, at::kDouble));
  const at::Tensor a = sde.mean_coeff(t), s = sde.std(t), g2 = sde.diffusion(t).square();
  const at::Tensor r = (a / a[0]).unsqueeze(1);
  const at::Tensor noise = s.square().unsqueeze(1) - (r * s[0]).square();
  const at::Tensor v = inflate * (a.square().unsqueeze(1) * variances + s.square().unsqueeze(1));
  const at::Tensor mean = r * x.flatten(1) - a.unsqueeze(1) * 0.4;
  const at::Tensor inside = sde.drift_coeff(t) * double(kD) + g2 * (1 / v).sum(1) -
                            0.5 * g2 * ((mean.square() + noise) / v.square()).sum(1);
  const at::Tensor end = (r * x.flatten(1))[kPoints - 1];
  const double bound = at::trapezoid(inside, t).item<double>() -
                       0.5 * (end.square() + noise[kPoints - 1]).sum().item<double>() -
                       0.5 * kD * std::log(2 * M_PI);
  const PathEstimate e = path_log_prob(model, o, x, Rng(8));
  EXPECT_LT(std::abs(e.log_prob.item<double>() - bound), 4 * e.standard_error.item<double>() + 0.01)
      << e.log_prob << bound;
  // It is not log p under the right score: the test can see the difference.
  const double right = gaussian("vp", kD).log_density(x, o.t0).item<double>();
  EXPECT_GT(right - bound, 10 * e.standard_error.item<double>());
}

TEST(PathEstimator, RowsStandAlone) {
  const DiagonalMixture model = gaussian("vp", 5);
  PathOptions o;
  o.steps = 20;
  o.paths = 3;
  const at::Tensor x = draws_near(4, 5);
  const PathEstimate all = path_log_prob(model, o, x, Rng(1));
  o.max_batch = 7;
  const PathEstimate tail = path_log_prob(model, o, x.slice(0, 2), Rng(1).from_row(2));
  EXPECT_LT((all.log_prob.slice(0, 2) - tail.log_prob).abs().max().item<double>(), 1e-10);
  EXPECT_LT((all.importance.slice(0, 2) - tail.importance).abs().max().item<double>(), 1e-10);
}

TEST(PathEstimator, SinglePrecisionAgrees) {
  const at::Tensor means = at::full({1, 5}, 0.4, at::kDouble),
                   variances = at::logspace(-3, 0, 5, 10.0, at::kDouble);
  const DiagonalMixture exact("vp", means, variances),
      single("vp", means, variances, 1, at::kFloat);
  PathOptions o;
  o.steps = 64;
  const at::Tensor x = draws_near(2, 5);
  // Rounding a point by 1e-7 at std 0.01 moves a step's exponent by about 1e-5.
  EXPECT_LT((path_log_prob(exact, o, x, Rng(1)).log_prob -
             path_log_prob(single, o, x.to(at::kFloat), Rng(1)).log_prob)
                .abs()
                .max()
                .item<double>(),
            5e-3);
}

TEST(PathEstimator, RefusesWhatCannotBe) {
  const DiagonalMixture model = gaussian("vp", 3);
  const at::Tensor x = draws_near(1, 3);
  PathOptions o;
  o.steps = 5;
  EXPECT_THROW(path_log_prob(model, o, x, Rng(1)), std::invalid_argument);
  o.extrapolate = false;
  EXPECT_TRUE(std::isnan(path_log_prob(model, o, x, Rng(1)).step_error.item<double>()));
  const auto rejects = [](const char* text) {
    const Config c = io::parse_toml(text);
    EXPECT_THROW(check_options(c, c.read<PathOptions>()), ConfigError) << text;
  };
  rejects("t0 = 1.0");
  rejects("paths = 0");
  rejects("steps = 0");
  rejects("steps = 33");
  rejects("max_batch = 0");
}

}  // namespace
}  // namespace scoreprior
