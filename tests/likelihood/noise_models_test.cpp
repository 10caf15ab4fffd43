// Correlated Gaussian and Poisson noise, and the sigma of each channel.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::relative_error;

template <class T>
ConfigNodePtr noise_value(T value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = value;
  return node;
}

ConfigNodePtr noise_list(const std::vector<double>& values) {
  ConfigArray a;
  for (double v : values) a.push_back(noise_value(v));
  return noise_value(a);
}

LikelihoodContext through(const std::string& forward, Shape shape,
                          at::ScalarType dtype = at::kDouble) {
  LikelihoodContext context{std::move(shape), dtype, at::kCPU, Config(), io::read_npy};
  context.forward.set("name", noise_value(forward));
  if (forward == "super_resolution") context.forward.set("factor", noise_value(int64_t{2}));
  return context;
}

using Configure = std::function<void(Config&)>;

std::unique_ptr<Likelihood> noise_model(
    const std::string& name, const Observation& data, const LikelihoodContext& context,
    const Configure& configure = [](Config&) {}) {
  Config c;
  c.set("name", noise_value(name));
  configure(c);
  auto likelihood = likelihoods().make(c, "", data, context);
  c.require_all_used();
  return likelihood;
}

at::Tensor covariance_of(int64_t m) {
  const at::Tensor g = Rng(9).normal({m, m}, at::kDouble) / std::sqrt(m);
  return g.matmul(g.t()) + 0.1 * at::eye(m, at::kDouble);
}

// (f(x + h d) - f(x - h d)) / 2h against the score, relative to |score||d|.
double slope_error(const LogDensity& f, const at::Tensor& x, double h = 1e-5) {
  const auto [value, score] = f.value_and_score(x, Rng(0));
  const at::Tensor d = Rng(77).normal(x.sizes(), at::kDouble);
  const at::Tensor difference =
      (f.log_prob(x + h * d, Rng(0)) - f.log_prob(x - h * d, Rng(0))) / (2 * h);
  return ((difference - sum_event(score * d)).abs() /
          (sum_event(score.square()) * sum_event(d.square())).sqrt())
      .max()
      .item<double>();
}

// T d through the slopes against central differences of the residuals.
double face_error(const Likelihood& f, const at::Tensor& x) {
  const auto* face = dynamic_cast<const ResidualJacobian*>(&f);
  if (!face) return INFINITY;
  const at::Tensor d = Rng(78).normal(x.sizes(), at::kDouble);
  const double h = 1e-6;
  const at::Tensor difference = (f.residuals(x + h * d) - f.residuals(x - h * d)) / (2 * h);
  at::Tensor j = d.flatten(1).matmul(face->linear_part().t());
  const at::Tensor slopes = face->slopes(x);
  if (slopes.defined()) j = at::bmm(slopes, j.unsqueeze(2)).squeeze(2);
  return relative_error(j, difference);
}

TEST(NoiseModels, SigmaOfEachChannel) {
  const LikelihoodContext context = through("identity", {3, 4, 5});
  Observation data;
  data.y = Rng(1).normal({60}, at::kDouble);
  const at::Tensor x = Rng(2).normal({2, 3, 4, 5}, at::kDouble);
  const auto likelihood = noise_model("gaussian", data, context, [](Config& c) {
    c.set("sigma", noise_list({0.5, 1, 4}));
  });
  // Channel c of every pixel by hand; the channel is the fastest index of y.
  const at::Tensor y = data.y.view({4, 5, 3}).permute({2, 0, 1});
  at::Tensor want = at::zeros({2}, at::kDouble);
  const double sigma[] = {0.5, 1, 4};
  for (int64_t c = 0; c < 3; ++c)
    want = want - ((x.select(1, c) - y[c]) / sigma[c]).square().flatten(1).sum(1) / 2 -
           20 * (std::log(sigma[c]) + std::log(2 * M_PI) / 2);
  EXPECT_LT(relative_error(likelihood->log_prob(x, Rng(0)), want), 1e-13);
  for (const auto& bad : std::vector<std::vector<double>>{{1, 2}, {1, 2, 3, 4, 5, 6, 7}})
    EXPECT_THROW(
        noise_model("gaussian", data, context, [&](Config& c) { c.set("sigma", noise_list(bad)); }),
        ConfigError);
  EXPECT_THROW(noise_model("gaussian", data, context,
                           [&](Config& c) {
                             c.set("sigma", noise_list({1, -1, 1}));
                           }),
               DataError);
  // Complex measurements: each part of coil j has its level over sqrt 2.
  LikelihoodContext coils = through("multicoil_mri", {1, 8, 8});
  const auto forward =
      forward_models().make(coils.forward, "", {at::kDouble, at::kCPU, {}, {1, 8, 8}});
  data.y = at::zeros(forward->output_shape(), at::kDouble);
  const int64_t entries = data.y.numel();
  std::vector<double> levels;
  for (int j = 0; j < 8; ++j) levels.push_back(1 + j);
  const auto mri =
      noise_model("gaussian", data, coils, [&](Config& c) { c.set("sigma", noise_list(levels)); });
  const at::Tensor written =
      mri->simulate(at::zeros({1, 1, 8, 8}, at::kDouble), Rng(0)).sigma.flatten();
  ASSERT_EQ(written.numel(), entries);
  for (int64_t k : {int64_t{0}, int64_t{1}, int64_t{6}, entries - 1})
    EXPECT_NEAR(written[k].item<double>(), (1 + k % 8) / std::sqrt(2.0), 1e-14);
}

