#include "scoreprior/report/colormap.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "scoreprior/core/rng.h"

namespace scoreprior::report {
namespace {

using Color = std::array<uint8_t, 3>;

Color pixel(const io::Raster& r, int64_t row, int64_t column) {
  const uint8_t* p = r.data.data() + (row * r.width + column) * r.channels;
  return {p[0], p[1], p[2]};
}

}  // namespace

TEST(Colormap, EndsAndMiddleAreThePublishedOnes) {
  EXPECT_EQ(color_at(Colormap::kAfmhot, 0), (Color{0, 0, 0}));
  EXPECT_EQ(color_at(Colormap::kAfmhot, 0.5), (Color{255, 128, 0}));
  EXPECT_EQ(color_at(Colormap::kAfmhot, 1), (Color{255, 255, 255}));
  EXPECT_EQ(color_at(Colormap::kViridis, 0), (Color{68, 1, 84}));
  EXPECT_EQ(color_at(Colormap::kViridis, 1), (Color{253, 231, 37}));
  EXPECT_EQ(color_at(Colormap::kGray, 7), (Color{255, 255, 255})) << "values beyond 1 are clamped";
  EXPECT_EQ(color_at(Colormap::kDiverging, 0.5), (Color{247, 247, 247}));
}

TEST(Colormap, BrokenPixelsStandOut) {
  at::Tensor x = at::zeros({2, 2}, at::kDouble);
  x[1][0] = std::numeric_limits<double>::quiet_NaN();
  const auto r = render(x, {Colormap::kAfmhot, 0, 1});
  EXPECT_EQ(pixel(r, 0, 0), (Color{0, 0, 0}));
  EXPECT_EQ(pixel(r, 1, 0), color_at(Colormap::kAfmhot, std::numeric_limits<double>::quiet_NaN()));
  EXPECT_NE(pixel(r, 1, 0), (Color{0, 0, 0}));
}

TEST(Render, KeepsNorthUpAndEastLeft) {
  at::Tensor x = at::zeros({3, 4}, at::kDouble);
  x[0][3] = 1;  // north-west corner of the array: top right of the picture
  const auto r = render(x, {Colormap::kGray, 0, 1}, 2);
  EXPECT_EQ(r.width, 8);
  EXPECT_EQ(r.height, 6);
  EXPECT_EQ(pixel(r, 0, 7), (Color{255, 255, 255}));
  EXPECT_EQ(pixel(r, 1, 6), (Color{255, 255, 255}));
  EXPECT_EQ(pixel(r, 0, 5), (Color{0, 0, 0}));
  EXPECT_EQ(pixel(r, 2, 7), (Color{0, 0, 0}));
}

TEST(Render, SmoothStaysInsideTheRange) {
  const at::Tensor x = (Rng(1).uniform({8, 8}, at::kDouble) > 0.5).to(at::kDouble);
  const auto r = render(x, {Colormap::kGray, -1, 2}, 8, Upscaling::kSmooth);
  EXPECT_EQ(r.width, 64);
  for (const uint8_t b : r.data) {  // 0 and 1 are a third and two thirds of the scale
    EXPECT_GE(b, 85);
    EXPECT_LE(b, 170);
  }
  const auto constant =
      render(at::full({8, 8}, 0.5), {Colormap::kGray, 0, 1}, 4, Upscaling::kSmooth);
  for (const uint8_t b : constant.data) EXPECT_EQ(b, 128);
}

TEST(Render, TakesOneTwoOrThreeChannels) {
  at::Tensor complex = at::zeros({2, 1, 1}, at::kDouble);
  complex[0] = 0.3;
  complex[1] = 0.4;
  EXPECT_NEAR(displayed(complex).item<double>(), 0.5, 1e-15);
  at::Tensor rgb = at::zeros({3, 1, 1});
  rgb[1] = 1;
  EXPECT_EQ(pixel(render(rgb, {Colormap::kAfmhot, 0, 1}), 0, 0), (Color{0, 255, 0}));
  EXPECT_THROW(displayed(at::zeros({5, 4, 4})), std::invalid_argument);
  EXPECT_THROW(displayed(at::Tensor()), std::invalid_argument);
}

TEST(CommonScale, CoversAllFinitePixels) {
  at::Tensor a = at::full({2, 2}, 0.25, at::kDouble), b = at::full({2, 2}, 3.0, at::kDouble);
  b[0][0] = std::numeric_limits<double>::infinity();
  const auto s = common_scale({a, b}, Colormap::kAfmhot);
  EXPECT_EQ(s.low, 0);
  EXPECT_EQ(s.high, 3);
  const auto d = common_scale({a - 1}, Colormap::kDiverging);
  EXPECT_EQ(d.low, -0.75);
  EXPECT_EQ(d.high, 0.75);
  const auto zero = common_scale({at::zeros({2, 2})}, Colormap::kGray);
  EXPECT_LT(zero.low, zero.high);
}

TEST(ImageGrid, PlacesEveryImage) {
  at::Tensor x = at::zeros({5, 1, 2, 2}, at::kDouble);
  for (int64_t i = 0; i < 5; ++i) x[i] = 0.2 * double(i);
  const auto r = image_grid(x, {Colormap::kGray, 0, 1}, 3, 1);
  EXPECT_EQ(r.width, 3 * 4 - 2);
  EXPECT_EQ(r.height, 2 * 4 - 2);
  EXPECT_EQ(pixel(r, 0, 4), (Color{51, 51, 51}));
  EXPECT_EQ(pixel(r, 4, 0), (Color{153, 153, 153}));
  EXPECT_EQ(pixel(r, 5, 9), (Color{255, 255, 255})) << "an empty place is white";
}

}  // namespace scoreprior::report
