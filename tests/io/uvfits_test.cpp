#include "scoreprior/io/uvfits.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior::io {
namespace {

namespace fs = std::filesystem;

fs::path uv_scratch() {
  static const fs::path dir = [] {
    auto d = fs::temp_directory_path() / ("sp-uvfits-" + std::to_string(::getpid()));
    fs::create_directories(d);
    return d;
  }();
  return dir;
}

// volatile: GCC 12 at -O2 may drop a rounding to float32 that it vectorises.
float uv_float(double x) {
  volatile float f = static_cast<float>(x);
  return f;
}

// Four sites, three times; every number is what the file holds: float32 vis, tint and opacity,
// dates on the grid of a double near JD 2.4 million (2^-31 day).
VisibilityTable uv_table() {
  VisibilityTable t;
  t.source = "M87";
  t.ra_hours = 187.7059307575226 / 15;
  t.dec_deg = 12.39112323919932;
  t.rf_hz = 227070703125.0;
  t.bw_hz = 1.856e9;
  t.mjd = 57848;
  t.sites = {{"LM", -768713.9637, -5988541.7982, 2063275.9472, 0, 0},
             {"AA", 2225061.164, -5440057.37, -2481681.15, 0, 0},
             {"PV", 5088967.9, -301681.6, 3825015.8, 0, 0},
             {"AZ", -1828796.2, -5054406.8, 3427865.2, 0, 0}};
  const auto z = Rng(3).normals(400);
  size_t k = 0;
  for (int step = 0; step < 3; ++step)
    for (int32_t i = 0; i < 4; ++i)
      for (int32_t j = i + 1; j < 4; ++j) {
        VisibilityRow r;
        const double jd = 2457848.5 + 0.0320023 + step * 0.00694441;
        r.time = (jd - 2400000.5 - 57848) * 24.0;
        r.tint = uv_float(10 + z[k++]);
        r.t1 = i, r.t2 = j;
        r.tau1 = uv_float(std::abs(z[k++]));
        r.tau2 = uv_float(std::abs(z[k++]));
        r.u = (0.01 * z[k++]) * t.rf_hz;
        r.v = (0.01 * z[k++]) * t.rf_hz;
        r.vis = {uv_float(z[k]), uv_float(z[k + 1])};
        k += 2;
        const float weight = uv_float(1e4 * (1 + std::abs(z[k++])));
        r.sigma = std::sqrt(1 / static_cast<double>(weight) + 1 / static_cast<double>(weight)) / 2;
        t.rows.push_back(r);
      }
  arrange(t);
  return t;
}

void expect_equal_tables(const VisibilityTable& a, const VisibilityTable& b) {
  EXPECT_EQ(a.source, b.source);
  EXPECT_EQ(a.ra_hours, b.ra_hours);
  EXPECT_EQ(a.dec_deg, b.dec_deg);
  EXPECT_EQ(a.rf_hz, b.rf_hz);
  EXPECT_EQ(a.bw_hz, b.bw_hz);
  EXPECT_EQ(a.mjd, b.mjd);
  ASSERT_EQ(a.sites.size(), b.sites.size());
  for (size_t s = 0; s < a.sites.size(); ++s) {
    EXPECT_EQ(a.sites[s].name, b.sites[s].name);
    EXPECT_EQ(a.sites[s].x, b.sites[s].x);
    EXPECT_EQ(a.sites[s].y, b.sites[s].y);
    EXPECT_EQ(a.sites[s].z, b.sites[s].z);
    EXPECT_EQ(a.sites[s].sefd_r, b.sites[s].sefd_r);
    EXPECT_EQ(a.sites[s].sefd_l, b.sites[s].sefd_l);
  }
  ASSERT_EQ(a.rows.size(), b.rows.size());
  int64_t different = 0;
  for (size_t k = 0; k < a.rows.size(); ++k) {
    const auto &p = a.rows[k], &q = b.rows[k];
    different += p.time != q.time || p.tint != q.tint || p.t1 != q.t1 || p.t2 != q.t2 ||
                 p.tau1 != q.tau1 || p.tau2 != q.tau2 || p.u != q.u || p.v != q.v ||
                 p.vis != q.vis || p.sigma != q.sigma;
  }
  EXPECT_EQ(different, 0);
}

// max |table - golden| and, for u, v, vis, sigma, max relative.
void expect_golden_table(const VisibilityTable& t, const testing::GoldenCase& g,
                         const std::string& prefix, int64_t first_rows = 0) {
  const at::Tensor time = g.array(prefix + "time");
  const int64_t n = time.size(0);
  ASSERT_EQ(first_rows ? std::min<int64_t>(first_rows, static_cast<int64_t>(t.rows.size()))
                       : static_cast<int64_t>(t.rows.size()),
            n);
  const at::Tensor u = g.array(prefix + "u"), v = g.array(prefix + "v"),
                   vis = g.array(prefix + "vis"), sigma = g.array(prefix + "sigma"),
                   tint = g.array(prefix + "tint"), t1 = g.array(prefix + "t1_index"),
                   t2 = g.array(prefix + "t2_index");
  const double* pt = time.data_ptr<double>();
  const double *pu = u.data_ptr<double>(), *pv = v.data_ptr<double>(),
               *ps = sigma.data_ptr<double>(), *pi = tint.data_ptr<double>();
  const auto* pc = vis.data_ptr<c10::complex<double>>();
  const int64_t *p1 = t1.data_ptr<int64_t>(), *p2 = t2.data_ptr<int64_t>();
  double worst_exact = 0, worst = 0;
  int64_t other_pair = 0;
  for (int64_t k = 0; k < n; ++k) {
    const auto& r = t.rows[static_cast<size_t>(k)];
    const double scale = std::hypot(pu[k], pv[k]);
    worst_exact = std::max({worst_exact, std::abs(r.time - pt[k]), std::abs(r.tint - pi[k])});
    if (scale > 0)
      worst_exact =
          std::max({worst_exact, std::abs(r.u - pu[k]) / scale, std::abs(r.v - pv[k]) / scale});
    const std::complex<double> c(pc[k].real(), pc[k].imag());
    worst = std::max({worst, std::abs(r.vis - c) / std::abs(c), std::abs(r.sigma - ps[k]) / ps[k]});
    other_pair += r.t1 != p1[k] || r.t2 != p2[k];
  }
  EXPECT_EQ(other_pair, 0);
  EXPECT_LT(worst_exact, 1e-10);
  EXPECT_LT(worst, 3e-7);  // the reference computes vis and sigma in float32
  EXPECT_EQ(t.mjd, static_cast<int64_t>(g.scalar("mjd")));
  EXPECT_NEAR(t.ra_hours, g.scalar("ra"), 1e-14);
  EXPECT_NEAR(t.dec_deg, g.scalar("dec"), 1e-14);
  EXPECT_EQ(t.rf_hz, g.scalar("rf"));
  EXPECT_EQ(t.bw_hz, g.scalar("bw"));
}

// What reading the file says: "" when it works, else the message; anything but the two right
// exceptions fails.
std::string uv_complaint(const fs::path& path) {
  try {
    read_uvfits(path);
    return "";
  } catch (const DataError& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find(path.string()), std::string::npos) << what;
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    return what;
  }
}

