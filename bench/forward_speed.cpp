// Forward model and gradient of a batch, against what a plain program would do, in turns:
//   visibilities  y = A x and A^T r, 64 images, against the dense complex64 matrix both ways
//   multicoil_mri y = A x and A^T r, 320 x 320 x 15 coils, against the FFT and inverse FFT alone
//   forward_speed [--threads N] [--repeats N]
// Prints medians of each, the median of the ratios of neighbours in time, and the shares of two
// roofs measured in the same rounds: arithmetic at the rate of a 1024^3 float32 matrix product, and
// the memory traffic that cannot be avoided at the rate of copying 128 MiB (bytes read + written).
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/mri_masks.h"
#include "scoreprior/forward/multicoil_mri.h"
#include "scoreprior/forward/visibilities.h"

namespace scoreprior {
namespace {

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

struct Comparison {
  double ours = 0, theirs = 0, ratio = 0, gemm_rate = 0, copy_rate = 0;
  double arithmetic_share(double operations) const { return 100 * operations / ours / gemm_rate; }
  double memory_share(double bytes) const { return 100 * bytes / ours / copy_rate; }
};

Comparison in_turns(int repeats, const std::function<void()>& ours,
                    const std::function<void()>& theirs) {
  const at::Tensor a = Rng(1).normal({1024, 1024}), b = Rng(2).normal({1024, 1024});
  const at::Tensor from = at::ones({int64_t{1} << 25}), to = at::zeros_like(from);
  ours(), theirs(), at::mm(a, b);
  std::vector<double> x, y, ratio, rate, copy;
  for (int k = 0; k < repeats; ++k) {
    x.push_back(seconds(ours));
    y.push_back(seconds(theirs));
    rate.push_back(2 * std::pow(1024.0, 3) / seconds([&] { at::mm(a, b); }));
    copy.push_back(2 * static_cast<double>(from.nbytes()) / seconds([&] { to.copy_(from); }));
    ratio.push_back(y.back() / x.back());
  }
  return {median(x), median(y), median(ratio), median(rate), median(copy)};
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

void visibilities(int64_t side, int64_t rows, int64_t batch, int repeats) {
  const at::Tensor uv = (Rng(1).uniform({rows, 2}, at::kDouble) - 0.5) * 17e9;
  std::vector<double> u, v;
  for (int64_t k = 0; k < rows; ++k)
    u.push_back(uv[k][0].item<double>()), v.push_back(uv[k][1].item<double>());
  const SkyGrid grid = make_sky_grid(side, side, 160);
  const VisibilityTransform transform(u, v, grid, Pulse::kDelta, {at::kFloat, at::kCPU});
  at::Tensor x_axis = at::empty({side}, at::kDouble), y_axis = at::empty({side}, at::kDouble);
  for (int64_t k = 0; k < side; ++k) x_axis[k] = grid.x(k), y_axis[k] = grid.y(k);
  at::Tensor matrix = at::empty({rows, side * side}, at::kComplexFloat);
  for (int64_t k = 0; k < rows; ++k) {
    const at::Tensor phase =
        2 * M_PI * (u[k] * x_axis.unsqueeze(0) + v[k] * y_axis.unsqueeze(1)).flatten();
    matrix.select(0, k).copy_(at::complex(phase.cos(), phase.sin()));
  }
  const at::Tensor x = Rng(2).uniform({batch, 1, side, side});
  at::Tensor dense_vis, dense_gradient, gradient;
  std::pair<at::Tensor, at::Tensor> parts;
  const auto ours = [&] {
    parts = transform.parts(x);
    gradient = transform.adjoint_parts(parts.first, parts.second);
  };
  const auto dense = [&] {
    dense_vis = at::matmul(matrix, x.reshape({batch, -1}).t().to(at::kComplexFloat));
    dense_gradient = at::real(at::matmul(dense_vis.t(), matrix.conj()));
  };
  const Comparison c = in_turns(repeats, ours, dense);
  const double work = transform.multiply_adds(batch) * 4;  // both ways, two operations each
  // The image in, its gradient out, the visibilities out and in; tables not counted.
  const auto pixels = static_cast<double>(side * side), numbers = static_cast<double>(2 * rows);
  const double bytes = 4 * static_cast<double>(batch) * (2 * pixels + 2 * numbers);
  std::printf(
      "visibilities %3ld x %-3ld %5ld rows, %ld images, %-9s: %8.2f ms, dense complex %8.2f ms, "
      "ratio %6.1f, %6.2f GFLOP, %3.0f %% of %.0f GFLOP/s, %3.0f %% of %.1f GB/s, "
      "differences %.1e %.1e\n",
      side, side, rows, batch, transform.method(batch), 1e3 * c.ours, 1e3 * c.theirs, c.ratio,
      1e-9 * work, c.arithmetic_share(work), 1e-9 * c.gemm_rate, c.memory_share(bytes),
      1e-9 * c.copy_rate, largest_difference(parts.first, at::real(dense_vis)),
      largest_difference(gradient.reshape({batch, -1}), dense_gradient));
}

void mri(const char* pattern, const at::Tensor& mask, int64_t coils, int64_t batch, int repeats) {
  const int64_t side = mask.size(0);
  const MulticoilMri model(1, simulated_coil_maps(coils, side, side), mask, {at::kFloat, at::kCPU});
  const at::Tensor x = Rng(1).uniform({batch, 1, side, side});
  const at::Tensor images = at::complex(Rng(2).normal({batch, coils, side, side}),
                                        Rng(3).normal({batch, coils, side, side}));
  const std::vector<int64_t> axes = {2, 3};
  const Comparison c = in_turns(
      repeats, [&] { model.adjoint(model.apply(x)); },
      [&] {
        at::fft_ifft2(at::fft_fft2(images, c10::nullopt, axes, "ortho"), c10::nullopt, axes,
                      "ortho");
      });
  // 5 N log2 N for a complex FFT of N points. The coil images do not fit into the caches, so that
  // each of two FFTs reads and writes them once for each axis.
  const auto points = static_cast<double>(side * side), fields = static_cast<double>(coils * batch);
  const double work = 2 * fields * 5 * points * std::log2(points);
  const double bytes = 2 * 2 * 2 * 8 * fields * points;
  std::printf(
      "multicoil_mri %ld x %ld x %ld coils, %s, %ld images: %8.2f ms, the FFTs alone %8.2f ms, FFT "
      "share %.0f %%, %.2f GFLOP, %.0f %% of %.0f GFLOP/s, %.0f %% of %.1f GB/s\n",
      side, side, coils, pattern, batch, 1e3 * c.ours, 1e3 * c.theirs, 100 * c.ratio, 1e-9 * work,
      c.arithmetic_share(work), 1e-9 * c.gemm_rate, c.memory_share(bytes), 1e-9 * c.copy_rate);
}

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  int threads = 1, repeats = 9;
  for (int k = 1; k + 1 < argc; k += 2)
    (std::string(argv[k]) == "--threads" ? threads : repeats) = std::stoi(argv[k + 1]);
  scoreprior::keep_freed_memory();
  scoreprior::set_threads(threads);
  at::NoGradGuard no_grad;
  std::printf("%d threads, %d repeats\n", threads, repeats);
  for (const int64_t side : {64, 256})
    for (const int64_t rows : {300, 3000}) scoreprior::visibilities(side, rows, 64, repeats);
  scoreprior::PoissonMaskOptions poisson;
  poisson.acceleration = 4;
  poisson.centre = 24;
  const at::Tensor discs = scoreprior::poisson_mask(320, 320, poisson),
                   columns = scoreprior::cartesian_mask(320, 320, 4, 26);
  for (const int64_t batch : {4, 64}) {
    scoreprior::mri("Poisson discs", discs, 15, batch, repeats);
    scoreprior::mri("Cartesian", columns, 15, batch, repeats);
  }
  return 0;
}
