#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>

namespace scoreprior::io {

/// A sky image: pixels [H,W] in Jy/pixel, row 0 north, column 0 east, float64.
struct SkyImage {
  at::Tensor pixels;
  double pixel_size_rad = 0;
  double ra_hours = 0, dec_deg = 0;
  double frequency_hz = 0;
  int64_t mjd = 0;
  std::string source;
};

/// Throws MissingFileError, DataError ("x.fits: a UVFITS file, not an image", truncated, NaN
/// pixels, no image).
SkyImage read_fits_image(const std::filesystem::path& path);
/// Header as radio tools expect: BUNIT JY/PIXEL, CDELT1 < 0, rows south first, CTYPE RA---SIN /
/// DEC--SIN.
void write_fits_image(const std::filesystem::path& path, const SkyImage& image);

}  // namespace scoreprior::io
