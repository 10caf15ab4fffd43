#include "scoreprior/data/blackhole.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

const Rng kUnused(0);

Blackhole family(int64_t size = 32, const std::string& split = "train") {
  BlackholeOptions o;
  o.image_size = size;
  return Blackhole(o, split);
}

double relative_rms(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).to(at::kDouble).norm() / b.to(at::kDouble).norm()).item<double>();
}

TEST(Blackhole, AnImageDependsOnSeedSplitAndIndexOnly) {
  const Blackhole d = family();
  const at::Tensor all = d.batch({0, 1, 2, 3, 7}, kUnused);
  EXPECT_EQ(all.sizes(), (at::IntArrayRef{5, 1, 32, 32}));
  EXPECT_EQ(all.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(all[4], d.batch({7}, Rng(99))[0]));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  EXPECT_TRUE(at::equal(all, family().batch({0, 1, 2, 3, 7}, kUnused)));
  at::set_num_threads(threads);

  EXPECT_GT(relative_rms(family(32, "valid").batch({0}, kUnused), all.slice(0, 0, 1)), 0.05);
  BlackholeOptions other;
  other.seed = 1;
  EXPECT_GT(relative_rms(Blackhole(other, "train").batch({0}, kUnused), all.slice(0, 0, 1)), 0.05);
}

std::vector<int64_t> first_indices(int64_t n) {
  std::vector<int64_t> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = i;
  return v;
}

TEST(Blackhole, EveryImageIsFiniteNonNegativeAndOfOneFlux) {
  const Blackhole d = family();
  const at::Tensor x = d.batch(first_indices(500), kUnused);
  EXPECT_TRUE(at::isfinite(x).all().item<bool>());
  EXPECT_GE(x.min().item<float>(), 0.f);
  EXPECT_NEAR(d.total_flux(), 30.72, 1e-9);
  // float32 sums of 1024 pixels.
  EXPECT_LT((x.sum({1, 2, 3}) - d.total_flux()).abs().max().item<double>(), 1e-3);
  const at::Tensor peak = x.amax({1, 2, 3});
  EXPECT_LT((peak > 1).to(at::kDouble).mean().item<double>(), 0.06);  // 3 % of 10 000
  EXPECT_GT(peak.median().item<double>(), 0.3);
  // Dark at the border: the largest border pixel of the median image is below 2 % of its peak.
  const at::Tensor border =
      at::cat({x.select(2, 0), x.select(2, 31), x.select(3, 0), x.select(3, 31)}, 2).amax({1, 2});
  EXPECT_LT((border / peak).median().item<double>(), 0.02);
}

TEST(Blackhole, PeakOneScalesThePeak) {
  BlackholeOptions o;
  o.peak_one = true;
  const at::Tensor x = Blackhole(o, "test").batch(first_indices(8), kUnused);
  EXPECT_LT((x.amax({1, 2, 3}) - 1).abs().max().item<double>(), 1e-6);
}

TEST(Blackhole, OtherSizesShowTheSamePicture) {
  const at::Tensor coarse = family(32).batch(first_indices(24), kUnused);
  const at::Tensor fine = family(96).batch(first_indices(24), kUnused);
  const at::Tensor averaged = at::avg_pool2d(fine, {3, 3});
  // Coarser subpixels sample the unblurred brightness at 2 uas: about 1 %.
  for (int64_t i = 0; i < 24; ++i) EXPECT_LT(relative_rms(coarse[i], averaged[i]), 0.03) << i;
  EXPECT_LT(relative_rms(coarse, averaged), 0.012);
}

TEST(Blackhole, AThinRingBlursToItsClosedForm) {
  BlackholeParameters p;
  p.diameter_uas = 40;
  p.inner_width_uas = p.outer_width_uas = 0.5;
  p.blur_fwhm_uas = 12;
  const int64_t n = 64;
  const double pixel = 2;
  const at::Tensor image = render_blackhole(p, n, pixel * n, 4).to(at::kDouble);
  // delta(r - R) * Gaussian: exp(-(r^2 + R^2) / 2 s^2) I0(r R / s^2); the ring's own width adds in
  // quadrature.
  const double s2 = std::pow(12 / 2.3548200450, 2) + std::pow(0.5 / 1.1774100225, 2), radius = 20;
  const at::Tensor axis = (at::arange(n, at::kDouble) - 31.5) * pixel;
  const at::Tensor r = at::sqrt(axis.square().unsqueeze(0) + axis.square().unsqueeze(1));
  at::Tensor exact = at::exp(-0.5 * (r - radius).square() / s2) * at::special_i0e(r * radius / s2);
  exact = exact * (image.sum() / exact.sum());
  EXPECT_LT(relative_rms(image, exact),
            0.01);  // pixel averaging flattens by ~pixel^2 / 24 s^2 = 0.6 %
}

