#include "scoreprior/likelihood/closures.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "golden_table.h"
#include "scoreprior/core/errors.h"
#include "synthetic_table.h"

namespace scoreprior {
namespace {

using testing::golden_table;
using testing::GoldenCase;
using testing::relative_error;
using testing::synthetic_table;
using testing::with_noise;

at::Tensor values_of(const ClosureSet& set, double Closure::*member) {
  std::vector<double> v;
  for (const Closure& c : set.closures) v.push_back(c.*member);
  return at::tensor(v, at::kDouble);
}

at::Tensor concatenated(const std::vector<ClosureBlock>& blocks, at::Tensor ClosureBlock::*member) {
  std::vector<at::Tensor> parts;
  for (const ClosureBlock& b : blocks) parts.push_back((b.*member).flatten());
  return at::cat(parts);
}

void compare_with_golden(const std::string& name, const std::string& table_prefix,
                         const std::string& prefix) {
  const GoldenCase g("interferometry/" + name);
  const VisibilityTable table = golden_table(g, table_prefix);
  // Tolerances: section 15 of the reference's description (1e-10 from stored arrays, 1e-9 for |T|
  // and its sigma).
  if (g.has(prefix + "amp")) {
    EXPECT_LT(relative_error(at::tensor(amplitudes(table, Debias::kFloor), at::kDouble),
                             g.array(prefix + "amp")),
              1e-10);
    EXPECT_LT(relative_error(at::tensor(amplitudes(table, Debias::kZero), at::kDouble),
                             g.array(prefix + "amp_unpack")),
              1e-10);
  }
  const ClosureSet phases = closures(table, ClosureKind::kPhase);
  const ClosureSet logs = closures(table, ClosureKind::kLogAmplitude);
  EXPECT_LT(
      relative_error(values_of(phases, &Closure::value) * (180 / M_PI), g.array(prefix + "cphase")),
      1e-10);
  EXPECT_LT(relative_error(values_of(phases, &Closure::sigma) * (180 / M_PI),
                           g.array(prefix + "cphase_sigma")),
            1e-10);
  EXPECT_LT(relative_error(values_of(logs, &Closure::value), g.array(prefix + "logcamp")), 1e-10);
  EXPECT_LT(relative_error(values_of(logs, &Closure::sigma), g.array(prefix + "logcamp_sigma")),
            1e-10);
  EXPECT_LT(
      relative_error(values_of(logs, &Closure::debiased), g.array(prefix + "logcamp_debiased")),
      1e-10);
  EXPECT_LT(relative_error(values_of(logs, &Closure::debiased_sigma),
                           g.array(prefix + "logcamp_debiased_sigma")),
            1e-10);
  const auto compare_legs = [&](const ClosureSet& set, const std::string& kind) {
    const at::Tensor row = g.array(prefix + kind + "_leg_row"),
                     dir = g.array(prefix + kind + "_leg_dir");
    ASSERT_EQ(static_cast<int64_t>(set.closures.size()), row.size(0));
    for (size_t k = 0; k < set.closures.size(); ++k)
      for (int64_t l = 0; l < set.legs; ++l) {
        ASSERT_EQ(set.closures[k].row[l], row[k][l].item<int64_t>());
        ASSERT_EQ(set.closures[k].direction[l], dir[k][l].item<int64_t>());
      }
    const auto blocks = closure_blocks(table, set, ClosureCovariance::kEhtim);
    const at::Tensor size = g.array(prefix + kind + "_diag_block_size");
    ASSERT_EQ(static_cast<int64_t>(blocks.size()), size.size(0));
    for (size_t b = 0; b < blocks.size(); ++b) EXPECT_EQ(blocks[b].size, size[b].item<int64_t>());
    // The reference's sigmas are degrees for phases, its covariance rad^2.
    const double unit = set.kind == ClosureKind::kPhase ? 180 / M_PI : 1;
    EXPECT_LT(relative_error(concatenated(blocks, &ClosureBlock::sigma) * unit,
                             g.array(prefix + kind + "_diag_sigma")),
              1e-9);
    EXPECT_LT(relative_error(concatenated(blocks, &ClosureBlock::covariance),
                             g.array(prefix + kind + "_diag_cov")),
              1e-10);
    EXPECT_LT((concatenated(blocks, &ClosureBlock::transform).abs() -
               g.array(prefix + kind + "_diag_T").abs())
                  .abs()
                  .max()
                  .item<double>(),
              1e-9);
  };
  compare_legs(phases, "cphase");
  compare_legs(logs, "logcamp");
}

TEST(Closures, MatchReferenceDemo) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  compare_with_golden("demo_obs", "obs_", "");
}
TEST(Closures, MatchReferenceM87Averaged) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  compare_with_golden("m87_095_lo", "obs_", "");
  compare_with_golden("m87_095_lo", "pre_", "pre_");
}
TEST(Closures, MatchReferenceM87Raw) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo_raw");
  compare_with_golden("m87_095_lo_raw", "obs_", "");
}

