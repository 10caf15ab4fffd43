#include "scoreprior/io/fits_image.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/fits_file.h"

namespace scoreprior::io {
namespace {

constexpr double kDegree = 3.14159265358979323846 / 180;

std::string upper_text(std::string s) {
  std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return std::toupper(c); });
  return s;
}

// Moves to the first unit that holds an image.
void find_image(const detail::FitsFile& file) {
  if (file.flag("GROUPS").value_or(false) && file.integer("NAXIS1").value_or(-1) == 0)
    file.fail("a UVFITS file, not an image");
  for (int unit = 1;; ++unit) {
    int type = 0, status = 0;
    fits_movabs_hdu(file.get(), unit, &type, &status);
    if (status == END_OF_FILE) {
      fits_clear_errmsg();
      file.fail("no image");
    }
    file.check(status, "damaged FITS file");
    if (type != IMAGE_HDU || file.integer("NAXIS").value_or(0) < 2) continue;
    if (fits_is_compressed_image(file.get(), &status))
      file.fail("a tile-compressed image; unpack it first");
    return;
  }
}

// Jy/pixel per unit of the file's pixel values.
double flux_unit(const detail::FitsFile& file, double pixel_deg) {
  std::string unit = upper_text(file.text("BUNIT", "JY/PIXEL"));
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  if (unit == "JY/PIXEL" || unit == "JY/PIX") return 1;
  if (unit == "JY/BEAM") {
    const double major = file.number("BMAJ").value_or(0), minor = file.number("BMIN").value_or(0);
    if (!(major > 0 && minor > 0))
      file.fail("BUNIT is Jy/beam but the header has no BMAJ and BMIN");
    return pixel_deg * pixel_deg / (M_PI * major * minor / (4 * std::log(2.0)));
  }
  file.fail("unknown flux unit BUNIT = \"" + file.text("BUNIT") + "\" (known: JY/PIXEL, JY/BEAM)");
}

}  // namespace

SkyImage read_fits_image(const std::filesystem::path& path) {
  const detail::FitsFile file = detail::FitsFile::open(path);
  find_image(file);
  const int64_t naxis = file.integer("NAXIS").value_or(0);
  const int64_t nx = file.integer("NAXIS1").value_or(0), ny = file.integer("NAXIS2").value_or(0);
  if (nx < 1 || ny < 1)
    file.fail("no image (" + std::to_string(nx) + " x " + std::to_string(ny) + ")");
  for (int64_t k = 3; k <= naxis && k <= 999; ++k) {
    const int64_t n = file.integer("NAXIS" + std::to_string(k)).value_or(1);
    if (n != 1)
      file.fail("a cube: axis " + std::to_string(k) + " (" +
                file.text("CTYPE" + std::to_string(k)) + ") has length " + std::to_string(n) +
                ", expected one plane");
  }
  const int64_t bitpix = file.integer("BITPIX").value_or(0);
  // Row by row first, so that no product overflows.
  file.require_data(static_cast<uint64_t>(nx), static_cast<uint64_t>(std::abs(bitpix)) / 8);
  file.require_data(static_cast<uint64_t>(ny),
                    static_cast<uint64_t>(nx) * (static_cast<uint64_t>(std::abs(bitpix)) / 8));

  const double step_x = file.number("CDELT1").value_or(file.number("CD1_1").value_or(0));
  const double step_y = file.number("CDELT2").value_or(file.number("CD2_2").value_or(0));
  if (!(std::isfinite(step_x) && step_x != 0)) file.fail("no pixel size (CDELT1)");
  if (!(std::abs(std::abs(step_x) - std::abs(step_y)) <= 1e-6 * std::abs(step_x)))
    file.fail("the pixels are not square (CDELT1, CDELT2)");

  SkyImage image;
  at::Tensor pixels = at::empty({ny, nx}, at::kDouble);
  int status = 0, any_null = 0;
  fits_read_img_dbl(file.get(), 1, 1, static_cast<LONGLONG>(nx) * ny, 0, pixels.data_ptr<double>(),
                    &any_null, &status);
  file.check(status, "pixels");
  if (!at::isfinite(pixels).all().item<bool>()) file.fail("some pixels are not numbers");
  // FITS stores the south first; east is left when CDELT1 < 0.
  if (step_y > 0) pixels = pixels.flip({0});
  if (step_x > 0) pixels = pixels.flip({1});
  image.pixels = (pixels * flux_unit(file, std::abs(step_x))).contiguous();
  image.pixel_size_rad = std::abs(step_x) * kDegree;
  const auto any = [&](std::initializer_list<const char*> keys) {
    for (const char* key : keys)
      if (const auto v = file.number(key)) return *v;
    return 0.0;
  };
  image.ra_hours = any({"OBSRA", "CRVAL1"}) / 15;
  image.dec_deg = any({"OBSDEC", "CRVAL2"});
  image.frequency_hz = any({"FREQ", "RESTFRQ", "RESTFREQ"});
  for (int64_t k = 3; k <= std::min<int64_t>(naxis, 9) && image.frequency_hz == 0; ++k)
    if (file.text("CTYPE" + std::to_string(k)) == "FREQ")
      image.frequency_hz = file.number("CRVAL" + std::to_string(k)).value_or(0);
  const double mjd = any({"MJD", "MJD-OBS"});
  image.mjd = mjd > 0 && mjd < 1e7 ? static_cast<int64_t>(mjd)
                                   : detail::mjd_of_date(file.text("DATE-OBS")).value_or(0);
  image.source = file.text("OBJECT");
  return image;
}

