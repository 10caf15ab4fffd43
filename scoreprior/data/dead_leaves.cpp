#include "scoreprior/data/dead_leaves.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/rendered_batch.h"

namespace scoreprior {
namespace {

constexpr int64_t kLeafPoints = 4;               // sampling points along a pixel
constexpr int64_t kLeafTile = 64 * kLeafPoints;  // a power of two
constexpr int64_t kLeavesAtATime = 128;

using Opponent = std::array<double, 3>;  // lightness, yellow-blue, red-green

const char* dead_leaves_option_error(const DeadLeavesOptions& o) {
  if (o.image_size < 1) return "image_size";
  if (!(o.min_radius >= 0.25)) return "min_radius";
  if (!(o.max_radius >= o.min_radius) || !std::isfinite(o.max_radius)) return "max_radius";
  if (!(o.shading >= 0)) return "shading";
  if (!(o.texture >= 0)) return "texture";
  return nullptr;
}

std::vector<float> leaf_texture(const Rng& rng) {
  const at::Tensor k2 =
      at::fft_fftfreq(kLeafTile, 1.0 / static_cast<double>(kLeafTile), at::kDouble).square();
  const at::Tensor amplitude = at::pow(k2.unsqueeze(1) + k2.unsqueeze(0) + 16, -0.75);
  at::Tensor t = at::real(
      at::fft_ifft2(at::fft_fft2(rng.normal({1, kLeafTile, kLeafTile}, at::kDouble)) * amplitude));
  t = t - t.mean();
  t = (t / t.square().mean().sqrt()).to(at::kFloat).contiguous();
  return {t.data_ptr<float>(), t.data_ptr<float>() + t.numel()};
}

// Radii of the leaves whose bounding squares meet a window of side n: density (n + 2r)^2 r^-3, a
// mixture of three powers that are inverted one by one.
class LeafRadius {
 public:
  LeafRadius(double n, double low, double high) : low_(low), ratio_(high / low) {
    const double square = n * n / (low * low) * (1 - 1 / (ratio_ * ratio_)) / 2;
    const double edge = 4 * n / low * (1 - 1 / ratio_);
    const double corner = 4 * std::log(ratio_);
    const double all = square + edge + corner;
    square_ = all > 0 ? square / all : 1;
    edge_ = all > 0 ? edge / all : 0;
  }
  double operator()(double u) const {
    if (u < square_) {
      u /= square_;
      return low_ / std::sqrt(1 - u * (1 - 1 / (ratio_ * ratio_)));
    }
    u -= square_;
    if (u < edge_) return low_ / (1 - u / edge_ * (1 - 1 / ratio_));
    return low_ * std::pow(ratio_, (u - edge_) / std::max(1 - square_ - edge_, 1e-300));
  }

