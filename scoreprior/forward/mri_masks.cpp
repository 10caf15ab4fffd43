#include "scoreprior/forward/mri_masks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

/// Uniform numbers in the order in which NumPy's legacy generator makes them.
class LegacyUniform {
 public:
  explicit LegacyUniform(uint32_t seed) : words_(seed) {}
  /// 0 <= k < n: masked words, rejected above n-1; n = 1 draws nothing.
  int64_t below(int64_t n) {
    const auto largest = static_cast<uint32_t>(n - 1);
    if (largest == 0) return 0;
    uint32_t mask = largest;
    for (int shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
    uint32_t value;
    do value = static_cast<uint32_t>(words_()) & mask;
    while (value > largest);
    return value;
  }
  /// [0,1) with 53 bits from two words.
  double unit() {
    const uint64_t a = words_() >> 5, b = words_() >> 6;
    return static_cast<double>(a * 67108864 + b) / 9007199254740992.0;
  }

 private:
  std::mt19937 words_;
};

/// Distance from zero frequency beyond the sampled centre, 1 at the far edge.
std::vector<double> edge_distance(int64_t n, int64_t centre) {
  std::vector<double> d(n);
  for (int64_t k = 0; k < n; ++k)
    d[k] = std::max(std::abs(static_cast<double>(k) - n / 2.0) - centre / 2.0, 0.0);
  const double largest = *std::max_element(d.begin(), d.end());
  if (largest > 0)
    for (double& a : d) a /= largest;
  return d;
}

struct MaskGrid {
  int64_t height, width;
  std::vector<double> radius_x, radius_y;  ///< wanted distance between samples, by pixel
};

/// Darts keep their distance from the samples of `mask` too.
std::vector<char> throw_darts(const MaskGrid& grid, std::vector<char> mask, int max_attempts,
                              LegacyUniform& random) {
  const int64_t width = grid.width, height = grid.height;
  struct Point {
    int64_t x, y;
  };
  std::vector<Point> active;
  bool only_new_pixels = false;
  const int64_t first_x = random.below(width);
  active.push_back({first_x, random.below(height)});
  while (!active.empty()) {
    const auto chosen = static_cast<size_t>(random.below(static_cast<int64_t>(active.size())));
    const Point p = active[chosen];
    const double rx = grid.radius_x[p.y * width + p.x], ry = grid.radius_y[p.y * width + p.x];
    only_new_pixels = only_new_pixels || static_cast<int64_t>(active.size()) >= width * height;
    bool placed = false;
    for (int attempt = 0; attempt < max_attempts && !placed; ++attempt) {
      const double distance = std::sqrt(random.unit() * 3 + 1);  // uniform in the ring from r to 2r
      const double angle = 2 * M_PI * random.unit();
      const double qx = static_cast<double>(p.x) + distance * rx * std::cos(angle);
      const double qy = static_cast<double>(p.y) + distance * ry * std::sin(angle);
      if (!(qx >= 0 && qx < width && qy >= 0 && qy < height)) continue;
      const auto x0 = std::max<int64_t>(static_cast<int64_t>(qx - rx), 0);
      const auto x1 = std::min<int64_t>(static_cast<int64_t>(qx + rx + 1), width);
      const auto y0 = std::max<int64_t>(static_cast<int64_t>(qy - ry), 0);
      const auto y1 = std::min<int64_t>(static_cast<int64_t>(qy + ry + 1), height);
      const Point q{static_cast<int64_t>(qx), static_cast<int64_t>(qy)};
      placed = !(only_new_pixels && mask[q.y * width + q.x]);
      for (int64_t x = x0; x < x1 && placed; ++x)
        for (int64_t y = y0; y < y1; ++y) {
          const int64_t at = y * width + x;
          if (!mask[at]) continue;
          const double dx = (qx - static_cast<double>(x)) / grid.radius_x[at];
          const double dy = (qy - static_cast<double>(y)) / grid.radius_y[at];
          if (dx * dx + dy * dy < 1) {
            placed = false;
            break;
          }
        }
      if (!placed) continue;
      active.push_back(q);
      mask[q.y * width + q.x] = 1;
    }
    if (!placed) {
      active[chosen] = active.back();
      active.pop_back();
    }
  }
  return mask;
}

}  // namespace

