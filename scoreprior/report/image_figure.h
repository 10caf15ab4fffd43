#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "scoreprior/report/colormap.h"

namespace scoreprior::report {

/// An image with its title, axes and colour bar. Row 0 is north and column 0 east, drawn at the top
/// and at the left.
struct ImageFigure {
  std::string title;
  at::Tensor image;  ///< [H,W] or [C,H,W] as in displayed()
  ColorScale scale;
  Upscaling upscaling = Upscaling::kNearest;
  double fov_uas =
      0;  ///< > 0: axes "Relative RA (uas)", growing to the left, and "Relative Dec (uas)"
  bool color_bar = true;  ///< never for RGB
  std::string units;      ///< beside the colour bar, e.g. "Jy/pixel"
  /// Brightness temperature of one unit [K]; with it the colour bar has a second side in 1e9 K.
  std::optional<double> kelvin_per_unit;
  std::string description;  ///< alternative text; otherwise title and range
};

/// One self-contained <svg>: crisp axes and text around the pixels as a PNG data URI.
std::string image_svg(const ImageFigure& figure);

/// "data:image/png;base64,..."
std::string png_data_uri(const io::Raster& raster);

/// T_b = c^2 S / (2 k nu^2 Omega) of 1 Jy in a pixel of fov_uas/size on a side [K]
/// (Rayleigh-Jeans).
double kelvin_per_jansky_pixel(double fov_uas, int64_t size, double frequency_hz);

}  // namespace scoreprior::report
