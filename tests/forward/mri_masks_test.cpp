#include "scoreprior/forward/mri_masks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace scoreprior
