#include "scoreprior/data/visibilities.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;

// The table stored in a reference case, without passing through a file.
VisibilityTable golden_table(const GoldenCase& g, const std::string& prefix) {
  VisibilityTable t;
  t.ra_hours = g.scalar("ra");
  t.dec_deg = g.scalar("dec");
  t.rf_hz = g.scalar("rf");
  t.mjd = static_cast<int64_t>(g.scalar("mjd"));
  const at::Tensor xyz = g.array(prefix + "tarr_xyz"), sefd = g.array(prefix + "tarr_sefd");
  std::ifstream in(g.folder() / (prefix + "tarr.json"));
  const auto names = nlohmann::json::parse(in).at("site").get<std::vector<std::string>>();
  for (int64_t s = 0; s < xyz.size(0); ++s)
    t.sites.push_back({names[static_cast<size_t>(s)], xyz[s][0].item<double>(),
                       xyz[s][1].item<double>(), xyz[s][2].item<double>(),
                       sefd[s][0].item<double>(), sefd[s][1].item<double>()});
  std::map<std::string, at::Tensor> a;
  for (const char* name :
       {"time", "tint", "u", "v", "tau1", "tau2", "vis", "sigma", "t1_index", "t2_index"})
    a[name] = g.array(prefix + name);
  const auto real = [&](const char* name, int64_t k) { return a.at(name).data_ptr<double>()[k]; };
  for (int64_t k = 0; k < a.at("u").size(0); ++k) {
    VisibilityRow r;
    r.time = real("time", k);
    r.tint = real("tint", k);
    r.t1 = static_cast<int32_t>(a.at("t1_index").data_ptr<int64_t>()[k]);
    r.t2 = static_cast<int32_t>(a.at("t2_index").data_ptr<int64_t>()[k]);
    r.tau1 = real("tau1", k);
    r.tau2 = real("tau2", k);
    r.u = real("u", k);
    r.v = real("v", k);
    const auto c = a.at("vis").data_ptr<c10::complex<double>>()[k];
    r.vis = {c.real(), c.imag()};
    r.sigma = real("sigma", k);
    t.rows.push_back(r);
  }
  return t;
}

// Same rows, sites and order; numbers within `tolerance` (relative to |uv|, |V|, sigma), time
// exact.
void expect_same_table(const VisibilityTable& t, const VisibilityTable& want, double tolerance) {
  ASSERT_EQ(t.sites.size(), want.sites.size());
  for (size_t s = 0; s < t.sites.size(); ++s) EXPECT_EQ(t.sites[s].name, want.sites[s].name);
  ASSERT_EQ(t.rows.size(), want.rows.size());
  double worst = 0, worst_time = 0;
  int64_t other_pair = 0;
  for (size_t k = 0; k < t.rows.size(); ++k) {
    const auto &p = t.rows[k], &q = want.rows[k];
    other_pair += p.t1 != q.t1 || p.t2 != q.t2;
    const double uv = std::max(std::hypot(q.u, q.v), 1e-300);
    worst = std::max({worst, std::abs(p.u - q.u) / uv, std::abs(p.v - q.v) / uv,
                      std::abs(p.vis - q.vis) / std::abs(q.vis),
                      std::abs(p.sigma - q.sigma) / q.sigma, std::abs(p.tint - q.tint) / q.tint});
    worst_time = std::max(worst_time, std::abs(p.time - q.time));
  }
  EXPECT_EQ(other_pair, 0);
  EXPECT_LT(worst, tolerance);
  EXPECT_EQ(worst_time, 0);
}

double worst_sigma(const VisibilityTable& t, const at::Tensor& want) {
  double worst = 0;
  for (size_t k = 0; k < t.rows.size(); ++k)
    worst = std::max(worst, std::abs(t.rows[k].sigma / want.data_ptr<double>()[k] - 1));
  return worst;
}