 private:
  double low_, ratio_, square_, edge_;
};

struct Leaf {
  double x, y, radius;  // in sampling points
  Opponent colour;
  double slope_x, slope_y;  // of the lightness, per point
  float texture;
  int64_t shift_x, shift_y;
};

}  // namespace

DeadLeaves::DeadLeaves(const DeadLeavesOptions& options, const std::string& split)
    : options_(options),
      split_(split),
      rng_(Rng(options.seed).split("dead_leaves").split(split)),
      tile_(leaf_texture(Rng(options.seed).split("dead_leaves").split("texture"))) {
  const char* wrong = dead_leaves_option_error(options);
  SP_CHECK(!wrong, "dead_leaves", wrong, " is out of range");
}

std::string DeadLeaves::describe() const {
  return detail::concat("generated dead leaves, ", split_, " split, ", to_string(image_shape()),
                        ", radii ", options_.min_radius, " to ", options_.max_radius,
                        " pixels, seed ", options_.seed);
}

void DeadLeaves::render(int64_t index, float* image) const {
  const int64_t n = options_.image_size, side = n * kLeafPoints;
  const Rng rng = rng_.at(index);
  const std::vector<double> mood = rng.split("image").normals(4 + 6 * 3);
  const std::vector<double> choice = rng.split("palette").uniforms(2);
  const int64_t paints = 3 + static_cast<int64_t>(choice[0] * 4);
  const double light = 2 * M_PI * choice[1], contrast = std::exp(0.25 * mood[3]);
  const Opponent mean = {0.5 * mood[0], 0.25 * mood[1], 0.12 * mood[2]};
  std::array<Opponent, 6> palette;
  for (int64_t k = 0; k < 6; ++k)
    palette[k] = {mean[0] + contrast * 1.7 * mood[4 + 3 * k],
                  mean[1] + contrast * 0.5 * mood[5 + 3 * k],
                  mean[2] + contrast * 0.25 * mood[6 + 3 * k]};

  const LeafRadius radius(static_cast<double>(n), options_.min_radius, options_.max_radius);
  const Rng places = rng.split("places"), looks = rng.split("looks");
  std::vector<uint8_t> covered(side * side, 0);
  std::fill(image, image + 3 * n * n, 0.f);
  int64_t open = side * side;
  for (int64_t group = 0; open > 0; ++group) {
    const std::vector<double> u = places.at(group).uniforms(3 * kLeavesAtATime);
    for (int64_t j = 0; j < kLeavesAtATime && open > 0; ++j) {
      Leaf leaf;
      const double r = radius(u[3 * j]), box = static_cast<double>(n) + 2 * r;
      leaf.radius = r * kLeafPoints;
      leaf.x = (u[3 * j + 1] * box - r) * kLeafPoints - 0.5;
      leaf.y = (u[3 * j + 2] * box - r) * kLeafPoints - 0.5;
      const auto first = [](double v) {
        return std::max<int64_t>(0, static_cast<int64_t>(std::ceil(v)));
      };
      const auto last = [&](double v) {
        return std::min<int64_t>(side - 1, static_cast<int64_t>(std::floor(v)));
      };
      bool dressed = false;
      for (int64_t y = first(leaf.y - leaf.radius); y <= last(leaf.y + leaf.radius); ++y) {
        const double dy = static_cast<double>(y) - leaf.y;
        const double half = std::sqrt(std::max(0.0, leaf.radius * leaf.radius - dy * dy));
        for (int64_t x = first(leaf.x - half); x <= last(leaf.x + half); ++x) {
          if (covered[y * side + x]) continue;
          if (!dressed) {
            dressed = true;
            const Rng look = looks.at(group * kLeavesAtATime + j);
            const std::vector<double> z = look.split("normal").normals(5);
            const std::vector<double> v = look.split("uniform").uniforms(4);
            const Opponent& paint =
                palette[static_cast<int64_t>(v[0] * static_cast<double>(paints))];
            leaf.colour = {paint[0] + 0.45 * z[0], paint[1] + 0.12 * z[1], paint[2] + 0.08 * z[2]};
            const double slope = options_.shading * 0.4 * std::abs(z[3]) / leaf.radius;
            leaf.slope_x = slope * std::cos(light + 0.6 * z[4]);
            leaf.slope_y = slope * std::sin(light + 0.6 * z[4]);
            leaf.texture = static_cast<float>(options_.texture * 0.35 * v[1] * v[1]);
            leaf.shift_x = static_cast<int64_t>(v[2] * kLeafTile);
            leaf.shift_y = static_cast<int64_t>(v[3] * kLeafTile);
          }
          covered[y * side + x] = 1;
          --open;
          const int64_t ty = (y + leaf.shift_y) & (kLeafTile - 1),
                        tx = (x + leaf.shift_x) & (kLeafTile - 1);
          const double l = leaf.colour[0] + leaf.slope_y * dy +
                           leaf.slope_x * (static_cast<double>(x) - leaf.x) +
                           leaf.texture * tile_[ty * kLeafTile + tx];
          const double grey = l / std::sqrt(3.0), yellow = leaf.colour[1] / std::sqrt(6.0),
                       red = leaf.colour[2] / std::sqrt(2.0);
          const double logits[3] = {grey + yellow + red, grey + yellow - red, grey - 2 * yellow};
          float* pixel = image + (y / kLeafPoints) * n + x / kLeafPoints;
          for (int64_t c = 0; c < 3; ++c)
            pixel[c * n * n] += static_cast<float>(1 / (1 + std::exp(-logits[c])));
        }
      }
    }
  }
  constexpr float kShare = 1.f / (kLeafPoints * kLeafPoints);
  for (int64_t i = 0; i < 3 * n * n; ++i) image[i] *= kShare;
}

at::Tensor DeadLeaves::batch(const std::vector<int64_t>& indices, const Rng& /*rng*/) const {
  return rendered_batch("dead_leaves", indices, image_shape(),
                        [this](int64_t index, float* pixels) { render(index, pixels); });
}

std::unique_ptr<Dataset> make_dead_leaves(const Config& config, const std::string& split) {
  const auto options = config.read<DeadLeavesOptions>();
  if (const char* wrong = dead_leaves_option_error(options))
    config.fail(wrong, std::string(wrong) + " is out of range");
  return std::make_unique<DeadLeaves>(options, split);
}

}  // namespace scoreprior