TEST(Closures, CompleteArrayHasTheMinimalNumber) {
  for (int n = 2; n <= 9; ++n) {
    const VisibilityTable table = synthetic_table(n, 2);
    EXPECT_EQ(closures(table, ClosureKind::kPhase).closures.size(),
              static_cast<size_t>(2 * (n - 1) * (n - 2) / 2));
    EXPECT_EQ(closures(table, ClosureKind::kLogAmplitude).closures.size(),
              static_cast<size_t>(n < 4 ? 0 : 2 * n * (n - 3) / 2));
  }
}

TEST(Closures, InvariantUnderStationGains) {
  const VisibilityTable table = with_noise(synthetic_table(7, 3, 100), Rng(3));
  const ClosureSet phases = closures(table, ClosureKind::kPhase);
  const ClosureSet logs = closures(table, ClosureKind::kLogAmplitude);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    VisibilityTable corrupted = table;
    for (VisibilityRow& row : corrupted.rows) {
      const auto gain = [&](int32_t site) {
        const auto n = Rng(seed).at(site).at(std::lround(10 * row.time)).normals(2);
        return std::exp(std::complex<double>(0.5 * n[0], 10 * n[1]));
      };
      const std::complex<double> factor = gain(row.t1) * std::conj(gain(row.t2));
      row.vis *= factor;
      row.sigma *= std::abs(factor);
    }
    // Rounding of phases of tens of radians and of logarithms of order one.
    const at::Tensor d = values_of(closures(corrupted, ClosureKind::kPhase), &Closure::value) -
                         values_of(phases, &Closure::value);
    EXPECT_LT((d / 2).sin().abs().max().item<double>(), 1e-13);
    EXPECT_LT(
        relative_error(values_of(closures(corrupted, ClosureKind::kLogAmplitude), &Closure::value),
                       values_of(logs, &Closure::value)),
        1e-13);
    EXPECT_LT(
        relative_error(values_of(closures(corrupted, ClosureKind::kLogAmplitude), &Closure::sigma),
                       values_of(logs, &Closure::sigma)),
        1e-13);
  }
}

// Sample covariance of the closures of noisy visibilities against both conventions, in units of the
// standard deviations: the exact one agrees within sampling noise, eht-imaging's does not.
TEST(Closures, ExactCovarianceIsTheSampleCovariance) {
  VisibilityTable clean = synthetic_table(6, 1);
  for (VisibilityRow& row : clean.rows) row.vis /= std::abs(row.vis), row.sigma = 1e-3;
  for (const ClosureKind kind : {ClosureKind::kPhase, ClosureKind::kLogAmplitude}) {
    const at::Tensor truth = values_of(closures(clean, kind), &Closure::value);
    const int64_t k = truth.size(0), samples = 4000;
    for (uint64_t seed = 0; seed < 3; ++seed) {
      at::Tensor sum = at::zeros({k, k}, at::kDouble);
      for (int64_t s = 0; s < samples; ++s) {
        at::Tensor d =
            values_of(closures(with_noise(clean, Rng(seed).at(s)), kind), &Closure::value) - truth;
        d = d - (d / (2 * M_PI)).round() * (2 * M_PI);
        sum += at::outer(d, d);
      }
      const auto error = [&](ClosureCovariance convention) {
        const auto block = closure_blocks(clean, closures(clean, kind), convention)[0];
        const at::Tensor scale = block.covariance.diagonal().sqrt();
        return ((sum / samples - block.covariance) / at::outer(scale, scale))
            .abs()
            .max()
            .item<double>();
      };
      // A sample correlation of 4000 draws has standard error <= sqrt(2/4000) = 0.022; 4.5 of them
      // over ~50 entries.
      EXPECT_LT(error(ClosureCovariance::kExact), 0.1);
      EXPECT_GT(error(ClosureCovariance::kEhtim), 0.2);
    }
  }
}

TEST(Closures, MissingLegsAndZeroVisibilities) {
  VisibilityTable table = synthetic_table(5, 1);
  const size_t all = closures(table, ClosureKind::kPhase).closures.size();
  VisibilityTable fewer = table;
  fewer.rows.erase(fewer.rows.begin());  // baseline A-B: in n-2 triangles of the reference site
  EXPECT_EQ(closures(fewer, ClosureKind::kPhase).closures.size(), all - 3);
  table.rows[0].vis = 0;
  EXPECT_EQ(closures(table, ClosureKind::kPhase).closures.size(), all - 3);
  for (const Closure& c : closures(table, ClosureKind::kLogAmplitude).closures)
    EXPECT_TRUE(std::isfinite(c.value) && std::isfinite(c.sigma));
}

TEST(Closures, CheckNamesTheRow) {
  const auto message = [](VisibilityTable table) -> std::string {
    try {
      check_visibilities(table);
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  };
  VisibilityTable table = synthetic_table(4, 2);
  EXPECT_EQ(message(table), "");
  VisibilityTable bad = table;
  bad.rows[3].sigma = 0;
  EXPECT_NE(message(bad).find("row 3: sigma"), std::string::npos);
  bad = table;
  bad.rows[5].vis = {NAN, 0};
  EXPECT_NE(message(bad).find("row 5: "), std::string::npos);
  bad = table;
  std::swap(bad.rows.front(), bad.rows.back());
  EXPECT_NE(message(bad).find("time order"), std::string::npos);
  EXPECT_NE(message({}).find("no rows"), std::string::npos);
}

}  // namespace
}  // namespace scoreprior