VisibilityRow vis_row(double time, int32_t t1, int32_t t2, double u, std::complex<double> vis,
                      double sigma) {
  VisibilityRow r;
  r.time = time;
  r.tint = 10;
  r.t1 = t1, r.t2 = t2;
  r.u = u;
  r.vis = vis;
  r.sigma = sigma;
  return r;
}

VisibilityTable small_table() {
  VisibilityTable t;
  t.source = "M87";
  t.ra_hours = 12.5;
  t.dec_deg = 12.4;
  t.rf_hz = 2.27e11;
  t.bw_hz = 1.8e9;
  t.mjd = 57848;
  t.sites = {{"AA", 0, 0, 0, 0, 0},
             {"AP", 2e3, 0, 0, 0, 0},
             {"LM", 5e6, 0, 0, 0, 0},
             {"SR", 6e6, 0, 0, 0, 0}};
  t.rows = {
      vis_row(1.0, 0, 1, 1e6, {1.0, 0.1}, 0.01),     vis_row(1.0, 0, 2, 4e9, {0.2, 0.3}, 0.02),
      vis_row(1.0, 1, 2, 4.1e9, {0.3, 0.2}, 0.05),   vis_row(1.003, 0, 1, 3e6, {1.2, 0.3}, 0.02),
      vis_row(1.003, 0, 2, 4.2e9, {0.4, 0.1}, 0.04), vis_row(2.0, 0, 1, 2e6, {0.8, 0.0}, 0.01)};
  arrange(t);
  return t;
}

std::string eht_file(const std::string& what) {
  return (testing::shared_dir() / "data/eht" /
          ("SR1_M87_2017_" + what + "_hops_netcal_StokesI.uvfits"))
      .string();
}

}  // namespace

TEST(Visibilities, ScanAverageEqualsTheReference) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  const GoldenCase g("interferometry/m87_095_lo");
  const VisibilityTable raw = golden_table(g, "raw_");
  const auto limits = scans(raw, 0.0165);
  const at::Tensor want = g.array("raw_scans");
  ASSERT_EQ(static_cast<int64_t>(limits.size()), want.size(0));
  for (size_t k = 0; k < limits.size(); ++k) {
    EXPECT_NEAR(limits[k].first, want[static_cast<int64_t>(k)][0].item<double>(), 1e-14);
    EXPECT_NEAR(limits[k].second, want[static_cast<int64_t>(k)][1].item<double>(), 1e-14);
  }
  // Sums of up to 66 terms, in another order than the reference's.
  expect_same_table(scan_average(raw), golden_table(g, "obs_"), 1e-14);
}

TEST(Visibilities, PreparationFromTheFileEqualsTheReference) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  const GoldenCase g("interferometry/m87_095_lo");
  const VisibilityTable raw = io::read_uvfits(eht_file("095_lo"));
  VisibilityOptions options;
  options.scan_average = true;
  expect_same_table(prepare(raw, options), golden_table(g, "obs_"),
                    3e-7);  // float32 in the reference
  options.zero_baseline_flux = 0.6;
  options.drop_empty_sites = true;
  options.order_by_snr = true;
  expect_same_table(prepare(raw, options), golden_table(g, "pre_"), 3e-7);
}

TEST(Visibilities, StepsEqualTheReferenceInDouble) {
  for (const char* name : {"interferometry/m87_095_lo", "interferometry/m87_095_lo_raw"}) {
    SP_REQUIRE_GOLDEN(name);
    const GoldenCase g(name);
    const VisibilityTable obs = golden_table(g, "obs_");
    EXPECT_NEAR(median_amplitude(obs, "AA", "AP") / g.scalar("zbl_median"), 1, 1e-14);
    VisibilityOptions options;
    options.zero_baseline_flux = 0.6;
    options.drop_empty_sites = true;
    options.order_by_snr = true;
    const VisibilityTable ready = prepare(obs, options);
    expect_same_table(ready, golden_table(g, "pre_"), 1e-14);
    const auto snr = median_snr(ready);
    const at::Tensor want = g.array("pre_tarr_median_snr");
    for (size_t s = 0; s < snr.size(); ++s)
      EXPECT_NEAR(snr[s] / want[static_cast<int64_t>(s)].item<double>(), 1, 1e-13);
  }
}