// Replaces the 80-character card of `key` (the occurrence number `which`).
std::string with_card(std::string bytes, const std::string& key, const std::string& card,
                      size_t which = 0) {
  for (size_t at = 0; at + 80 <= bytes.size(); at += 80)
    if (bytes.compare(at, 9, (key + "        ").substr(0, 8) + "=") == 0 && which-- == 0) {
      bytes.replace(at, 80, (card + std::string(80, ' ')).substr(0, 80));
      return bytes;
    }
  ADD_FAILURE() << "no card " << key;
  return bytes;
}

std::string integer_card(const std::string& key, const std::string& value) {
  return (key + "        ").substr(0, 8) + "= " + std::string(20 - value.size(), ' ') + value;
}

void uv_put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST(Uvfits, WritesAndReadsBitEqual) {
  const auto path = uv_scratch() / "a.uvfits";
  const VisibilityTable t = uv_table();
  write_uvfits(path, t);
  expect_equal_tables(t, read_uvfits(path));
}

TEST(Uvfits, KeepsAnyDoubleToItsLastBits) {
  // Values off the grid of the file: u, v, tint to an ulp; times to the 40 microseconds of a double
  // Julian date.
  VisibilityTable t = uv_table();
  const auto z = Rng(5).normals(static_cast<int64_t>(4 * t.rows.size()));
  for (size_t k = 0; k < t.rows.size(); ++k) {
    t.rows[k].u *= 1 + 1e-9 * z[4 * k];
    t.rows[k].v *= 1 + 1e-9 * z[4 * k + 1];
    t.rows[k].tint *= 1 + 1e-9 * z[4 * k + 2];
    t.rows[k].time += 1e-7;
  }
  arrange(t);
  const auto path = uv_scratch() / "b.uvfits";
  write_uvfits(path, t);
  const VisibilityTable back = read_uvfits(path);
  ASSERT_EQ(back.rows.size(), t.rows.size());
  for (size_t k = 0; k < t.rows.size(); ++k) {
    EXPECT_NEAR(back.rows[k].u / t.rows[k].u, 1, 3e-16);
    EXPECT_NEAR(back.rows[k].v / t.rows[k].v, 1, 3e-16);
    EXPECT_EQ(back.rows[k].tint, t.rows[k].tint);
    EXPECT_NEAR(back.rows[k].time, t.rows[k].time, 24 * 0x1p-31);
    EXPECT_EQ(back.rows[k].time == back.rows[0].time, t.rows[k].time == t.rows[0].time);
  }
}

