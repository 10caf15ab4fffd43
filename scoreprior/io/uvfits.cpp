#include "scoreprior/io/uvfits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/fits_file.h"

namespace scoreprior::io {
namespace {

using detail::FitsFile;

constexpr double kMjdZero = 2400000.5;

std::string numbered(const char* stem, int64_t k) { return stem + std::to_string(k); }

// The random-groups part of a UVFITS header: which array axis is which, and the group parameters.
struct GroupsHeader {
  struct Axis {
    int64_t length = 1, stride = 1;
    double value = 0, step = 1, pixel = 1;
  };
  Axis complex, stokes, freq, intermediate;
  int64_t groups = 0, parameters = 0, cells = 1;
  std::vector<std::string> names;
  std::vector<double> scale, zero;

  // Parameters of that name; their sum is the value (FITS standard, section 6.4: repeated PTYPEn
  // add precision).
  std::vector<size_t> find(std::initializer_list<const char*> stems) const {
    std::vector<size_t> found;
    for (const char* stem : stems) {
      for (size_t k = 0; k < names.size(); ++k)
        if (names[k] == stem) found.push_back(k);
      if (!found.empty()) break;
    }
    return found;
  }
};

GroupsHeader read_groups_header(const FitsFile& file) {
  const int64_t naxis = file.integer("NAXIS").value_or(0);
  if (!file.flag("GROUPS").value_or(false) || naxis < 2 || file.integer("NAXIS1").value_or(-1) != 0)
    file.fail(naxis > 0 ? "a FITS image, not a UVFITS file (it has no random groups)"
                        : "not a UVFITS file (the first unit has no random groups)");
  if (naxis > 99) file.fail("damaged header: NAXIS = " + std::to_string(naxis));

  GroupsHeader h;
  const int64_t bitpix = file.integer("BITPIX").value_or(0);
  if (bitpix != 8 && bitpix != 16 && bitpix != 32 && bitpix != 64 && bitpix != -32 && bitpix != -64)
    file.fail("damaged header: BITPIX = " + std::to_string(bitpix));
  const uint64_t item = static_cast<uint64_t>(std::abs(bitpix)) / 8;
  h.groups = file.integer("GCOUNT").value_or(0);
  h.parameters = file.integer("PCOUNT").value_or(0);
  if (h.groups < 0) file.fail("damaged header: GCOUNT = " + std::to_string(h.groups));
  if (h.parameters < 1 || h.parameters > 999)
    file.fail("damaged header: PCOUNT = " + std::to_string(h.parameters));
  if (h.groups == 0) file.fail("no visibilities (GCOUNT = 0)");

  bool has_complex = false, has_stokes = false, has_freq = false;
  for (int64_t k = 2; k <= naxis; ++k) {
    GroupsHeader::Axis axis;
    axis.length = file.integer(numbered("NAXIS", k)).value_or(0);
    if (axis.length < 1 || static_cast<uint64_t>(axis.length) > file.file_size())
      file.fail("damaged header: NAXIS" + std::to_string(k) + " = " + std::to_string(axis.length));
    axis.stride = h.cells;
    axis.value = file.number(numbered("CRVAL", k)).value_or(0);
    axis.step = file.number(numbered("CDELT", k)).value_or(1);
    axis.pixel = file.number(numbered("CRPIX", k)).value_or(1);
    h.cells *= axis.length;
    if (static_cast<uint64_t>(h.cells) > file.file_size())
      file.require_data(static_cast<uint64_t>(h.groups), item * static_cast<uint64_t>(h.cells));
    const std::string type = file.text(numbered("CTYPE", k));
    if (type == "COMPLEX") {
      h.complex = axis;
      has_complex = true;
    } else if (type == "STOKES") {
      h.stokes = axis;
      has_stokes = true;
    } else if (type == "FREQ") {
      h.freq = axis;
      has_freq = true;
    } else if (type == "IF") {
      h.intermediate = axis;
    } else if (axis.length != 1) {
      file.fail("axis " + std::to_string(k) + " (" + type + ") has length " +
                std::to_string(axis.length) + ", expected 1");
    }
  }
  if (!has_complex || !has_stokes || !has_freq)
    file.fail("the visibilities lack a COMPLEX, STOKES or FREQ axis");
  if (h.complex.length != 3)
    file.fail("the COMPLEX axis has length " + std::to_string(h.complex.length) +
              ", expected 3 (real, imaginary, weight)");
  file.require_data(static_cast<uint64_t>(h.groups),
                    item * static_cast<uint64_t>(h.parameters + h.cells));

  for (int64_t k = 1; k <= h.parameters; ++k) {
    std::string name = file.text(numbered("PTYPE", k));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return std::toupper(c); });
    h.names.push_back(name);
    h.scale.push_back(file.number(numbered("PSCAL", k)).value_or(1));
    h.zero.push_back(file.number(numbered("PZERO", k)).value_or(0));
  }
  return h;
}