TEST(Visibilities, NoiseInflationEqualsTheReference) {
  for (const char* name :
       {"interferometry/demo_obs", "interferometry/m87_095_lo", "interferometry/m87_095_lo_raw"}) {
    SP_REQUIRE_GOLDEN(name);
    const GoldenCase g(name);
    const VisibilityTable obs = golden_table(g, "obs_");
    EXPECT_LT(worst_sigma(add_fractional_noise(obs, 0.02), g.array("sigma_frac002")), 1e-14);
    EXPECT_LT(worst_sigma(add_systematic_noise(obs, 0.02), g.array("sigma_sys002")), 1e-14);
    EXPECT_LT(worst_sigma(add_station_noise(obs, m87_station_noise(true)), g.array("sigma_m87sys")),
              1e-14);
    EXPECT_LT(
        worst_sigma(add_station_noise(obs, m87_station_noise(false)), g.array("sigma_m87sys_noLM")),
        1e-14);
    VisibilityOptions options;
    options.station_noise = "m87_lm";
    EXPECT_LT(worst_sigma(prepare(obs, options), g.array("sigma_m87sys")), 1e-14);
    const at::Tensor amplitude = g.array("amp_unpack");
    for (size_t k = 0; k < obs.rows.size(); ++k)
      EXPECT_NEAR(debiased_amplitude(obs.rows[k]), amplitude.data_ptr<double>()[k], 1e-12);
    std::ifstream in(g.folder() / "m87_systematic_noise.json");
    const auto facts = nlohmann::json::parse(in);
    for (const auto& [site, y] : m87_station_noise(true))
      EXPECT_NEAR(y, facts["add_LM"][site].get<double>(), 1e-16);
    for (const auto& [site, y] : m87_station_noise(false))
      EXPECT_NEAR(y, facts["no_LM"][site].get<double>(), 1e-16);
  }
}

TEST(Visibilities, ScanAverageByHand) {
  const VisibilityTable t = scan_average(small_table());
  ASSERT_EQ(t.rows.size(), 4u);
  const auto& r = t.rows[0];  // AA-AP of the first scan
  EXPECT_EQ(r.time, 1.0);
  EXPECT_NEAR(std::abs(r.vis - std::complex<double>(1.1, 0.2)), 0, 1e-15);
  EXPECT_NEAR(r.sigma, std::sqrt(0.01 * 0.01 + 0.02 * 0.02) / 2, 1e-17);
  EXPECT_EQ(r.u, 2e6);
  EXPECT_EQ(r.tint, 20);
  EXPECT_EQ(t.rows[3].time, 2.0);
  // A baseline that joins late keeps its own time.
  VisibilityTable late = small_table();
  late.rows.erase(late.rows.begin() + 1);  // AA-LM at 1.0
  EXPECT_EQ(scan_average(late).rows[2].time, 1.003);
}

TEST(Visibilities, ArrangePointsBaselinesAlongTheSiteTable) {
  VisibilityTable t = small_table();
  const VisibilityTable kept = t;
  for (auto& r : t.rows) {
    std::swap(r.t1, r.t2);
    r.u = -r.u;
    r.v = -r.v;
    r.vis = std::conj(r.vis);
  }
  std::reverse(t.rows.begin(), t.rows.end());
  arrange(t);
  expect_same_table(t, kept, 1e-300);
  reorder_sites(t, {2, 1, 0, 3});
  EXPECT_EQ(t.sites[0].name, "LM");
  for (const auto& r : t.rows) EXPECT_LT(r.t1, r.t2);
  EXPECT_EQ(t.rows[1].vis, std::conj(std::complex<double>(0.2, 0.3)));  // LM-AA sorts after AP-AA
  reorder_sites(t, {2, 1, 0, 3});
  expect_same_table(t, kept, 1e-300);
}