TEST(Blackhole, SkyDirectionsAreNorthUpEastLeft) {
  BlackholeParameters p;
  p.east_uas = 8;
  p.north_uas = -4;
  const int64_t n = 64;
  const double pixel = 2;
  const auto centroid = [&](const at::Tensor& image) {
    const at::Tensor axis = (31.5 - at::arange(n, at::kDouble)) * pixel;
    const at::Tensor x = image.to(at::kDouble) / image.sum().item<double>();
    return std::make_pair((x.sum(0) * axis).sum().item<double>(),
                          (x.sum(1) * axis).sum().item<double>());
  };
  const auto symmetric = centroid(render_blackhole(p, n, pixel * n));
  EXPECT_NEAR(symmetric.first, 8, 0.05);
  EXPECT_NEAR(symmetric.second, -4, 0.05);

  p.east_uas = p.north_uas = 0;
  p.mode_amplitude[0] = 0.8;
  p.mode_angle[0] = M_PI / 2;  // brightest in the east
  const auto bright = centroid(render_blackhole(p, n, pixel * n));
  EXPECT_GT(bright.first, 4);
  EXPECT_NEAR(bright.second, 0, 0.05);

  p.mode_amplitude[0] = 0;
  p.jet = 1;
  p.jet_angle = 0;  // northward
  const auto jet = centroid(render_blackhole(p, n, pixel * n));
  EXPECT_NEAR(jet.first, 0, 0.05);
  EXPECT_GT(jet.second, 1);
}

TEST(Blackhole, TurbulenceHasTheStatedStrength) {
  // std of log(turbulent / smooth) on the ridge is s r^2 / (r^2 + 0.09 R^2) = s / 1.09, over an
  // ensemble.
  BlackholeParameters p;
  p.diameter_uas = 50;
  p.blur_fwhm_uas = 0;
  p.inner_width_uas = p.outer_width_uas = 8;
  const at::Tensor smooth = render_blackhole(p, 64, 128);
  const at::Tensor axis = (at::arange(64, at::kDouble) - 31.5) * 2;
  const at::Tensor r = at::sqrt(axis.square().unsqueeze(0) + axis.square().unsqueeze(1));
  const at::Tensor ridge = at::logical_and(r > 24, r < 26);
  for (const bool on_sky : {false, true}) {
    double squares = 0;
    const int ensemble = 200;
    for (int k = 0; k < ensemble; ++k) {
      p.turbulence = 0.4;
      p.turbulence_slope = 3;
      p.turbulence_on_sky = on_sky;
      p.turbulence_modes = Rng(5).at(k).normals(2 * 13 * 17);
      const at::Tensor ratio = at::log(render_blackhole(p, 64, 128) / smooth).masked_select(ridge);
      squares += ratio.square().mean().item<double>() / ensemble;
    }
    // A dozen independent modes an image: 200 images give a few per cent; interpolation and
    // averaging lose 5 %.
    EXPECT_NEAR(std::sqrt(squares), 0.4 / 1.09, 0.12 * 0.4) << on_sky;
  }
}

TEST(Blackhole, ParametersCoverTheirRanges) {
  const Blackhole d = family();
  double least = 1e9, most = 0, jets = 0;
  for (int64_t i = 0; i < 400; ++i) {
    const BlackholeParameters p = d.parameters(i);
    least = std::min(least, p.diameter_uas);
    most = std::max(most, p.diameter_uas);
    jets += p.jet > 0;
    EXPECT_LE(std::hypot(p.east_uas, p.north_uas), 4.0);
    EXPECT_GE(p.blur_fwhm_uas, 5);
    EXPECT_LE(p.blur_fwhm_uas, 15);
  }
  EXPECT_GE(least, 25);
  EXPECT_LE(most, 60);
  EXPECT_LT(least, 27);
  EXPECT_GT(most, 58);
  EXPECT_NEAR(jets / 400, 0.4, 4 * std::sqrt(0.24 / 400));
}

TEST(Blackhole, TheCatalogueMakesIt) {
  const auto d =
      datasets().make(io::parse_toml("name = \"blackhole\"\nimage_size = 16\n"), "", "train");
  EXPECT_EQ(d->image_shape(), (Shape{1, 16, 16}));
  EXPECT_EQ(d->size(), 0);
  EXPECT_EQ(d->range(), "unit");
  EXPECT_THROW(
      datasets().make(io::parse_toml("name = \"blackhole\"\nimage_size = 0\n"), "", "train"),
      ConfigError);
  EXPECT_THROW(datasets().make(io::parse_toml("name = \"blackhle\"\n"), "", "train"), ConfigError);
}

}  // namespace
}  // namespace scoreprior
