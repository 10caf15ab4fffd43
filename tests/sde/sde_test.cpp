#include "scoreprior/sde/sde.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::unique_ptr<Sde> sde_from(const std::string& toml) { return make_sde(io::parse_toml(toml)); }

const char* const kAll[] = {"type = \"vp\"", "type = \"vp\"\nbeta_max = 10", "type = \"subvp\"",
                            "type = \"ve\"", "type = \"linear_ve\""};

at::Tensor times(double from = 1e-5) {
  return at::cat(
      {at::tensor({from, 1e-4, 1e-3, 1e-2}, at::kDouble), at::linspace(0.02, 1, 50, at::kDouble)});
}

// alpha' = f alpha and (std^2)' = 2 f std^2 + g^2, by central differences; h = 1e-6 t leaves about
// 1e-9.
TEST(Sde, MarginalsSolveTheMomentEquations) {
  for (const char* toml : kAll) {
    const auto sde = sde_from(toml);
    const at::Tensor t = times(), h = t * 1e-5;
    const auto slope = [&](const at::Tensor& hi, const at::Tensor& lo) {
      return (hi - lo) / (2 * h);
    };
    const at::Tensor da = slope(sde->mean_coeff(t + h), sde->mean_coeff(t - h));
    const at::Tensor dv = slope(sde->std(t + h).square(), sde->std(t - h).square());
    const at::Tensor f = sde->drift_coeff(t), v = sde->std(t).square();
    EXPECT_LT((da - f * sde->mean_coeff(t)).abs().max().item<double>(), 2e-6) << toml;
    const at::Tensor want = f * v * 2 + sde->diffusion(t).square();
    EXPECT_LT(((dv - want) / want).abs().max().item<double>(), 2e-7) << toml;
  }
}

// The first terms of the series at tiny t, where 1 - exp loses every digit.
TEST(Sde, KeepsItsDigitsAtSmallTimes) {
  const at::Tensor t = at::tensor({1e-12, 1e-9}, at::kDouble);
  const at::Tensor b = t * 0.1 + t * t * 9.95;
  EXPECT_LT(relative_error(sde_from(kAll[0])->std(t), b.sqrt() * (1 - b / 4)), 1e-15);
  EXPECT_LT(relative_error(sde_from(kAll[2])->std(t), b * (1 - b / 2)), 1e-15);
  const auto f32 = sde_from(kAll[0])->std(t.to(at::kFloat));
  EXPECT_EQ(f32.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error(f32, b.sqrt()), 1e-6);
}

TEST(Sde, ImportanceNormIsTheIntegralAndTimesInvertIt) {
  for (const char* toml : {kAll[0], kAll[1], kAll[2]}) {
    const auto sde = sde_from(toml);
    for (const double t0 : {1e-5, 1e-3}) {
      // Simpson in ln t, 20000 cells: error of order 1e-13.
      const auto integral = [&](double a, double b) {
        const int64_t n = 20000;
        const at::Tensor s = at::linspace(std::log(a), std::log(b), 2 * n + 1, at::kDouble);
        const at::Tensor t = s.exp();
        at::Tensor y = t * sde->diffusion(t).square() / sde->std(t).square();
        at::Tensor w = at::full({2 * n + 1}, 2.0, at::kDouble);
        w.slice(0, 1, 2 * n, 2).fill_(4);
        w[0] = w[2 * n] = 1;
        return (y * w).sum().item<double>() * std::log(b / a) / (6.0 * n);
      };
      const double z = sde->importance_norm(t0);
      EXPECT_NEAR(z, integral(t0, 1), 1e-9 * z) << toml;
      const at::Tensor u = at::tensor({0.0, 0.1, 0.5, 0.9, 0.999}, at::kDouble);
      const at::Tensor t = sde->importance_time(u, t0);
      EXPECT_NEAR(t[0].item<double>(), t0, 1e-13 * t0);
      for (int64_t i = 1; i < u.size(0); ++i)
        EXPECT_NEAR(integral(t0, t[i].item<double>()), u[i].item<double>() * z, 1e-8 * z) << toml;
    }
  }
  EXPECT_FALSE(sde_from(kAll[3])->has_importance());
  EXPECT_THROW(sde_from(kAll[3])->importance_norm(1e-3), std::invalid_argument);
}

// Branch times solve the branched weight; both forms meet to the size of the expansion's error.
TEST(Sde, BranchesStayWithinTheirExpansionError) {
  for (const std::string toml : {kAll[0], kAll[2]}) {
    const auto exact = sde_from(toml), branched = sde_from(toml + "\nsmall_time_branch = true");
    const at::Tensor t = times(), u = at::linspace(0, 0.999, 101, at::kDouble);
    EXPECT_LT(((branched->std(t) - exact->std(t)) / exact->std(t)).abs().max().item<double>(),
              1.1e-3);
    EXPECT_LT((branched->mean_coeff(t) - exact->mean_coeff(t)).abs().max().item<double>(), 6e-7);
    EXPECT_LT((branched->importance_time(u, 1e-5) - exact->importance_time(u, 1e-5))
                  .abs()
                  .max()
                  .item<double>(),
              1e-5);
  }
}

