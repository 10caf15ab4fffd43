#include "scoreprior/stats/ring.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior::stats {
namespace {

constexpr double kRingPi = 3.14159265358979323846;

// Cubic B-spline interpolation [Unser99]: fourth order, so a 4-uas pixel does not bias a diameter.
// Mirror boundary.
class SplineImage {
 public:
  SplineImage(const double* pixels, int64_t h, int64_t w)
      : h_(h), w_(w), c_(pixels, pixels + h * w) {
    std::vector<double> line(std::max(h, w));
    for (int64_t y = 0; y < h; ++y) filter(&c_[y * w], 1, w, line);
    for (int64_t x = 0; x < w; ++x) filter(&c_[x], w, h, line);
  }
  double at(double y, double x) const {
    const int64_t iy = static_cast<int64_t>(std::floor(y)),
                  ix = static_cast<int64_t>(std::floor(x));
    double wy[4], wx[4];
    weights(y - static_cast<double>(iy), wy);
    weights(x - static_cast<double>(ix), wx);
    double sum = 0;
    if (iy >= 1 && ix >= 1 && iy + 2 < h_ && ix + 2 < w_) {
      const double* p = &c_[(iy - 1) * w_ + ix - 1];
      for (int a = 0; a < 4; ++a, p += w_)
        sum += wy[a] * (wx[0] * p[0] + wx[1] * p[1] + wx[2] * p[2] + wx[3] * p[3]);
      return sum;
    }
    for (int a = 0; a < 4; ++a)
      for (int b = 0; b < 4; ++b)
        sum += wy[a] * wx[b] * c_[mirror(iy + a - 1, h_) * w_ + mirror(ix + b - 1, w_)];
    return sum;
  }

 private:
  static void weights(double t, double* w) {
    const double s = 1 - t;
    w[0] = s * s * s / 6;
    w[1] = (4 - 6 * t * t + 3 * t * t * t) / 6;
    w[2] = (4 - 6 * s * s + 3 * s * s * s) / 6;
    w[3] = t * t * t / 6;
  }
  static int64_t mirror(int64_t i, int64_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1);
    i = ((i % period) + period) % period;
    return i < n ? i : period - i;
  }
  static void filter(double* data, int64_t stride, int64_t n, std::vector<double>& v) {
    if (n < 2) return;
    const double pole = std::sqrt(3.0) - 2;
    for (int64_t i = 0; i < n; ++i) v[i] = 6 * data[i * stride];
    double power = pole, first = v[0];
    for (int64_t i = 1; i < std::min<int64_t>(n, 40); ++i, power *= pole) first += power * v[i];
    v[0] = first;
    for (int64_t i = 1; i < n; ++i) v[i] += pole * v[i - 1];
    v[n - 1] = pole / (pole * pole - 1) * (v[n - 1] + pole * v[n - 2]);
    for (int64_t i = n - 2; i >= 0; --i) v[i] = pole * (v[i + 1] - v[i]);
    for (int64_t i = 0; i < n; ++i) data[i * stride] = v[i];
  }
  int64_t h_, w_;
  std::vector<double> c_;
};

// All lengths in pixels.
struct RingSearch {
  const SplineImage& image;
  double middle_y, middle_x;  // of the image
  double reach_y, reach_x;    // half sides
  double min_radius, max_radius, step;