TEST(NoiseModels, CorrelatedGaussianIsTheFormula) {
  const LikelihoodContext context = through("super_resolution", {1, 8, 8});
  const int64_t m = 16;
  Observation data;
  data.y = Rng(1).normal({m}, at::kDouble);
  data.extra["covariance"] = covariance_of(m);
  const auto likelihood = noise_model("correlated_gaussian", data, context);
  const at::Tensor x = Rng(2).normal({3, 1, 8, 8}, at::kDouble);
  const auto forward =
      forward_models().make(context.forward, "", {at::kDouble, at::kCPU, {}, {1, 8, 8}});
  const at::Tensor r = data.y - forward->apply(x).flatten(1);
  const at::Tensor c = data.extra["covariance"];
  const at::Tensor want =
      -(r.matmul(at::linalg_inv(c)) * r).sum(1) / 2 - (m * std::log(2 * M_PI) + at::logdet(c)) / 2;
  EXPECT_LT(relative_error(likelihood->log_prob(x, Rng(0)), want), 1e-12);
  EXPECT_LT(
      relative_error(likelihood->chi2(x)[0].second * m, (r.matmul(at::linalg_inv(c)) * r).sum(1)),
      1e-12);
  EXPECT_LT(slope_error(*likelihood, x), 1e-9);  // a parabola: rounding only
  EXPECT_LT(face_error(*likelihood, x), 1e-8);
  const auto automatic = likelihood->LogDensity::value_and_score(x, Rng(0));
  EXPECT_LT(relative_error(likelihood->value_and_score(x, Rng(0)).second, automatic.second), 1e-12);
  // A diagonal covariance is the independent law.
  Observation plain = data;
  plain.sigma = Rng(3).uniform({m}, at::kDouble) + 0.5;
  plain.extra["covariance"] = at::diag(plain.sigma.square());
  EXPECT_LT(relative_error(noise_model("correlated_gaussian", plain, context)->log_prob(x, Rng(0)),
                           noise_model("gaussian", plain, context)->log_prob(x, Rng(0))),
            1e-13);
  // float32 against float64: whitened residuals carry sqrt(cond C) rounding errors, here below 1e3.
  const auto single =
      noise_model("correlated_gaussian", data, through("super_resolution", {1, 8, 8}, at::kFloat));
  EXPECT_LT(relative_error(single->log_prob(x.to(at::kFloat), Rng(0)), want), 1e-4);
}

TEST(NoiseModels, CorrelatedNoiseHasItsCovariance) {
  const LikelihoodContext context = through("super_resolution", {1, 6, 6});
  const int64_t m = 9;
  Observation data;
  data.y = at::zeros({m}, at::kDouble);
  data.extra["covariance"] = covariance_of(m);
  const auto likelihood = noise_model("correlated_gaussian", data, context);
  const at::Tensor x = Rng(2).uniform({1, 1, 6, 6}, at::kDouble);
  const int draws = 400;
  double sum = 0;
  at::Tensor second = at::zeros({m, m}, at::kDouble);
  for (int k = 0; k < draws; ++k) {
    const Observation o = likelihood->simulate(x, Rng(5).at(k));
    sum += noise_model("correlated_gaussian", o, context)->chi2(x)[0].second.item<double>() * m;
    const at::Tensor r = likelihood->simulate(at::zeros_like(x), Rng(5).at(k)).y.flatten();
    second += at::outer(r, r) / draws;
  }
  const double n = 1.0 * draws * m;
  EXPECT_NEAR(sum, n, 4.5 * std::sqrt(2 * n));
  // Var of a sample covariance entry: (C_ii C_jj + C_ij^2)/draws.
  const at::Tensor c = data.extra["covariance"], v = c.diagonal();
  const at::Tensor z = (second - c) / ((at::outer(v, v) + c.square()) / draws).sqrt();
  EXPECT_LT(z.abs().max().item<double>(), 5);
}

