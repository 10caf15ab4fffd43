#include "scoreprior/forward/mri_masks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"

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

namespace {
void check_lines(const char* where, int64_t width, double acceleration, int64_t centre_lines) {
  SP_CHECK(acceleration >= 1 && centre_lines >= 0 &&
               (acceleration == 1 ||
                static_cast<double>(centre_lines) * acceleration < static_cast<double>(width)),
           where, "expected acceleration >= 1 and fewer than ", width,
           "/acceleration centre lines, got ", acceleration, " and ", centre_lines);
}
}  // namespace

at::Tensor cartesian_mask(int64_t height, int64_t width, double acceleration,
                          int64_t centre_lines) {
  check_lines("cartesian_mask", width, acceleration, centre_lines);
  if (acceleration == 1) return at::ones({height, width}, at::kDouble);
  at::Tensor mask = at::zeros({height, width}, at::kDouble);
  mask.narrow(1, (width - centre_lines + 1) / 2, centre_lines).fill_(1);
  const double lines = static_cast<double>(centre_lines), columns = static_cast<double>(width);
  const double spacing = acceleration * (lines - columns) / (lines * acceleration - columns);
  // Both roundings are to even.
  const double first = std::nearbyint(spacing / 2);
  for (int64_t k = 0;; ++k) {
    const double column = first + static_cast<double>(k) * spacing;
    if (column >= static_cast<double>(width - 1)) break;
    mask.select(1, static_cast<int64_t>(std::nearbyint(column))).fill_(1);
  }
  return mask;
}

at::Tensor random_lines_mask(int64_t height, int64_t width, double acceleration,
                             int64_t centre_lines, double power, uint64_t seed) {
  check_lines("random_lines_mask", width, acceleration, centre_lines);
  SP_CHECK(power >= 0, "random_lines_mask", "expected power >= 0, got ", power);
  const auto wanted = static_cast<int64_t>(std::lround(static_cast<double>(width) / acceleration));
  const int64_t first = (width - centre_lines + 1) / 2;
  // Sorting by -log(u)/weight draws without replacement in proportion to the weights.
  const std::vector<double> u = Rng(seed).split("lines").uniforms(width);
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t c = 0; c < width; ++c) {
    if (c >= first && c < first + centre_lines) continue;
    const double half = static_cast<double>(width) / 2;
    const double weight = std::pow(1 - std::abs(static_cast<double>(c) - half) / (half + 1), power);
    order.push_back({-std::log1p(-u[c]) / weight, c});
  }
  std::sort(order.begin(), order.end());
  at::Tensor mask = at::zeros({height, width}, at::kDouble);
  mask.narrow(1, first, centre_lines).fill_(1);
  for (int64_t k = 0; k < std::max<int64_t>(wanted - centre_lines, centre_lines == 0); ++k)
    mask.select(1, order[k].second).fill_(1);
  return mask;
}