  double value(double y, double x, double radius, double angle) const {
    return image.at(y - radius * std::cos(angle), x - radius * std::sin(angle));
  }
  // Largest radius of a ray from (y,x) that stays on pixels.
  double ray_end(double y, double x, double angle) const {
    const double dy = -std::cos(angle), dx = -std::sin(angle);
    double end = max_radius;
    if (dy != 0) end = std::min(end, ((dy > 0 ? middle_y + reach_y : middle_y - reach_y) - y) / dy);
    if (dx != 0) end = std::min(end, ((dx > 0 ? middle_x + reach_x : middle_x - reach_x) - x) / dx);
    return end;
  }
  // The peak along a ray, by parabola through the three best samples; negative when it lies on an
  // end.
  double peak(double y, double x, double angle, double* height = nullptr) const {
    const double end = ray_end(y, x, angle);
    const int64_t n = static_cast<int64_t>(std::floor((end - min_radius) / step)) + 1;
    if (n < 3) return -1;
    double before = 0, best = -1e300, left = 0, right = 0;
    int64_t at = 0;
    bool after = false;
    for (int64_t i = 0; i < n; ++i) {
      const double v = value(y, x, min_radius + static_cast<double>(i) * step, angle);
      if (after) {
        right = v;
        after = false;
      }
      if (v > best) {
        best = v;
        left = before;
        at = i;
        after = true;
      }
      before = v;
    }
    const double radius = min_radius + static_cast<double>(at) * step;
    if (at == 0 || after) return -radius;
    const double curve = left - 2 * best + right;
    const double shift = curve < 0 ? 0.5 * (left - right) / curve : 0;
    if (height) *height = best - 0.25 * (left - right) * shift;
    return radius + shift * step;
  }
  struct Profile {
    double mean = 0, spread = 0, found = 0;  // found: share of rays with an inner peak
  };
  Profile radii(double y, double x, int angles) const {
    Profile p;
    double sum = 0, squares = 0;
    int inner = 0;
    for (int k = 0; k < angles; ++k) {
      const double r = peak(y, x, 2 * kRingPi * k / angles);
      inner += r > 0;
      sum += std::abs(r);
      squares += r * r;
    }
    p.mean = sum / angles;
    p.spread = std::sqrt(std::max(0.0, squares / angles - p.mean * p.mean));
    p.found = static_cast<double>(inner) / angles;
    return p;
  }
  // Rays that end without a peak make a centre worse, so that the rim of the search never wins.
  double cost(double y, double x, int angles) const {
    const Profile p = radii(y, x, angles);
    return p.spread / std::max(p.mean, 1e-12) + (1 - p.found);
  }
};

// Distance from the peak to half of its height above the floor, walking outward (+1) or inward
// (-1); negative if never.
double ring_half_width(const RingSearch& s, double y, double x, double angle, double peak,
                       double half, int direction) {
  const double end = direction > 0 ? s.ray_end(y, x, angle) : 0.0;
  double last = s.value(y, x, peak, angle);
  for (double r = peak + direction * s.step; direction > 0 ? r <= end : r >= end;
       r += direction * s.step) {
    const double v = s.value(y, x, r, angle);
    if (v <= half) return std::abs(r - peak) - s.step * (half - v) / std::max(last - v, 1e-300);
    last = v;
  }
  return -1;
}

// Faintest over brightest 30-degree sector of the peaks' mean brightness above zero.
double ridge_contrast(const RingSearch& s, double y, double x, int angles) {
  constexpr int kSectors = 12;
  double faintest = 1e300, brightest = 0;
  for (int sector = 0; sector < kSectors; ++sector) {
    double sum = 0;
    const int per = angles / kSectors;
    for (int k = sector * per; k < (sector + 1) * per; ++k) {
      const double angle = 2 * kRingPi * k / angles;
      sum += s.value(y, x, std::abs(s.peak(y, x, angle)), angle) / per;
    }
    faintest = std::min(faintest, sum);
    brightest = std::max(brightest, sum);
  }
  return brightest > 0 ? faintest / brightest : 0;
}

double circular_difference(double a, double b) { return std::remainder(a - b, 360.0); }

}  // namespace