TEST(Visibilities, FlagsAndCuts) {
  const VisibilityTable t = small_table();
  EXPECT_EQ(drop_sites(t, {"LM"}).rows.size(), 3u);
  EXPECT_EQ(drop_baselines(t, {"LM-AA"}).rows.size(), 4u);
  EXPECT_EQ(cut_times(t, 1.001, 0).rows.size(), 3u);
  EXPECT_EQ(cut_times(t, 0, 1.5).rows.size(), 5u);
  EXPECT_EQ(cut_snr(t, 10.5).rows.size(), 4u);
  EXPECT_EQ(cut_short_baselines(t, 1e8).rows.size(), 3u);
  const VisibilityTable three = drop_empty_sites(t);
  EXPECT_EQ(three.sites.size(), 3u);
  EXPECT_EQ(three.rows.size(), t.rows.size());
  EXPECT_THROW(drop_sites(t, {"XX"}), ConfigError);
  EXPECT_THROW(drop_baselines(t, {"AA"}), ConfigError);
  VisibilityOptions options;
  options.drop_sites = {"AA", "AP"};
  EXPECT_THROW(prepare(t, options), DataError);
  options = {};
  options.min_uv = 1e12;
  EXPECT_THROW(prepare(t, options), DataError);
  options = {};
  options.zero_baseline_flux = 0.6;
  options.zero_baseline_sites = {"AA", "SR"};
  EXPECT_THROW(prepare(t, options), DataError);
  options = {};
  options.fractional_noise = -1;
  EXPECT_THROW(prepare(t, options), ConfigError);
  expect_same_table(prepare(t, {}), t, 1e-300);
}

TEST(Visibilities, ZeroBaselinesAreScaledToTheTotalFlux) {
  VisibilityOptions options;
  options.zero_baseline_flux = 0.5;
  const VisibilityTable t = prepare(small_table(), options);
  EXPECT_NEAR(median_amplitude(t, "AP", "AA"), 0.5, 1e-15);
  EXPECT_NEAR(median_amplitude(t, "APEX", "ALMA"), 0.5, 1e-15);
  EXPECT_EQ(t.rows[1].vis, small_table().rows[1].vis);  // long baselines stay
  // The ratio of vis and sigma stays.
  EXPECT_NEAR(std::abs(t.rows[0].vis) / t.rows[0].sigma,
              std::abs(small_table().rows[0].vis) / small_table().rows[0].sigma, 1e-12);
}

