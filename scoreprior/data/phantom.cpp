#include "scoreprior/data/phantom.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/rendered_batch.h"

namespace scoreprior {
namespace {

constexpr int64_t kPhantomPoints = 4;  // sampling points along a pixel
constexpr int64_t kPhantomTile = 128;  // a power of two; one period is twice the image

const char* phantom_option_error(const PhantomOptions& o) {
  if (o.image_size < 1) return "image_size";
  if (o.modality != "mri" && o.modality != "ct" && o.modality != "mixed") return "modality";
  if (!(o.texture >= 0)) return "texture";
  return nullptr;
}

std::vector<float> phantom_texture(const Rng& rng) {
  const at::Tensor k2 =
      at::fft_fftfreq(kPhantomTile, 1.0 / static_cast<double>(kPhantomTile), at::kDouble).square();
  at::Tensor amplitude = 1 / (k2.unsqueeze(1) + k2.unsqueeze(0) + 4);
  amplitude[0][0] = 0;
  const at::Tensor white = rng.normal({1, kPhantomTile, kPhantomTile}, at::kDouble);
  at::Tensor t = at::real(at::fft_ifft2(at::fft_fft2(white) * amplitude));
  t = (t / t.square().mean().sqrt()).to(at::kFloat).contiguous();
  return {t.data_ptr<float>(), t.data_ptr<float>() + t.numel()};
}

// A rotated ellipse and what fills it; lengths in half images, y downwards.
struct Region {
  double x, y, a, b, angle;
  double value;
  double texture, shift_x, shift_y;
  double c = std::cos(angle), s = std::sin(angle);

  bool holds(double px, double py) const {
    const double u = (c * (px - x) + s * (py - y)) / a, v = (c * (py - y) - s * (px - x)) / b;
    return u * u + v * v <= 1;
  }
};

// The uniforms of one image, taken one after the other.
class Choices {
 public:
  explicit Choices(std::vector<double> u) : u_(std::move(u)) {}
  double unit() { return u_.at(next_++); }
  double between(double low, double high) { return low + (high - low) * unit(); }

