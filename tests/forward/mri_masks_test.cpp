#include "scoreprior/forward/mri_masks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;

TEST(MriMasks, MatchReference) {
  SP_REQUIRE_GOLDEN("operators/mri_masks");
  const GoldenCase g("operators/mri_masks");
  const std::map<std::pair<int, int>, int64_t> centre_lines = {
      {{64, 4}, 1}, {{64, 8}, 1}, {{128, 4}, 4}, {{128, 8}, 2}};
  for (const int n : {16, 32, 64, 128})
    for (const int acceleration : {4, 8}) {
      const std::string tail = "_" + std::to_string(n) + "_a" + std::to_string(acceleration);
      const auto lines = centre_lines.find({n, acceleration});
      EXPECT_TRUE(at::equal(
          cartesian_mask(n, n, acceleration, lines == centre_lines.end() ? 0 : lines->second),
          g.array("cartesian" + tail, at::kDouble)))
          << tail;
      if (!g.has("poisson" + tail)) continue;
      PoissonMaskOptions options;
      options.acceleration = acceleration;
      options.seed = n == 128 ? 0 : 1;
      options.centre = n == 16 ? 0 : 4;
      EXPECT_TRUE(at::equal(poisson_mask(n, n, options), g.array("poisson" + tail, at::kDouble)))
          << tail;
    }
}

TEST(MriMasks, PoissonEndsAndMeetsTheAcceleration) {
  // 32 pixels, acceleration 8, seed 1 overflows the reference's list of active points.
  for (const uint32_t seed : {0u, 1u, 2u, 3u})
    for (const auto& size : {std::pair<int64_t, int64_t>{32, 32}, {24, 40}, {33, 17}})
      for (const double acceleration : {2.0, 4.0, 8.0}) {
        PoissonMaskOptions options;
        options.acceleration = acceleration;
        options.centre = 4;
        options.seed = seed;
        const at::Tensor mask = poisson_mask(size.first, size.second, options);
        EXPECT_EQ(mask[size.first / 2][size.second / 2].item<double>(), 1);
        EXPECT_EQ(mask[0][0].item<double>(), 0);
        // The stated tolerance is 0.1; small grids at high acceleration have coarser steps.
        EXPECT_NEAR(mask.numel() / mask.sum().item<double>(), acceleration, 0.1 * acceleration)
            << seed << " " << size.first << "x" << size.second;
      }
}

TEST(MriMasks, CartesianSamplesWholeColumns) {
  const at::Tensor mask = cartesian_mask(10, 50, 5, 3);
  EXPECT_TRUE(at::equal(mask, mask.narrow(0, 0, 1).expand({10, 50})));
  EXPECT_NEAR(mask[0].sum().item<double>(), 10, 1);
  for (int64_t c = 24; c < 27; ++c) EXPECT_EQ(mask[0][c].item<double>(), 1);
  EXPECT_TRUE(at::equal(cartesian_mask(4, 6, 1, 0), at::ones({4, 6}, at::kDouble)));
  EXPECT_THROW(cartesian_mask(4, 8, 4, 2), std::invalid_argument);
}

// A clinical size, within the stated tolerance of 0.1.
TEST(MriMasks, PoissonAtClinicalSize) {
  PoissonMaskOptions options;
  options.acceleration = 12.5;
  options.centre = 24;
  const at::Tensor mask = poisson_mask(368, 320, options);
  EXPECT_NEAR(mask.numel() / mask.sum().item<double>(), 12.5, 0.1);
  EXPECT_EQ(mask.narrow(0, 184 - 12, 24).narrow(1, 160 - 12, 24).min().item<double>(), 1);
}

TEST(MriMasks, RandomLines) {
  const at::Tensor uniform = random_lines_mask(3, 200, 4, 10, 0, 1);
  EXPECT_TRUE(at::equal(uniform, uniform.narrow(0, 0, 1).expand({3, 200})));
  EXPECT_EQ(uniform[0].sum().item<double>(), 50);
  EXPECT_EQ(uniform[0].narrow(0, 95, 10).min().item<double>(), 1);
  // Lines in the inner half of the axis: half of them when uniform, more with a density.
  double inner_uniform = 0, inner_dense = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    inner_uniform +=
        random_lines_mask(1, 200, 4, 0, 0, seed)[0].narrow(0, 50, 100).sum().item<double>();
    inner_dense +=
        random_lines_mask(1, 200, 4, 0, 3, seed)[0].narrow(0, 50, 100).sum().item<double>();
  }
  // Hypergeometric, 40 draws of 50 out of 200: sd sqrt(40 * 50/4 * 150/199) = 19.
  EXPECT_NEAR(inner_uniform, 1000, 5 * 19);
  EXPECT_GT(inner_dense, 1400);
  EXPECT_EQ(random_lines_mask(1, 7, 1, 0, 2, 5).sum().item<double>(), 7);
}

TEST(MriMasks, Radial) {
  const at::Tensor cross = radial_mask(8, 10, 2, false, 0);
  EXPECT_EQ(cross.sum().item<double>(), 8 + 10 - 1);
  EXPECT_EQ(cross[4].min().item<double>(), 1);
  EXPECT_EQ(cross.select(1, 5).min().item<double>(), 1);
  EXPECT_EQ(radial_mask(9, 9, 1, true, 5).sum().item<double>(), 9 + 20);
  // The golden angle after one spoke is 111.246 degrees: up and to the left of the centre.
  const at::Tensor golden = radial_mask(101, 101, 2, true, 0);
  EXPECT_EQ(golden[50 + 40][50 + std::lround(40 / std::tan(111.246 * M_PI / 180))].item<double>(),
            1);
}

}  // namespace
}  // namespace scoreprior