TEST(NoiseModels, CorrelatedGaussianErrors) {
  const LikelihoodContext context = through("identity", {1, 2, 2});
  Observation data;
  data.y = at::zeros({4}, at::kDouble);
  const auto message = [&](const at::Tensor& c) -> std::string {
    data.extra["covariance"] = c;
    try {
      noise_model("correlated_gaussian", data, context);
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THROW(noise_model("correlated_gaussian", data, context), ConfigError);
  EXPECT_NE(message(at::eye(3, at::kDouble)).find("expected real [4,4]"), std::string::npos);
  EXPECT_NE(message(-at::eye(4, at::kDouble)).find("not positive definite"), std::string::npos);
  EXPECT_NE(message(at::eye(4, at::kDouble) + at::ones({4, 4}, at::kDouble).triu(1))
                .find("not symmetric"),
            std::string::npos);
  EXPECT_NE(message(at::full({4, 4}, NAN, at::kDouble)).find("not finite"), std::string::npos);
}

Observation counts_of(const at::Tensor& rate, uint64_t seed) {
  Observation blank;
  blank.y = at::zeros({rate.numel()}, at::kDouble);
  return noise_model("poisson", blank, through("identity", {1, 1, rate.numel()}))
      ->simulate(rate.view({1, 1, 1, -1}), Rng(seed));
}

TEST(NoiseModels, PoissonIsTheFormula) {
  const LikelihoodContext context = through("blur", {1, 6, 6});
  Observation data;
  data.y = at::arange(36, at::kDouble).fmod(7);
  data.extra["exposure"] = Rng(1).uniform({36}, at::kDouble) * 5 + 1;
  const Configure background = [](Config& c) { c.set("background", noise_value(0.3)); };
  const auto likelihood = noise_model("poisson", data, context, background);
  const at::Tensor x = Rng(2).uniform({3, 1, 6, 6}, at::kDouble) + 0.1;
  const auto forward =
      forward_models().make(context.forward, "", {at::kDouble, at::kCPU, {}, {1, 6, 6}});
  const at::Tensor mu = forward->apply(x).flatten(1) * data.extra["exposure"] + 0.3;
  const at::Tensor want = (data.y * mu.log() - mu - (data.y + 1).lgamma()).sum(1);
  EXPECT_LT(relative_error(likelihood->log_prob(x, Rng(0)), want), 1e-13);
  EXPECT_LT(slope_error(*likelihood, x), 1e-8);
  EXPECT_LT(face_error(*likelihood, x), 1e-6);
  const auto automatic = likelihood->LogDensity::value_and_score(x, Rng(0));
  EXPECT_LT(relative_error(likelihood->value_and_score(x, Rng(0)).second, automatic.second), 1e-12);
  // Squared residuals are twice the log-likelihood missing to the perfect fit, mu = y.
  const at::Tensor perfect = (at::xlogy(data.y, data.y) - data.y - (data.y + 1).lgamma()).sum();
  EXPECT_LT(relative_error(likelihood->residuals(x).square().sum(1), 2 * (perfect - want)), 1e-11);
  EXPECT_LT(relative_error(likelihood->chi2(x)[0].second, ((data.y - mu).square() / mu).mean(1)),
            1e-12);
}

// Mass over all counts is 1 for one pixel: the constant is right.
TEST(NoiseModels, PoissonSumsToOne) {
  for (const double rate : {0.3, 4.0}) {
    double sum = 0;
    for (int k = 0; k < 60; ++k) {
      Observation data;
      data.y = at::full({1}, k, at::kDouble);
      sum += std::exp(noise_model("poisson", data, through("identity", {1, 1, 1}))
                          ->log_prob(at::full({1, 1, 1, 1}, rate, at::kDouble), Rng(0))
                          .item<double>());
    }
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST(NoiseModels, PoissonGoesOnBelowItsFloor) {
  Observation data;
  data.y = at::tensor({0.0, 3.0}, at::kDouble);
  const LikelihoodContext context = through("identity", {1, 1, 2});
  const auto likelihood = noise_model("poisson", data, context);
  const double floor = 1e-2;
  const auto at_rates = [](double a, double b) {
    return at::tensor({a, b}, at::kDouble).view({1, 1, 1, 2});
  };
  // Value and slope agree on both sides of the floor.
  const double e = 1e-9;
  for (const auto& [a, b] : {std::pair<double, double>{floor, 2}, {2, floor}}) {
    const at::Tensor up = at_rates(a + e * (a == floor), b + e * (b == floor)),
                     down = at_rates(a - e * (a == floor), b - e * (b == floor));
    const auto above = likelihood->value_and_score(up, Rng(0)),
               below = likelihood->value_and_score(down, Rng(0));
    EXPECT_NEAR(above.first.item<double>(), below.first.item<double>(), 1e-5);
    EXPECT_LT(relative_error(above.second, below.second), 1e-6);
  }
  // Falling towards negative rates, with the gradient of the value.
  double last = likelihood->log_prob(at_rates(0, floor), Rng(0)).item<double>();
  for (double rate = -0.01; rate > -3; rate *= 2) {
    const double now = likelihood->log_prob(at_rates(rate, rate), Rng(0)).item<double>();
    EXPECT_LT(now, last);
    last = now;
    EXPECT_LT(slope_error(*likelihood, at_rates(rate, rate), 1e-6), 1e-6);
    EXPECT_TRUE(at::isfinite(likelihood->residuals(at_rates(rate, rate))).all().item<bool>());
  }
  const auto strict = noise_model("poisson", data, context, [](Config& c) {
    c.set("negative_rates", noise_value(std::string("impossible")));
  });
  EXPECT_EQ(strict->log_prob(at_rates(1, -0.1), Rng(0)).item<double>(), -INFINITY);
  EXPECT_GT(strict->value_and_score(at_rates(1, -0.1), Rng(0)).second[0][0][0][1].item<double>(),
            0);
  EXPECT_EQ(strict->log_prob(at_rates(1, 2), Rng(0)).item<double>(),
            likelihood->log_prob(at_rates(1, 2), Rng(0)).item<double>());
}

// Mean and variance of counts are the rate, on both sides of the switch of the generator; the
// fourth cumulant of the law gives the variance of a sample variance.
TEST(NoiseModels, CountsFollowTheLaw) {
  const int64_t n = 20000;
  for (const double rate : {0.4, 6.0, 9.9, 10.1, 300.0}) {
    const at::Tensor y = counts_of(at::full({n}, rate, at::kDouble), 3).y.flatten();
    EXPECT_TRUE(y.eq(y.round()).all().item<bool>());
    EXPECT_NEAR(y.mean().item<double>(), rate, 4.5 * std::sqrt(rate / n)) << rate;
    EXPECT_NEAR(y.var().item<double>(), rate, 4.5 * std::sqrt((rate + 2 * rate * rate) / n))
        << rate;
    // P(y <= floor(rate)) by its sum, within its binomial error.
    double mass = 0;
    for (int k = 0; k <= std::floor(rate); ++k)
      mass += std::exp(k * std::log(rate) - rate - std::lgamma(k + 1));
    EXPECT_NEAR(y.le(std::floor(rate)).to(at::kDouble).mean().item<double>(), mass,
                4.5 * std::sqrt(mass * (1 - mass) / n))
        << rate;
  }
  // Pearson's chi^2 under the truth: mean 1, variance (2 + 1/mu)/n.
  const at::Tensor truth = Rng(4).uniform({1, 1, 1, 4000}, at::kDouble) * 3 + 0.2;
  const Observation o = counts_of(truth, 8);
  const auto likelihood = noise_model("poisson", o, through("identity", {1, 1, 4000}));
  EXPECT_NEAR(likelihood->chi2(truth)[0].second.item<double>(), 1,
              4.5 * std::sqrt((2 + (1 / truth).mean().item<double>()) / 4000));
}

TEST(NoiseModels, PoissonErrors) {
  const LikelihoodContext context = through("identity", {1, 1, 2});
  const auto message = [&](
                           const std::vector<double>& y,
                           const Configure& configure = [](Config&) {}) -> std::string {
    Observation data;
    data.y = at::tensor(y, at::kDouble);
    try {
      noise_model("poisson", data, context, configure)
          ->simulate(at::tensor({1.0, -1.0}, at::kDouble).view({1, 1, 1, 2}), Rng(0));
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message({1, 2}).find("negative rate"), std::string::npos);
  EXPECT_EQ(message({1, 2}, [](Config& c) { c.set("background", noise_value(2.0)); }), "");
  EXPECT_NE(message({1, -2}).find("negative entries"), std::string::npos);
  EXPECT_NE(message({1, 0.5}).find("not whole numbers"), std::string::npos);
  EXPECT_NE(message({1, 2}, [](Config& c) { c.set("exposure", noise_value(0.0)); })
                .find("exposure must be"),
            std::string::npos);
  EXPECT_NE(
      message({1, 2}, [](Config& c) { c.set("floor", noise_value(-1.0)); }).find("floor must be"),
      std::string::npos);
}

}  // namespace
}  // namespace scoreprior
