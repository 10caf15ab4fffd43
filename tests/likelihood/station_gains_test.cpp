#include "scoreprior/likelihood/station_gains.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/interferometry.h"
#include "scoreprior/testing/golden.h"
#include "synthetic_table.h"

namespace scoreprior {
namespace {

using testing::relative_error;
using testing::synthetic_table;
using testing::with_noise;

InterferometryOptions with_gains(const std::string& gains, double amp_std = 0.2) {
  InterferometryOptions o;
  o.vis_weight = 1, o.cphase_weight = 0, o.logcamp_weight = 0;
  o.units = "jy", o.fov_uas = 100;
  o.gain.gains = gains;
  o.gain.gain_amp_std = amp_std;
  return o;
}

InterferometryLikelihood gain_likelihood(const VisibilityTable& table,
                                         const InterferometryOptions& o, int64_t size = 10,
                                         at::ScalarType dtype = at::kDouble) {
  return {table, o, size, size, dtype, at::kCPU};
}

// A Gaussian of 0.6 Jy with noise in its pixels, off the centre.
at::Tensor sky(int64_t batch, int64_t n = 10, double roughness = 0.1) {
  const at::Tensor k = at::arange(n, at::kDouble);
  const at::Tensor r2 =
      (k - n / 2.0 + 1).square().unsqueeze(1) + (k - n / 2.0).square().unsqueeze(0);
  at::Tensor x = (-r2 / 6).exp().expand({batch, 1, n, n}) *
                 (1 + roughness * Rng(3).normal({batch, 1, n, n}, at::kDouble));
  return x * (0.6 / x.sum({1, 2, 3}, true));
}

VisibilityTable observed(const VisibilityTable& table, const InterferometryOptions& o,
                         const at::Tensor& x, uint64_t seed) {
  return *gain_likelihood(table, o).simulate(x, Rng(seed)).visibilities;
}

VisibilityTable noise_free(VisibilityTable table, const at::Tensor& x) {
  for (auto& row : table.rows) row.sigma = 1e-15;
  return observed(table, with_gains("none"), x, 1);
}

std::complex<double> test_gain(int32_t site, double time, double amplitude) {
  const auto n = Rng(7).at(site).at(std::lround(10 * time)).normals(2);
  return std::exp(std::complex<double>(amplitude * n[0], 3 * n[1]));
}

VisibilityTable corrupted(VisibilityTable table, double amplitude) {
  for (VisibilityRow& row : table.rows) {
    const std::complex<double> f =
        test_gain(row.t1, row.time, amplitude) * std::conj(test_gain(row.t2, row.time, amplitude));
    row.vis *= f;
    row.sigma *= std::abs(f);
  }
  return table;
}

TEST(StationGains, TightPriorIsTheCalibratedLikelihood) {
  const VisibilityTable table = with_noise(synthetic_table(5, 3, 30), Rng(1));
  InterferometryOptions plain = with_gains("none");
  plain.normalized = true;
  const at::Tensor x = sky(3);
  const auto want = gain_likelihood(table, plain).value_and_score(x, Rng(0));
  for (const char* kind : {"marginal", "joint"}) {
    InterferometryOptions o = with_gains(kind, 1e-7);
    o.gain.gain_phases = "normal", o.gain.gain_phase_std = 1e-7;
    o.normalized = true;
    const auto got = gain_likelihood(table, o).value_and_score(x, Rng(0));
    // Gains of 1e-7 move chi^2 by its square over the noise, 1e-14 x (snr 30)^2 x rows.
    EXPECT_LT(relative_error(got.first, want.first), 1e-9) << kind;
    EXPECT_LT(relative_error(got.second, want.second), 1e-8) << kind;
  }
  // No gain at all in either part: exactly the same.
  InterferometryOptions o = with_gains("marginal", 0);
  o.gain.gain_phases = "normal", o.gain.gain_phase_std = 1e-9;
  o.normalized = true;
  EXPECT_LT(relative_error(gain_likelihood(table, o).log_prob(x, Rng(0)), want.first), 1e-12);
}

// Every kind, near the data and far from them, with missing baselines and a site alone.
TEST(StationGains, GradientIsTheFiniteDifference) {
  VisibilityTable table = with_noise(synthetic_table(5, 3, 20), Rng(2));
  table.rows.erase(table.rows.begin() + 4);     // a baseline
  for (size_t k = table.rows.size(); k-- > 0;)  // last scan: two pairs
    if (table.rows[k].time > 0.5 && !(table.rows[k].t1 == 0 && table.rows[k].t2 == 1) &&
        !(table.rows[k].t1 == 2 && table.rows[k].t2 == 3))
      table.rows.erase(table.rows.begin() + static_cast<std::ptrdiff_t>(k));
  const at::Tensor near = sky(2), far = Rng(5).uniform({2, 1, 10, 10}, at::kDouble) * 0.05;
  for (const char* kind : {"marginal", "joint"})
    for (const char* phases : {"uniform", "normal"})
      for (const at::Tensor& x : {near, far}) {
        InterferometryOptions o = with_gains(kind, 0.3);
        o.gain.gain_phases = phases;
        o.gain.gain_amp_std_by_site = "B:0.8,C:0";
        const auto likelihood = gain_likelihood(corrupted(table, 0.2), o);
        const auto [value, score] = likelihood.value_and_score(x, Rng(0));
        const at::Tensor d = score / score.flatten(1).norm(2, {1}).view({-1, 1, 1, 1}) +
                             Rng(6).normal(x.sizes(), at::kDouble) * 0.1;
        double best = 1;  // truncation against rounding: one of these steps balances them
        for (const double h : {1e-5, 1e-6, 1e-7}) {
          const at::Tensor difference =
              (likelihood.log_prob(x + h * d, Rng(0)) - likelihood.log_prob(x - h * d, Rng(0))) /
              (2 * h);
          best = std::min(best, relative_error(difference, sum_event(score * d)));
        }
        EXPECT_LT(best, 1e-6) << kind << " " << phases << " " << (&x == &near);
      }
}

// Data turned by any phases of the sites: exactly the same density. By gains, with sigma scaled
// alike: differences between images stay, up to the pull of a wide prior.
TEST(StationGains, InsensitiveToGainsUnderWidePriors) {
  const VisibilityTable table = with_noise(synthetic_table(6, 3, 50), Rng(3));
  const at::Tensor x = sky(3);
  const auto value = [&](const VisibilityTable& t, double amp_std) {
    return gain_likelihood(t, with_gains("marginal", amp_std)).log_prob(x, Rng(0));
  };
  EXPECT_LT(relative_error(value(corrupted(table, 0), 0.2), value(table, 0.2)), 1e-9);
  const at::Tensor wide = value(table, 30), moved = value(corrupted(table, 0.5), 30);
  // sum (alpha/s)^2/2 over 18 gains of 0.5 is 2.5e-3.
  EXPECT_LT(((wide - wide[0]) - (moved - moved[0])).abs().max().item<double>(), 1e-2);
  EXPECT_GT((wide - wide[0]).abs().max().item<double>(), 1);  // the images do differ
  // Under a tight prior the same gains are noticed.
  EXPECT_GT((value(table, 0.05) - value(corrupted(table, 0.5), 0.05)).abs().min().item<double>(),
            10);
}

// At high signal-to-noise and near the truth everything is linear: the marginal is the likelihood
// of the closures with their full covariance, a complete set of numbers that gains leave alone.
TEST(StationGains, WidePriorsLeaveTheClosures) {
  const double snr = 1e3;
  const at::Tensor x = sky(4, 10, 1e-4);
  VisibilityTable table = noise_free(synthetic_table(6, 3), x.narrow(0, 0, 1));
  for (auto& row : table.rows) row.sigma = std::abs(row.vis) / snr;
  table = with_noise(table, Rng(13));
  InterferometryOptions closures = with_gains("none");
  closures.vis_weight = 0, closures.cphase_weight = closures.logcamp_weight = 1;
  const at::Tensor want = gain_likelihood(table, closures).log_prob(x, Rng(0));
  const at::Tensor got =
      gain_likelihood(corrupted(table, 0.5), with_gains("marginal", 50)).log_prob(x, Rng(0));
  const at::Tensor want_steps = want - want[0], got_steps = got - got[0];
  EXPECT_GT(want_steps.abs().max().item<double>(), 5);
  // Second order in the residuals of phases and log amplitudes (20 times larger pixel errors agree
  // to 3 %), and the determinant's slope.
  EXPECT_LT(relative_error(got_steps, want_steps), 0.01);
}

// Laplace is exact for one amplitude of two sites only in the limit; against quadrature over the
// gains of one baseline it is good to its own error, about 1/(12 snr^2).
TEST(StationGains, MarginalAgreesWithQuadrature) {
  VisibilityTable table = synthetic_table(2, 1, 30);
  const at::Tensor x = sky(2);
  InterferometryOptions o = with_gains("marginal", 0.3);
  o.normalized = true;
  for (int64_t b = 0; b < 2; ++b) {
    const std::complex<double> m = noise_free(table, x.narrow(0, b, 1)).rows[0].vis;
    table.rows[0].sigma = std::abs(m) / 30;
    table.rows[0].vis = std::polar(1.1 * std::abs(m), 2.0);
    // |g_a g_b| = exp(u), u ~ N(0, 2 s^2); the phase difference is uniform.
    const double s2 = 2 * 0.3 * 0.3, v2 = table.rows[0].sigma * table.rows[0].sigma;
    double integral = 0;
    const double du = 1e-3, dphi = 2 * M_PI / 2000;
    for (double u = -1.5; u < 1.5; u += du)
      for (int k = 0; k < 2000; ++k) {
        const double phi = k * dphi;
        if (std::abs(std::remainder(phi - (2.0 - std::arg(m)), 2 * M_PI)) > 0.4) continue;
        const double chi2 =
            std::norm(table.rows[0].vis - std::exp(u) * std::polar(1.0, phi) * m) / v2;
        integral += std::exp(-chi2 / 2 - u * u / (2 * s2)) * du * dphi;
      }
    integral /= 2 * M_PI * std::sqrt(2 * M_PI * s2) * 2 * M_PI * v2;
    EXPECT_NEAR(gain_likelihood(table, o).log_prob(x.narrow(0, b, 1), Rng(0)).item<double>(),
                std::log(integral), 3e-3);
  }
}

// Data made with gains of the prior: at the truth chi^2 per degree of freedom is 1, the gains come
// back within their errors, and calibrated visibilities would not have fitted.
TEST(StationGains, TruthFitsWithChiSquareOne) {
  const at::Tensor x = sky(1);
  const InterferometryOptions o = with_gains("marginal", 0.3);
  const VisibilityTable like = synthetic_table(7, 6, 100);
  const int seeds = 12;
  double mean = 0;
  for (int s = 0; s < seeds; ++s) {
    const VisibilityTable data = observed(like, o, x, 100 + static_cast<uint64_t>(s));
    const auto likelihood = gain_likelihood(data, o);
    mean += likelihood.chi2(x)[0].second.item<double>() / seeds;
    EXPECT_GT(gain_likelihood(data, with_gains("none")).chi2(x)[0].second.item<double>(), 100);
    EXPECT_LT(likelihood.best_gains(x).decrement.max().item<double>(), 1e-10);
  }
  // 252 numbers less 78 gains: 174 degrees of freedom each.
  EXPECT_NEAR(mean, 1, 4.5 * std::sqrt(2.0 / (174 * seeds)));
}

TEST(StationGains, InferredGainsAreTheTrueOnes) {
  const at::Tensor x = sky(1);
  VisibilityTable data = synthetic_table(6, 3, 1e4);
  data = observed(data, with_gains("none"), x, 5);
  const VisibilityTable bad = corrupted(data, 0.3);
  const GainSolution g = gain_likelihood(bad, with_gains("joint", 3)).best_gains(x);
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t s = 1; s < 6; ++s) {
      const auto want = test_gain(static_cast<int32_t>(s), 0.3 * t, 0.3),
                 zero = test_gain(0, 0.3 * t, 0.3);
      EXPECT_NEAR(g.log_amplitude[0][t][s].item<double>(), std::log(std::abs(want)), 0.01);
      EXPECT_NEAR(std::remainder((g.phase[0][t][s] - g.phase[0][t][0]).item<double>() -
                                     std::arg(want * std::conj(zero)),
                                 2 * M_PI),
                  0, 0.01);
    }
}

TEST(StationGains, ResidualsSlopesAndIntervals) {
  const at::Tensor x = sky(2);
  VisibilityTable table = noise_free(synthetic_table(5, 3), x.narrow(0, 0, 1));
  for (auto& row : table.rows) row.sigma = std::abs(row.vis) / 1e4;
  table = with_noise(table, Rng(3));
  InterferometryOptions o = with_gains("joint", 0.3);
  const auto likelihood = gain_likelihood(table, o);
  EXPECT_LT(relative_error(likelihood.residuals(x).square().sum(1) * -0.5,
                           likelihood.log_prob(x, Rng(0))),
            1e-10);
  const at::Tensor here = x.narrow(0, 0, 1), d = Rng(5).normal(here.sizes(), at::kDouble) * 0.01;
  const at::Tensor j = at::bmm(likelihood.slopes(here),
                               d.flatten(1).matmul(likelihood.linear_part().t()).unsqueeze(2))
                           .squeeze(2);
  const double e = 1e-4;
  const at::Tensor difference =
      -(likelihood.residuals(here + e * d) - likelihood.residuals(here - e * d)) / (2 * e);
  const int64_t rows = 2 * static_cast<int64_t>(table.rows.size());
  ASSERT_EQ(j.sizes(), difference.sizes());
  // Gauss-Newton leaves out residual x curvature, of order 1/snr; the prior's rows have the other
  // sign.
  EXPECT_LT(relative_error(j.narrow(1, 0, rows), difference.narrow(1, 0, rows)), 0.03);
  EXPECT_LT(relative_error(j.narrow(1, rows, j.size(1) - rows),
                           -difference.narrow(1, rows, j.size(1) - rows)),
            0.03);
  // One gain for all three times when the interval is long; each its own when it is short.
  o.gain.gain_seconds = 3 * 3600;
  EXPECT_EQ(gain_likelihood(table, o).best_gains(x).phase.sizes(), at::IntArrayRef({2, 1, 5}));
  o.gain.gain_seconds = 600;
  EXPECT_EQ(gain_likelihood(table, o).best_gains(x).phase.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_GT(likelihood.data_fits(x).size(), 5u);
}

TEST(StationGains, FloatBatchAndZeroModels) {
  const VisibilityTable table = with_noise(synthetic_table(5, 3, 30), Rng(1));
  const InterferometryOptions o = with_gains("marginal");
  const at::Tensor x = sky(3);
  const auto exact = gain_likelihood(table, o);
  const auto all = exact.value_and_score(x, Rng(0));
  for (int64_t b = 0; b < 3; ++b) {
    const auto one = exact.value_and_score(x.narrow(0, b, 1), Rng(0));
    EXPECT_LT(relative_error(one.first, all.first.narrow(0, b, 1)), 1e-11);
    EXPECT_LT(relative_error(one.second, all.second.narrow(0, b, 1)), 1e-7);
  }
  const auto single =
      gain_likelihood(table, o, 10, at::kFloat).value_and_score(x.to(at::kFloat), Rng(0));
  EXPECT_LT(relative_error(single.first, all.first), 1e-4);  // rounding of V over sigma
  EXPECT_LT(relative_error(single.second, all.second), 1e-3);
  const auto zero = exact.value_and_score(at::zeros_like(x), Rng(0));
  EXPECT_TRUE(at::isfinite(zero.first).all().item<bool>());
  EXPECT_TRUE(at::isfinite(zero.second).all().item<bool>());
}

TEST(StationGains, Errors) {
  EXPECT_EQ(parse_gain_stds(" LM:0.5, AA:0").at("LM"), 0.5);
  for (const char* bad : {"LM", "LM:", ":1", "LM:-1", "LM:x", "LM:1;AA:2"})
    EXPECT_THROW(parse_gain_stds(bad), ConfigError) << bad;
  InterferometryOptions o = with_gains("joint");
  o.gain.gain_amp_std_by_site = "ZZ:1";
  EXPECT_THROW(gain_likelihood(synthetic_table(4, 1), o), ConfigError);
  // A second derivative is refused, not wrong.
  const auto likelihood =
      gain_likelihood(with_noise(synthetic_table(4, 1, 30), Rng(1)), with_gains("joint"));
  const at::Tensor x = sky(1).requires_grad_(true);
  EXPECT_THROW(likelihood.evaluate(x, true), std::invalid_argument);
  const auto automatic = likelihood.LogDensity::value_and_score(x, Rng(0));
  EXPECT_LT(relative_error(automatic.second, likelihood.value_and_score(x, Rng(0)).second), 1e-12);
}

}  // namespace
}  // namespace scoreprior