Ring measure_ring(const at::Tensor& image, double pixel_uas, const RingOptions& o) {
  const at::Tensor plane = image.dim() == 3 && image.size(0) == 1 ? image[0] : image;
  SP_CHECK(plane.dim() == 2 && plane.size(0) >= 8 && plane.size(1) >= 8 && pixel_uas > 0,
           "measure_ring",
           "expected an image [H,W] of at least 8 x 8 pixels and a positive pixel size, got ",
           image.sizes());
  SP_CHECK(o.min_diameter_uas > 0 && o.max_diameter_uas > o.min_diameter_uas && o.search_uas > 0,
           "measure_ring",
           "expected 0 < min_diameter_uas < max_diameter_uas and a positive search_uas");
  const at::Tensor pixels = plane.to(at::kCPU, at::kDouble).contiguous();
  Ring ring;
  if (!at::isfinite(pixels).all().item<bool>()) return ring;
  const int64_t h = pixels.size(0), w = pixels.size(1);
  const SplineImage spline(pixels.data_ptr<double>(), h, w);
  RingSearch search{spline,
                    0.5 * static_cast<double>(h - 1),
                    0.5 * static_cast<double>(w - 1),
                    0.5 * static_cast<double>(h - 1),
                    0.5 * static_cast<double>(w - 1),
                    0.5 * o.min_diameter_uas / pixel_uas,
                    0.5 * o.max_diameter_uas / pixel_uas,
                    std::min(0.5, 2.0 / pixel_uas)};

  // A grid of at most 2 uas or half a pixel with few rays, then a compass search with many.
  const double reach = o.search_uas / pixel_uas, grid = std::max(0.5, 2.0 / pixel_uas);
  double best = 1e300, y = search.middle_y, x = search.middle_x;
  const int64_t rings = static_cast<int64_t>(std::ceil(reach / grid));
  for (int64_t i = -rings; i <= rings; ++i)
    for (int64_t j = -rings; j <= rings; ++j) {
      const double dy = static_cast<double>(i) * grid, dx = static_cast<double>(j) * grid;
      if (dy * dy + dx * dx > reach * reach) continue;
      const double c = search.cost(search.middle_y + dy, search.middle_x + dx, 24);
      if (c < best) {
        best = c;
        y = search.middle_y + dy;
        x = search.middle_x + dx;
      }
    }
  constexpr int kAngles = 120;
  search.step = std::min(0.25, 1.0 / pixel_uas);
  best = search.cost(y, x, kAngles);
  for (double move = grid / 2; move > 0.01; move /= 2) {
    bool improved = true;
    for (int tries = 0; improved && tries < 8; ++tries) {
      improved = false;
      const double directions[4][2] = {{1, 0}, {-1, 0}, {0, 1}, {0, -1}};
      for (const auto& d : directions) {
        const double ty = y + move * d[0], tx = x + move * d[1];
        if (std::hypot(ty - search.middle_y, tx - search.middle_x) > reach) continue;
        const double c = search.cost(ty, tx, kAngles);
        if (c < best) {
          best = c;
          y = ty;
          x = tx;
          improved = true;
        }
      }
    }
  }

  const RingSearch::Profile profile = search.radii(y, x, kAngles);
  ring.found = profile.found >= 0.75 && profile.spread <= 0.25 * profile.mean &&
               ridge_contrast(search, y, x, kAngles) >= 0.05;
  ring.diameter_uas = 2 * profile.mean * pixel_uas;
  ring.diameter_spread_uas = 2 * profile.spread * pixel_uas;
  ring.north_uas = (search.middle_y - y) * pixel_uas;
  ring.east_uas = (search.middle_x - x) * pixel_uas;

  double floor = 0;
  int floor_rays = 0;
  for (int k = 0; k < kAngles; ++k) {
    const double angle = 2 * kRingPi * k / kAngles, radius = o.floor_radius_uas / pixel_uas;
    if (radius > search.ray_end(y, x, angle)) continue;
    floor += search.value(y, x, radius, angle);
    ++floor_rays;
  }
  if (floor_rays) floor /= floor_rays;

  double width = 0;
  int width_rays = 0;
  for (int k = 0; k < kAngles; ++k) {
    const double angle = 2 * kRingPi * k / kAngles;
    double height = 0;
    const double peak = search.peak(y, x, angle, &height);
    if (peak <= 0) continue;
    const double half = floor + 0.5 * (height - floor);
    const double out = ring_half_width(search, y, x, angle, peak, half, 1);
    const double in = ring_half_width(search, y, x, angle, peak, half, -1);
    // A side that never falls to half is taken as the mirror image of the other.
    if (out < 0 && in < 0) continue;
    width += out < 0 ? 2 * in : in < 0 ? 2 * out : in + out;
    ++width_rays;
  }
  if (width_rays) width /= width_rays;
  ring.width_uas = width * pixel_uas;

  // The paper averages the angle over radius; the sum of the unit phasors is that average without
  // the branch cut.
  const double inner = std::max(0.0, profile.mean - width / 2), outer = profile.mean + width / 2;
  double phase_east = 0, phase_north = 0, asymmetry = 0;
  constexpr int kRadii = 15;
  for (int i = 0; i < kRadii; ++i) {
    const double radius = inner + (outer - inner) * (i + 0.5) / kRadii;
    double east = 0, north = 0, sum = 0;
    for (int k = 0; k < kAngles; ++k) {
      const double angle = 2 * kRingPi * k / kAngles;
      if (radius > search.ray_end(y, x, angle)) continue;
      const double v = search.value(y, x, radius, angle);
      east += v * std::sin(angle);
      north += v * std::cos(angle);
      sum += v;
    }
    const double length = std::hypot(east, north);
    if (length > 0) {
      phase_east += east / length;
      phase_north += north / length;
    }
    if (sum > 0) asymmetry += length / sum;
  }
  ring.orientation_deg = std::atan2(phase_east, phase_north) * 180 / kRingPi;
  ring.asymmetry = asymmetry / kRadii;

  double centre = 0, centre_weight = 0, ridge = 0;
  for (int k = 0; k < kAngles; ++k) {
    const double angle = 2 * kRingPi * k / kAngles;
    ridge +=
        search.value(y, x, std::min(profile.mean, search.ray_end(y, x, angle)), angle) / kAngles;
    for (int i = 0; i < 5; ++i) {
      const double radius = o.central_radius_uas / pixel_uas * (i + 0.5) / 5;
      centre += radius * search.value(y, x, radius, angle);
      centre_weight += radius;
    }
  }
  if (ridge > 0) ring.central_brightness = centre / centre_weight / ridge;

  if (o.blur_fwhm_uas > 0 && ring.diameter_uas > 0) {
    const double blur2 = o.blur_fwhm_uas * o.blur_fwhm_uas;
    ring.diameter_uas += blur2 / (4 * std::log(2.0) * ring.diameter_uas);
    ring.width_uas = std::sqrt(std::max(0.0, ring.width_uas * ring.width_uas - blur2));
  }
  return ring;
}