struct AntennaTable {
  std::vector<Site> sites;
  std::map<int64_t, int32_t> index_of_number;
  double frequency_hz = 0;
};

// Reads column `name` as doubles, `width` numbers per row; empty when the table has no such column.
std::vector<double> table_column(const FitsFile& file, const char* name, int64_t rows,
                                 int64_t width, bool required) {
  int column = 0, status = 0, type = 0;
  fits_get_colnum(file.get(), CASEINSEN, const_cast<char*>(name), &column, &status);
  if (status == COL_NOT_FOUND && !required) return fits_clear_errmsg(), std::vector<double>{};
  file.check(status, std::string("antenna table: column ") + name);
  long repeat = 0, bytes = 0;
  fits_get_coltype(file.get(), column, &type, &repeat, &bytes, &status);
  file.check(status, std::string("antenna table: column ") + name);
  if (type == TSTRING || type < 0 || repeat < width)
    file.fail(std::string("antenna table: column ") + name + " has another type than expected");
  std::vector<double> values(static_cast<size_t>(rows * width));
  for (int64_t r = 0; r < rows; ++r)
    fits_read_col(file.get(), TDOUBLE, column, r + 1, 1, width, nullptr, values.data() + r * width,
                  nullptr, &status);
  file.check(status, std::string("antenna table: column ") + name);
  return values;
}

AntennaTable read_antennas(const FitsFile& file) {
  int status = 0;
  fits_movnam_hdu(file.get(), BINARY_TBL, const_cast<char*>("AIPS AN"), 0, &status);
  if (status == BAD_HDU_NUM) {
    fits_clear_errmsg();
    file.fail("no antenna table (AIPS AN)");
  }
  file.check(status, "antenna table (AIPS AN)");
  const int64_t rows = file.integer("NAXIS2").value_or(0),
                width = file.integer("NAXIS1").value_or(0);
  if (rows < 1 || width < 1) file.fail("the antenna table (AIPS AN) is empty");
  file.require_data(static_cast<uint64_t>(rows), static_cast<uint64_t>(width));

  int column = 0, type = 0;
  long repeat = 0, bytes = 0;
  fits_get_colnum(file.get(), CASEINSEN, const_cast<char*>("ANNAME"), &column, &status);
  file.check(status, "antenna table: column ANNAME");
  fits_get_coltype(file.get(), column, &type, &repeat, &bytes, &status);
  file.check(status, "antenna table: column ANNAME");
  if (type != TSTRING || repeat < 1 || repeat > width)
    file.fail("antenna table: column ANNAME has another type than expected");
  const auto xyz = table_column(file, "STABXYZ", rows, 3, true);
  const auto numbers = table_column(file, "NOSTA", rows, 1, true);
  const auto sefd = table_column(file, "SEFD", rows, 1, false);
  const auto sefd_l = table_column(file, "SEFDL", rows, 1, false);

  AntennaTable t;
  std::vector<char> name(static_cast<size_t>(repeat) + 1);
  for (int64_t r = 0; r < rows; ++r) {
    char* text = name.data();
    fits_read_col(file.get(), TSTRING, column, r + 1, 1, 1, nullptr, &text, nullptr, &status);
    file.check(status, "antenna table: column ANNAME");
    const size_t i = static_cast<size_t>(r);
    Site s;
    s.name = text;
    s.name.erase(s.name.find_last_not_of(' ') + 1);
    s.name.erase(0, s.name.find_first_not_of(' '));
    s.x = xyz[3 * i], s.y = xyz[3 * i + 1], s.z = xyz[3 * i + 2];
    const auto known = [](double v) { return std::isfinite(v) && v > 0 ? v : 0.0; };
    if (!sefd.empty()) s.sefd_r = s.sefd_l = known(sefd[i]);
    if (!sefd_l.empty()) s.sefd_l = known(sefd_l[i]);
    if (s.name.empty())
      file.fail("antenna table: station " + std::to_string(r + 1) + " has no name");
    if (!std::isfinite(s.x) || !std::isfinite(s.y) || !std::isfinite(s.z))
      file.fail("antenna table: the position of " + s.name + " is not a number");
    if (!(numbers[i] >= 1 && numbers[i] < 65536) ||
        !t.index_of_number.emplace(static_cast<int64_t>(numbers[i]), static_cast<int32_t>(r))
             .second)
      file.fail("antenna table: bad or repeated station number of " + s.name);
    t.sites.push_back(std::move(s));
  }
  t.frequency_hz = file.number("FREQ").value_or(0);
  return t;
}