at::Tensor cartesian_mask(int64_t height, int64_t width, int64_t acceleration,
                          int64_t centre_lines) {
  SP_CHECK(acceleration >= 1 && centre_lines >= 0 &&
               (acceleration == 1 || centre_lines * acceleration < width),
           "cartesian_mask", "expected acceleration >= 1 and fewer than ", width,
           "/acceleration centre lines, got ", acceleration, " and ", centre_lines);
  if (acceleration == 1) return at::ones({height, width}, at::kDouble);
  at::Tensor mask = at::zeros({height, width}, at::kDouble);
  mask.narrow(1, (width - centre_lines + 1) / 2, centre_lines).fill_(1);
  const double spacing = static_cast<double>(acceleration) *
                         static_cast<double>(centre_lines - width) /
                         static_cast<double>(centre_lines * acceleration - width);
  // Both roundings are to even.
  const double first = std::nearbyint(spacing / 2);
  for (int64_t k = 0;; ++k) {
    const double column = first + static_cast<double>(k) * spacing;
    if (column >= static_cast<double>(width - 1)) break;
    mask.select(1, static_cast<int64_t>(std::nearbyint(column))).fill_(1);
  }
  return mask;
}

at::Tensor poisson_mask(int64_t height, int64_t width, const PoissonMaskOptions& options) {
  SP_CHECK(options.acceleration > 1 && options.centre >= 0 &&
               options.centre < std::min(height, width) && options.max_attempts > 0,
           "poisson_mask", "expected acceleration > 1 and a centre smaller than the image, got ",
           options.acceleration, " and ", options.centre);
  const std::vector<double> x = edge_distance(width, options.centre);
  const std::vector<double> y = edge_distance(height, options.centre);
  const int64_t pixels = height * width, longest = std::max(height, width);
  std::vector<double> r(pixels);
  for (int64_t p = 0; p < pixels; ++p) r[p] = std::hypot(x[p % width], y[p / width]);
  // The fully sampled square.
  std::vector<char> centre(pixels, 0);
  const auto first = [&](int64_t n) { return (n - options.centre) / 2; };
  const auto last = [&](int64_t n) { return (n + options.centre) / 2; };
  for (int64_t row = first(height); row < last(height); ++row)
    for (int64_t column = first(width); column < last(width); ++column)
      centre[row * width + column] = 1;

  LegacyUniform random(options.seed);
  MaskGrid grid{height, width, std::vector<double>(pixels), std::vector<double>(pixels)};
  std::vector<char> best;
  double best_error = INFINITY, low = 0, high = static_cast<double>(longest);
  while (low < high && best_error >= options.tolerance) {
    const double slope = (low + high) / 2;
    if (slope == low || slope == high) break;
    for (int64_t p = 0; p < pixels; ++p) {
      const double radius = (1 + r[p] * slope) / static_cast<double>(longest);
      grid.radius_x[p] = std::max(radius * static_cast<double>(width), 1.0);
      grid.radius_y[p] = std::max(radius * static_cast<double>(height), 1.0);
    }
    std::vector<char> mask = throw_darts(grid, centre, options.max_attempts, random);
    int64_t samples = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      if (options.crop_corner && !(r[p] < 1)) mask[p] = 0;
      samples += mask[p];
    }
    const double acceleration =
        static_cast<double>(pixels) / static_cast<double>(std::max<int64_t>(samples, 1));
    const double error = std::abs(acceleration - options.acceleration);
    if (error < best_error) best_error = error, best = std::move(mask);
    (acceleration < options.acceleration ? low : high) = slope;
  }
  at::Tensor out = at::empty({height, width}, at::kDouble);
  std::copy(best.begin(), best.end(), out.data_ptr<double>());
  return out;
}

}  // namespace scoreprior