void write_fits_image(const std::filesystem::path& path, const SkyImage& image) {
  SP_CHECK(image.pixels.defined() && image.pixels.dim() == 2 && image.pixels.numel() > 0,
           "write_fits_image", "expected pixels [H,W]");
  SP_CHECK(image.pixel_size_rad > 0, "write_fits_image", "expected a positive pixel size");
  const at::Tensor pixels = image.pixels.detach().to(at::kCPU, at::kDouble).flip({0}).contiguous();
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    detail::FitsFile file = detail::FitsFile::create(temporary, path);
    long size[] = {pixels.size(1), pixels.size(0)};
    int status = 0;
    fits_create_img(file.get(), DOUBLE_IMG, 2, size, &status);
    file.check(status, "header");
    const double step = image.pixel_size_rad / kDegree;
    file.put("OBJECT", image.source, "source");
    file.put("CTYPE1", std::string("RA---SIN"));
    file.put("CTYPE2", std::string("DEC--SIN"));
    file.put("CDELT1", -step, "[deg] east is left");
    file.put("CDELT2", step, "[deg]");
    file.put("CRPIX1", (static_cast<double>(size[0]) + 1) / 2);
    file.put("CRPIX2", (static_cast<double>(size[1]) + 1) / 2);
    file.put("CRVAL1", image.ra_hours * 15, "[deg]");
    file.put("CRVAL2", image.dec_deg, "[deg]");
    file.put("CUNIT1", std::string("deg"));
    file.put("CUNIT2", std::string("deg"));
    file.put("OBSRA", image.ra_hours * 15, "[deg]");
    file.put("OBSDEC", image.dec_deg, "[deg]");
    file.put("EQUINOX", 2000.0);
    file.put("FREQ", image.frequency_hz, "[Hz]");
    file.put("MJD", static_cast<double>(image.mjd), "modified Julian day");
    file.put("DATE-OBS", detail::date_of_mjd(image.mjd));
    file.put("TELESCOP", std::string("VLBI"));
    file.put("BUNIT", std::string("JY/PIXEL"));
    file.put("STOKES", std::string("I"));
    fits_write_img(file.get(), TDOUBLE, 1, pixels.numel(), pixels.data_ptr<double>(), &status);
    file.check(status, "pixels");
    file.close();
  });
}

}  // namespace scoreprior::io