// Weighted mean of one polarisation over channels and IFs; flagged when no weight is positive.
struct Hand {
  std::complex<double> vis;
  double weight = 0;
};

}  // namespace

VisibilityTable read_uvfits(const std::filesystem::path& path) {
  FitsFile file = FitsFile::open(path);
  const GroupsHeader h = read_groups_header(file);
  VisibilityTable table;
  table.source = file.text("OBJECT");
  const auto coordinate = [&](const char* key, const char* axis) {
    if (const auto v = file.number(key)) return *v;
    for (int64_t k = 2; k <= 9; ++k)
      if (file.text(numbered("CTYPE", k)) == axis)
        return file.number(numbered("CRVAL", k)).value_or(0);
    return 0.0;
  };
  table.ra_hours = coordinate("OBSRA", "RA") / 15;
  table.dec_deg = coordinate("OBSDEC", "DEC");
  table.bw_hz = h.freq.step * static_cast<double>(h.freq.length * h.intermediate.length);

  const AntennaTable antennas = read_antennas(file);
  table.sites = antennas.sites;
  table.rf_hz = antennas.frequency_hz > 0 ? antennas.frequency_hz : h.freq.value;
  if (!(table.rf_hz > 0) || !std::isfinite(table.rf_hz)) file.fail("no observing frequency");
  int status = 0;
  fits_movabs_hdu(file.get(), 1, nullptr, &status);
  file.check(status, "visibilities");

  // Stokes codes: 1 is I; -1, -2 are RR, LL; -5, -6 are XX, YY.
  std::vector<int64_t> hands;
  for (int first : {-1, -5, 1}) {
    for (int64_t s = 0; s < h.stokes.length; ++s) {
      const double code =
          h.stokes.value + (static_cast<double>(s) + 1 - h.stokes.pixel) * h.stokes.step;
      if (code == first || (first < 0 && code == first - 1)) hands.push_back(s);
    }
    if (!hands.empty()) break;
  }
  if (hands.empty()) file.fail("no parallel-hand or Stokes I visibilities");

  const auto u_parts = h.find({"UU---SIN", "UU", "UU--", "UU---NCP"});
  const auto v_parts = h.find({"VV---SIN", "VV", "VV--", "VV---NCP"});
  const auto date_parts = h.find({"DATE"});
  const auto baseline_parts = h.find({"BASELINE"});
  const auto tint_parts = h.find({"INTTIM"});
  const auto tau1_parts = h.find({"TAU1"}), tau2_parts = h.find({"TAU2"});
  if (u_parts.empty() || v_parts.empty()) file.fail("no u, v coordinates (UU---SIN, VV---SIN)");
  if (date_parts.empty() || baseline_parts.empty())
    file.fail("the groups lack the parameter DATE or BASELINE");

  std::vector<double> parameters(static_cast<size_t>(h.parameters)),
      cells(static_cast<size_t>(h.cells));
  const auto value = [&](const std::vector<size_t>& parts) {
    double sum = 0;
    for (size_t k = 0; k < parts.size(); ++k) {
      const double x = parameters[parts[k]] * h.scale[parts[k]] + h.zero[parts[k]];
      sum = k == 0 ? x : sum + x;
    }
    return sum;
  };
  std::vector<double> julian;
  for (int64_t g = 0; g < h.groups; ++g) {
    fits_read_grppar_dbl(file.get(), g + 1, 1, h.parameters, parameters.data(), &status);
    int any_null = 0;
    fits_read_img_dbl(file.get(), g + 1, 1, h.cells, 0, cells.data(), &any_null, &status);
    if (status) file.check(status, "visibility " + std::to_string(g + 1));
    const auto bad = [&](const std::string& what) {
      file.fail("visibility " + std::to_string(g + 1) + " " + what);
    };

    VisibilityRow row;
    std::complex<double> sum;
    double variance = 0;
    int kept = 0;
    for (const int64_t s : hands) {
      Hand hand;
      int64_t samples = 0;
      for (int64_t i = 0; i < h.intermediate.length; ++i)
        for (int64_t c = 0; c < h.freq.length; ++c) {
          const int64_t at = s * h.stokes.stride + c * h.freq.stride + i * h.intermediate.stride;
          const auto cell = [&](int64_t k) {
            return cells[static_cast<size_t>(at + k * h.complex.stride)];
          };
          const double weight = cell(2);
          if (!(weight > 0)) continue;
          if (!std::isfinite(cell(0)) || !std::isfinite(cell(1)))
            bad("is not a number although its weight is positive");
          if (!std::isfinite(weight)) bad("has an infinite weight");
          const std::complex<double> vis(cell(0), cell(1));
          hand.vis = ++samples == 1
                         ? vis
                         : hand.vis + (vis - hand.vis) * (weight / (hand.weight + weight));
          hand.weight += weight;
        }
      if (samples == 0) continue;
      sum += hand.vis;
      variance += 1 / hand.weight;
      ++kept;
    }
    if (kept == 0) continue;
    row.vis = sum / static_cast<double>(kept);
    row.sigma = std::sqrt(variance) / kept;

    const double baseline = value(baseline_parts);
    if (!(baseline >= 257 && baseline < 65536)) bad("has no valid baseline number");
    const int64_t pair = static_cast<int64_t>(baseline);
    // The fraction counts subarrays in hundredths, each with an antenna table of its own.
    if (baseline - static_cast<double>(pair) > 0.005) bad("belongs to a second subarray");
    const auto a1 = antennas.index_of_number.find(pair / 256),
               a2 = antennas.index_of_number.find(pair % 256);
    if (a1 == antennas.index_of_number.end() || a2 == antennas.index_of_number.end())
      bad("names a station that the antenna table lacks");
    if (a1 == a2) continue;  // an autocorrelation
    row.t1 = a1->second;
    row.t2 = a2->second;
    row.u = value(u_parts) * table.rf_hz;
    row.v = value(v_parts) * table.rf_hz;
    row.tint = value(tint_parts);
    row.tau1 = value(tau1_parts);
    row.tau2 = value(tau2_parts);
    const double jd = value(date_parts);
    if (!std::isfinite(row.u) || !std::isfinite(row.v)) bad("has no finite u, v");
    if (!std::isfinite(row.tint) || !std::isfinite(row.tau1) || !std::isfinite(row.tau2))
      bad("has a parameter that is not a number");
    if (!(std::abs(jd - kMjdZero) < 1e7)) bad("has no valid date");
    julian.push_back(jd);
    table.rows.push_back(row);
  }
  if (table.rows.empty()) file.fail("every visibility is flagged");

  // This order of operations: rows belong together when their times are equal doubles.
  const double first = *std::min_element(julian.begin(), julian.end());
  table.mjd = static_cast<int64_t>(std::floor(first - kMjdZero));
  for (size_t r = 0; r < julian.size(); ++r)
    table.rows[r].time = (julian[r] - kMjdZero - static_cast<double>(table.mjd)) * 24.0;
  const bool sensitivities = std::any_of(table.sites.begin(), table.sites.end(), [](const Site& s) {
    return s.sefd_r != 0 || s.sefd_l != 0;
  });
  if (sensitivities)
    sort_sites_by_sefd(table);
  else
    arrange(table);
  return table;
}

