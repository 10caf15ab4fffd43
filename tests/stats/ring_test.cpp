#include "scoreprior/stats/ring.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"

namespace scoreprior::stats {
namespace {

struct Picture {
  at::Tensor radius, angle;  // uas, radians east of north, about the ring's centre
};
Picture sky(int64_t n, double pixel, double east, double north) {
  const at::Tensor axis = (0.5 * static_cast<double>(n - 1) - at::arange(n, at::kDouble)) * pixel;
  const at::Tensor x = (axis - east).unsqueeze(0).expand({n, n}),
                   y = (axis - north).unsqueeze(1).expand({n, n});
  return {at::sqrt(x.square() + y.square()), at::atan2(x, y)};
}

TEST(Ring, ClosedFormAtTwoResolutions) {
  const double diameter = 42, sigma = 4.5, degrees = 150, amplitude = 0.5, floor = 0.2;
  for (const int64_t n : {32, 64}) {
    const double pixel = 128.0 / static_cast<double>(n);
    const Picture p = sky(n, pixel, 3.3, -2.1);
    const at::Tensor ring = at::exp(-0.5 * ((p.radius - diameter / 2) / sigma).square());
    const at::Tensor image =
        ring * (1 + amplitude * at::cos(p.angle - degrees * M_PI / 180)) + floor;
    const Ring r = measure_ring(image, pixel);
    EXPECT_TRUE(r.found);
    // Spline interpolation of a ring 2.6 pixels wide (FWHM) at n = 32.
    EXPECT_NEAR(r.diameter_uas, diameter, 0.05) << n;
    EXPECT_LT(r.diameter_spread_uas, 0.2) << n;
    EXPECT_NEAR(r.width_uas, sigma * std::sqrt(8 * std::log(2.0)), 0.1) << n;
    EXPECT_NEAR(r.orientation_deg, degrees, 0.5) << n;
    EXPECT_NEAR(r.east_uas, 3.3, 0.05) << n;
    EXPECT_NEAR(r.north_uas, -2.1, 0.05) << n;
    EXPECT_NEAR(r.central_brightness, floor / (1 + floor), 0.01) << n;
    // The annulus averages amplitude/2 * g / (g + floor), g the ring's profile over its own FWHM.
    double asymmetry = 0;
    for (int i = 0; i < 200; ++i) {
      const double t = (2 * (i + 0.5) / 200 - 1) * std::sqrt(2 * std::log(2.0)),
                   g = std::exp(-0.5 * t * t);
      asymmetry += 0.5 * amplitude * g / (g + floor) / 200;
    }
    EXPECT_NEAR(r.asymmetry, asymmetry, 0.005) << n;
  }
}

TEST(Ring, CorrectsTheBiasOfABlur) {
  // A thin ring seen by a Gaussian beam: exp(-(r-R)^2 / 2 s^2) I0e(r R / s^2); its peak lies inside
  // R.
  const double diameter = 44, fwhm = 15, s2 = fwhm * fwhm / (8 * std::log(2.0));
  const Picture p = sky(64, 2, 0, 0);
  const at::Tensor image = at::exp(-0.5 * (p.radius - diameter / 2).square() / s2) *
                           at::special_i0e(p.radius * diameter / 2 / s2);
  const Ring plain = measure_ring(image, 2);
  EXPECT_LT(plain.diameter_uas, diameter - 1.5);
  RingOptions o;
  o.blur_fwhm_uas = fwhm;
  const Ring corrected = measure_ring(image, 2, o);
  EXPECT_NEAR(corrected.diameter_uas, diameter, 0.35);  // next order of the expansion, s^4 / R^3
  EXPECT_LT(corrected.width_uas, 5);
  EXPECT_LT(plain.asymmetry, 0.01);
}

TEST(Ring, ABlobIsNotARing) {
  const Picture p = sky(32, 4, 0, 0);
  EXPECT_FALSE(measure_ring(at::exp(-0.5 * (p.radius / 10).square()), 4).found);
  EXPECT_FALSE(measure_ring(at::zeros({32, 32}), 4).found);
  EXPECT_FALSE(measure_ring(at::full({32, 32}, NAN), 4).found);
}

TEST(Ring, DrawsGiveIntervalsAcrossTheAngleCut) {
  const int64_t draws = 60;
  const std::vector<double> z = Rng(1).normals(2 * draws);
  std::vector<at::Tensor> images;
  for (int64_t i = 0; i < draws; ++i) {
    const Picture p = sky(32, 4, 0, 0);
    const double diameter = 40 + 2 * z[2 * i], turn = (180 + 10 * z[2 * i + 1]) * M_PI / 180;
    images.push_back((at::exp(-0.5 * ((p.radius - diameter / 2) / 5).square()) *
                      (1 + 0.6 * at::cos(p.angle - turn)))
                         .unsqueeze(0));
  }
  images.push_back(at::zeros({1, 32, 32}, at::kDouble));
  const std::vector<Ring> rings = measure_rings(at::stack(images).to(at::kFloat), 4);
  const auto intervals = ring_intervals(rings);
  EXPECT_NEAR(intervals.at("found").median, 60.0 / 61, 1e-12);
  const Interval d = intervals.at("diameter_uas");
  EXPECT_NEAR(d.median, 40, 4 * 2 * 1.2533 / std::sqrt(60.0));
  EXPECT_NEAR(d.high - d.low, 4, 1.6);  // 68 % of N(40, 2^2), a quantile range of 60 draws: 4 s.e.
  const Interval turn = intervals.at("orientation_deg");
  EXPECT_NEAR(std::remainder(turn.median - 180, 360.0), 0, 4 * 10 * 1.2533 / std::sqrt(60.0));
  EXPECT_NEAR(turn.high - turn.low, 20, 8);
}

TEST(CredibleInterval, IsCentral) {
  std::vector<double> v;
  for (int i = 1; i <= 99; ++i) v.push_back(100 - i);
  const Interval c = credible_interval(v, 0.9);
  EXPECT_NEAR(c.low, 5, 1e-9);
  EXPECT_NEAR(c.median, 50, 1e-9);
  EXPECT_NEAR(c.high, 95, 1e-9);
}

}  // namespace
}  // namespace scoreprior::stats
