#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/uvfits.h"

namespace scoreprior::io {
namespace {

namespace fs = std::filesystem;

// What astropy finds in a UVFITS file, as doubles: per group u, v [s], date [JD], baseline, tint,
// tau1, tau2, then real, imaginary, weight of RR and of LL; antenna positions behind them.
constexpr const char* kAstropyScript = R"(
import sys
import numpy
from astropy.io import fits
with fits.open(sys.argv[1]) as f:
    d = f[0].data
    columns = [d.par(k) for k in ("UU---SIN", "VV---SIN", "DATE", "BASELINE", "INTTIM", "TAU1", "TAU2")]
    cells = d.data.reshape(len(d), -1, 3)[:, :2].reshape(len(d), 6)
    table = numpy.column_stack([numpy.asarray(c, "f8") for c in columns] + [cells.astype("f8")])
    header = f[0].header
    an = f["AIPS AN"]
    numpy.concatenate([
        [len(d), table.shape[1], header["OBSRA"], header["OBSDEC"], an.header["FREQ"], len(an.data)],
        table.ravel(), numpy.asarray(an.data["STABXYZ"], "f8").ravel()]).astype("<f8").tofile(sys.argv[2])
    open(sys.argv[3], "w").write(header["OBJECT"] + " " + " ".join(s.strip() for s in an.data["ANNAME"]))
)";

VisibilityTable random_table() {
  VisibilityTable t;
  t.source = "M87";
  t.ra_hours = 187.7059307575226 / 15;
  t.dec_deg = 12.39112323919932;
  t.rf_hz = 227070703125.0;
  t.bw_hz = 1.856e9;
  t.mjd = 57848;
  t.sites = {{"AA", 2225061.164, -5440057.37, -2481681.15, 70, 70},
             {"LM", -768713.9637, -5988541.7982, 2063275.9472, 600, 600},
             {"PV", 5088967.9, -301681.6, 3825015.8, 1900, 1900}};
  const auto z = Rng(11).normals(600);
  size_t k = 0;
  for (int step = 0; step < 12; ++step)
    for (int32_t i = 0; i < 3; ++i)
      for (int32_t j = i + 1; j < 3; ++j) {
        VisibilityRow r;
        r.time = 0.75 + 0.1666666667 * step;
        r.tint = 10 + z[k++];
        r.t1 = i, r.t2 = j;
        r.tau1 = std::abs(z[k++]), r.tau2 = std::abs(z[k++]);
        r.u = 3e9 * z[k++], r.v = 3e9 * z[k++];
        r.vis = {z[k], z[k + 1]};
        k += 2;
        r.sigma = 0.01 * (1 + std::abs(z[k++]));
        t.rows.push_back(r);
      }
  sort_sites_by_sefd(t);
  return t;
}

// Bit for bit: the numbers in the file are the same whoever reads them.
TEST(Uvfits, AstropyReadsTheSameNumbers) {
  std::string python;
  for (const char* p : {"python3", "/usr/bin/python3"})
    if (python.empty() &&
        std::system((std::string(p) + " -c 'import astropy' >/dev/null 2>&1").c_str()) == 0)
      python = p;
  if (python.empty()) GTEST_SKIP() << "python3 has no astropy";
  const fs::path folder = fs::temp_directory_path() / ("sp-astropy-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  write_text(folder / "read.py", kAstropyScript);
  write_uvfits(folder / "x.uvfits", random_table());
  const std::string command = python + " '" + (folder / "read.py").string() + "' '" +
                              (folder / "x.uvfits").string() + "' '" + (folder / "x.bin").string() +
                              "' '" + (folder / "x.txt").string() + "'";
  ASSERT_EQ(std::system(command.c_str()), 0);
  const std::string bytes = read_text(folder / "x.bin"), names = read_text(folder / "x.txt");
  const VisibilityTable t = read_uvfits(folder / "x.uvfits");
  fs::remove_all(folder);
  std::vector<double> d(bytes.size() / sizeof(double));
  std::memcpy(d.data(), bytes.data(), d.size() * sizeof(double));
  constexpr size_t kHead = 6, kColumns = 13;
  ASSERT_GE(d.size(), kHead);
  ASSERT_EQ(d[0], static_cast<double>(t.rows.size()));
  ASSERT_EQ(d[1], kColumns);
  ASSERT_EQ(d.size(), kHead + kColumns * t.rows.size() + 3 * t.sites.size());
  EXPECT_EQ(names, "M87 AA LM PV");
  EXPECT_EQ(d[2] / 15, t.ra_hours);
  EXPECT_EQ(d[3], t.dec_deg);
  EXPECT_EQ(d[4], t.rf_hz);
  int64_t different = 0;
  for (size_t k = 0; k < t.rows.size(); ++k) {
    const double* g = d.data() + kHead + kColumns * k;
    const VisibilityRow& r = t.rows[k];
    const double weight = g[9], sigma = std::sqrt(1 / weight + 1 / g[12]) / 2;
    different += g[0] * t.rf_hz != r.u || g[1] * t.rf_hz != r.v ||
                 (g[2] - 2400000.5 - static_cast<double>(t.mjd)) * 24 != r.time ||
                 g[3] != 256 * (r.t1 + 1) + r.t2 + 1 || g[4] != r.tint || g[5] != r.tau1 ||
                 g[6] != r.tau2 || (g[7] + g[10]) / 2 != r.vis.real() ||
                 (g[8] + g[11]) / 2 != r.vis.imag() || sigma != r.sigma;
  }
  EXPECT_EQ(different, 0);
  for (size_t s = 0; s < t.sites.size(); ++s) {
    const double* p = d.data() + kHead + kColumns * t.rows.size() + 3 * s;
    EXPECT_EQ(p[0], t.sites[s].x);
    EXPECT_EQ(p[1], t.sites[s].y);
    EXPECT_EQ(p[2], t.sites[s].z);
  }
}

}  // namespace
}  // namespace scoreprior::io