 private:
  std::vector<double> u_;
  size_t next_ = 0;
};

}  // namespace

Phantom::Phantom(const PhantomOptions& options, const std::string& split)
    : options_(options),
      split_(split),
      rng_(Rng(options.seed).split("phantom").split(split)),
      tile_(phantom_texture(Rng(options.seed).split("phantom").split("texture"))) {
  const char* wrong = phantom_option_error(options);
  SP_CHECK(!wrong, "phantom", wrong, " is out of range");
}

std::string Phantom::describe() const {
  return detail::concat("generated phantoms (", options_.modality, "), ", split_, " split, ",
                        to_string(image_shape()), ", seed ", options_.seed);
}

void Phantom::render(int64_t index, float* image) const {
  Choices choose(rng_.at(index).uniforms(256));
  const double toss = choose.unit();
  const bool ct = options_.modality == "ct" || (options_.modality == "mixed" && toss < 0.5);
  const double roughness = options_.texture * (ct ? 0.04 : 0.09);

  const double long_axis = choose.between(0.72, 0.92);
  const double short_axis = long_axis * choose.between(0.7, 1.0);
  const double tilt = choose.between(-25, 25) * M_PI / 180;
  const double x0 = choose.between(-0.06, 0.06), y0 = choose.between(-0.06, 0.06);
  std::vector<Region> regions;
  const auto add = [&](double x, double y, double a, double b, double angle, double value) {
    const double rough = roughness * choose.unit();
    const double sx = choose.unit(), sy = choose.unit();
    regions.push_back({x, y, a, b, angle, value, rough, sx, sy});
  };
  // Upright: the long axis lies along y.
  const auto shell = [&](double scale, double value) {
    add(x0, y0, short_axis * scale, long_axis * scale, tilt, value);
  };
  const double thickness = choose.between(0.05, 0.13);
  const double inner = 1 - thickness;
  const double tissue = ct ? choose.between(0.34, 0.46) : choose.between(0.3, 0.7);
  if (ct) {
    shell(1, choose.between(0.72, 1.0));
  } else {
    shell(1, choose.between(0.55, 1.0));
    shell(1 - thickness * choose.between(0.3, 0.7), choose.between(0.02, 0.12));
  }
  shell(inner, tissue);
  const size_t first_organ = regions.size();

  // A place in the body's own frame, where the inside of the shell is the unit disc.
  const auto place = [&](double u, double v, double a, double b, double angle, double value) {
    const double px = u * short_axis * inner, py = v * long_axis * inner;
    add(x0 + std::cos(tilt) * px - std::sin(tilt) * py,
        y0 + std::sin(tilt) * px + std::cos(tilt) * py, a, b, tilt + angle, value);
  };
  const auto organ = [&](double low, double high, double value) {
    const double r = 0.85 * std::sqrt(choose.unit()), phi = choose.between(0, 2 * M_PI);
    const double a = low * std::pow(high / low, choose.unit()), b = a * choose.between(0.4, 1.0);
    const double angle = choose.between(0, M_PI);
    place(r * std::cos(phi), r * std::sin(phi), a, b, angle, value);
  };
  const int64_t organs = 4 + static_cast<int64_t>(9 * choose.unit());
  for (int64_t i = 0; i < organs; ++i)
    organ(0.06, 0.45, ct ? tissue + choose.between(-0.12, 0.12) : choose.between(0.1, 0.95));
  const bool paired = choose.unit() < 0.5;
  if (ct) {
    const double value = choose.between(0, 0.06);
    const int64_t cavities = paired ? 2 : static_cast<int64_t>(2 * choose.unit());
    for (int64_t i = 0; i < cavities; ++i) {
      const double side = paired ? (i == 0 ? -1 : 1) : choose.between(-1, 1);
      const double v = choose.between(-0.3, 0.3);
      place(side * choose.between(0.38, 0.5), v, choose.between(0.1, 0.3) * short_axis,
            choose.between(0.15, 0.42) * long_axis, side * choose.between(-0.2, 0.5), value);
    }
    const int64_t bones = static_cast<int64_t>(4 * choose.unit());
    for (int64_t i = 0; i < bones; ++i) organ(0.05, 0.14, choose.between(0.75, 1.0));
  } else if (paired) {
    const double value = choose.unit() < 0.5 ? choose.between(0.05, 0.2) : choose.between(0.8, 1.0);
    const double u = choose.between(0.1, 0.25), v = choose.between(-0.2, 0.2);
    const double a = choose.between(0.04, 0.12), b = choose.between(0.15, 0.35);
    const double lean = choose.between(0, 0.4);
    place(-u, v, a, b, -lean, value);
    place(u, v, a, b, lean, value);
  }
  double bias[5];
  for (double& c : bias) c = ct ? 0 : choose.between(-0.15, 0.15);

  const int64_t n = options_.image_size, side = n * kPhantomPoints;
  const Region& body = regions.front();
  const Region& inside = regions[first_organ - 1];
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      double sum = 0;
      for (int64_t point = 0; point < kPhantomPoints * kPhantomPoints; ++point) {
        const int64_t iy = row * kPhantomPoints + point / kPhantomPoints;
        const int64_t ix = column * kPhantomPoints + point % kPhantomPoints;
        const double x = (2.0 * static_cast<double>(ix) + 1) / static_cast<double>(side) - 1;
        const double y = (2.0 * static_cast<double>(iy) + 1) / static_cast<double>(side) - 1;
        if (!body.holds(x, y)) continue;
        size_t top = inside.holds(x, y) ? regions.size() - 1 : first_organ - 2;
        while (top > 0 && !regions[top].holds(x, y)) --top;
        const Region& region = regions[top];
        // Bilinear between the tile's points; one tile is two images wide.
        const double tx = (x / 4 + region.shift_x + 1) * kPhantomTile;
        const double ty = (y / 4 + region.shift_y + 1) * kPhantomTile;
        const int64_t kx = static_cast<int64_t>(tx), ky = static_cast<int64_t>(ty);
        const double fx = tx - static_cast<double>(kx), fy = ty - static_cast<double>(ky);
        const auto tile = [&](int64_t j, int64_t i) {
          return static_cast<double>(
              tile_[(j & (kPhantomTile - 1)) * kPhantomTile + (i & (kPhantomTile - 1))]);
        };
        const double field = (1 - fy) * ((1 - fx) * tile(ky, kx) + fx * tile(ky, kx + 1)) +
                             fy * ((1 - fx) * tile(ky + 1, kx) + fx * tile(ky + 1, kx + 1));
        const double coil =
            bias[0] * x + bias[1] * y + bias[2] * x * x + bias[3] * x * y + bias[4] * y * y;
        sum += std::clamp(region.value * (1 + region.texture * field) * std::exp(coil), 0.0, 1.0);
      }
      image[row * n + column] =
          static_cast<float>(sum / static_cast<double>(kPhantomPoints * kPhantomPoints));
    }
  }
}

at::Tensor Phantom::batch(const std::vector<int64_t>& indices, const Rng& /*rng*/) const {
  return rendered_batch("phantom", indices, image_shape(),
                        [this](int64_t index, float* pixels) { render(index, pixels); });
}

std::unique_ptr<Dataset> make_phantom(const Config& config, const std::string& split) {
  const auto options = config.read<PhantomOptions>();
  if (const char* wrong = phantom_option_error(options))
    config.fail(wrong, std::string(wrong) + " is out of range");
  return std::make_unique<Phantom>(options, split);
}

}  // namespace scoreprior
