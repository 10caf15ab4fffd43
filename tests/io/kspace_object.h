#pragma once
/// An object and the transform of it that scanners measure, for tests of k-space files.
#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace scoreprior::io::testing_files {

inline constexpr int64_t kSide = 32, kCoils = 3;

/// Centred orthonormal FFT over `axes`.
inline at::Tensor transform(const at::Tensor& x, std::vector<int64_t> axes, bool inverse) {
  const at::Tensor y = at::fft_ifftshift(x, axes);
  return at::fft_fftshift(inverse ? at::fft_ifftn(y, c10::nullopt, axes, "ortho")
                                  : at::fft_fftn(y, c10::nullopt, axes, "ortho"),
                          axes);
}

// Two smooth blobs, off the middle.
inline at::Tensor object(int64_t height, int64_t width) {
  const auto axis = [](int64_t n) {
    return at::arange(n, at::kDouble) - static_cast<double>(n / 2);
  };
  const auto blob = [&](double y, double x, double r) {
    return at::exp(
        -((axis(height) - y).square().unsqueeze(1) + (axis(width) - x).square().unsqueeze(0)) /
        (2 * r * r));
  };
  return 0.7 * blob(-3, 4, 5) + 0.3 * blob(5, -4, 3);
}

}  // namespace scoreprior::io::testing_files
