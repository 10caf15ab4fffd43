#include "scoreprior/forward/coil_maps.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

// A square of `side` points at zero frequency, of [coils,H,W].
at::Tensor central_square(const at::Tensor& kspace, int64_t side) {
  return kspace.narrow(1, (kspace.size(1) - side + 1) / 2, side)
      .narrow(2, (kspace.size(2) - side + 1) / 2, side);
}

void check_sampled(const at::Tensor& kspace, int64_t region) {
  const auto full = [&](int64_t side) {
    return central_square(kspace, side).abs().sum(0).gt(0).all().item<bool>();
  };
  if (full(region)) return;
  int64_t side = region - 1;
  while (side > 0 && !full(side)) --side;
  const std::string size = std::to_string(region);
  throw DataError("[coil maps] the k-space has unsampled points within the calibration region, " +
                  size + " x " + size + "; the largest square that is fully sampled has side " +
                  std::to_string(side) +
                  (side > 0 ? ": set calibration_region to that or less"
                            : ": take maps from a file, coil_maps"));
}

/// Patches of the calibration region as rows, [patches, coils*kernel*kernel].
at::Tensor calibration_patches(const at::Tensor& kspace, int64_t region, int64_t kernel) {
  // [coils, n, n, kernel, kernel]
  const at::Tensor patches =
      central_square(kspace, region).unfold(1, kernel, 1).unfold(2, kernel, 1);
  return patches.permute({1, 2, 0, 3, 4}).reshape({-1, kspace.size(0) * kernel * kernel});
}

/// exp(-2 pi i d (n - N/2) / N) for lags d = -reach..reach, [2 reach + 1, N].
at::Tensor lag_phases(int64_t n, int64_t reach) {
  const at::Tensor d = at::arange(-reach, reach + 1, at::kDouble);
  const at::Tensor x = at::arange(n, at::kDouble) - static_cast<double>(n / 2);
  const at::Tensor turns = at::outer(d, x) * (-2 * M_PI / static_cast<double>(n));
  return at::polar(at::ones_like(turns), turns);
}

}  // namespace

at::Tensor simulated_coil_maps(int64_t coils, int64_t height, int64_t width) {
  SP_CHECK(coils >= 1 && height >= 1 && width >= 1, "simulated_coil_maps",
           "expected at least one coil and one pixel, got ", coils, ", ", height, " x ", width);
  if (coils == 1) return at::ones({1, height, width}, at::kComplexDouble);
  const auto axis = [](int64_t n) {
    return (at::arange(n, at::kDouble) - static_cast<double>(n / 2)) *
           (2.0 / static_cast<double>(n));
  };
  const at::Tensor angle =
      (at::arange(coils, at::kDouble) * (2 * M_PI / static_cast<double>(coils))).view({-1, 1, 1});
  const at::Tensor dx = 1.5 * angle.cos() - axis(width).view({1, 1, -1});
  const at::Tensor dy = 1.5 * angle.sin() - axis(height).view({1, -1, 1});
  const at::Tensor maps = at::polar(1 / at::sqrt(dx.square() + dy.square()), at::atan2(dy, dx));
  return maps / maps.abs().square().sum(0, true).sqrt();
}