// A site's gains come back exactly from noise-free data of the Gaussian, and go off every row of
// it.
TEST(Visibilities, GaussianCalibrationTakesOffOneSitesGains) {
  const double fwhm = 60 * M_PI / (180 * 3600e6), flux = 0.6;
  VisibilityTable t = small_table();
  t.rows = {vis_row(1.0, 0, 2, 1.5e9, 0, 0.02), vis_row(1.0, 0, 1, 1e6, 0, 0.01),
            vis_row(1.0, 1, 2, 4.1e9, 0, 0.05), vis_row(1.4, 0, 2, 4.2e9, 0, 0.04),
            vis_row(2.0, 1, 2, 1.8e9, 0, 0.01)};
  arrange(t);
  VisibilityTable corrupted = t;
  const std::map<double, std::complex<double>> gain = {
      {1.0, std::polar(0.7, 0.4)}, {1.4, std::polar(0.7, 0.4)}, {2.0, std::polar(1.6, -2.0)}};
  for (size_t k = 0; k < t.rows.size(); ++k) {
    auto &r = t.rows[k], &c = corrupted.rows[k];
    // The Gaussian of sd s transforms to exp(-2 pi^2 s^2 u^2), FWHM = s sqrt(8 ln 2).
    const double s = fwhm / std::sqrt(8 * std::log(2));
    r.vis = c.vis = flux * std::exp(-2 * M_PI * M_PI * s * s * (r.u * r.u + r.v * r.v));
    const auto g = gain.at(r.time);
    if (r.t1 == 2) c.vis *= g, c.sigma *= std::abs(g);
    if (r.t2 == 2) c.vis *= std::conj(g), c.sigma *= std::abs(g);
  }
  const VisibilityTable back = calibrate_to_gaussian(corrupted, "LM", flux, fwhm);
  for (size_t k = 0; k < t.rows.size(); ++k) {
    EXPECT_LT(std::abs(back.rows[k].vis - t.rows[k].vis), 1e-12) << k;
    EXPECT_NEAR(back.rows[k].sigma, t.rows[k].sigma, 1e-12) << k;
  }
  EXPECT_THROW(calibrate_to_gaussian(corrupted, "LM", flux, fwhm, 1e9), DataError);
  // The row at 1.4 h lives by the gain of 1.0 h, 0.4 h away; no other row of the site is so far.
  EXPECT_EQ(calibrate_to_gaussian(corrupted, "LM", flux, fwhm, 2e9, 0.45).rows.size(),
            t.rows.size());
  const VisibilityTable near = calibrate_to_gaussian(corrupted, "LM", flux, fwhm, 2e9, 0.35);
  ASSERT_EQ(near.rows.size(), t.rows.size() - 1);
  for (const auto& r : near.rows) EXPECT_NE(r.time, 1.4);
  EXPECT_THROW(calibrate_to_gaussian(corrupted, "XX", flux, fwhm), ConfigError);
  VisibilityOptions options;
  options.calibrate_site = "LM";
  EXPECT_THROW(prepare(corrupted, options), ConfigError);  // no flux
  options.calibrate_flux = flux;
  EXPECT_LT(std::abs(prepare(corrupted, options).rows[0].vis - t.rows[0].vis), 1e-12);
  options.calibrate_gap_hours = 0.35;
  EXPECT_EQ(prepare(corrupted, options).rows.size(), t.rows.size() - 1);
}

// Two Gaussians convolve into one whose squared width is the sum.
TEST(Visibilities, ReverseTaperDividesByTheGaussian) {
  const double uas = M_PI / (180 * 3600e6);
  const auto gaussian = [&](const VisibilityRow& r, double fwhm) {
    const double s = fwhm * uas / std::sqrt(8 * std::log(2));
    return std::exp(-2 * M_PI * M_PI * s * s * (r.u * r.u + r.v * r.v));
  };
  VisibilityTable t = small_table();
  for (auto& r : t.rows) r.vis = 0.6 * gaussian(r, 50);
  VisibilityOptions options;
  options.reverse_taper_uas = 30;
  const VisibilityTable out = prepare(t, options);
  for (size_t k = 0; k < t.rows.size(); ++k) {
    EXPECT_NEAR(out.rows[k].vis.real(), 0.6 * gaussian(t.rows[k], 40), 1e-13);
    EXPECT_NEAR(std::abs(out.rows[k].vis) / out.rows[k].sigma,
                std::abs(t.rows[k].vis) / t.rows[k].sigma, 1e-9);
  }
}

// The LMT of M87, 5 April 2017: on its baseline to the SMT the data then agree with the Gaussian.
TEST(Visibilities, M87PreCalibration) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  VisibilityOptions options;
  options.scan_average = options.drop_empty_sites = options.order_by_snr = true;
  options.zero_baseline_flux = 0.6;
  const VisibilityTable before = prepare(io::read_uvfits(eht_file("095_lo")), options);
  options.calibrate_site = "LM";
  const VisibilityTable after = prepare(io::read_uvfits(eht_file("095_lo")), options);
  ASSERT_EQ(before.rows.size(), after.rows.size());
  int calibrators = 0;
  for (size_t k = 0; k < after.rows.size(); ++k) {
    const auto &b = before.rows[k], &a = after.rows[k];
    const std::string names = after.sites[a.t1].name + after.sites[a.t2].name;
    if (names.find("LM") == std::string::npos) {
      EXPECT_EQ(a.vis, b.vis);
    } else {  // a gain moves no signal-to-noise ratio
      EXPECT_NEAR(std::abs(a.vis) / a.sigma, std::abs(b.vis) / b.sigma,
                  1e-9 * std::abs(b.vis) / b.sigma);
    }
    if (names != "LMAZ" && names != "AZLM") continue;
    ++calibrators;
    const double w = M_PI * 60 * M_PI / (180 * 3600e6) * std::hypot(a.u, a.v);
    EXPECT_NEAR(a.vis.real(), 0.6 * std::exp(-w * w / (4 * std::log(2))), 1e-12);
    EXPECT_NEAR(a.vis.imag(), 0, 1e-12);
  }
  EXPECT_GT(calibrators, 5);
}

