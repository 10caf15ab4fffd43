#include "scoreprior/report/colormap.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"

namespace scoreprior::report {
namespace {

using Rgb = std::array<uint8_t, 3>;
constexpr Rgb kBrokenPixel{64, 128, 255};

uint8_t to_byte(double v) {
  return static_cast<uint8_t>(std::lround(255 * std::clamp(v, 0.0, 1.0)));
}

template <size_t N>
Rgb between_anchors(const std::array<Rgb, N>& anchors, double s) {
  const double at = s * double(N - 1);
  const size_t i = std::min(static_cast<size_t>(at), N - 2);
  const double f = at - double(i);
  Rgb c;
  for (size_t k = 0; k < 3; ++k)
    c[k] = static_cast<uint8_t>(
        std::lround((1 - f) * double(anchors[i][k]) + f * double(anchors[i + 1][k])));
  return c;
}

constexpr std::array<Rgb, 10> kViridisAnchors{{{68, 1, 84},
                                               {72, 40, 120},
                                               {62, 73, 137},
                                               {49, 104, 142},
                                               {38, 130, 142},
                                               {31, 158, 137},
                                               {53, 183, 121},
                                               {110, 206, 88},
                                               {181, 222, 43},
                                               {253, 231, 37}}};

constexpr std::array<Rgb, 7> kDivergingAnchors{{{14, 54, 105},
                                                {46, 115, 180},
                                                {145, 190, 222},
                                                {247, 247, 247},
                                                {239, 168, 138},
                                                {200, 76, 60},
                                                {112, 14, 34}}};

}  // namespace

std::array<uint8_t, 3> color_at(Colormap map, double s) {
  if (std::isnan(s)) return kBrokenPixel;
  s = std::clamp(s, 0.0, 1.0);
  switch (map) {
    case Colormap::kGray:
      return {to_byte(s), to_byte(s), to_byte(s)};
    case Colormap::kAfmhot:
      return {to_byte(2 * s), to_byte(2 * s - 0.5), to_byte(2 * s - 1)};
    case Colormap::kViridis:
      return between_anchors(kViridisAnchors, s);
    case Colormap::kDiverging:
      return between_anchors(kDivergingAnchors, s);
  }
  return kBrokenPixel;
}

at::Tensor displayed(const at::Tensor& image) {
  SP_CHECK(image.defined() && (image.dim() == 2 || image.dim() == 3) && image.numel() > 0,
           "displayed", "expected an image [H,W] or [C,H,W], got ",
           image.defined() ? image.sizes() : at::IntArrayRef());
  at::Tensor x = image.detach().cpu();
  if (x.is_complex()) x = x.abs();
  x = x.to(at::kDouble);
  if (x.dim() == 2) return x.contiguous();
  switch (x.size(0)) {
    case 1:
      return x[0].contiguous();
    case 2:
      return at::hypot(x[0], x[1]).contiguous();
    case 3:
      return x.contiguous();
  }
  SP_CHECK(false, "displayed", "expected 1, 2 or 3 channels, got ", x.size(0));
  return x;
}

ColorScale common_scale(const std::vector<at::Tensor>& images, Colormap map) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& image : images) {
    if (!image.defined() || image.numel() == 0) continue;
    const at::Tensor x = displayed(image);
    const double* p = x.data_ptr<double>();
    for (int64_t i = 0; i < x.numel(); ++i) {
      if (!std::isfinite(p[i])) continue;
      low = std::min(low, p[i]);
      high = std::max(high, p[i]);
    }
  }
  if (low > high) return {map, 0, 1};
  if (map == Colormap::kDiverging) {
    const double most = std::max(std::abs(low), std::abs(high));
    return {map, most > 0 ? -most : -1, most > 0 ? most : 1};
  }
  low = std::min(low, 0.0);
  if (high > low) return {map, low, high};
  // All pixels equal (and not positive): any width shows them as one colour.
  return {map, low, low + (low != 0 ? std::abs(low) : 1)};
}

