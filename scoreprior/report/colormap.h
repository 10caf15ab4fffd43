#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/io/png.h"

namespace scoreprior::report {

enum class Colormap { kGray, kAfmhot, kViridis, kDiverging };

/// The colour of s in [0,1] (clamped). afmhot: r = 2s, g = 2s - 1/2, b = 2s - 1. NaN is a mid-blue
/// that none of the maps for images contains, so that a broken pixel is seen.
std::array<uint8_t, 3> color_at(Colormap map, double s);

struct ColorScale {
  Colormap map = Colormap::kGray;
  double low = 0, high = 1;
};

enum class Upscaling { kNearest, kSmooth };

/// The picture people look at: [H,W] from [H,W] or [C,H,W]. C = 1 as is; C = 2 is complex as real
/// and imaginary halves and gives the magnitude; C = 3 is kept (RGB). float64 on the CPU. Throws
/// std::invalid_argument otherwise.
at::Tensor displayed(const at::Tensor& image);

/// One scale for all images: the range of their finite pixels, from 0 when none is negative;
/// symmetric about 0 for the diverging map. A constant image gets a range of nonzero width.
ColorScale common_scale(const std::vector<at::Tensor>& images, Colormap map);

/// Pixels of displayed(image) in the colours of `scale` (RGB images: low..high -> 0..255 per
/// channel), each axis `factor` times larger. Smooth is bicubic in the values, clamped to their
/// range, before colours are given.
io::Raster render(const at::Tensor& image, const ColorScale& scale, int64_t factor = 1,
                  Upscaling upscaling = Upscaling::kNearest);

/// The factor that makes an image of this size at least `pixels` wide and high.
int64_t upscale_factor(const at::Tensor& image, int64_t pixels);

/// n images [n,C,H,W] (or [n,H,W]) as one picture, `columns` to a row (0 = near square), with a
/// thin white gap.
io::Raster image_grid(const at::Tensor& images, const ColorScale& scale, int64_t columns = 0,
                      int64_t factor = 1);

}  // namespace scoreprior::report