namespace {

// The double near `guess` that the reader's arithmetic maps to `target`, or `guess` when none does.
template <class Map>
double uv_preimage(double guess, double target, const Map& map) {
  double below = guess, above = guess;
  for (int k = 0; k < 4; ++k) {
    if (map(below) == target) return below;
    if (map(above) == target) return above;
    below = std::nextafter(below, -std::numeric_limits<double>::infinity());
    above = std::nextafter(above, std::numeric_limits<double>::infinity());
  }
  return guess;
}

// Rounds to float32. GCC 12 at -O2 drops double -> float -> double where it vectorises two of them
// at once; volatile keeps the rounding.
float rounded_to_float(double x) {
  volatile float f = static_cast<float>(x);
  return f;
}

// x as a sum of N float32, each the rounding of what is left: exact for three.
template <size_t N>
std::array<float, N> float_parts(double x) {
  std::array<float, N> parts{};
  for (auto& p : parts) {
    p = rounded_to_float(x);
    x -= p;
  }
  return parts;
}

void write_groups_header(FitsFile& file, const VisibilityTable& table,
                         const std::vector<const char*>& parameters) {
  int status = 0;
  long axes[] = {0, 3, 4, 1, 1, 1, 1};
  fits_write_grphdr(file.get(), 1, FLOAT_IMG, 7, axes, static_cast<LONGLONG>(parameters.size()),
                    static_cast<LONGLONG>(table.rows.size()), 1, &status);
  file.check(status, "header");
  const double ra =
      uv_preimage(table.ra_hours * 15, table.ra_hours, [](double d) { return d / 15; });
  file.put("OBJECT", table.source, "source");
  file.put("TELESCOP", std::string("VLBI"));
  file.put("INSTRUME", std::string("VLBI"));
  file.put("DATE-OBS", detail::date_of_mjd(table.mjd), "UTC day of the first visibility");
  file.put("MJD", static_cast<double>(table.mjd), "modified Julian day of DATE-OBS");
  file.put("BUNIT", std::string("JY"));
  file.put("BSCALE", 1.0);
  file.put("BZERO", 0.0);
  file.put("EPOCH", 2000.0);
  file.put("OBSRA", ra, "[deg]");
  file.put("OBSDEC", table.dec_deg, "[deg]");
  file.put("VELREF", int64_t{3});
  file.put("ALTRPIX", 1.0);
  const struct {
    const char* type;
    double value, step;
  } world[] = {{"COMPLEX", 1, 1}, {"STOKES", -1, -1}, {"FREQ", table.rf_hz, table.bw_hz},
               {"IF", 1, 1},      {"RA", ra, 1},      {"DEC", table.dec_deg, 1}};
  for (int64_t k = 2; k <= 7; ++k) {
    const auto& axis = world[k - 2];
    file.put(numbered("CTYPE", k), std::string(axis.type));
    file.put(numbered("CRVAL", k), axis.value);
    file.put(numbered("CDELT", k), axis.step);
    file.put(numbered("CRPIX", k), 1.0);
    file.put(numbered("CROTA", k), 0.0);
  }
  for (size_t k = 0; k < parameters.size(); ++k) {
    const int64_t n = static_cast<int64_t>(k) + 1;
    file.put(
        numbered("PTYPE", n), std::string(parameters[k]),
        k > 0 && !std::strcmp(parameters[k], parameters[k - 1]) ? "adds to the one before" : "");
    file.put(numbered("PSCAL", n), 1.0);
    file.put(numbered("PZERO", n), 0.0);
  }
}

void write_antennas(FitsFile& file, const VisibilityTable& table) {
  size_t width = 8;
  for (const auto& s : table.sites) width = std::max(width, s.name.size());
  std::string name_form = std::to_string(width) + "A";
  const char* names[] = {"ANNAME", "STABXYZ", "ORBPARM", "NOSTA", "MNTSTA",  "STAXOF", "POLTYA",
                         "POLAA",  "POLCALA", "POLTYB",  "POLAB", "POLCALB", "SEFD",   "SEFDL"};
  const char* forms[] = {name_form.c_str(),
                         "3D",
                         "1E",
                         "1J",
                         "1J",
                         "1E",
                         "1A",
                         "1E",
                         "3E",
                         "1A",
                         "1E",
                         "3E",
                         "1D",
                         "1D"};
  const char* units[] = {"",        "METERS", "", "",        "", "METERS", "",
                         "DEGREES", "",       "", "DEGREES", "", "JY",     "JY"};
  int status = 0;
  fits_create_tbl(file.get(), BINARY_TBL, static_cast<LONGLONG>(table.sites.size()), 14,
                  const_cast<char**>(names), const_cast<char**>(forms), const_cast<char**>(units),
                  "AIPS AN", &status);
  file.check(status, "antenna table");
  file.put("EXTVER", int64_t{1});
  file.put("ARRAYX", 0.0);
  file.put("ARRAYY", 0.0);
  file.put("ARRAYZ", 0.0);
  // Sidereal angle at 0h to 0.01 deg, which is what the key is used for.
  const double days = static_cast<double>(table.mjd) - 51544.5;
  file.put("GSTIA0", std::fmod(std::fmod(280.46061837 + 360.98564736629 * days, 360) + 360, 360),
           "[deg] Greenwich sidereal angle at 0h");
  file.put("DEGPDY", 360.9856);
  file.put("FREQ", table.rf_hz, "[Hz] reference frequency");
  file.put("RDATE", detail::date_of_mjd(table.mjd));
  file.put("POLARX", 0.0);
  file.put("POLARY", 0.0);
  file.put("UT1UTC", 0.0);
  file.put("DATUTC", 0.0);
  file.put("TIMSYS", std::string("UTC"));
  file.put("ARRNAM", std::string("VLBI"));
  file.put("XYZHAND", std::string("RIGHT"));
  file.put("FRAME", std::string("ITRF"));
  file.put("NUMORB", int64_t{0});
  file.put("NO_IF", int64_t{1});
  file.put("NOPCAL", int64_t{0});
  file.put("POLTYPE", std::string("APPROX"));
  file.put("FREQID", int64_t{1});

  for (size_t k = 0; k < table.sites.size(); ++k) {
    const Site& s = table.sites[k];
    const LONGLONG row = static_cast<LONGLONG>(k) + 1;
    const char* name = s.name.c_str();
    const char *right = "R", *left = "L";
    double xyz[] = {s.x, s.y, s.z}, sefd_r = s.sefd_r, sefd_l = s.sefd_l;
    float zeros[3] = {}, ninety = 90;
    int number = static_cast<int>(k) + 1, mount = 0;
    fits_write_col(file.get(), TSTRING, 1, row, 1, 1, &name, &status);
    fits_write_col(file.get(), TDOUBLE, 2, row, 1, 3, xyz, &status);
    fits_write_col(file.get(), TFLOAT, 3, row, 1, 1, zeros, &status);
    fits_write_col(file.get(), TINT, 4, row, 1, 1, &number, &status);
    fits_write_col(file.get(), TINT, 5, row, 1, 1, &mount, &status);
    fits_write_col(file.get(), TFLOAT, 6, row, 1, 1, zeros, &status);
    fits_write_col(file.get(), TSTRING, 7, row, 1, 1, &right, &status);
    fits_write_col(file.get(), TFLOAT, 8, row, 1, 1, zeros, &status);
    fits_write_col(file.get(), TFLOAT, 9, row, 1, 3, zeros, &status);
    fits_write_col(file.get(), TSTRING, 10, row, 1, 1, &left, &status);
    fits_write_col(file.get(), TFLOAT, 11, row, 1, 1, &ninety, &status);
    fits_write_col(file.get(), TFLOAT, 12, row, 1, 3, zeros, &status);
    fits_write_col(file.get(), TDOUBLE, 13, row, 1, 1, &sefd_r, &status);
    fits_write_col(file.get(), TDOUBLE, 14, row, 1, 1, &sefd_l, &status);
  }
  file.check(status, "antenna table");
}

void write_frequencies(FitsFile& file, const VisibilityTable& table) {
  const char* names[] = {"FRQSEL", "IF FREQ", "CH WIDTH", "TOTAL BANDWIDTH", "SIDEBAND"};
  const char* forms[] = {"1J", "1D", "1E", "1E", "1J"};
  const char* units[] = {"", "HZ", "HZ", "HZ", ""};
  int status = 0;
  fits_create_tbl(file.get(), BINARY_TBL, 1, 5, const_cast<char**>(names),
                  const_cast<char**>(forms), const_cast<char**>(units), "AIPS FQ", &status);
  file.check(status, "frequency table");
  file.put("EXTVER", int64_t{1});
  file.put("NO_IF", int64_t{1});
  int one = 1;
  double offset = 0;
  float width = static_cast<float>(table.bw_hz);
  fits_write_col(file.get(), TINT, 1, 1, 1, 1, &one, &status);
  fits_write_col(file.get(), TDOUBLE, 2, 1, 1, 1, &offset, &status);
  fits_write_col(file.get(), TFLOAT, 3, 1, 1, 1, &width, &status);
  fits_write_col(file.get(), TFLOAT, 4, 1, 1, 1, &width, &status);
  fits_write_col(file.get(), TINT, 5, 1, 1, 1, &one, &status);
  file.check(status, "frequency table");
}

}  // namespace