TEST(Visibilities, StationNoiseIsParsed) {
  EXPECT_TRUE(parse_station_noise("none").empty());
  EXPECT_EQ(parse_station_noise("AA:0.1, LM:0.25").at("LM"), 0.25);
  for (const char* bad : {"AA", "AA:x", ":0.1", "AA:-1", "AA:0.1;LM:2", "AA:nan", "m88"})
    EXPECT_THROW(parse_station_noise(bad), ConfigError) << bad;
}

TEST(Visibilities, BandsCombineWithoutMixingInTime) {
  const VisibilityTable lo = small_table();
  VisibilityTable hi = lo;
  hi.rf_hz = 2.29e11;
  hi.mjd += 1;
  hi.sites.insert(hi.sites.begin(), {"PV", 9e6, 0, 0, 0, 0});
  for (auto& r : hi.rows) ++r.t1, ++r.t2;
  for (auto& r : hi.rows) r.time -= 24;
  const VisibilityTable both = combine({lo, hi});
  ASSERT_EQ(both.rows.size(), 2 * lo.rows.size());
  EXPECT_EQ(both.sites.size(), 5u);
  EXPECT_EQ(both.sites[4].name, "PV");
  EXPECT_EQ(both.rows[0].time, 1.0);
  EXPECT_EQ(both.rows[3].time, both.rows[5].time);
  EXPECT_NEAR((both.rows[3].time - 1.0) * 3600, 1e-6, 1e-9);  // the second band's rows of that time
  EXPECT_EQ(both.rows[3].t1, 0);
  // Averaged band by band, never across.
  VisibilityOptions options;
  options.scan_average = true;
  EXPECT_EQ(prepare({lo, hi}, options).rows.size(), 8u);
  EXPECT_THROW(combine({lo, lo}), DataError);
  hi.ra_hours += 1;
  EXPECT_THROW(combine({lo, hi}), DataError);
  hi = lo;
  hi.rf_hz = 1e11;
  hi.sites[1].x += 100;
  EXPECT_THROW(combine({lo, hi}), DataError);
}

TEST(Visibilities, M87BandsAndDaysCombine) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  std::vector<VisibilityTable> files;
  size_t rows = 0;
  for (const char* what : {"095_lo", "095_hi", "096_lo", "096_hi"}) {
    files.push_back(io::read_uvfits(eht_file(what)));
    rows += files.back().rows.size();
  }
  const VisibilityTable all = combine(files);
  EXPECT_EQ(all.rows.size(), rows);
  EXPECT_GT(all.rows.back().time, 24);
  VisibilityOptions options;
  options.scan_average = true;
  const VisibilityTable averaged = prepare(files, options);
  EXPECT_GT(averaged.rows.size(), 4 * 150u);
  EXPECT_LT(averaged.rows.size(), 1200u);
}

TEST(Visibilities, ChecksNameTheBadRow) {
  VisibilityTable t = small_table();
  check_table(t, "x.uvfits");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  t.rows[2].sigma = 0;
  EXPECT_THROW(check_table(t, "x.uvfits"), DataError);
  t.rows[2].sigma = nan;
  EXPECT_THROW(check_table(t, "x.uvfits"), DataError);
  t = small_table();
  t.rows[2].vis = {nan, 0};
  EXPECT_THROW(check_table(t, "x.uvfits"), DataError);
  t.rows.clear();
  EXPECT_THROW(check_table(t, "x.uvfits"), DataError);
}

}  // namespace scoreprior