TEST(Uvfits, KeepsBothSensitivities) {
  VisibilityTable t = uv_table();
  for (size_t s = 0; s < t.sites.size(); ++s)
    t.sites[s].sefd_r = t.sites[s].sefd_l = 5000.0 - 1000 * s;
  t.sites[2].sefd_l = 3500;
  sort_sites_by_sefd(t);
  EXPECT_EQ(t.sites[0].name, "AZ");
  const auto path = uv_scratch() / "c.uvfits";
  write_uvfits(path, t);
  expect_equal_tables(t, read_uvfits(path));
}

TEST(Uvfits, DemoObservationEqualsTheReference) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  const testing::GoldenCase g("interferometry/demo_obs");
  const VisibilityTable t = read_uvfits(testing::shared_dir() / "data/eht/obs.uvfits");
  EXPECT_EQ(t.source, "SgrA");
  expect_golden_table(t, g, "obs_");
  const auto path = uv_scratch() / "demo.uvfits";
  write_uvfits(path, t);
  expect_equal_tables(t, read_uvfits(path));
}

TEST(Uvfits, M87EqualsTheReference) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  const VisibilityTable t = read_uvfits(testing::shared_dir() /
                                        "data/eht/SR1_M87_2017_095_lo_hops_netcal_StokesI.uvfits");
  expect_golden_table(t, testing::GoldenCase("interferometry/m87_095_lo"), "raw_");
  expect_golden_table(t, testing::GoldenCase("interferometry/m87_095_lo_raw"), "obs_", 400);
  const auto path = uv_scratch() / "m87.uvfits";
  write_uvfits(path, t);
  expect_equal_tables(t, read_uvfits(path));
}

