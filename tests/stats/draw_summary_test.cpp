#include "scoreprior/stats/draw_summary.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"

namespace scoreprior::stats {
namespace {

TEST(DrawQuantiles, AreWeibullOrderStatistics) {
  const at::Tensor x = at::tensor({3.0, 1.0, 2.0, 4.0}, at::kDouble).unsqueeze(1);
  const at::Tensor q = draw_quantiles(x, {0.2, 0.5, 0.8, 0.0, 1.0}).flatten();
  const double expected[] = {1, 2.5, 4, 1, 4};  // (N+1) p = 1, 2.5, 4, clamped, clamped
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(q[i].item<double>(), expected[i], 1e-12);
}

TEST(PixelSummary, ClosedForm) {
  const at::Tensor x = at::tensor({1.f, 2.f, 6.f}).view({3, 1, 1, 1});
  const PixelSummary s = summarize_pixels(x, {0.5});
  EXPECT_NEAR(s.mean.item<double>(), 3, 1e-12);
  EXPECT_NEAR(s.std.item<double>(), std::sqrt(7.0), 1e-12);
  EXPECT_NEAR(s.quantiles.item<double>(), 2, 1e-12);
}

TEST(Coverage, OfACalibratedPosteriorIsNominal) {
  // Truth and draws exchangeable, 19 draws: (N+1) p whole at 50 % and 90 %.
  const int64_t pixels = 40000;
  const at::Tensor draws = Rng(1).normal({19, pixels}, at::kDouble);
  const at::Tensor truth = Rng(2).normal({pixels}, at::kDouble);
  const std::vector<double> c = coverage(draws, truth, {0.5, 0.9});
  EXPECT_NEAR(c[0], 0.5, 4 * std::sqrt(0.25 / pixels));
  EXPECT_NEAR(c[1], 0.9, 4 * std::sqrt(0.09 / pixels));
  // Half as wide as it should be: Phi^-1(0.75) / 2 sigma covers 26.4 % (many draws).
  const double narrow =
      coverage(0.5 * Rng(3).normal({399, 4000}, at::kDouble), truth.slice(0, 0, 4000), {0.5})[0];
  EXPECT_NEAR(narrow, 0.2641, 4 * std::sqrt(0.2 / 4000));
}

TEST(Coverage, CountsTheMaskOnly) {
  const at::Tensor draws = at::arange(1, 20, at::kDouble).unsqueeze(1).expand({19, 3});
  const at::Tensor truth = at::tensor({10.0, 10.0, 100.0}, at::kDouble);
  EXPECT_NEAR(coverage(draws, truth, {0.9})[0], 2.0 / 3, 1e-12);
  EXPECT_EQ(coverage(draws, truth, {0.9}, truth < 50)[0], 1);
  EXPECT_TRUE(std::isnan(coverage(draws, truth, {0.9}, truth > 500)[0]));
  const at::Tensor mask = bright_mask(at::tensor({1.0, 0.06, 0.04}, at::kDouble));
  EXPECT_TRUE(at::equal(mask, at::tensor({1, 1, 0}).to(at::kBool)));
}

TEST(Ranks, AreUniformWhenCalibratedAndOnlyThen) {
  const int64_t problems = 2000, n = 99;
  const at::Tensor truth = Rng(4).normal({problems}, at::kDouble);
  const at::Tensor good = ranks(Rng(5).normal({n, problems}, at::kDouble), truth);
  EXPECT_EQ(good.scalar_type(), at::kLong);
  EXPECT_LE(good.max().item<int64_t>(), n);
  const UniformityTest ok = rank_uniformity(good, n);
  EXPECT_GT(ok.p_value, 1e-3) << ok.statistic;
  const UniformityTest narrow =
      rank_uniformity(ranks(0.7 * Rng(5).normal({n, problems}, at::kDouble), truth), n);
  EXPECT_LT(narrow.p_value, 1e-6) << narrow.statistic;
  // Closed form: chi^2 = 2 with two bins of 10 and 30 counts is 10; survival of chi^2_1.
  at::Tensor two = at::cat({at::zeros({10}, at::kLong), at::ones({30}, at::kLong)});
  const UniformityTest t = rank_uniformity(two, 1, 2);
  EXPECT_NEAR(t.statistic, 10, 1e-12);
  EXPECT_NEAR(t.p_value, std::erfc(std::sqrt(5.0)), 1e-12);
}

TEST(Tarp, SeesAJointMiscalibrationThatMarginalsHide) {
  // Truth with correlation 0.9, draws with the same marginals and none.
  const int64_t problems = 1500, n = 100;
  const auto correlated = [](const at::Tensor& z) {
    return at::stack({z.select(-1, 0), 0.9 * z.select(-1, 0) + std::sqrt(0.19) * z.select(-1, 1)},
                     -1);
  };
  const at::Tensor truth = correlated(Rng(6).normal({problems, 2}, at::kDouble));
  const at::Tensor white = Rng(7).normal({problems, n, 2}, at::kDouble);
  const at::Tensor reference =
      at::full({problems, 2}, 1.5, at::kDouble) * at::tensor({1.0, -1.0}, at::kDouble);
  EXPECT_GT(ks_uniform(tarp_fractions(correlated(white), truth, reference)).p_value, 1e-3);
  EXPECT_LT(ks_uniform(tarp_fractions(white, truth, reference)).p_value, 1e-6);
}

TEST(KsUniform, KnowsUniform) {
  EXPECT_GT(ks_uniform(Rng(8).uniform({5000}, at::kDouble)).p_value, 1e-3);
  EXPECT_LT(ks_uniform(Rng(8).uniform({5000}, at::kDouble).square()).p_value, 1e-9);
  // One value in the middle is 1/2 from both ends.
  EXPECT_NEAR(ks_uniform(at::full({1}, 0.5, at::kDouble)).statistic, 0.5, 1e-15);
}

}  // namespace
}  // namespace scoreprior::stats