TEST(Sde, DriftsAndPrior) {
  const Rng rng(3);
  for (const char* toml : kAll) {
    const auto sde = sde_from(toml);
    const at::Tensor x = rng.split("x").normal({3, 1, 2, 2}, at::kDouble),
                     s = rng.split("s").normal({3, 1, 2, 2}, at::kDouble);
    const at::Tensor t = at::tensor({0.01, 0.3, 1.0}, at::kDouble);
    const at::Tensor forward = sde->drift(x, t), reverse = sde->reverse_drift(x, t, s);
    EXPECT_LT(relative_error(sde->probability_flow_drift(x, t, s), (forward + reverse) / 2), 1e-14);
    const double v = sde->prior_std() * sde->prior_std();
    const at::Tensor want = -sum_event(x.square()) / (2 * v) - 2 * std::log(2 * M_PI * v);
    EXPECT_LT(relative_error(sde->prior_log_prob(x), want), 1e-14);
  }
}

TEST(Sde, RejectsImpossibleSettings) {
  EXPECT_THROW(sde_from("type = \"vpp\""), ConfigError);
  EXPECT_THROW(sde_from("beta_min = 0"), ConfigError);
  EXPECT_THROW(sde_from("beta_min = 3\nbeta_max = 1"), ConfigError);
  EXPECT_THROW(sde_from("type = \"ve\"\nsigma_min = -1"), ConfigError);
}

std::string golden_toml(const nlohmann::json& c, bool branch) {
  std::string type = c.at("type");
  for (char& ch : type) ch = static_cast<char>(std::tolower(ch));
  if (c.value("linear", false)) type = "linear_ve";
  std::string toml =
      "type = \"" + type + "\"\nsmall_time_branch = " + (branch ? "true" : "false") + "\n";
  for (const char* key : {"beta_min", "beta_max", "sigma_min", "sigma_max"})
    if (c.contains(key)) toml += std::string(key) + " = " + c.at(key).dump() + "\n";
  return toml + "num_scales = " + c.at("N").dump() + "\n";
}

class SdeGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(SdeGolden, Values) {
  const std::string name = std::string("sde/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  const GoldenCase g(name);
  const auto sde = sde_from(golden_toml(g.config(), true)),
             exact = sde_from(golden_toml(g.config(), false));
  const at::Tensor t = g.array("t"), x = g.array("x"), s = g.array("score");
  const double tol = 1e-12;  // the manifest's float64 limit
  EXPECT_LT(relative_error(sde->mean_coeff(t), g.array("mean_coeff")), tol);
  EXPECT_LT(relative_error(sde->std(t), g.array("std")), tol);
  EXPECT_LT(relative_error(sde->diffusion(t), g.array("diffusion")), tol);
  EXPECT_LT(relative_error(sde->drift(x, t), g.array("drift")), tol);
  EXPECT_LT(relative_error(sde->reverse_drift(x, t, s), g.array("rev_drift")), tol);
  EXPECT_LT(relative_error(sde->probability_flow_drift(x, t, s), g.array("pf_drift")), tol);
  EXPECT_LT(relative_error(sde->prior_log_prob(g.array("z")), g.array("prior_logp")), tol);
  EXPECT_LT(relative_error(exact->mean_coeff(t), g.array("mean_coeff_exact")), tol);
  EXPECT_LT(relative_error(exact->std(t), g.array("std_exact")), tol);
  EXPECT_LT(relative_error(exact->diffusion(t), g.array("diffusion_exact")), tol);
  for (const std::string eps : {"1e-05", "0.001"}) {
    if (!g.has("iw_eps" + eps + "_time_1000")) continue;
    const double t0 = std::stod(eps);
    EXPECT_NEAR(sde->importance_norm(t0), g.scalar("iw_eps" + eps + "_Z"), 1e-11);
    EXPECT_NEAR(exact->importance_norm(t0), g.scalar("iw_eps" + eps + "_Z_exact"), 2e-9);
    // Times within 1e-9, as the manifest says.
    EXPECT_LT((sde->importance_time(g.array("iw_u"), t0) - g.array("iw_eps" + eps + "_time_1000"))
                  .abs()
                  .max()
                  .item<double>(),
              1e-9);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SdeGolden,
                         ::testing::Values("vp_0.1_10", "vp_0.1_20", "subvp_0.1_10", "subvp_0.1_20",
                                           "ve_0.01_50", "ve_0.002_50", "ve_linear_50"));

}  // namespace
}  // namespace scoreprior