TEST(Uvfits, AstropyReadsWhatWeWrite) {
  if (std::system("/usr/bin/python3 -c 'import astropy' > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "no python3 with astropy";
  const auto path = uv_scratch() / "astropy.uvfits", script = uv_scratch() / "read.py",
             said = uv_scratch() / "said.txt";
  const VisibilityTable t = uv_table();
  write_uvfits(path, t);
  write_text(script, R"(
import sys
from astropy.io import fits
h = fits.open(sys.argv[1], memmap=False)
h.verify('exception')
d, an, fq = h[0].data, h['AIPS AN'], h['AIPS FQ']
print(len(d), an.data['ANNAME'][0].strip(), an.header['FREQ'], fq.data['CH WIDTH'][0])
for k in range(len(d)):
    x = d['DATA'][k].reshape(4, 3)
    print(*[repr(float(y)) for y in (d['BASELINE'][k], d.par('UU---SIN')[k], d['UU---SIN'][k],
            float(d['DATE'][k]) - 2400000.5 + float(d['_DATE'][k]), x[0, 0], x[1, 1], x[0, 2], x[2, 2])])
h.close()
)");
  ASSERT_EQ(std::system(("/usr/bin/python3 -W error " + script.string() + " " + path.string() +
                         " > " + said.string())
                            .c_str()),
            0);
  std::istringstream in(read_text(said));
  size_t n = 0;
  std::string name;
  double freq = 0, width = 0;
  in >> n >> name >> freq >> width;
  EXPECT_EQ(n, t.rows.size());
  EXPECT_EQ(name, "LM");
  EXPECT_EQ(freq, t.rf_hz);
  EXPECT_NEAR(width / t.bw_hz, 1, 1e-7);
  for (const auto& r : t.rows) {
    double baseline, u_sum, u_first, mjd, re, im, weight, cross_weight;
    ASSERT_TRUE(in >> baseline >> u_sum >> u_first >> mjd >> re >> im >> weight >> cross_weight);
    EXPECT_EQ(baseline, 256 * (r.t1 + 1) + r.t2 + 1);
    EXPECT_NEAR(u_sum * t.rf_hz / r.u, 1, 1e-15);
    EXPECT_NEAR(u_first * t.rf_hz / r.u, 1, 6e-8);          // one float32
    EXPECT_NEAR((mjd - 57848) * 24, r.time, 24 * 0x1p-24);  // day and float32 fraction
    EXPECT_EQ(re, r.vis.real());
    EXPECT_EQ(im, r.vis.imag());
    EXPECT_NEAR(weight * 2 * r.sigma * r.sigma, 1, 1e-7);
    EXPECT_EQ(cross_weight, 0);
  }
}

TEST(Uvfits, OneFlaggedHandLeavesTheOther) {
  VisibilityTable t = uv_table();
  const auto path = uv_scratch() / "d.uvfits";
  write_uvfits(path, t);
  std::string bytes = read_text(path);
  // Group 1 begins after the header: 16 parameters, then RR (re, im, weight), LL, ...; big-endian
  // float32.
  const size_t data = (bytes.find("END" + std::string(77, ' ')) / 2880 + 1) * 2880;
  const auto put = [&](size_t at, float x) {
    uint32_t w;
    std::memcpy(&w, &x, 4);
    for (int b = 0; b < 4; ++b)
      bytes[data + 4 * at + static_cast<size_t>(b)] = static_cast<char>(w >> (24 - 8 * b));
  };
  put(18, 0);   // weight of RR
  put(16, 99);  // its value must not matter
  uv_put(path, bytes);
  VisibilityTable back = read_uvfits(path);
  EXPECT_EQ(back.rows[0].vis, t.rows[0].vis);
  EXPECT_NEAR(back.rows[0].sigma / t.rows[0].sigma, std::sqrt(2.0), 1e-14);
  put(21, -1);  // and of LL: the row is gone
  uv_put(path, bytes);
  back = read_uvfits(path);
  EXPECT_EQ(back.rows.size(), t.rows.size() - 1);
  put(21, 5);
  put(19, std::nanf(""));
  uv_put(path, bytes);
  EXPECT_NE(uv_complaint(path).find("visibility 1 is not a number"), std::string::npos);
  put(19, 1);
  put(21, INFINITY);
  uv_put(path, bytes);
  EXPECT_NE(uv_complaint(path).find("infinite weight"), std::string::npos);
  put(21, 5);
  put(0, std::nanf(""));
  uv_put(path, bytes);
  EXPECT_NE(uv_complaint(path).find("no finite u, v"), std::string::npos);
  put(0, 0);
  put(7, 99);
  uv_put(path, bytes);
  EXPECT_NE(uv_complaint(path).find("baseline"), std::string::npos);
  put(7, 256 * 9 + 1);
  uv_put(path, bytes);
  EXPECT_NE(uv_complaint(path).find("station that the antenna table lacks"), std::string::npos);
}

TEST(Uvfits, DamagedFilesAreDataErrors) {
  const auto good = uv_scratch() / "good.uvfits", bad = uv_scratch() / "bad.uvfits";
  write_uvfits(good, uv_table());
  const std::string bytes = read_text(good);
  EXPECT_THROW(read_uvfits(uv_scratch() / "absent.uvfits"), MissingFileError);
  EXPECT_THROW(read_uvfits(uv_scratch()), MissingFileError);
  uv_put(bad, "");
  EXPECT_NE(uv_complaint(bad).find("not a FITS file"), std::string::npos);
  uv_put(bad, std::string("\x1f\x8b") + bytes);
  EXPECT_NE(uv_complaint(bad).find("gzip"), std::string::npos);
  // Every block boundary and some more: all but the whole file is refused (the last block is the
  // frequency table).
  for (size_t n = 1; n < bytes.size() - 2 * 2880; n += 977) {
    uv_put(bad, bytes.substr(0, n));
    EXPECT_NE(uv_complaint(bad), "") << n;
  }
  for (const char* count : {"9223372036854775807", "99999999999", "1000000", "-5"}) {
    uv_put(bad, with_card(bytes, "GCOUNT", integer_card("GCOUNT", count)));
    EXPECT_NE(uv_complaint(bad), "") << count;
  }
  uv_put(bad, with_card(bytes, "GCOUNT", integer_card("GCOUNT", "0")));
  EXPECT_NE(uv_complaint(bad).find("no visibilities"), std::string::npos);
  for (const char* count : {"2147483647", "1000000000", "-1", "0"})
    for (const char* axis : {"NAXIS2", "NAXIS3", "NAXIS4", "NAXIS6"}) {
      uv_put(bad, with_card(bytes, axis, integer_card(axis, count)));
      EXPECT_NE(uv_complaint(bad), "") << axis << count;
    }
  uv_put(bad, with_card(bytes, "PCOUNT", integer_card("PCOUNT", "2000000000")));
  EXPECT_NE(uv_complaint(bad), "");
  uv_put(bad, with_card(bytes, "TFIELDS", integer_card("TFIELDS", "130108526")));
  EXPECT_NE(uv_complaint(bad).find("TFIELDS"), std::string::npos);
  uv_put(bad, with_card(bytes, "EXTNAME", "EXTNAME = 'SOMETHING'"));
  EXPECT_NE(uv_complaint(bad).find("no antenna table"), std::string::npos);
  uv_put(bad, with_card(bytes, "CTYPE3", "CTYPE3  = 'SOMETHING'"));
  EXPECT_NE(uv_complaint(bad), "");
  uv_put(bad, with_card(bytes, "PTYPE9", "PTYPE9  = 'SOMETHING'"));
  const VisibilityTable late =
      read_uvfits(bad);  // dates of 0.03 days: a valid, if odd, sum of the other two
  EXPECT_LT(late.mjd, 0);
  uv_put(bad, bytes.substr(0, bytes.find("XTENSION")));
  EXPECT_NE(uv_complaint(bad).find("no antenna table"), std::string::npos);

  SkyImage image;
  image.pixels = at::ones({4, 4}, at::kDouble);
  image.pixel_size_rad = 1e-11;
  write_fits_image(bad, image);
  EXPECT_NE(uv_complaint(bad).find("a FITS image, not a UVFITS file"), std::string::npos);
}

TEST(Uvfits, FlippedBytesNeverCrash) {
  const auto good = uv_scratch() / "good.uvfits", bad = uv_scratch() / "fuzz.uvfits";
  write_uvfits(good, uv_table());
  const std::string bytes = read_text(good);
  const auto place = Rng(1).uniforms(3 * 300);
  for (size_t k = 0; k < 300; ++k) {
    std::string broken = bytes;
    for (size_t j = 0; j < 1 + k % 3; ++j) {
      const size_t at = static_cast<size_t>(place[3 * k + j] * static_cast<double>(bytes.size()));
      broken[at] =
          k % 2 ? static_cast<char>(place[3 * k + (j + 1) % 3] * 256) : "0123456789 '=-TF"[at % 16];
    }
    uv_put(bad, broken);
    uv_complaint(bad);  // any exception but DataError fails the test
  }
}

TEST(Uvfits, UnwritableFoldersAndBadTablesAreRefused) {
  EXPECT_THROW(write_uvfits(uv_scratch() / "no" / "such.uvfits", uv_table()), CannotCreateError);
  EXPECT_THROW(write_uvfits(uv_scratch() / "x.uvfits", VisibilityTable{}), std::invalid_argument);
  VisibilityTable t = uv_table();
  t.rows[0].sigma = 0;
  EXPECT_THROW(write_uvfits(uv_scratch() / "x.uvfits", t), std::invalid_argument);
  EXPECT_FALSE(fs::exists(uv_scratch() / "x.uvfits"));
  t = uv_table();
  write_uvfits(uv_scratch() / "brackets[1].uvfits", t);  // not cfitsio's extended file name syntax
  expect_equal_tables(t, read_uvfits(uv_scratch() / "brackets[1].uvfits"));
}

}  // namespace scoreprior::io