void write_uvfits(const std::filesystem::path& path, const VisibilityTable& table) {
  SP_CHECK(!table.rows.empty(), "write_uvfits", "expected at least one visibility");
  SP_CHECK(table.sites.size() <= 255, "write_uvfits", "expected at most 255 sites, got ",
           table.sites.size());
  SP_CHECK(table.rf_hz > 0, "write_uvfits", "expected a positive frequency, got ", table.rf_hz);
  for (const auto& r : table.rows)
    SP_CHECK(std::isfinite(r.sigma) && r.sigma > 0 && std::isfinite(r.vis.real()) &&
                 std::isfinite(r.vis.imag()) && std::isfinite(r.u) && std::isfinite(r.v),
             "write_uvfits", "expected finite visibilities with sigma > 0");
  // A float32 holds 24 bits; repeated parameters, whose sum is the value, carry the rest. Readers
  // that take only the first of a name get u and v to 6e-8, and time (day + fraction) to 3 ms.
  const std::vector<const char*> parameters = {"UU---SIN", "UU---SIN", "UU---SIN", "VV---SIN",
                                               "VV---SIN", "VV---SIN", "WW---SIN", "BASELINE",
                                               "DATE",     "DATE",     "DATE",     "INTTIM",
                                               "INTTIM",   "INTTIM",   "TAU1",     "TAU2"};
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    FitsFile file = FitsFile::create(temporary, path);
    write_groups_header(file, table, parameters);
    int status = 0;
    LONGLONG group = 0;
    for (const auto& r : table.rows) {
      ++group;
      const auto to_wavelengths = [&](double seconds) { return seconds * table.rf_hz; };
      const auto u = float_parts<3>(uv_preimage(r.u / table.rf_hz, r.u, to_wavelengths));
      const auto v = float_parts<3>(uv_preimage(r.v / table.rf_hz, r.v, to_wavelengths));
      const double midnight = static_cast<double>(table.mjd) + kMjdZero;
      const double jd = uv_preimage(midnight + r.time / 24, r.time, [&](double d) {
        return (d - kMjdZero - static_cast<double>(table.mjd)) * 24.0;
      });
      // Cut at 2^-24 day, so that day + fraction is exact in a double as is the sum with the rest.
      const float day = rounded_to_float(midnight);
      const double fraction = jd - day,
                   coarse = std::nearbyint(std::ldexp(fraction, 24)) / 16777216.0;
      const auto tint = float_parts<3>(r.tint);
      float head[] = {u[0],
                      u[1],
                      u[2],
                      v[0],
                      v[1],
                      v[2],
                      0,
                      static_cast<float>(256 * (r.t1 + 1) + r.t2 + 1),
                      day,
                      rounded_to_float(coarse),
                      rounded_to_float(fraction - rounded_to_float(coarse)),
                      tint[0],
                      tint[1],
                      tint[2],
                      static_cast<float>(r.tau1),
                      static_cast<float>(r.tau2)};
      fits_write_grppar_flt(file.get(), group, 1, static_cast<long>(parameters.size()), head,
                            &status);
      const float re = static_cast<float>(r.vis.real()), im = static_cast<float>(r.vis.imag());
      const float weight = static_cast<float>(1 / (2 * r.sigma * r.sigma));
      float cells[12] = {re, im, weight, re, im, weight, 0, 0, 0, 0, 0, 0};
      fits_write_img_flt(file.get(), group, 1, 12, cells, &status);
      file.check(status, "visibilities");
    }
    write_antennas(file, table);
    write_frequencies(file, table);
    file.close();
  });
}

}  // namespace scoreprior::io