io::Raster render(const at::Tensor& image, const ColorScale& scale, int64_t factor,
                  Upscaling upscaling) {
  SP_CHECK(factor >= 1, "render", "expected a factor of at least 1, got ", factor);
  at::Tensor x = displayed(image);
  const bool rgb = x.dim() == 3;
  const int64_t height = x.size(-2), width = x.size(-1);
  int64_t repeat = factor;
  if (upscaling == Upscaling::kSmooth && factor > 1) {
    const at::Tensor planes = rgb ? x.unsqueeze(0) : x.unsqueeze(0).unsqueeze(0);
    const at::Tensor large =
        at::upsample_bicubic2d(planes, {height * factor, width * factor}, /*align_corners=*/false);
    x = large.clamp(x.min(), x.max())[0].contiguous();
    if (!rgb) x = x[0].contiguous();
    repeat = 1;
  }
  const int64_t rows = x.size(-2), columns = x.size(-1);
  const double* p = x.data_ptr<double>();
  const double gain = 1 / (scale.high - scale.low);
  io::Raster out;
  out.width = columns * repeat;
  out.height = rows * repeat;
  out.channels = 3;
  out.data.resize(static_cast<size_t>(out.width * out.height * 3));
  for (int64_t i = 0; i < rows; ++i) {
    uint8_t* line = out.data.data() + i * repeat * out.width * 3;
    for (int64_t j = 0; j < columns; ++j) {
      Rgb c;
      if (rgb) {
        const auto channel = [&](int64_t k) {
          return (p[(k * rows + i) * columns + j] - scale.low) * gain;
        };
        const bool broken = std::isnan(channel(0) + channel(1) + channel(2));
        c = broken ? kBrokenPixel
                   : Rgb{to_byte(channel(0)), to_byte(channel(1)), to_byte(channel(2))};
      } else {
        c = color_at(scale.map, (p[i * columns + j] - scale.low) * gain);
      }
      for (int64_t r = 0; r < repeat; ++r)
        std::copy(c.begin(), c.end(), line + (j * repeat + r) * 3);
    }
    for (int64_t r = 1; r < repeat; ++r)
      std::copy(line, line + out.width * 3, line + r * out.width * 3);
  }
  return out;
}

int64_t upscale_factor(const at::Tensor& image, int64_t pixels) {
  const int64_t side = std::max<int64_t>(1, std::min(image.size(-1), image.size(-2)));
  return std::max<int64_t>(1, (pixels + side - 1) / side);
}

io::Raster image_grid(const at::Tensor& images, const ColorScale& scale, int64_t columns,
                      int64_t factor) {
  SP_CHECK(images.defined() && (images.dim() == 3 || images.dim() == 4) && images.size(0) > 0,
           "image_grid", "expected images [n,H,W] or [n,C,H,W], got ",
           images.defined() ? images.sizes() : at::IntArrayRef());
  const int64_t n = images.size(0);
  if (columns <= 0) columns = static_cast<int64_t>(std::ceil(std::sqrt(double(n))));
  columns = std::min(columns, n);
  const int64_t rows = (n + columns - 1) / columns;
  const int64_t tile_w = images.size(-1) * factor, tile_h = images.size(-2) * factor;
  const int64_t gap = std::max<int64_t>(2, tile_w / 32);
  io::Raster out;
  out.channels = 3;
  out.width = columns * (tile_w + gap) - gap;
  out.height = rows * (tile_h + gap) - gap;
  out.data.assign(static_cast<size_t>(out.width * out.height * 3), 255);
  for (int64_t k = 0; k < n; ++k) {
    const io::Raster tile = render(images[k], scale, factor);
    const int64_t x0 = (k % columns) * (tile_w + gap), y0 = (k / columns) * (tile_h + gap);
    for (int64_t i = 0; i < tile_h; ++i)
      std::copy_n(tile.data.begin() + i * tile_w * 3, tile_w * 3,
                  out.data.begin() + ((y0 + i) * out.width + x0) * 3);
  }
  return out;
}

}  // namespace scoreprior::report
