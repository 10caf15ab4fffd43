#include "scoreprior/io/ehtim_text.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

constexpr double kRadPerArcsec = 3.14159265358979323846 / 180 / 3600;

// The words of a header line after "# KEY:".
std::vector<std::string> header_words(const std::string& line) {
  std::istringstream in(line.substr(line.find(':') + 1));
  std::vector<std::string> words;
  for (std::string w; in >> w;) words.push_back(w);
  return words;
}

// "12 h 30 m 49.4 s" or "-12 deg 23 m 28 s".
double sexagesimal(const std::vector<std::string>& words) {
  if (words.size() < 6) return NAN;
  const double whole = std::strtod(words[0].c_str(), nullptr);
  const double rest =
      std::strtod(words[2].c_str(), nullptr) / 60 + std::strtod(words[4].c_str(), nullptr) / 3600;
  return words[0][0] == '-' ? -(std::abs(whole) + rest) : whole + rest;
}

std::string sexagesimal_text(double value, const char* unit) {
  const double size = std::abs(value);
  const double whole = std::floor(size), minutes = std::floor((size - whole) * 60);
  char text[120];
  std::snprintf(text, sizeof text, "%s%d %s %d m %.10f s", value < 0 ? "-" : "",
                static_cast<int>(whole), unit, static_cast<int>(minutes),
                ((size - whole) * 60 - minutes) * 60);
  return text;
}

struct Pixel {
  double x, y, value;
  int line;
};

// Where on a regular grid of n values the pixels' coordinates lie, the largest first: east is
// column 0, north row 0. The step is theirs, since headers round the field of view.
std::vector<int64_t> grid_places(const std::vector<Pixel>& pixels, double Pixel::*coordinate,
                                 int64_t n, const std::string& name) {
  double low = INFINITY, high = -INFINITY;
  for (const Pixel& p : pixels) {
    low = std::min(low, p.*coordinate);
    high = std::max(high, p.*coordinate);
  }
  const double step = n > 1 ? (high - low) / static_cast<double>(n - 1) : 0;
  if (n > 1 && !(step > 0))
    throw DataError(name + ": the pixels' x, y are all equal, no grid of " + std::to_string(n));
  // Ten decimals of an arcsecond leave a pixel of 0.001 uas a tenth of itself.
  constexpr double kOff = 0.25;
  std::vector<int64_t> places;
  for (const Pixel& p : pixels) {
    const double at = n > 1 ? (high - p.*coordinate) / step : 0;
    if (std::abs(at - std::nearbyint(at)) > kOff || (n == 1 && high > low))
      throw DataError(name + ":" + std::to_string(p.line) + ": x, y lie off the regular grid of " +
                      std::to_string(n) + " places that FOVX, FOVY announce");
    places.push_back(static_cast<int64_t>(std::nearbyint(at)));
  }
  return places;
}

}  // namespace

SkyImage read_ehtim_image(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  std::istringstream in(text);
  SkyImage image;
  int64_t nx = 0, ny = 0;
  double fov_x = 0, fov_y = 0;
  std::vector<Pixel> pixels;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string::npos) continue;
    if (line[start] != '#') {
      const char* p = line.c_str();
      double xyz[3];
      for (double& v : xyz) {
        char* next = nullptr;
        v = std::strtod(p, &next);
        if (next == p) throw DataError(where + "expected \"x y I\", three numbers");
        p = next;
      }
      if (!std::isfinite(xyz[2])) throw DataError(where + "the pixel is not a number");
      if (!std::isfinite(xyz[0]) || !std::isfinite(xyz[1]))
        throw DataError(where + "the position is not a number");
      pixels.push_back({xyz[0], xyz[1], xyz[2], number});
      continue;
    }
    const std::string key = line.substr(start + 1, line.find(':') - start - 1);
    const auto words = header_words(line);
    const auto is = [&](const char* name) { return key.find(name) != std::string::npos; };
    if (line.find(':') == std::string::npos || words.empty()) continue;
    if (is("SRC"))
      for (const auto& w : words) image.source += (image.source.empty() ? "" : " ") + w;
    else if (is("RA"))
      image.ra_hours = sexagesimal(words);
    else if (is("DEC"))
      image.dec_deg = sexagesimal(words);
    else if (is("MJD")) {
      const double mjd = std::strtod(words[0].c_str(), nullptr);
      if (!(mjd >= 0 && mjd < 1e7)) throw DataError(where + "no valid MJD");
      image.mjd = static_cast<int64_t>(mjd);
    } else if (is("RF"))
      image.frequency_hz = std::strtod(words[0].c_str(), nullptr) *
                           (words.size() > 1 && words[1] == "MHz" ? 1e6 : 1e9);
    else if (is("FOVX") || is("FOVY")) {
      const long long n = std::strtoll(words[0].c_str(), nullptr, 10);
      const double fov = words.size() > 2 ? std::strtod(words[2].c_str(), nullptr) : 0;
      if (n < 1 || n > 100000 || !(fov > 0 && fov < 1e6))
        throw DataError(where + "expected \"N pix FIELD as\"");
      (is("FOVX") ? nx : ny) = n;
      (is("FOVX") ? fov_x : fov_y) = fov;
    }
  }
  const std::string name = path.string();
  if (nx == 0 || ny == 0)
    throw DataError(name + ": not an ehtim image (no header lines FOVX and FOVY)");
  if (!std::isfinite(image.ra_hours) || !std::isfinite(image.dec_deg) ||
      !std::isfinite(image.frequency_hz))
    throw DataError(name + ": the header has a damaged RA, DEC or RF");
  if (static_cast<int64_t>(pixels.size()) != nx * ny)
    throw DataError(name + ": truncated: the header announces " + std::to_string(nx * ny) +
                    " pixels, the file has " + std::to_string(pixels.size()));
  image.pixel_size_rad = fov_x / static_cast<double>(nx) * kRadPerArcsec;
  const double pixel_y = fov_y / static_cast<double>(ny) * kRadPerArcsec;
  if (std::abs(pixel_y - image.pixel_size_rad) > 1e-3 * image.pixel_size_rad)
    throw DataError(name + ": the pixels are not square (FOVX, FOVY)");
  const auto column = grid_places(pixels, &Pixel::x, nx, name),
             row = grid_places(pixels, &Pixel::y, ny, name);
  image.pixels = at::full({ny, nx}, NAN, at::kDouble);
  double* to = image.pixels.data_ptr<double>();
  for (size_t k = 0; k < pixels.size(); ++k) {
    double& place = to[row[k] * nx + column[k]];
    if (!std::isnan(place))
      throw DataError(name + ":" + std::to_string(pixels[k].line) +
                      ": x, y are those of an earlier pixel");
    place = pixels[k].value;
  }
  return image;
}

