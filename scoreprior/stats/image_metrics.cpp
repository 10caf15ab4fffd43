#include "scoreprior/stats/image_metrics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"

namespace scoreprior::stats {
namespace {

// Both as [B,C,H,W] float64.
std::pair<at::Tensor, at::Tensor> as_image_pair(const char* where, const at::Tensor& x,
                                                const at::Tensor& truth) {
  const at::Tensor y = truth.dim() == 3 ? truth.unsqueeze(0) : truth;
  SP_CHECK(x.dim() == 4 && y.dim() == 4 && y.sizes().slice(1) == x.sizes().slice(1) &&
               (y.size(0) == x.size(0) || y.size(0) == 1),
           where, "expected x [B,C,H,W] and truth of the same shape or [C,H,W], got ", x.sizes(),
           " and ", truth.sizes());
  const at::Tensor a = x.to(at::kDouble);
  return {a, y.to(a.options()).expand_as(a)};
}

// [out,in] Toeplitz matrix of a Gaussian; rows sum to 1 over an unbounded axis.
at::Tensor gaussian_toeplitz(int64_t n, double sigma, const at::TensorOptions& options) {
  const at::Tensor axis = at::arange(n, options);
  const at::Tensor kernel =
      at::exp(-0.5 * ((axis.unsqueeze(1) - axis.unsqueeze(0)) / sigma).square());
  const int64_t reach = static_cast<int64_t>(std::ceil(8 * sigma)) + 1;
  double sum = 1;
  for (int64_t k = 1; k <= reach; ++k) sum += 2 * std::exp(-0.5 * (k / sigma) * (k / sigma));
  return kernel / sum;
}

// [n - window + 1, n]: the Gaussian weights of every window that lies inside.
at::Tensor window_matrix(int64_t n, int64_t window, const at::TensorOptions& options) {
  const at::Tensor first = at::arange(n - window + 1, options).unsqueeze(1);
  const at::Tensor t =
      at::arange(n, options).unsqueeze(0) - first - 0.5 * static_cast<double>(window - 1);
  const at::Tensor weight =
      at::exp(-0.5 * (t / 1.5).square()) * (t.abs() <= 0.5 * static_cast<double>(window));
  return weight / weight.sum(1, true);
}

}  // namespace

at::Tensor psnr(const at::Tensor& x, const at::Tensor& truth, double range) {
  const auto [a, b] = as_image_pair("psnr", x, truth);
  return 10 * at::log10(range * range / (a - b).square().mean({1, 2, 3}));
}

at::Tensor ssim(const at::Tensor& x, const at::Tensor& truth, double range) {
  const auto [a, b] = as_image_pair("ssim", x, truth);
  const int64_t least = std::min(a.size(2), a.size(3));
  const int64_t window = std::min<int64_t>(11, least % 2 ? least : least - 1);
  SP_CHECK(window >= 1, "ssim", "expected images of at least one pixel");
  const at::Tensor rows = window_matrix(a.size(2), window, a.options());
  const at::Tensor columns = window_matrix(a.size(3), window, a.options()).t();
  const auto local = [&](const at::Tensor& v) { return at::matmul(at::matmul(rows, v), columns); };
  const at::Tensor ma = local(a), mb = local(b);
  const at::Tensor va = local(a * a) - ma * ma, vb = local(b * b) - mb * mb,
                   vab = local(a * b) - ma * mb;
  const double c1 = std::pow(0.01 * range, 2), c2 = std::pow(0.03 * range, 2);
  const at::Tensor map =
      (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
  return map.mean({1, 2, 3});
}

at::Tensor nxcorr(const at::Tensor& x, const at::Tensor& truth) {
  auto [a, b] = as_image_pair("nxcorr", x, truth);
  a = a - a.mean({1, 2, 3}, true);
  b = b - b.mean({1, 2, 3}, true);
  const at::Tensor norm = at::sqrt(a.square().sum({1, 2, 3}) * b.square().sum({1, 2, 3}));
  return at::where(norm > 0, (a * b).sum({1, 2, 3}) / norm, at::zeros_like(norm));
}

at::Tensor nrmse(const at::Tensor& x, const at::Tensor& truth) {
  const auto [a, b] = as_image_pair("nrmse", x, truth);
  return at::sqrt((a - b).square().sum({1, 2, 3}) / b.square().sum({1, 2, 3}));
}

at::Tensor gaussian_blur(const at::Tensor& x, double fwhm_pixels) {
  SP_CHECK(x.dim() >= 2 && fwhm_pixels >= 0, "gaussian_blur", "expected [...,H,W] and a beam >= 0");
  if (fwhm_pixels == 0) return x;
  const double sigma = fwhm_pixels / std::sqrt(8 * std::log(2.0));
  const at::Tensor rows = gaussian_toeplitz(x.size(-2), sigma, x.options());
  const at::Tensor columns = gaussian_toeplitz(x.size(-1), sigma, x.options());
  return at::matmul(at::matmul(rows, x), columns.t());
}

at::Tensor blurred_psnr(const at::Tensor& x, const at::Tensor& truth, double fwhm_pixels,
                        double range) {
  return psnr(gaussian_blur(x.to(at::kDouble), fwhm_pixels),
              gaussian_blur(truth.to(at::kDouble), fwhm_pixels), range);
}

at::Tensor aligned(const at::Tensor& x, const at::Tensor& truth) {
  const auto [a, b] = as_image_pair("aligned", x, truth);
  const int64_t h = a.size(2), w = a.size(3);
  at::Tensor out = at::zeros_like(a);
  for (int64_t k = 0; k < a.size(0); ++k) {
    // Padding to twice the size turns the FFT's circular correlation into a linear one.
    const Shape padded{2 * h, 2 * w};
    const at::Tensor product =
        at::fft_irfft2(at::conj(at::fft_rfft2(a[k], padded)) * at::fft_rfft2(b[k], padded), padded)
            .sum(0);
    const int64_t best = product.argmax().item<int64_t>();
    const int64_t down = (best / (2 * w) + h) % (2 * h) - h,
                  right = (best % (2 * w) + w) % (2 * w) - w;
    const int64_t rows = h - std::abs(down), columns = w - std::abs(right);
    if (rows <= 0 || columns <= 0) continue;  // nothing of it would be left
    const auto part = [&](const at::Tensor& image, int64_t row, int64_t column) {
      return image[k].narrow(1, row, rows).narrow(2, column, columns);
    };
    part(out, std::max<int64_t>(down, 0), std::max<int64_t>(right, 0))
        .copy_(part(a, std::max<int64_t>(-down, 0), std::max<int64_t>(-right, 0)));
  }
  return out;
}

std::vector<DrawMetric> draw_metrics(const at::Tensor& draws, const at::Tensor& truth,
                                     const DrawMetricOptions& o) {
  SP_CHECK(draws.dim() == 4 && draws.size(0) > 0 && truth.dim() == 3, "draw_metrics",
           "expected draws [K,C,H,W] and truth [C,H,W], got ", draws.sizes(), " and ",
           truth.sizes());
  at::Tensor x = draws.detach().to(at::kDouble);
  const at::Tensor y = truth.detach().to(x.options());
  at::Tensor mean = x.mean(0, true);
  if (o.align) mean = aligned(mean, y), x = aligned(x, y);
  std::vector<DrawMetric> out;
  const auto add = [&](const char* name, const char* unit,
                       const std::function<at::Tensor(const at::Tensor&)>& f) {
    DrawMetric m{name, unit, f(mean).item<double>()};
    std::vector<at::Tensor> parts;  // a few draws at a time: SSIM takes ten times their memory
    for (const at::Tensor& some : x.split(16)) parts.push_back(f(some));
    m.per_draw = at::cat(parts).to(at::kCPU);
    m.draw_mean = m.per_draw.mean().item<double>();
    m.draw_sd = x.size(0) > 1 ? m.per_draw.std().item<double>() : 0;
    out.push_back(std::move(m));
  };
  add("PSNR", "dB", [&](const at::Tensor& a) { return psnr(a, y, o.range); });
  add("SSIM", "", [&](const at::Tensor& a) { return ssim(a, y, o.range); });
  add("NXCORR", "", [&](const at::Tensor& a) { return nxcorr(a, y); });
  add("NRMSE", "", [&](const at::Tensor& a) { return nrmse(a, y); });
  if (o.beam_fwhm_pixels > 0)
    add("blurred PSNR", "dB",
        [&](const at::Tensor& a) { return blurred_psnr(a, y, o.beam_fwhm_pixels, o.range); });
  return out;
}

}  // namespace scoreprior::stats
