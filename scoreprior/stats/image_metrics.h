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
/// 15); 0 where an image is constant.
at::Tensor nxcorr(const at::Tensor& x, const at::Tensor& truth);

/// sqrt(sum (x - y)^2 / sum y^2).
at::Tensor nrmse(const at::Tensor& x, const at::Tensor& truth);

/// Convolution with a circular Gaussian beam, dark outside the image; any dtype, [..., H, W].
at::Tensor gaussian_blur(const at::Tensor& x, double fwhm_pixels);

/// PSNR after both images were seen with the beam.
at::Tensor blurred_psnr(const at::Tensor& x, const at::Tensor& truth, double fwhm_pixels,
                        double range = 1);

/// x moved by the whole pixels, each image by its own, at which sum x y is largest; what moves in
/// is 0. For images whose position was not measured.
at::Tensor aligned(const at::Tensor& x, const at::Tensor& truth);

/// One distance to the truth: of the mean of the draws, and of each draw. The mean of the draws is
/// the better image by every squared error; a draw shows what the posterior holds possible.
struct DrawMetric {
  std::string name, unit;    ///< "PSNR", "dB"
  double of_mean = 0;        ///< of the mean of the draws
  double draw_mean = 0;      ///< mean over draws
  double draw_sd = 0;        ///< standard deviation over draws (n - 1); 0 for a single draw
  at::Tensor per_draw = {};  ///< [K] float64
};

struct DrawMetricOptions {
  double range = 1;             ///< of the pixel values, for PSNR and SSIM
  double beam_fwhm_pixels = 0;  ///< > 0: blurred PSNR as well, with this circular Gaussian beam
  bool align = false;           ///< the mean and every draw first moved, see aligned()
};

/// PSNR, SSIM, NXCORR, NRMSE and, with a beam, blurred PSNR of draws [K,C,H,W] against truth
/// [C,H,W]. Every draw counts: nothing here picks the best one.
std::vector<DrawMetric> draw_metrics(const at::Tensor& draws, const at::Tensor& truth,
                                     const DrawMetricOptions& options = {});

}  // namespace scoreprior::stats