at::Tensor radial_mask(int64_t height, int64_t width, int64_t spokes, bool golden_angle,
                       int64_t centre) {
  SP_CHECK(spokes >= 1 && centre >= 0 && centre <= std::min(height, width), "radial_mask",
           "expected spokes >= 1 and a centre within the image, got ", spokes, " and ", centre);
  at::Tensor mask = at::zeros({height, width}, at::kDouble);
  auto m = mask.accessor<double, 2>();
  const double golden = M_PI * (std::sqrt(5.0) - 1) / 2;
  const auto reach = static_cast<int64_t>(std::ceil(std::hypot(height, width)));
  for (int64_t s = 0; s < spokes; ++s) {
    const double angle =
        static_cast<double>(s) * (golden_angle ? golden : M_PI / static_cast<double>(spokes));
    for (int64_t t = -reach; t <= reach; ++t) {
      const auto r = height / 2 + std::lround(0.5 * static_cast<double>(t) * std::sin(angle));
      const auto c = width / 2 + std::lround(0.5 * static_cast<double>(t) * std::cos(angle));
      if (r >= 0 && r < height && c >= 0 && c < width) m[r][c] = 1;
    }
  }
  mask.narrow(0, (height - centre + 1) / 2, centre)
      .narrow(1, (width - centre + 1) / 2, centre)
      .fill_(1);
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

namespace {

struct SamplingOptions {
  std::string pattern = "cartesian";
  double acceleration = 4, density_power = 2;
  int64_t centre_lines = -1, mask_seed = 0, spokes = -1;
  bool golden_angle = false;
  template <class F>
  void fields(F&& f) {
    f("pattern", pattern,
      "without a mask file: cartesian or random_lines (whole columns), poisson (discs) or radial");
    f("acceleration", acceleration, "pixels per sample");
    f("centre_lines", centre_lines,
      "fully sampled columns, or side of the square, at zero frequency; -1 = 0.32/acceleration of "
      "the columns, or none");
    f("density_power", density_power, "random_lines: how fast the density of lines falls off");
    f("spokes", spokes, "radial: lines through zero frequency; -1 = as the acceleration wants");
    f("golden_angle", golden_angle, "radial: lines 111.246 degrees apart instead of evenly");
    f("mask_seed", mask_seed, "seed of the poisson and random_lines patterns");
  }
};

at::Tensor radial_mask_of(const Config& config, const Shape& shape, const SamplingOptions& o,
                          int64_t centre) {
  if (centre > std::min(shape[1], shape[2]))
    config.fail("centre_lines", "centre_lines must not exceed the image");
  if (o.spokes == 0) config.fail("spokes", "radial sampling needs at least one spoke");
  if (o.spokes > 0) return radial_mask(shape[1], shape[2], o.spokes, o.golden_angle, centre);
  const double wanted = static_cast<double>(shape[1] * shape[2]) / o.acceleration;
  // Doubled until there are enough samples, then the fewest spokes that suffice.
  const auto mask = [&](int64_t n) {
    return radial_mask(shape[1], shape[2], n, o.golden_angle, centre);
  };
  const auto enough = [&](int64_t n) { return mask(n).sum().item<double>() >= wanted; };
  int64_t low = 0, high = 1;
  const int64_t most = 8 * (shape[1] + shape[2]);
  while (high < most && !enough(high)) low = high, high *= 2;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (enough(middle) ? high : low) = middle;
  }
  return mask(high);
}

at::Tensor generated_mask(const Config& config, const Shape& shape) {
  const auto o = config.read<SamplingOptions>();
  config.one_of("pattern", "cartesian", {"cartesian", "random_lines", "poisson", "radial"});
  const bool lines = o.pattern == "cartesian" || o.pattern == "random_lines";
  const bool poisson = o.pattern == "poisson";
  if (!(poisson ? o.acceleration > 1 : o.acceleration >= 1) || !std::isfinite(o.acceleration))
    config.fail("acceleration", poisson ? "acceleration must be above 1 for the poisson pattern"
                                        : "acceleration must be at least 1");
  if (!(o.density_power >= 0)) config.fail("density_power", "density_power must not be negative");
  int64_t centre = o.centre_lines;
  if (centre < 0)
    centre = lines ? std::lround(0.32 * static_cast<double>(shape[2]) / o.acceleration) : 0;
  if (o.pattern == "radial") return radial_mask_of(config, shape, o, centre);
  if (poisson) {
    if (centre >= std::min(shape[1], shape[2]))
      config.fail("centre_lines", "centre_lines must be smaller than the image");
    PoissonMaskOptions mask;
    mask.acceleration = o.acceleration;
    mask.centre = centre;
    mask.seed = static_cast<uint32_t>(o.mask_seed);
    return poisson_mask(shape[1], shape[2], mask);
  }
  if (o.acceleration > 1 &&
      static_cast<double>(centre) * o.acceleration >= static_cast<double>(shape[2]))
    config.fail("centre_lines", "centre_lines must be fewer than width/acceleration");
  if (o.pattern == "random_lines")
    return random_lines_mask(shape[1], shape[2], o.acceleration, centre, o.density_power,
                             static_cast<uint64_t>(o.mask_seed));
  return cartesian_mask(shape[1], shape[2], o.acceleration, centre);
}

}  // namespace

at::Tensor sampling_mask(const Config& config, const Shape& shape, const ForwardContext& context) {
  if (!config.has("mask")) return generated_mask(config, shape);
  at::Tensor mask = read_array(config, "mask", context.read_array);
  if (mask.is_complex()) mask = at::real(mask);  // some formats hold complex numbers only
  if (mask.dim() != 2 || mask.size(0) != shape[1] || mask.size(1) != shape[2])
    config.fail("mask", "the mask is not " + to_string({shape[1], shape[2]}));
  if (!at::isfinite(mask.to(at::kDouble)).all().item<bool>())
    throw DataError("[mri] the mask has entries that are not finite");
  return mask.to(at::kDouble);
}

}  // namespace scoreprior