void write_ehtim_image(const std::filesystem::path& path, const SkyImage& image) {
  SP_CHECK(image.pixels.defined() && image.pixels.dim() == 2 && image.pixel_size_rad > 0,
           "write_ehtim_image", "expected pixels [H,W] and their size");
  const at::Tensor pixels = image.pixels.detach().to(at::kCPU, at::kDouble).contiguous();
  const int64_t ny = pixels.size(0), nx = pixels.size(1);
  const double step = image.pixel_size_rad / kRadPerArcsec;
  char line[200];
  std::string out = "# SRC: " + image.source + "\n# RA: " + sexagesimal_text(image.ra_hours, "h") +
                    "\n# DEC: " + sexagesimal_text(image.dec_deg, "deg") + "\n";
  const auto add = [&](const char* format, auto... values) {
    std::snprintf(line, sizeof line, format, values...);
    out += line;
  };
  add("# MJD: %lld.0000\n", static_cast<long long>(image.mjd));
  add("# RF: %.9f GHz\n", image.frequency_hz / 1e9);
  add("# FOVX: %lld pix %.17g as\n", static_cast<long long>(nx), step * static_cast<double>(nx));
  add("# FOVY: %lld pix %.17g as\n", static_cast<long long>(ny), step * static_cast<double>(ny));
  out += "# ------------------------------------\n# x (as)     y (as)       I (Jy/pixel)\n";
  const double* p = pixels.data_ptr<double>();
  for (int64_t y = 0; y < ny; ++y)
    for (int64_t x = 0; x < nx; ++x)
      add("%.10f %.10f %.17g\n", (static_cast<double>(nx - 1) / 2 - static_cast<double>(x)) * step,
          (static_cast<double>(ny - 1) / 2 - static_cast<double>(y)) * step, p[y * nx + x]);
  write_text(path, out);
}

std::vector<Site> read_ehtim_array(const std::filesystem::path& path) {
  std::istringstream in(read_text(path));
  std::vector<Site> sites;
  std::set<std::string> names;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    std::istringstream words(line);
    Site s;
    if (!(words >> s.name) || s.name[0] == '#') continue;
    if (!(words >> s.x >> s.y >> s.z >> s.sefd_r >> s.sefd_l))
      throw DataError(where + "expected NAME X Y Z SEFD_R SEFD_L");
    const double radius = std::sqrt(s.x * s.x + s.y * s.y + s.z * s.z);
    if (!(radius > 6.2e6 && radius < 6.5e6))
      throw DataError(where + "the site " + s.name +
                      " is not on the Earth (geocentric metres expected)");
    if (!(s.sefd_r > 0 && s.sefd_l > 0))
      throw DataError(where + "the SEFD of " + s.name + " is not positive");
    if (!names.insert(s.name).second)
      throw DataError(where + "the site " + s.name + " appears twice");
    sites.push_back(s);
  }
  if (sites.size() < 2) throw DataError(path.string() + ": an array needs at least two sites");
  return sites;
}

void write_ehtim_array(const std::filesystem::path& path, const std::vector<Site>& sites) {
  std::string out = "#SITE X Y Z SEFDR SEFDL\n";
  char line[300];
  for (const Site& s : sites) {
    std::snprintf(line, sizeof line, " %.17g %.17g %.17g %.17g %.17g\n", s.x, s.y, s.z, s.sefd_r,
                  s.sefd_l);
    out += s.name + line;
  }
  write_text(path, out);
}

}  // namespace scoreprior::io
