#include "scoreprior/stats/image_metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"

namespace scoreprior::stats {
namespace {

TEST(Psnr, ClosedForm) {
  const at::Tensor truth = Rng(1).uniform({2, 9, 7}, at::kDouble);
  const at::Tensor x = at::stack({truth + 0.1, truth - 0.01, truth});
  const at::Tensor p = psnr(x, truth);
  EXPECT_NEAR(p[0].item<double>(), 20, 1e-10);
  EXPECT_NEAR(p[1].item<double>(), 40, 1e-10);
  EXPECT_TRUE(std::isinf(p[2].item<double>()));
  EXPECT_NEAR(psnr(x, truth, 255)[0].item<double>(), 20 + 20 * std::log10(255.0), 1e-10);
  EXPECT_THROW(psnr(truth, truth), std::invalid_argument);
}

TEST(Ssim, ClosedForms) {
  const at::Tensor x = Rng(2).uniform({2, 3, 20, 17}, at::kDouble);
  EXPECT_NEAR(ssim(x, x)[0].item<double>(), 1, 1e-12);
  // Constants: variances vanish, the luminance term stays.
  const at::Tensor a = at::full({1, 1, 16, 16}, 0.3, at::kDouble),
                   b = at::full({1, 1, 16, 16}, 0.6, at::kDouble);
  const double c1 = 1e-4;
  EXPECT_NEAR(ssim(a, b).item<double>(), (2 * 0.18 + c1) / (0.09 + 0.36 + c1), 1e-10);
  // One window: an 11 x 11 image has one, with weighted moments computed directly here.
  const at::Tensor u = Rng(3).uniform({1, 1, 11, 11}, at::kDouble),
                   v = Rng(4).uniform({1, 1, 11, 11}, at::kDouble);
  const at::Tensor t = at::arange(-5, 6, at::kDouble);
  const at::Tensor g = at::exp(-0.5 * (t.square().unsqueeze(0) + t.square().unsqueeze(1)) / 2.25);
  const at::Tensor w = g / g.sum();
  const auto mean = [&](const at::Tensor& q) { return (q * w).sum().item<double>(); };
  const double mu = mean(u), mv = mean(v), su = mean(u * u) - mu * mu, sv = mean(v * v) - mv * mv,
               suv = mean(u * v) - mu * mv, c2 = 9e-4;
  EXPECT_NEAR(ssim(u, v).item<double>(),
              (2 * mu * mv + c1) * (2 * suv + c2) / ((mu * mu + mv * mv + c1) * (su + sv + c2)),
              1e-12);
  EXPECT_NEAR(ssim(x.slice(2, 0, 4), x.slice(2, 0, 4))[1].item<double>(), 1,
              1e-12);  // smaller than the window
}

TEST(Nxcorr, IsBlindToScaleAndOffset) {
  const at::Tensor y = Rng(5).uniform({1, 12, 12}, at::kDouble);
  const at::Tensor x = at::stack({3 * y + 2, -y, at::ones_like(y)});
  const at::Tensor r = nxcorr(x, y);
  EXPECT_NEAR(r[0].item<double>(), 1, 1e-12);
  EXPECT_NEAR(r[1].item<double>(), -1, 1e-12);
  EXPECT_EQ(r[2].item<double>(), 0);
}

// Every image is moved by its own shift; pixels that move in are dark.
TEST(Aligned, FindsShifts) {
  const at::Tensor blob = Rng(6).uniform({5, 4}, at::kDouble) + 1;
  const auto with_blob = [&](int64_t row, int64_t column) {
    at::Tensor a = at::zeros({1, 24, 21}, at::kDouble);
    a[0].narrow(0, row, 5).narrow(1, column, 4).copy_(blob);
    return a;
  };
  const at::Tensor truth = with_blob(11, 10);
  const at::Tensor x =
      at::stack({with_blob(9, 8), with_blob(19, 17), with_blob(0, 12), truth, 0 * truth});
  const at::Tensor moved = aligned(x, truth);
  for (int64_t k = 0; k < 4; ++k) EXPECT_TRUE(at::equal(moved[k], truth)) << k;
  EXPECT_TRUE(at::equal(moved[4], x[4]));
  EXPECT_LT(nxcorr(x, truth)[0].item<double>(), 0.6);

  // What is moved out at the border is lost.
  const at::Tensor noise = Rng(7).normal({1, 1, 16, 17}, at::kDouble);
  const at::Tensor cut = aligned(noise, at::roll(noise[0], {-2, 3}, {1, 2}).contiguous())[0][0];
  EXPECT_TRUE(at::equal(cut.slice(0, 0, 14).slice(1, 3), noise[0][0].slice(0, 2).slice(1, 0, 14)));
  EXPECT_EQ(cut.slice(0, 14).abs().max().item<double>(), 0);
  EXPECT_EQ(cut.slice(1, 0, 3).abs().max().item<double>(), 0);

  DrawMetricOptions options;
  for (const bool align : {false, true}) {
    options.align = align;
    const auto metrics = draw_metrics(x.narrow(0, 0, 3), truth, options);
    EXPECT_EQ(metrics[2].name, "NXCORR");
    EXPECT_EQ(metrics[2].draw_mean > 1 - 1e-12, align);
    EXPECT_EQ(metrics[3].draw_mean == 0, align);
  }
}

TEST(Nrmse, ClosedForm) {
  const at::Tensor y = Rng(7).uniform({1, 6, 6}, at::kDouble);
  EXPECT_NEAR(nrmse((1.25 * y).unsqueeze(0), y).item<double>(), 0.25, 1e-12);
}

TEST(GaussianBlur, AddsVariances) {
  const int64_t n = 65;
  const at::Tensor axis = at::arange(n, at::kDouble) - 32;
  const at::Tensor r2 = axis.square().unsqueeze(0) + axis.square().unsqueeze(1);
  const double sigma = 3, beam = 4;  // one sigma
  const at::Tensor x = at::exp(-0.5 * r2 / (sigma * sigma));
  const at::Tensor y = gaussian_blur(x, beam * std::sqrt(8 * std::log(2.0)));
  const double total = sigma * sigma + beam * beam;
  const at::Tensor exact = at::exp(-0.5 * r2 / total) * (sigma * sigma / total);
  EXPECT_LT((y - exact).abs().max().item<double>(),
            1e-9);  // sampled Gaussians: error exp(-2 pi^2 sigma^2)
  EXPECT_TRUE(at::equal(gaussian_blur(x, 0), x));
  EXPECT_NEAR(gaussian_blur(x.to(at::kFloat), 2).sum().item<double>(), x.sum().item<double>(),
              1e-3);
}

TEST(BlurredPsnr, ForgivesWhatTheBeamCannotSee) {
  const at::Tensor truth = at::full({1, 32, 32}, 0.5, at::kDouble);
  const at::Tensor checkers =
      ((at::arange(32).unsqueeze(0) + at::arange(32).unsqueeze(1)).remainder(2).to(at::kDouble) -
       0.5) *
      0.2;
  const at::Tensor x = (truth + checkers).unsqueeze(0);
  EXPECT_NEAR(psnr(x, truth).item<double>(), 20, 1e-9);
  EXPECT_GT(blurred_psnr(x, truth, 4).item<double>(), 40);
}

// Draws truth + s z: every draw has mean squared error s^2, their mean s^2/K.
TEST(ImageMetrics, DrawsAndTheirMean) {
  const int64_t n = 64, draws = 16;
  const double s = 0.1;
  const at::Tensor truth = Rng(1).uniform({1, n, n}, at::kDouble);
  const at::Tensor x = truth.unsqueeze(0) + s * Rng(2).normal({draws, 1, n, n}, at::kDouble);
  DrawMetricOptions options;
  options.beam_fwhm_pixels = 3.5;
  const auto metrics = draw_metrics(x, truth, options);
  ASSERT_EQ(metrics.size(), 5u);
  // The estimate of s^2 from 4096 pixels has relative standard deviation sqrt(2/4096): 0.1 dB.
  EXPECT_NEAR(metrics[0].draw_mean, 20, 0.1);
  EXPECT_NEAR(metrics[0].draw_sd, 10 / std::log(10.0) * std::sqrt(2.0 / 4096), 0.06);
  EXPECT_NEAR(metrics[0].of_mean, 20 + 10 * std::log10(16.0), 0.4);
  EXPECT_EQ(metrics[0].per_draw.size(0), draws);
  EXPECT_NEAR(metrics[3].draw_mean, s / std::sqrt(1.0 / 3), 0.01);
  EXPECT_EQ(metrics[4].name, "blurred PSNR");
  EXPECT_EQ(metrics[4].unit, "dB");
  EXPECT_GT(metrics[4].draw_mean, metrics[0].draw_mean);
  const auto one = draw_metrics(x.narrow(0, 0, 1), truth);
  ASSERT_EQ(one.size(), 4u);
  EXPECT_EQ(one[0].draw_sd, 0);
  EXPECT_EQ(one[0].of_mean, one[0].draw_mean);
  EXPECT_THROW(draw_metrics(truth, truth), std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior::stats
