#include "scoreprior/report/contour_plot.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace scoreprior::report {
namespace {

// exp(-r^2 / 2 s^2) on n x n cells of [-1,1]^2.
at::Tensor bump(int64_t n, double s) {
  const at::Tensor a = -1 + (at::arange(n, at::kDouble) + 0.5) * (2.0 / static_cast<double>(n));
  return at::exp(-(a.square().unsqueeze(1) + a.square()) / (2 * s * s));
}

TEST(ContourPlot, LevelsHoldTheirMass) {
  // Of a normal law in the plane, the region above e^-q of the peak holds 1 - e^-q.
  const auto levels = highest_density_levels(bump(400, 0.15), {0.5, 0.9, 0.99});
  EXPECT_NEAR(levels[0], 0.5, 2e-3);  // one cell of 1e-5 of the mass
  EXPECT_NEAR(levels[1], 0.1, 1e-3);
  EXPECT_NEAR(levels[2], 0.01, 2e-4);
}

TEST(ContourPlot, SegmentsLieOnTheCircle) {
  const int64_t n = 100;
  const double s = 0.3, level = 0.4, radius = s * std::sqrt(-2 * std::log(level)) * n / 2;
  const auto segments = contour_segments(bump(n, s), level);
  double length = 0;
  for (const auto& g : segments) {
    for (int e = 0; e < 2; ++e)
      EXPECT_NEAR(std::hypot(g[2 * e] - 49.5, g[2 * e + 1] - 49.5), radius,
                  0.02);  // h^2 / 8 x curvature
    length += std::hypot(g[2] - g[0], g[3] - g[1]);
  }
  EXPECT_NEAR(length, 2 * M_PI * radius, 0.01 * 2 * M_PI * radius);
}

TEST(ContourPlot, SaddlesAreCutOnce) {
  const at::Tensor saddle = at::tensor({1.0, 0.0, 0.0, 1.0}, at::kDouble).view({2, 2});
  // Middle 0.5: above 0.4 the high corners are joined, above 0.6 the low ones.
  for (const double level : {0.4, 0.6}) {
    const auto g = contour_segments(saddle, level);
    ASSERT_EQ(g.size(), 2u);
    for (const auto& s : g) {
      // Each segment cuts off one corner of the kind the middle is not.
      const double x = (s[0] + s[2]) / 2, y = (s[1] + s[3]) / 2;
      const bool near_high = (x < 0.5) == (y < 0.5);
      EXPECT_EQ(near_high, level > 0.5);
    }
  }
  EXPECT_TRUE(contour_segments(saddle, 2).empty());
  EXPECT_TRUE(contour_segments(at::full({3, 3}, NAN), 0.5).empty());
}

TEST(ContourPlot, DrawsRegionsAndDotsWhereTheyAre) {
  ContourOptions o;
  o.title = "a < b";
  ContourPlot plot(o);
  plot.regions(bump(60, 0.2), {0.9}, SvgPlot::kBlack)
      .points({0.75, 9.0}, {0.75, 0.0}, SvgPlot::kRed, 1.0);
  const std::string svg = plot.svg();
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("stroke=\"#c53030\""), std::string::npos);
  const io::Raster r = plot.raster(200);
  const auto at_pixel = [&](int64_t x, int64_t y) { return r.data.data() + (y * 200 + x) * 3; };
  EXPECT_LT(at_pixel(100, 100)[0], 235);                       // inside the region
  EXPECT_EQ(at_pixel(10, 190)[0], 255);                        // nothing there
  EXPECT_GT(at_pixel(174, 24)[0], at_pixel(174, 24)[1] + 60);  // the red dot, up and right
}

}  // namespace
}  // namespace scoreprior::report