std::vector<Ring> measure_rings(const at::Tensor& draws, double pixel_uas,
                                const RingOptions& options) {
  SP_CHECK(draws.dim() == 4 && draws.size(1) == 1, "measure_rings",
           "expected draws [N,1,H,W], got ", draws.sizes());
  const at::Tensor x = draws.to(at::kCPU, at::kDouble).contiguous();
  std::vector<Ring> rings(static_cast<size_t>(x.size(0)));
  at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rings[i] = measure_ring(x[i][0], pixel_uas, options);
  });
  return rings;
}

Interval credible_interval(std::vector<double> values, double level) {
  SP_CHECK(!values.empty() && level > 0 && level < 1, "credible_interval",
           "expected at least one value and a level in (0,1)");
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double p) {
    const double place = std::min(std::max((static_cast<double>(values.size()) + 1) * p - 1, 0.0),
                                  static_cast<double>(values.size() - 1));
    const size_t below = static_cast<size_t>(place);
    const double part = place - static_cast<double>(below);
    return below + 1 < values.size() ? values[below] * (1 - part) + values[below + 1] * part
                                     : values[below];
  };
  return {quantile(0.5 * (1 - level)), quantile(0.5), quantile(0.5 * (1 + level))};
}

std::map<std::string, Interval> ring_intervals(const std::vector<Ring>& rings, double level) {
  std::vector<double> diameter, width, asymmetry, centre, turn;
  double east = 0, north = 0;
  for (const Ring& ring : rings)
    if (ring.found) {
      east += std::sin(ring.orientation_deg * kRingPi / 180);
      north += std::cos(ring.orientation_deg * kRingPi / 180);
    }
  const double mean = std::atan2(east, north) * 180 / kRingPi;
  for (const Ring& ring : rings)
    if (ring.found) {
      diameter.push_back(ring.diameter_uas);
      width.push_back(ring.width_uas);
      asymmetry.push_back(ring.asymmetry);
      centre.push_back(ring.central_brightness);
      turn.push_back(mean + circular_difference(ring.orientation_deg, mean));
    }
  std::map<std::string, Interval> intervals;
  const double share =
      rings.empty() ? 0 : static_cast<double>(diameter.size()) / static_cast<double>(rings.size());
  intervals["found"] = {share, share, share};
  if (diameter.empty()) return intervals;
  intervals["diameter_uas"] = credible_interval(diameter, level);
  intervals["width_uas"] = credible_interval(width, level);
  intervals["orientation_deg"] = credible_interval(turn, level);
  intervals["asymmetry"] = credible_interval(asymmetry, level);
  intervals["central_brightness"] = credible_interval(centre, level);
  return intervals;
}

}  // namespace scoreprior::stats
