#include "scoreprior/stats/convergence.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"

namespace scoreprior::stats {
namespace {

// Stationary AR(1) chains of unit variance, [chains, draws, dims].
at::Tensor ar1(double phi, int64_t chains, int64_t draws, int64_t dims, uint64_t seed) {
  const at::Tensor noise = Rng(seed).normal({draws, chains, dims}, at::kDouble);
  at::Tensor x = at::empty_like(noise);
  x[0] = noise[0];
  for (int64_t t = 1; t < draws; ++t) x[t] = phi * x[t - 1] + std::sqrt(1 - phi * phi) * noise[t];
  return x.transpose(0, 1).contiguous();
}

TEST(Ess, OfAutoregressionsIsTheClosedForm) {
  // tau = (1 + phi) / (1 - phi); antithetic chains are worth more than their number.
  for (const double phi : {0.0, 0.5, 0.9, -0.4}) {
    const at::Tensor x = ar1(phi, 4, 2000, 20, 11);
    const double exact = 8000 * (1 - phi) / (1 + phi);
    EXPECT_NEAR(ess_mean(x).mean().item<double>() / exact, 1, 0.12) << phi;
    EXPECT_NEAR(ess_bulk(x).mean().item<double>() / exact, 1, 0.12) << phi;
    // Of the mean's standard error this makes half the relative error.
    EXPECT_NEAR(mcse_mean(x).mean().item<double>() * std::sqrt(exact), 1, 0.08) << phi;
  }
}

TEST(Ess, OfTheTailIsBelowTheDrawsNumber) {
  const double tail = ess_tail(ar1(0.0, 4, 1000, 20, 3)).mean().item<double>();
  EXPECT_NEAR(tail / 4000, 0.97, 0.12);  // the smaller of two
  EXPECT_LT(ess_tail(ar1(0.9, 4, 1000, 5, 3)).mean().item<double>(), 1500);
}

TEST(Rhat, IsOneOnlyForMixedChains) {
  const at::Tensor good = ar1(0.0, 4, 1000, 30, 5);
  EXPECT_LT(rhat(good).max().item<double>(), 1.02);
  at::Tensor shifted = good.clone();
  shifted[0] += 1.0;
  // B/n = 0.25 (4 chains of split halves: 8 means of which 2 are off by 1, variance 3/14), W = 1.
  EXPECT_NEAR(rhat(shifted).mean().item<double>(), std::sqrt(1 + 3.0 / 14), 0.03);
  at::Tensor scaled = good.clone();
  scaled[0] *= 4.0;  // equal means: only the folded draws see it
  EXPECT_GT(rhat(scaled).min().item<double>(), 1.05);
  at::Tensor drift = good + at::linspace(-1, 1, 1000, at::kDouble).view({1, 1000, 1});
  EXPECT_GT(rhat(drift).min().item<double>(), 1.05);
}

TEST(Convergence, RanksDoNotMindHeavyTailsOrMonotoneMaps) {
  const at::Tensor x = ar1(0.3, 4, 500, 5, 9);
  const at::Tensor y = at::exp(3 * x);
  EXPECT_LT((ess_bulk(x) - ess_bulk(y)).abs().max().item<double>(), 1e-6);
  const at::Tensor cauchy = at::tan(M_PI * (Rng(2).uniform({4, 1000, 5}, at::kDouble) - 0.5));
  EXPECT_LT(rhat(cauchy).max().item<double>(), 1.02);
}

TEST(Convergence, DegenerateInputs) {
  EXPECT_EQ(rhat(at::ones({2, 100, 1})).item<double>(), 1);
  EXPECT_EQ(ess_bulk(at::ones({2, 100, 1})).item<double>(), 200);
  at::Tensor x = ar1(0, 2, 100, 2, 1);
  x[0][3][1] = NAN;
  EXPECT_TRUE(std::isfinite(rhat(x)[0].item<double>()));
  EXPECT_TRUE(std::isnan(rhat(x)[1].item<double>()));
  EXPECT_TRUE(std::isnan(ess_bulk(x)[1].item<double>()));
  EXPECT_TRUE(std::isnan(rhat(at::ones({2, 3})).item<double>()));
  EXPECT_EQ(ess_bulk(Rng(1).normal({2, 50, 1, 4, 4})).sizes(), (at::IntArrayRef{1, 4, 4}));
  EXPECT_EQ(ess_bulk(Rng(1).normal({2, 50})).dim(), 0);
}

}  // namespace
}  // namespace scoreprior::stats
