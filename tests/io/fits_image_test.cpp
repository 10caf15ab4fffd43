#include "scoreprior/io/fits_image.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior::io {
namespace {

std::filesystem::path sky_scratch() {
  static const auto dir = [] {
    auto d = std::filesystem::temp_directory_path() / ("sp-fits-" + std::to_string(::getpid()));
    std::filesystem::create_directories(d);
    return d;
  }();
  return dir;
}

SkyImage sky_image() {
  SkyImage image;
  image.pixels = Rng(2).normal({5, 7}, at::kDouble);
  image.pixel_size_rad = 1.2345e-11;
  image.ra_hours = 12.513728717168174;
  image.dec_deg = 12.39112323919932;
  image.frequency_hz = 2.3e11;
  image.mjd = 57854;
  image.source = "M87";
  return image;
}

std::string sky_complaint(const std::filesystem::path& path) {
  try {
    read_fits_image(path);
    return "";
  } catch (const DataError& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
}

std::string sky_card(std::string bytes, const std::string& key, const std::string& value) {
  const size_t at = bytes.find((key + "        ").substr(0, 8) + "=");
  EXPECT_NE(at, std::string::npos) << key;
  bytes.replace(
      at, 80,
      ((key + "        ").substr(0, 8) + "= " + value + std::string(80, ' ')).substr(0, 80));
  return bytes;
}

void sky_put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST(FitsImage, RoundTrips) {
  const auto path = sky_scratch() / "a.fits";
  const SkyImage a = sky_image();
  write_fits_image(path, a);
  const SkyImage b = read_fits_image(path);
  EXPECT_TRUE(at::equal(a.pixels, b.pixels));
  EXPECT_NEAR(b.pixel_size_rad / a.pixel_size_rad, 1, 1e-15);
  EXPECT_NEAR(b.ra_hours, a.ra_hours, 1e-14);
  EXPECT_EQ(b.dec_deg, a.dec_deg);
  EXPECT_EQ(b.frequency_hz, a.frequency_hz);
  EXPECT_EQ(b.mjd, a.mjd);
  EXPECT_EQ(b.source, a.source);
}

TEST(FitsImage, TruthImageHasItsSouthAtTheBottom) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  const testing::GoldenCase g("interferometry/demo_obs");
  const SkyImage image = read_fits_image(testing::shared_dir() / "data/eht/truth.fits");
  EXPECT_TRUE(at::equal(image.pixels, g.array("truth_imarr")));
  // 158 micro-arcseconds over 128 pixels; the header has 15 digits.
  EXPECT_NEAR(image.pixel_size_rad / (158.0 / 128 * 1e-6 / 3600 * M_PI / 180), 1, 1e-12);
  EXPECT_EQ(image.source, "SgrA");
  EXPECT_EQ(image.mjd, 48277);
  EXPECT_EQ(image.frequency_hz, 2.3e11);
}

TEST(FitsImage, AxesFollowTheSignsOfCdelt) {
  const auto path = sky_scratch() / "b.fits";
  const SkyImage a = sky_image();
  write_fits_image(path, a);
  const std::string bytes = read_text(path);
  const double step = a.pixel_size_rad * 180 / M_PI;
  char text[40];
  std::snprintf(text, sizeof text, "%20.15E", step);
  sky_put(path, sky_card(bytes, "CDELT1", text));
  EXPECT_TRUE(at::equal(read_fits_image(path).pixels, a.pixels.flip({1})));
  std::snprintf(text, sizeof text, "%20.15E", -step);
  sky_put(path, sky_card(bytes, "CDELT2", text));
  EXPECT_TRUE(at::equal(read_fits_image(path).pixels, a.pixels.flip({0})));
}

TEST(FitsImage, JyPerBeamIsConverted) {
  // A beam of FWHM a x b covers pi a b / (4 ln 2).
  const auto path = sky_scratch() / "c.fits";
  const SkyImage a = sky_image();
  write_fits_image(path, a);
  std::string bytes = sky_card(read_text(path), "BUNIT", "'JY/BEAM '");
  sky_put(path, bytes);
  EXPECT_NE(sky_complaint(path).find("BMAJ"), std::string::npos);
  const double step = a.pixel_size_rad * 180 / M_PI;
  char text[40];
  std::snprintf(text, sizeof text, "%20.15E", 3 * step);
  bytes = sky_card(bytes, "CUNIT1", text);
  bytes.replace(bytes.find("CUNIT1  ="), 8, "BMAJ    ");
  std::snprintf(text, sizeof text, "%20.15E", 2 * step);
  bytes = sky_card(bytes, "CUNIT2", text);
  bytes.replace(bytes.find("CUNIT2  ="), 8, "BMIN    ");
  sky_put(path, bytes);
  EXPECT_LT(testing::relative_error(read_fits_image(path).pixels,
                                    a.pixels * (4 * std::log(2.0) / (6 * M_PI))),
            1e-14);
}

TEST(FitsImage, AstropyReadsWhatWeWrite) {
  if (std::system("/usr/bin/python3 -c 'import astropy' > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "no python3 with astropy";
  const auto path = sky_scratch() / "d.fits", script = sky_scratch() / "read.py",
             said = sky_scratch() / "said.txt";
  const SkyImage a = sky_image();
  write_fits_image(path, a);
  write_text(script, R"(
import sys
from astropy.io import fits
from astropy.wcs import WCS
h = fits.open(sys.argv[1])
h.verify('exception')
w = WCS(h[0].header)
here = w.pixel_to_world(3, 2)       # the middle of 7 x 5
east = w.pixel_to_world(0, 2)
print(repr(float(h[0].data[0, 0])), h[0].header['BUNIT'], here.ra.deg, here.dec.deg, int(east.ra > here.ra))
)");
  ASSERT_EQ(std::system(("/usr/bin/python3 " + script.string() + " " + path.string() + " > " +
                         said.string())
                            .c_str()),
            0);
  std::istringstream in(read_text(said));
  double corner, ra, dec;
  std::string unit;
  int east_is_left;
  ASSERT_TRUE(in >> corner >> unit >> ra >> dec >> east_is_left);
  EXPECT_EQ(corner, a.pixels[4][0].item<double>());
  EXPECT_EQ(unit, "JY/PIXEL");
  EXPECT_NEAR(ra, a.ra_hours * 15, 1e-9);
  EXPECT_NEAR(dec, a.dec_deg, 1e-9);
  EXPECT_EQ(east_is_left, 1);
}

TEST(FitsImage, DamagedFilesAreDataErrors) {
  const auto path = sky_scratch() / "e.fits", good = sky_scratch() / "good.fits";
  SkyImage image = sky_image();
  write_fits_image(good, image);
  const std::string bytes = read_text(good);
  for (size_t n = 0; n < 2880 + 280; n += 97) {
    sky_put(path, bytes.substr(0, n));
    EXPECT_NE(sky_complaint(path), "") << n;
  }
  for (const char* n : {"9223372036854775807", "4000000000", "-1", "0"})
    for (const char* axis : {"NAXIS1", "NAXIS2"}) {
      sky_put(path, sky_card(bytes, axis, std::string(20 - std::string(n).size(), ' ') + n));
      EXPECT_NE(sky_complaint(path), "") << axis << n;
    }
  sky_put(path, sky_card(bytes, "BUNIT", "'K       '"));
  EXPECT_NE(sky_complaint(path).find("unknown flux unit"), std::string::npos);
  sky_put(path, sky_card(bytes, "CDELT2", "                 1.0"));
  EXPECT_NE(sky_complaint(path).find("square"), std::string::npos);
  image.pixels[0][0] = NAN;
  write_fits_image(path, image);
  EXPECT_NE(sky_complaint(path).find("not numbers"), std::string::npos);
  VisibilityTable t;
  t.sites = {{"A", 1, 2, 3, 0, 0}, {"B", 1, 2, 4, 0, 0}};
  t.rf_hz = 1e11;
  t.rows = {{0, 1, 0, 1, 0, 0, 1, 2, {1, 0}, 1}};
  write_uvfits(path, t);
  EXPECT_NE(sky_complaint(path).find("a UVFITS file, not an image"), std::string::npos);
  const auto place = Rng(1).uniforms(900);
  for (size_t k = 0; k < 300; ++k) {
    std::string broken = bytes;
    for (size_t j = 0; j < 3; ++j)
      broken[static_cast<size_t>(place[3 * k + j] * 2880)] = "0123456789 '=-TF"[(k + j) % 16];
    sky_put(path, broken);
    sky_complaint(path);
  }
}

}  // namespace scoreprior::io
