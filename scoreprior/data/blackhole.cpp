#include "scoreprior/data/blackhole.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/rendered_batch.h"

namespace scoreprior {
namespace {

constexpr double kPiD = 3.14159265358979323846;
constexpr double kFwhmPerSigma = 2.3548200450309493;  // sqrt(8 ln 2)
constexpr double kHwhmPerSigma = 1.1774100225154747;

// Branch-free float32 functions that the compiler vectorises with SSE2; absolute errors below 3e-6,
// so a picture does not depend on the machine's libm.
[[gnu::always_inline]] inline float fast_exp(float x) {  // x <= 30; underflows to ~1e-38
  x = x * 1.44269504f;
  x = x < -125.f ? -125.f : x;
  const int32_t n = static_cast<int32_t>(x + 256.5f) - 256;  // round half up, any x > -256
  const float f = (x - static_cast<float>(n)) * 0.69314718f;
  const float p =
      1.f +
      f * (1.f + f * (0.5f + f * (1.6666667e-1f +
                                  f * (4.1666667e-2f + f * (8.3333333e-3f + f * 1.3888889e-3f)))));
  const int32_t bits = (n + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

[[gnu::always_inline]] inline float fast_log(float x) {  // x > 0, normal
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const int32_t e = (bits - 0x3F3504F3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const int32_t mantissa = bits - (e << 23);
  float m;
  std::memcpy(&m, &mantissa, sizeof m);
  const float s = (m - 1.f) / (m + 1.f), s2 = s * s;
  return static_cast<float>(e) * 0.69314718f +
         2.f * s *
             (1.f + s2 * (3.3333333e-1f + s2 * (0.2f + s2 * (1.4285714e-1f + s2 * 1.1111111e-1f))));
}

[[gnu::always_inline]] inline float fast_cos(float x) {  // |x| < 1000
  float t = x * 0.15915494f;
  t -= static_cast<float>(static_cast<int32_t>(t + 512.5f) - 512);  // turns in [-1/2, 1/2)
  t = t < 0.f ? -t : t;                                             // cos is even
  // cos(2 pi t) = -sin(2 pi (t - 1/4)), a quarter turn either side.
  const float a = (t - 0.25f) * 6.28318531f, a2 = a * a;
  return -a * (1.f + a2 * (-1.6666667e-1f +
                           a2 * (8.3333333e-3f + a2 * (-1.9841270e-4f + a2 * 2.7557319e-6f))));
}

[[gnu::always_inline]] inline float fast_atan2(float y, float x) {  // (-pi, pi]; 0 at the origin
  const float ax = x < 0 ? -x : x, ay = y < 0 ? -y : y;
  const float big = ax > ay ? ax : ay, small = ax > ay ? ay : ax;
  const float t = small / (big + 1e-30f), t2 = t * t;
  // Abramowitz & Stegun 4.4.49, error 2e-8 rad before rounding.
  float a =
      t *
      (1.f + t2 * (-0.3333314528f +
                   t2 * (0.1999355085f +
                         t2 * (-0.1420889944f +
                               t2 * (0.1065626393f +
                                     t2 * (-0.0752896400f +
                                           t2 * (0.0429096138f +
                                                 t2 * (-0.0161657367f + t2 * 0.0028662257f))))))));
  a = ay > ax ? 1.57079633f - a : a;
  a = x < 0 ? 3.14159265f - a : a;
  return y < 0 ? -a : a;
}

// ---- turbulence: a periodic tile of a unit Gaussian random field
// -----------------------------------------------

constexpr int kTile = 64;                  // samples per axis
constexpr int kModesA = 13, kModesB = 17;  // wave numbers 0..12 along a, -8..8 along b
constexpr int kTileNormals = 2 * kModesA * kModesB;

struct TurbulenceTile {
  std::vector<float> value;  // [b][a], (kTile+1)^2: the last row and column repeat the first
  explicit TurbulenceTile(const BlackholeParameters& p);
  float at(float a, float b) const {  // in tiles, |a|, |b| < 64; bilinear (the blur follows)
    a = (a + 64.f) * kTile;
    b = (b + 64.f) * kTile;
    const int ia = static_cast<int>(a), ib = static_cast<int>(b);
    const float fa = a - static_cast<float>(ia), fb = b - static_cast<float>(ib);
    const float* v = value.data() + (ib & (kTile - 1)) * (kTile + 1) + (ia & (kTile - 1));
    const float low = v[0] + fa * (v[1] - v[0]);
    const float high = v[kTile + 1] + fa * (v[kTile + 2] - v[kTile + 1]);
    return low + fb * (high - low);
  }
};

// The polar frame's tile spans 2 pi in phi and kPolarSpan in u = ln(r/R).
constexpr double kPolarSpan = 5.0;

struct TileWaves {
  float cos_[kTile], sin_[kTile];
  TileWaves() {
    for (int i = 0; i < kTile; ++i) {
      cos_[i] = static_cast<float>(std::cos(2 * kPiD * i / kTile));
      sin_[i] = static_cast<float>(std::sin(2 * kPiD * i / kTile));
    }
  }
};

TurbulenceTile::TurbulenceTile(const BlackholeParameters& p) : value((kTile + 1) * (kTile + 1)) {
  static const TileWaves waves;
  const double stretch = p.turbulence_on_sky ? 1.0 : 2 * kPiD / kPolarSpan;
  float re[kModesA][kModesB], im[kModesA][kModesB];
  double variance = 0;
  for (int a = 0; a < kModesA; ++a)
    for (int b = 0; b < kModesB; ++b) {
      const double kb = stretch * (b - kModesB / 2), k2 = a * a + kb * kb;
      const bool used = a > 0 || b > kModesB / 2;  // one of each conjugate pair, no constant
      const double amplitude =
          used ? std::pow(k2 + p.turbulence_k0 * p.turbulence_k0, -0.5 * p.turbulence_slope / 2)
               : 0.0;
      const size_t n = 2 * static_cast<size_t>(a * kModesB + b);
      re[a][b] = static_cast<float>(amplitude * p.turbulence_modes[n]);
      im[a][b] = static_cast<float>(amplitude * p.turbulence_modes[n + 1]);
      variance += amplitude * amplitude;
    }
  const float scale = static_cast<float>(1 / std::sqrt(variance));
  for (int y = 0; y < kTile; ++y) {
    float* row = value.data() + y * (kTile + 1);
    std::fill(row, row + kTile, 0.f);
    for (int a = 0; a < kModesA; ++a) {
      float sr = 0, si = 0;
      for (int b = 0; b < kModesB; ++b) {
        const int w = ((b - kModesB / 2) * y) & (kTile - 1);
        sr += re[a][b] * waves.cos_[w] - im[a][b] * waves.sin_[w];
        si += re[a][b] * waves.sin_[w] + im[a][b] * waves.cos_[w];
      }
      sr *= scale;
      si *= scale;
      for (int x = 0; x < kTile; ++x) {
        const int w = (a * x) & (kTile - 1);
        row[x] += sr * waves.cos_[w] - si * waves.sin_[w];
      }
    }
    row[kTile] = row[0];
  }
  std::copy_n(value.data(), kTile + 1, value.data() + kTile * (kTile + 1));
}

// ---- brightness of one row of subpixels
// -------------------------------------------------------------------------

struct RowBuffers {
  std::vector<float> r, u, phi, turbulence, light;
  explicit RowBuffers(int64_t n) : r(n), u(n), phi(n), turbulence(n, 0.f), light(n) {}
};

void blackhole_row(const BlackholeParameters& p, const TurbulenceTile* tile, float north,
                   float first_east, float step, int n, RowBuffers& w) {
  const float radius = static_cast<float>(p.diameter_uas / 2);
  const float y = north - static_cast<float>(p.north_uas);
  const float x0 = first_east - static_cast<float>(p.east_uas);
  const float se = static_cast<float>(std::sin(p.ellipse_angle));
  const float ce = static_cast<float>(std::cos(p.ellipse_angle));
  const float q = static_cast<float>(p.axis_ratio), qi = 1 / q;
  const float inv_radius2 = 1 / (radius * radius);
  float* __restrict r = w.r.data();
  float* __restrict u = w.u.data();
  float* __restrict phi = w.phi.data();
  float* __restrict turbulence = w.turbulence.data();
  float* __restrict light = w.light.data();

  // int counters: SSE2 has no conversion from int64 to float.
  for (int i = 0; i < n; ++i) {
    const float x = x0 - step * static_cast<float>(i);
    const float along = x * se + y * ce, across = x * ce - y * se;
    const float r2 = along * along * q + across * across * qi;
    r[i] = std::sqrt(r2);
    float ratio = r2 * inv_radius2;
    ratio = ratio < 0.01f ? 0.01f : ratio;
    u[i] = 0.5f * fast_log(ratio);
    phi[i] = fast_atan2(x, y);
  }
  const float pitch = static_cast<float>(p.pitch);
  if (tile) {
    const float s = static_cast<float>(p.turbulence);
    if (p.turbulence_on_sky) {
      const float inv = static_cast<float>(1 / p.turbulence_length_uas);
      for (int i = 0; i < n; ++i) {
        const float angle = phi[i] + pitch * u[i];
        turbulence[i] =
            s * tile->at(r[i] * inv * fast_cos(angle - 1.57079633f), r[i] * inv * fast_cos(angle));
      }
    } else {
      const float a_scale = static_cast<float>(0.5 / kPiD),
                  b_scale = static_cast<float>(1 / kPolarSpan);
      for (int i = 0; i < n; ++i)
        turbulence[i] = s * tile->at((phi[i] + pitch * u[i]) * a_scale, u[i] * b_scale);
    }
  }

  const float sx = static_cast<float>(p.shadow_offset_uas * std::sin(p.shadow_angle));
  const float sy = static_cast<float>(p.shadow_offset_uas * std::cos(p.shadow_angle));
  const float inner = static_cast<float>(0.5 * std::pow(kHwhmPerSigma / p.inner_width_uas, 2));
  const float inv_outer = static_cast<float>(kHwhmPerSigma / p.outer_width_uas);
  const float h = static_cast<float>(p.tail_fraction);
  const float inv_tail = static_cast<float>(1 / p.tail_length_uas);
  const float floor = static_cast<float>(p.floor);
  const float b = static_cast<float>(p.outer_asymmetry), phi_b = static_cast<float>(p.outer_angle);
  const float a1 = static_cast<float>(p.mode_amplitude[0]),
              f1 = static_cast<float>(p.mode_angle[0]);
  const float a2 = static_cast<float>(p.mode_amplitude[1]),
              f2 = static_cast<float>(p.mode_angle[1]);
  const float a3 = static_cast<float>(p.mode_amplitude[2]),
              f3 = static_cast<float>(p.mode_angle[2]);
  const float core2 =
      0.09f * radius * radius;  // angles mean nothing at the centre: modes fade inside 0.3 R
  const float photon = static_cast<float>(p.photon_ring);
  const float photon_radius = static_cast<float>(p.photon_radius_uas);
  const float photon_inv =
      static_cast<float>(0.5 * std::pow(kFwhmPerSigma / p.photon_width_uas, 2));
  const float halo = static_cast<float>(p.halo);
  const float halo_inv = static_cast<float>(0.5 * std::pow(kFwhmPerSigma / p.halo_fwhm_uas, 2));
  for (int i = 0; i < n; ++i) {
    const float x = x0 - step * static_cast<float>(i);
    const float dx = x - sx, dy = y - sy;
    const float along = dx * se + dy * ce, across = dx * ce - dy * se;
    const float rs = std::sqrt(along * along * q + across * across * qi);
    float in = radius - rs;
    in = in > 0 ? in : 0;
    float out = r[i] - radius;
    out = out > 0 ? out : 0;
    const float scaled = out * inv_outer / (1 + b * fast_cos(phi[i] - phi_b));
    const float shape =
        (floor + (1 - floor) * fast_exp(-in * in * inner)) *
        ((1 - h) * fast_exp(-0.5f * scaled * scaled) + h * fast_exp(-out * inv_tail));
    const float ring = rs - photon_radius;
    const float wound = phi[i] + pitch * u[i];
    const float r2 = r[i] * r[i];
    const float modes = (a1 * fast_cos(wound - f1) + a2 * fast_cos(2 * (wound - f2)) +
                         a3 * fast_cos(3 * (wound - f3)) + turbulence[i]) *
                        (r2 / (r2 + core2));
    light[i] = (shape + photon * fast_exp(-ring * ring * photon_inv)) * fast_exp(modes) +
               halo * fast_exp(-r2 * halo_inv + 0.5f * turbulence[i]);
  }

  for (const auto& spot : p.spots) {
    const float spot_radius = static_cast<float>(spot.radius_uas),
                angle = static_cast<float>(spot.angle);
    const float radial =
        static_cast<float>(0.5 * std::pow(kFwhmPerSigma / spot.radial_fwhm_uas, 2));
    const float azimuthal =
        static_cast<float>(std::pow(spot.radius_uas * kFwhmPerSigma / spot.azimuthal_fwhm_uas, 2));
    const float brightness = static_cast<float>(spot.brightness);
    for (int i = 0; i < n; ++i) {
      const float d = r[i] - spot_radius;
      const float turn = 1 - fast_cos(phi[i] + pitch * u[i] * 0.5f - angle);
      light[i] += brightness * fast_exp(-d * d * radial - turn * azimuthal);
    }
  }

  if (p.jet > 0) {
    const float sj = static_cast<float>(std::sin(p.jet_angle)),
                cj = static_cast<float>(std::cos(p.jet_angle));
    const float jet = static_cast<float>(p.jet),
                counter = static_cast<float>(p.jet * p.counter_jet);
    const float base = static_cast<float>(p.jet_base_uas),
                inv_opening = static_cast<float>(1 / p.jet_opening_uas);
    const float inv_length = static_cast<float>(1 / p.jet_length_uas);
    const float spine = static_cast<float>(p.jet_spine), tilt = static_cast<float>(p.jet_asymmetry);
    const float inv_start2 = 1 / (0.16f * radius * radius);
    for (int i = 0; i < n; ++i) {
      const float x = x0 - step * static_cast<float>(i);
      const float s = x * sj + y * cj, across = x * cj - y * sj;
      const float distance = s < 0 ? -s : s, side = across < 0 ? -across : across;
      const float half = base * std::sqrt(1 + distance * inv_opening);
      const float limb_width = 0.3f * half + 1.f;
      const float d = (side - half) / limb_width, c = across / (0.7f * half);
      const float lean = 1 + tilt * across / std::sqrt(across * across + 0.25f * half * half);
      const float start = 1 - fast_exp(-s * s * inv_start2);
      light[i] += (s > 0 ? jet : counter) * start * (base / half) *
                  fast_exp(-distance * inv_length + 0.7f * turbulence[i]) *
                  (lean * fast_exp(-0.5f * d * d) + spine * fast_exp(-0.5f * c * c));
    }
  }
}

// Separable Gaussian blur of a square grid, edges repeated. Result in `image`.
void blackhole_blur(std::vector<float>& image, std::vector<float>& scratch, int64_t n,
                    double sigma) {
  const int64_t reach = static_cast<int64_t>(std::ceil(3.5 * sigma));
  std::vector<float> kernel(reach + 1);
  double sum = 0;
  for (int64_t k = 0; k <= reach; ++k) {
    kernel[k] = static_cast<float>(std::exp(-0.5 * k * k / (sigma * sigma)));
    sum += (k ? 2 : 1) * static_cast<double>(kernel[k]);
  }
  for (auto& k : kernel) k = static_cast<float>(k / sum);
  scratch.resize(image.size());
  for (int64_t row = 0; row < n; ++row) {
    float* __restrict out = scratch.data() + row * n;
    const float* in = image.data() + row * n;
    for (int64_t i = 0; i < n; ++i) out[i] = kernel[0] * in[i];
    for (int64_t k = 1; k <= reach; ++k) {
      const float* up = image.data() + std::max<int64_t>(row - k, 0) * n;
      const float* down = image.data() + std::min<int64_t>(row + k, n - 1) * n;
      const float weight = kernel[k];
      for (int64_t i = 0; i < n; ++i) out[i] += weight * (up[i] + down[i]);
    }
  }
  std::vector<float> padded(n + 2 * reach);
  for (int64_t row = 0; row < n; ++row) {
    const float* in = scratch.data() + row * n;
    std::fill_n(padded.begin(), reach, in[0]);
    std::copy_n(in, n, padded.begin() + reach);
    std::fill_n(padded.begin() + reach + n, reach, in[n - 1]);
    float* __restrict out = image.data() + row * n;
    const float* middle = padded.data() + reach;
    for (int64_t i = 0; i < n; ++i) out[i] = kernel[0] * middle[i];
    for (int64_t k = 1; k <= reach; ++k) {
      const float weight = kernel[k];
      for (int64_t i = 0; i < n; ++i) out[i] += weight * (middle[i - k] + middle[i + k]);
    }
  }
}

void render_into(const BlackholeParameters& p, int64_t size, double fov, int fineness, float* out) {
  const double largest_step = std::max(1.0, p.blur_fwhm_uas / 2.5) / fineness;
  const int64_t fine =
      std::max<int64_t>(2, static_cast<int64_t>(std::ceil(fov / (size * largest_step) - 1e-9)));
  const int64_t n = size * fine;
  const double step = fov / static_cast<double>(n);
  std::unique_ptr<TurbulenceTile> tile;
  if (!p.turbulence_modes.empty() && p.turbulence > 0) tile = std::make_unique<TurbulenceTile>(p);
  RowBuffers buffers(n);
  std::vector<float> image(n * n), scratch;
  const double edge = 0.5 * static_cast<double>(n - 1) * step;
  for (int64_t row = 0; row < n; ++row) {
    blackhole_row(p, tile.get(), static_cast<float>(edge - static_cast<double>(row) * step),
                  static_cast<float>(edge), static_cast<float>(step), static_cast<int>(n), buffers);
    std::copy_n(buffers.light.data(), n, image.data() + row * n);
  }
  if (p.blur_fwhm_uas > 0)
    blackhole_blur(image, scratch, n, p.blur_fwhm_uas / kFwhmPerSigma / step);
  const float share = 1.f / static_cast<float>(fine * fine);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) {
      float sum = 0;
      for (int64_t a = 0; a < fine; ++a)
        for (int64_t b = 0; b < fine; ++b) sum += image[(i * fine + a) * n + j * fine + b];
      out[i * size + j] = sum * share;
    }
}

const char* blackhole_option_error(const BlackholeOptions& o) {
  if (o.image_size < 2 || o.image_size > 4096) return "image_size";
  if (!(o.fov_uas > 0)) return "fov_uas";
  if (!(o.diameter_min_uas > 0)) return "diameter_min_uas";
  if (!(o.diameter_max_uas >= o.diameter_min_uas)) return "diameter_max_uas";
  if (!(o.blur_min_uas >= 0)) return "blur_min_uas";
  if (!(o.blur_max_uas >= o.blur_min_uas)) return "blur_max_uas";
  if (!(o.offset_uas >= 0)) return "offset_uas";
  if (!(o.turbulence >= 0)) return "turbulence";
  if (!(o.jet_probability >= 0 && o.jet_probability <= 1)) return "jet_probability";
  if (!(o.halo_probability >= 0 && o.halo_probability <= 1)) return "halo_probability";
  if (!(o.spot_probability >= 0 && o.spot_probability <= 1)) return "spot_probability";
  if (!(o.total_flux >= 0)) return "total_flux";
  return nullptr;
}

}  // namespace

at::Tensor render_blackhole(const BlackholeParameters& parameters, int64_t size, double fov_uas,
                            int fineness) {
  SP_CHECK(size > 0 && fov_uas > 0 && fineness > 0, "render_blackhole",
           "expected a positive size, field and fineness");
  SP_CHECK(
      parameters.turbulence_modes.empty() || parameters.turbulence_modes.size() == kTileNormals,
      "render_blackhole", "expected ", kTileNormals, " turbulence modes, got ",
      parameters.turbulence_modes.size());
  at::Tensor out = at::empty({size, size}, at::kFloat);
  render_into(parameters, size, fov_uas, fineness, out.data_ptr<float>());
  return out;
}

Blackhole::Blackhole(const BlackholeOptions& options, const std::string& split)
    : options_(options), split_(split), rng_(Rng(options.seed).split("blackhole").split(split)) {
  const char* wrong = blackhole_option_error(options);
  SP_CHECK(!wrong, "blackhole", wrong, " is out of range");
}

Shape Blackhole::image_shape() const { return {1, options_.image_size, options_.image_size}; }

double Blackhole::total_flux() const {
  if (options_.total_flux > 0) return options_.total_flux;
  const double pixels = static_cast<double>(options_.image_size * options_.image_size);
  return 0.03 * pixels * std::pow(128 / options_.fov_uas, 2);
}

std::string Blackhole::describe() const {
  return detail::concat("generated black holes, ", split_, " split, ", options_.image_size, " x ",
                        options_.image_size, " pixels over ", options_.fov_uas, " uas, seed ",
                        options_.seed, options_.peak_one ? ", peak 1" : ", sum ",
                        options_.peak_one ? std::string() : detail::concat(total_flux()));
}

BlackholeParameters Blackhole::parameters(int64_t index) const {
  SP_CHECK(index >= 0, "blackhole", "expected an index >= 0, got ", index);
  const Rng rng = rng_.at(index);
  // Every parameter has its own place in the row of uniforms, whichever components the image has.
  const std::vector<double> v = rng.split("shape").uniforms(64);
  size_t next = 0;
  const auto unit = [&] { return v[next++]; };
  const auto between = [&](double a, double b) { return a + (b - a) * unit(); };
  const auto angle = [&] { return 2 * kPiD * unit(); };
  const auto squared = [&](double top) {
    const double x = unit();
    return top * x * x;
  };

  BlackholeParameters p;
  p.diameter_uas = between(options_.diameter_min_uas, options_.diameter_max_uas);
  const double radius = p.diameter_uas / 2;
  const double fwhm = p.diameter_uas * 0.08 * std::pow(0.42 / 0.08, unit());
  const double ratio = between(1.0, 3.5);
  p.inner_width_uas = std::max(1.2, fwhm / (1 + ratio));
  p.outer_width_uas = std::min(14.0, fwhm * ratio / (1 + ratio));
  p.tail_fraction = squared(0.5);
  p.tail_length_uas = std::min(13.0, radius * between(0.25, 0.7));
  p.outer_asymmetry = squared(0.6);
  p.outer_angle = angle();
  p.axis_ratio = 1 - squared(0.25);
  p.ellipse_angle = angle();
  p.mode_amplitude[0] = between(0.05, 1.2);
  p.mode_amplitude[1] = squared(0.5);
  p.mode_amplitude[2] = squared(0.35);
  for (double& a : p.mode_angle) a = angle();
  p.pitch = (unit() < 0.5 ? -1 : 1) * between(0.3, 2.2);
  const bool filled = unit() < 0.1;
  const double floor = unit();
  p.floor = filled ? 0.3 + 0.6 * floor : 0.3 * floor * floor;
  p.shadow_offset_uas = squared(0.3) * radius;
  p.shadow_angle = angle();
  p.photon_ring = squared(0.8);
  p.photon_radius_uas = radius * between(0.92, 1.02);
  p.photon_width_uas = between(2.5, 4.0);

  const bool halo = unit() < options_.halo_probability;
  const double halo_share = squared(0.45);
  p.halo_fwhm_uas = between(35, 75);
  // Shares of the ring's flux, 2 pi R x (area under its radial profile).
  const double ring_flux = 2 * kPiD * radius * 1.0645 * (p.inner_width_uas + p.outer_width_uas);
  if (halo) p.halo = halo_share * ring_flux / (1.1331 * p.halo_fwhm_uas * p.halo_fwhm_uas);

  const bool jet = unit() < options_.jet_probability;
  const double jet_strength = 0.15 * std::pow(1.2 / 0.15, unit());
  if (jet) p.jet = jet_strength;
  p.jet_angle = angle();
  p.jet_length_uas = between(8, 24);
  p.jet_base_uas = radius * between(0.2, 0.6);
  p.jet_opening_uas = between(6, 30);
  p.jet_spine = squared(0.8);
  p.jet_asymmetry = between(-0.8, 0.8);
  p.counter_jet = squared(0.5);

  const bool spots = unit() < options_.spot_probability;
  const double how_many = unit();
  const int count = !spots ? 0 : how_many < 0.5 ? 1 : how_many < 0.82 ? 2 : 3;
  for (int i = 0; i < 3; ++i) {
    BlackholeParameters::Spot spot;
    spot.brightness = between(0.2, 1.6);
    spot.radius_uas = radius * between(0.85, 1.5);
    spot.angle = angle();
    spot.radial_fwhm_uas = between(3, 8);
    spot.azimuthal_fwhm_uas = spot.radial_fwhm_uas * between(1, 5);
    if (i < count) p.spots.push_back(spot);
  }

  p.turbulence = options_.turbulence * between(0.1, 0.85);
  p.turbulence_slope = between(2.6, 4.4);
  p.turbulence_k0 = between(1.0, 3.0);
  p.turbulence_on_sky = unit() < 0.35;
  p.turbulence_length_uas = between(90, 150);
  if (p.turbulence > 0) p.turbulence_modes = rng.split("turbulence").normals(kTileNormals);

  p.blur_fwhm_uas = between(options_.blur_min_uas, options_.blur_max_uas);
  const double distance = options_.offset_uas * std::sqrt(unit()), direction = angle();
  p.east_uas = distance * std::sin(direction);
  p.north_uas = distance * std::cos(direction);
  return p;
}

at::Tensor Blackhole::batch(const std::vector<int64_t>& indices, const Rng& /*rng*/) const {
  const int64_t size = options_.image_size, pixels = size * size;
  const double flux = total_flux();
  return rendered_batch("blackhole", indices, image_shape(), [&](int64_t index, float* image) {
    render_into(parameters(index), size, options_.fov_uas, 1, image);
    double sum = 0, peak = 0;
    for (int64_t j = 0; j < pixels; ++j) {
      sum += image[j];
      peak = std::max(peak, static_cast<double>(image[j]));
    }
    const float scale = static_cast<float>(options_.peak_one ? 1 / peak : flux / sum);
    for (int64_t j = 0; j < pixels; ++j) image[j] *= scale;
  });
}

std::unique_ptr<Dataset> make_blackhole(const Config& config, const std::string& split) {
  const auto options = config.read<BlackholeOptions>();
  if (const char* wrong = blackhole_option_error(options))
    config.fail(wrong, std::string(wrong) + " is out of range");
  return std::make_unique<Blackhole>(options, split);
}

}  // namespace scoreprior