at::Tensor estimated_coil_maps(const at::Tensor& given, const CoilCalibration& o) {
  SP_CHECK(given.dim() == 3 && given.is_complex(), "estimated_coil_maps",
           "expected complex k-space [coils,H,W], got ", given.sizes());
  const int64_t coils = given.size(0), height = given.size(1), width = given.size(2), k = o.kernel;
  SP_CHECK(k >= 1 && o.region >= k && o.region <= std::min(height, width) && o.threshold > 0,
           "estimated_coil_maps", "expected kernel <= region <= image, got ", k, " and ", o.region);
  const at::Tensor kspace = given.detach().to(at::kCPU, at::kComplexDouble);
  if (kspace.abs().max().item<double>() > 0) check_sampled(kspace, o.region);
  const at::Tensor a = calibration_patches(kspace, o.region, k);
  const at::Tensor gram = at::mm(a.t(), a.conj());  // patches as columns: sum a a^H
  at::Tensor energy, vectors;
  std::tie(energy, vectors) = at::linalg_eigh(gram);  // ascending
  const double largest = energy[-1].item<double>();
  if (!(largest > 0) || !std::isfinite(largest))
    throw DataError("[coil maps] the calibration region of the k-space is empty or not finite");
  const int64_t rank =
      at::real(energy).gt(largest * o.threshold * o.threshold).sum().item<int64_t>();
  const at::Tensor q = vectors.narrow(1, vectors.size(1) - rank, rank);
  // Projection onto the patches' space, [coils,k,k,coils,k,k]; lags d' - d collect what a
  // translation-invariant average of it sees.
  const at::Tensor projection = at::mm(q, q.conj().t()).view({coils, k, k, coils, k, k});
  const int64_t lags = 2 * k - 1;
  at::Tensor lag = at::zeros({lags, lags, coils, coils}, at::kComplexDouble);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      for (int64_t m = 0; m < k; ++m)
        for (int64_t n = 0; n < k; ++n)
          lag[m - i + k - 1][n - j + k - 1] +=
              projection.select(1, i).select(1, j).select(2, m).select(2, n);
  lag = lag / static_cast<double>(k * k);
  // Columns at once, rows in turn: [lags * coils^2, W], then one row of pixels [W,coils,coils].
  const at::Tensor by_column = at::matmul(lag.permute({0, 2, 3, 1}), lag_phases(width, k - 1));
  const at::Tensor rows = lag_phases(height, k - 1);
  const at::Tensor flat = by_column.reshape({lags, -1});
  at::Tensor maps = at::empty({coils, height, width}, at::kComplexDouble);
  at::Tensor reference;
  {
    const at::Tensor all = kspace.flatten(1);
    at::Tensor e, v;
    std::tie(e, v) = at::linalg_eigh(at::mm(all, all.conj().t()));
    reference = v.select(1, coils - 1);
  }
  for (int64_t r = 0; r < height; ++r) {
    const at::Tensor w = at::mm(rows.select(1, r).unsqueeze(0), flat)
                             .view({coils, coils, width})
                             .permute({2, 0, 1})
                             .contiguous();
    at::Tensor value, vector;
    std::tie(value, vector) = at::linalg_eigh(w);
    at::Tensor map = vector.select(2, coils - 1);  // [W,coils]
    const at::Tensor virtual_coil = at::mv(map, reference.conj());
    const at::Tensor turn = at::polar(at::ones({width}, at::kDouble), -at::angle(virtual_coil));
    const at::Tensor seen = value.select(1, coils - 1).ge(o.crop).to(at::kDouble);
    map = map * (turn * seen).unsqueeze(1);
    maps.select(1, r).copy_(map.t());
  }
  return maps;
}

at::Tensor with_object_phase(const at::Tensor& maps, const at::Tensor& given, int64_t region) {
  SP_CHECK(maps.dim() == 3 && maps.is_complex() && given.is_complex() &&
               given.sizes() == maps.sizes() && region >= 1 &&
               region <= std::min(maps.size(1), maps.size(2)),
           "with_object_phase", "expected maps and k-space [coils,H,W] and a region within, got ",
           maps.sizes(), ", ", given.sizes(), " and ", region);
  const int64_t axes[2] = {1, 2};
  const at::Tensor kspace = given.detach().to(at::kCPU, at::kComplexDouble);
  // Of region + 2 points, whose first and last are the window's zeros.
  const at::Tensor window = at::hann_window(region + 2, false, at::kDouble).narrow(0, 1, region);
  at::Tensor smooth = at::zeros_like(kspace);
  central_square(smooth, region).copy_(central_square(kspace, region) * at::outer(window, window));
  const at::Tensor images = at::fft_fftshift(
      at::fft_ifft2(at::fft_ifftshift(smooth, axes), c10::nullopt, axes, "ortho"), axes);
  const at::Tensor image = (maps.to(at::kComplexDouble).conj() * images).sum(0);
  return maps * at::polar(at::ones_like(image.abs()), at::angle(image));
}

}  // namespace scoreprior
