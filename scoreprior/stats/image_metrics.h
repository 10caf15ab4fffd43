#pragma once
/// Distances between images: x [B,C,H,W] against truth [C,H,W] or [B,C,H,W] -> [B] float64.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace scoreprior::stats {

/// 10 log10(range^2 / mean squared error) [dB]; infinite for equal images.
at::Tensor psnr(const at::Tensor& x, const at::Tensor& truth, double range = 1);

/// Structural similarity [Wang04]: Gaussian window of 11 pixels and sigma 1.5 (smaller odd windows
/// for smaller images), K1 = 0.01, K2 = 0.03, population covariances, mean over the windows that
/// lie inside and over channels.
at::Tensor ssim(const at::Tensor& x, const at::Tensor& truth, double range = 1);

/// Normalised cross-correlation, mean of (x - <x>)(y - <y>) / (s_x s_y) over pixels ([EHT19IV] eq.
/// 15); 0 where an image is constant. `any_shift`: the largest value over whole-pixel shifts of x,
/// pixels moved in counting as x's mean.
at::Tensor nxcorr(const at::Tensor& x, const at::Tensor& truth, bool any_shift = false);

/// sqrt(sum (x - y)^2 / sum y^2).
at::Tensor nrmse(const at::Tensor& x, const at::Tensor& truth);

/// Convolution with a circular Gaussian beam, dark outside the image; any dtype, [..., H, W].
at::Tensor gaussian_blur(const at::Tensor& x, double fwhm_pixels);

/// PSNR after both images were seen with the beam.
at::Tensor blurred_psnr(const at::Tensor& x, const at::Tensor& truth, double fwhm_pixels,
                        double range = 1);

/// One distance to the truth: of the mean of the draws, and of each draw. The mean of the draws is
/// the better image by every squared error; a draw shows what the posterior holds possible.
struct DrawMetric {
  std::string name;          ///< with unit, and beam where there is one
  double of_mean = 0;        ///< of the mean of the draws
  double draw_mean = 0;      ///< mean over draws
  double draw_sd = 0;        ///< standard deviation over draws (n - 1); 0 for a single draw
  at::Tensor per_draw = {};  ///< [K] float64
};

struct DrawMetricOptions {
  double range = 1;             ///< of the pixel values, for PSNR and SSIM
  double beam_fwhm_pixels = 0;  ///< > 0: blurred PSNR as well, with this circular Gaussian beam
  bool any_shift = false;       ///< NXCORR over whole-pixel shifts, where position is not measured
};

/// PSNR, SSIM, NXCORR, NRMSE and, with a beam, blurred PSNR of draws [K,C,H,W] against truth
/// [C,H,W]. Every draw counts: nothing here picks the best one.
std::vector<DrawMetric> draw_metrics(const at::Tensor& draws, const at::Tensor& truth,
                                     const DrawMetricOptions& options = {});

/// "23.1 (draws 21.4 +- 0.6)" with `digits` decimals.
std::string to_string(const DrawMetric& metric, int digits = 2);

}  // namespace scoreprior::stats
