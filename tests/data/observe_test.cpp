#include "scoreprior/data/observe.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <map>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/eht_array.h"
#include "scoreprior/data/observation.h"
#include "scoreprior/data/visibilities.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
constexpr double kUas = 1e-6 / 3600 * M_PI / 180;

std::filesystem::path observe_scratch() {
  static const auto dir = [] {
    auto d = std::filesystem::temp_directory_path() / ("sp-observe-" + std::to_string(::getpid()));
    std::filesystem::create_directories(d);
    return d;
  }();
  return dir;
}

// Three unequal points: no visibility is zero, closures are not trivial.
std::vector<std::complex<double>> three_points(const VisibilityTable& t) {
  const double flux[] = {1.0, 0.35, 0.2}, x[] = {0, 22, -14}, y[] = {0, 9, 17};
  std::vector<std::complex<double>> out;
  for (const auto& r : t.rows) {
    std::complex<double> v;
    for (int k = 0; k < 3; ++k)
      v += std::polar(flux[k], 2 * M_PI * (r.u * x[k] + r.v * y[k]) * kUas);
    out.push_back(v);
  }
  return out;
}

// Closure phases [rad] and log closure amplitudes of every triangle and quadrangle of each time.
std::vector<std::complex<double>> closures(const VisibilityTable& t) {
  std::map<double, std::map<std::pair<int, int>, std::complex<double>>> at_time;
  for (const auto& r : t.rows) {
    at_time[r.time][{r.t1, r.t2}] = r.vis;
    at_time[r.time][{r.t2, r.t1}] = std::conj(r.vis);
  }
  std::vector<std::complex<double>> out;
  const int n = static_cast<int>(t.sites.size());
  for (auto& [time, vis] : at_time)
    for (int i = 0; i < n; ++i)
      for (int j = i + 1; j < n; ++j)
        for (int k = j + 1; k < n; ++k) {
          if (!vis.count({i, j}) || !vis.count({j, k}) || !vis.count({i, k})) continue;
          const auto bispectrum = vis[{i, j}] * vis[{j, k}] * vis[{k, i}];
          out.push_back(bispectrum / std::abs(bispectrum));
          for (int l = k + 1; l < n; ++l)
            if (vis.count({i, l}) && vis.count({k, l}) && vis.count({j, l}))
              out.push_back(
                  std::log(std::abs(vis[{i, j}] * vis[{k, l}] / (vis[{i, l}] * vis[{j, k}]))));
        }
  return out;
}

struct Simulated {
  GoldenCase golden;
  ObserveOptions options;
  std::vector<Site> sites;
  Dut1 dut1;
};

Simulated golden_simulation(const std::string& name) {
  Simulated s{GoldenCase(name), {}, {}, {}};
  const GoldenCase& g = s.golden;
  s.options.ra_hours = g.scalar("ra");
  s.options.dec_deg = g.scalar("dec");
  s.options.mjd = static_cast<int64_t>(g.scalar("mjd"));
  s.options.frequency_hz = g.scalar("rf");
  s.options.bandwidth_hz = g.scalar("bw");
  s.options.integration_seconds = g.scalar("tint");
  s.options.advance_seconds = g.scalar("tadv");
  const at::Tensor xyz = g.array("array_xyz"), sefd = g.array("array_sefd"),
                   time = g.array("grid_time"), dut1 = g.array("grid_dut1");
  std::ifstream in(g.folder() / "array_table.json");
  const auto names = nlohmann::json::parse(in).at("site").get<std::vector<std::string>>();
  for (int64_t k = 0; k < xyz.size(0); ++k)
    s.sites.push_back({names[static_cast<size_t>(k)], xyz[k][0].item<double>(),
                       xyz[k][1].item<double>(), xyz[k][2].item<double>(),
                       sefd[k][0].item<double>(), sefd[k][1].item<double>()});
  for (int64_t k = 0; k < time.size(0); ++k) {
    s.dut1.mjd.push_back(static_cast<double>(s.options.mjd) + time.data_ptr<double>()[k] / 24);
    s.dut1.seconds.push_back(dut1.data_ptr<double>()[k]);
  }
  return s;
}

double row_error(const VisibilityTable& t, const at::Tensor& want, double VisibilityRow::*field) {
  double worst = 0, scale = 0;
  for (size_t k = 0; k < t.rows.size(); ++k) {
    worst = std::max(worst, std::abs(t.rows[k].*field - want.data_ptr<double>()[k]));
    scale = std::max(scale, std::abs(want.data_ptr<double>()[k]));
  }
  return worst / scale;
}

ObserveOptions clean_options() {
  ObserveOptions o;
  o.thermal_noise = false;
  return o;
}

}  // namespace

TEST(Observe, CoverageEqualsTheReference) {
  for (const char* name : {"interferometry/simulate", "interferometry/simulate_m87"}) {
    SP_REQUIRE_GOLDEN(name);
    Simulated s = golden_simulation(name);
    const GoldenCase& g = s.golden;
    const at::Tensor time = g.array("grid_time"), gmst = g.array("grid_gmst"),
                     el = g.array("grid_el");
    double worst_gmst = 0, worst_el = 0;
    for (int64_t k = 0; k < time.size(0); ++k) {
      const double hours = time.data_ptr<double>()[k], sidereal = gmst.data_ptr<double>()[k];
      const double ours = gmst_hours(s.options.mjd, hours, s.dut1.seconds[static_cast<size_t>(k)]);
      worst_gmst = std::max(worst_gmst, std::abs(std::remainder(ours - sidereal, 24)));
      for (size_t j = 0; j < s.sites.size(); ++j)
        worst_el = std::max(
            worst_el,
            std::abs(elevation_deg(s.sites[j], sidereal, s.options.ra_hours, s.options.dec_deg) -
                     el[k][static_cast<int64_t>(j)].item<double>()));
    }
    EXPECT_LT(worst_gmst, 1e-10);
    EXPECT_LT(worst_el, 1e-9);

    const VisibilityTable t = coverage(s.options, s.sites, s.dut1);
    const at::Tensor t1 = g.array("obs_t1_index"), t2 = g.array("obs_t2_index");
    ASSERT_EQ(static_cast<int64_t>(t.rows.size()), t1.size(0));
    std::ifstream in(g.folder() / "obs_tarr.json");
    const auto order = nlohmann::json::parse(in).at("site").get<std::vector<std::string>>();
    for (size_t k = 0; k < order.size(); ++k) EXPECT_EQ(t.sites[k].name, order[k]);
    int64_t other_pair = 0;
    for (size_t k = 0; k < t.rows.size(); ++k)
      other_pair +=
          t.rows[k].t1 != t1.data_ptr<int64_t>()[k] || t.rows[k].t2 != t2.data_ptr<int64_t>()[k];
    EXPECT_EQ(other_pair, 0);
    EXPECT_LT(row_error(t, g.array("obs_time"), &VisibilityRow::time), 1e-15);
    EXPECT_LT(row_error(t, g.array("obs_tint"), &VisibilityRow::tint), 1e-15);
    // The reference holds day and time in one double: 3.6e-12 day, 2.3e-11 rad of rotation.
    EXPECT_LT(row_error(t, g.array("obs_u"), &VisibilityRow::u), 3e-11);
    EXPECT_LT(row_error(t, g.array("obs_v"), &VisibilityRow::v), 3e-11);
    EXPECT_LT(row_error(t, g.array("obs_sigma_makeuv"), &VisibilityRow::sigma), 1e-14);
    s.options.noise_convention = "ehtim";
    EXPECT_LT(row_error(coverage(s.options, s.sites, s.dut1), g.array("obs_sigma"),
                        &VisibilityRow::sigma),
              1e-14);
  }
}

TEST(Observe, VisibilitiesOfAnImageEqualTheReference) {
  SP_REQUIRE_GOLDEN("interferometry/simulate_m87");
  Simulated s = golden_simulation("interferometry/simulate_m87");
  s.options.thermal_noise = false;
  const at::Tensor x = s.golden.array("x_sim");
  const double psize = s.golden.scalar("psize_rad");
  const int64_t n = x.size(0);
  // The exact sum over pixels with the triangle pulse.
  const VisibilityModel transform = [&](const VisibilityTable& t) {
    std::vector<std::complex<double>> out;
    const double* pixel = x.data_ptr<double>();
    const auto pulse = [&](double w) {
      return w == 0 ? 1 : std::pow(std::sin(M_PI * w * psize) / (M_PI * w * psize), 2);
    };
    for (const auto& r : t.rows) {
      std::vector<std::complex<double>> east(static_cast<size_t>(n));
      const double half = (static_cast<double>(n) - 1) / 2;
      for (int64_t c = 0; c < n; ++c)
        east[static_cast<size_t>(c)] =
            std::polar(1.0, 2 * M_PI * r.u * (half - static_cast<double>(c)) * psize);
      std::complex<double> sum;
      for (int64_t y = 0; y < n; ++y) {
        std::complex<double> line;
        for (int64_t c = 0; c < n; ++c) line += pixel[y * n + c] * east[static_cast<size_t>(c)];
        sum += line * std::polar(1.0, 2 * M_PI * r.v * (half - static_cast<double>(y)) * psize);
      }
      out.push_back(sum * pulse(r.u) * pulse(r.v));
    }
    return out;
  };
  const VisibilityTable t =
      observe_like(coverage(s.options, s.sites, s.dut1), s.options, transform, Rng(1));
  const at::Tensor want = s.golden.array("obs_vis");
  double worst = 0;
  for (size_t k = 0; k < t.rows.size(); ++k) {
    const auto c = want.data_ptr<c10::complex<double>>()[k];
    worst = std::max(worst, std::abs(t.rows[k].vis - std::complex<double>(c.real(), c.imag())));
  }
  EXPECT_LT(worst, 1e-9);  // u,v to 1e-11 of phases of up to 30 turns, in Jy of a 2 Jy source
}

TEST(Observe, EarthRotationTracksTheSource) {
  // After one sidereal day the baselines repeat; over the pole the elevation is the declination.
  ObserveOptions o = clean_options();
  const double sidereal_day = 23.9344696;
  const Site pole{"P", 0, 0, 6.36e6, 1, 1}, here = array_sites("eht2017")[3];
  EXPECT_NEAR(elevation_deg(pole, gmst_hours(o.mjd, 7, 0), o.ra_hours, o.dec_deg), o.dec_deg,
              1e-12);
  EXPECT_NEAR(elevation_deg(here, gmst_hours(o.mjd, 7, 0), o.ra_hours, o.dec_deg),
              elevation_deg(here, gmst_hours(o.mjd, 7 + sidereal_day, 0), o.ra_hours, o.dec_deg),
              1e-5);
  const VisibilityTable t = coverage(o);
  EXPECT_GT(t.rows.size(), 500u);
  for (const auto& r : t.rows) {
    const Site &a = t.sites[static_cast<size_t>(r.t1)], &b = t.sites[static_cast<size_t>(r.t2)];
    const double length =
        std::hypot(a.x - b.x, a.y - b.y, a.z - b.z) * o.frequency_hz / 299792458.0;
    EXPECT_LE(std::hypot(r.u, r.v), length * (1 + 1e-12));
  }
}

TEST(Observe, ClosuresAreFreeOfGains) {
  ObserveOptions o = clean_options();
  const VisibilityTable clean = observe(o, three_points, Rng(7));
  o.gain_std = 0.3;
  o.gain_offset_std = 0.5;
  o.phase_errors = true;
  const VisibilityTable seen = observe(o, three_points, Rng(7));
  const auto a = closures(clean), b = closures(seen);
  ASSERT_EQ(a.size(), b.size());
  ASSERT_GT(a.size(), 1000u);
  double worst = 0, change = 0;
  for (size_t k = 0; k < a.size(); ++k) worst = std::max(worst, std::abs(a[k] - b[k]));
  for (size_t k = 0; k < clean.rows.size(); ++k)
    change = std::max(change, std::abs(clean.rows[k].vis - seen.rows[k].vis));
  EXPECT_LT(worst, 1e-12);
  EXPECT_GT(change, 0.5);
}

TEST(Observe, GainsHaveTheStatedSpreadAndPhasesAreUniform) {
  ObserveOptions o = clean_options();
  o.gain_std = 0.2;
  o.phase_errors = true;
  const VisibilityTable seen = observe(
      o,
      [](const VisibilityTable& t) {
        return std::vector<std::complex<double>>(t.rows.size(), 1.0);
      },
      Rng(3));
  // ln|V| = b1 + b2 has variance 2 gain_std^2 on any baseline; take AA-LM, whose rows are
  // independent.
  double sum = 0, sum2 = 0, n = 0;
  std::complex<double> phasor;
  for (const auto& r : seen.rows) {
    if (seen.sites[static_cast<size_t>(r.t1)].name != "AA" ||
        seen.sites[static_cast<size_t>(r.t2)].name != "LM")
      continue;
    const double l = std::log(std::abs(r.vis));
    sum += l, sum2 += l * l, n += 1;
    phasor += r.vis / std::abs(r.vis);
  }
  ASSERT_GT(n, 20);
  // Four standard errors.
  EXPECT_NEAR(sum / n, 0, 4 * std::sqrt(0.08 / n));
  EXPECT_NEAR(sum2 / n / 0.08, 1, 4 * std::sqrt(2 / n));
  EXPECT_LT(std::abs(phasor) / n, 4 / std::sqrt(n));

  // One interval for the whole day: constant gains, so every ratio to the first row is 1.
  o.coherence_seconds = 86400;
  const VisibilityTable still = observe(
      o,
      [](const VisibilityTable& t) {
        return std::vector<std::complex<double>>(t.rows.size(), 1.0);
      },
      Rng(3));
  std::map<std::pair<int, int>, std::complex<double>> first;
  for (const auto& r : still.rows) {
    const auto [it, fresh] = first.try_emplace({r.t1, r.t2}, r.vis);
    EXPECT_LT(std::abs(r.vis - it->second), 1e-14);
  }
}

TEST(Observe, ThermalNoiseHasTheStatedSigma) {
  ObserveOptions o;
  for (uint64_t seed : {1u, 2u, 3u}) {
    const VisibilityTable seen = observe(o, three_points, Rng(seed));
    const auto model = three_points(seen);
    double chi2 = 0, mean = 0;
    for (size_t k = 0; k < model.size(); ++k) {
      const auto z = (seen.rows[k].vis - model[k]) / seen.rows[k].sigma;
      chi2 += std::norm(z);
      mean += z.real() + z.imag();
    }
    const double n = 2.0 * static_cast<double>(model.size());
    EXPECT_NEAR(chi2 / n, 1, 4 * std::sqrt(2 / n)) << seed;
    EXPECT_NEAR(mean / n, 0, 4 / std::sqrt(n)) << seed;
  }
}

TEST(Observe, ErrorsAreReproducibleAndKeyedBySite) {
  ObserveOptions o;
  o.gain_std = 0.2;
  o.gain_offset_std = 0.2;
  o.phase_errors = true;
  const VisibilityTable a = observe(o, three_points, Rng(5)), b = observe(o, three_points, Rng(5)),
                        c = observe(o, three_points, Rng(6));
  double same = 0, other = 0;
  for (size_t k = 0; k < a.rows.size(); ++k) {
    same = std::max(same, std::abs(a.rows[k].vis - b.rows[k].vis));
    other = std::max(other, std::abs(a.rows[k].vis - c.rows[k].vis));
  }
  EXPECT_EQ(same, 0);
  EXPECT_GT(other, 0.1);
  // Without one site the gains of the others stay.
  o.thermal_noise = false;
  const VisibilityTable all = observe(o, three_points, Rng(5));
  const VisibilityTable fewer =
      observe_like(drop_empty_sites(drop_sites(coverage(o), {"SM"})), o, three_points, Rng(5));
  const VisibilityTable kept = drop_empty_sites(drop_sites(all, {"SM"}));
  ASSERT_EQ(kept.rows.size(), fewer.rows.size());
  for (size_t k = 0; k < kept.rows.size(); ++k) EXPECT_EQ(kept.rows[k].vis, fewer.rows[k].vis);
}

TEST(Observe, WritesAFileThatReadsBack) {
  ObserveOptions o;
  o.gain_std = 0.1;
  const VisibilityTable t = observe(o, three_points, Rng(5));
  const auto path = observe_scratch() / "sim.uvfits";
  io::write_uvfits(path, t);
  const VisibilityTable back = io::read_uvfits(path);
  ASSERT_EQ(back.rows.size(), t.rows.size());
  for (size_t k = 0; k < t.rows.size(); ++k) {
    EXPECT_EQ(back.rows[k].t1, t.rows[k].t1);
    EXPECT_EQ(back.rows[k].t2, t.rows[k].t2);
    EXPECT_LT(std::abs(back.rows[k].vis - t.rows[k].vis),
              1e-7 * std::abs(t.rows[k].vis));  // float32
    EXPECT_NEAR(back.rows[k].sigma / t.rows[k].sigma, 1, 1e-7);
    EXPECT_NEAR(back.rows[k].u / t.rows[k].u, 1, 1e-15);
    EXPECT_NEAR(back.rows[k].time, t.rows[k].time, 24 * 0x1p-31);
  }
}

TEST(Observe, ImpossibleOptionsAreConfigErrors) {
  const auto refuses = [](auto change) {
    ObserveOptions o;
    change(o);
    EXPECT_THROW(coverage(o), ConfigError);
  };
  refuses([](ObserveOptions& o) { o.array = "eht2018"; });
  refuses([](ObserveOptions& o) { o.dec_deg = 91; });
  refuses([](ObserveOptions& o) { o.mjd = 12; });
  refuses([](ObserveOptions& o) { o.stop_hours = o.start_hours; });
  refuses([](ObserveOptions& o) { o.advance_seconds = 0; });
  refuses([](ObserveOptions& o) { o.advance_seconds = 1e-6; });
  refuses([](ObserveOptions& o) { o.frequency_hz = -1; });
  refuses([](ObserveOptions& o) { o.dut1_seconds = 35; });
  refuses([](ObserveOptions& o) { o.efficiency = 0; });
  refuses([](ObserveOptions& o) { o.noise_convention = "other"; });
  ObserveOptions o;
  o.elevation_min = 84.99;
  EXPECT_THROW(coverage(o), DataError);
  o = {};
  o.gain_std = -1;
  EXPECT_THROW(observe(o, three_points, Rng(1)), ConfigError);
  EXPECT_THROW(
      observe(
          {}, [](const VisibilityTable&) { return std::vector<std::complex<double>>(3); }, Rng(1)),
      std::invalid_argument);
}

TEST(EhtArray, TextFileEqualsTheBuiltInTable) {
  const auto built_in = array_sites("eht2017"),
             read = read_array(std::filesystem::path(SP_SOURCE_DIR) / "configs/arrays/eht2017.txt");
  ASSERT_EQ(built_in.size(), read.size());
  for (size_t k = 0; k < read.size(); ++k) {
    EXPECT_EQ(built_in[k].name, read[k].name);
    EXPECT_EQ(built_in[k].x, read[k].x);
    EXPECT_EQ(built_in[k].y, read[k].y);
    EXPECT_EQ(built_in[k].z, read[k].z);
    EXPECT_EQ(built_in[k].sefd_r, read[k].sefd_r);
    EXPECT_EQ(built_in[k].sefd_l, read[k].sefd_l);
  }
  SP_REQUIRE_GOLDEN("interferometry/simulate");
  const Simulated s = golden_simulation("interferometry/simulate");
  for (size_t k = 0; k < s.sites.size(); ++k) {
    EXPECT_EQ(s.sites[k].x, built_in[k].x);
    EXPECT_EQ(s.sites[k].y, built_in[k].y);
    EXPECT_EQ(s.sites[k].z, built_in[k].z);
    EXPECT_EQ(s.sites[k].sefd_r, built_in[k].sefd_r);
    EXPECT_EQ(s.sites[k].sefd_l, built_in[k].sefd_l);
  }
}

TEST(EhtArray, MistakesNameTheLine) {
  const auto path = observe_scratch() / "array.txt";
  const std::string good = "A 6371000 0 0 100 100\n";
  for (const char* bad : {"B 1 2 3 100 100", "B 6371000 0 0 100", "B 6371000 0 x 1 1",
                          "A 0 6371000 0 1 1", "B 0 6371000 0 0 1", ""}) {
    io::write_text(path, good + bad);
    EXPECT_THROW(read_array(path), DataError) << bad;
  }
  EXPECT_THROW(read_array(observe_scratch() / "absent.txt"), MissingFileError);
  io::write_text(path, "# mjd dut1\n57854 0.4\n57855 0.3 # next\n\n");
  const Dut1 d = read_dut1(path);
  EXPECT_EQ(d.at(57853), 0.4);
  EXPECT_NEAR(d.at(57854.25), 0.375, 1e-12);
  EXPECT_EQ(d.at(57856), 0.3);
  for (const char* bad : {"57854", "57854 x", "x", "57854 35", "2 0\n1 0", ""}) {
    io::write_text(path, bad);
    EXPECT_THROW(read_dut1(path), DataError) << bad;
  }
}

TEST(Observation, LoadsByExtension) {
  const auto dir = observe_scratch();
  const auto load = [&](const std::string& text) {
    io::write_text(dir / "c.toml", text);
    const Config c = io::read_toml(dir / "c.toml");
    Observation o = load_observation(c);
    c.require_all_used();
    return o;
  };
  const at::Tensor y = Rng(1).normal({6}, at::kDouble);
  io::write_npz(dir / "a.npz", {{"y", y},
                                {"sigma", at::full({1}, 0.1, at::kDouble)},
                                {"mask", at::ones({3}, at::kLong)},
                                {"truth", at::ones({2, 3}, at::kDouble)}});
  Observation o = load("file = \"a.npz\"");
  EXPECT_TRUE(at::equal(o.y, y));
  EXPECT_EQ(o.sigma.dim(), 0);
  EXPECT_EQ(o.truth.dim(), 3);
  EXPECT_EQ(o.extra.at("mask").scalar_type(), at::kLong);
  save_observation(dir / "b.npz", o);
  EXPECT_TRUE(at::equal(load("file = \"b.npz\"").y, y));
  io::write_npy(dir / "a.npy", at::ones({3}, at::kLong));
  EXPECT_EQ(load("file = \"a.npy\"").y.scalar_type(), at::kDouble);

  const auto refuse = [&](const io::Arrays& arrays) {
    io::write_npz(dir / "bad.npz", arrays);
    EXPECT_THROW(load("file = \"bad.npz\""), DataError);
  };
  refuse({{"x", y}});
  refuse({{"y", y * NAN}});
  refuse({{"y", at::zeros({0}, at::kDouble)}});
  refuse({{"y", y}, {"sigma", at::zeros({6}, at::kDouble)}});
  refuse({{"y", y}, {"sigma", at::full({6}, INFINITY, at::kDouble)}});
  refuse({{"y", y}, {"sigma", at::ones({5}, at::kDouble)}});
  refuse({{"y", y}, {"truth", at::ones({5}, at::kDouble)}});
  EXPECT_THROW(load("file = \"absent.npz\""), MissingFileError);
  EXPECT_THROW(load("file = \"c.toml\""), ConfigError);
  EXPECT_THROW(load(""), ConfigError);
  EXPECT_THROW(load("file = \"a.npz\"\nscan_average = true"), ConfigError);

  ObserveOptions options;
  io::write_uvfits(dir / "lo.uvfits", observe(options, three_points, Rng(1)));
  options.frequency_hz += 2e9;
  io::write_uvfits(dir / "hi.uvfits", observe(options, three_points, Rng(1)));
  o = load("file = \"lo.uvfits\"\nscan_average = true\nfractional_noise = 0.02");
  ASSERT_TRUE(o.visibilities.has_value());
  const size_t rows = o.visibilities->rows.size();
  EXPECT_EQ(o.notes.at("source"), "M87");
  EXPECT_EQ(load("files = [\"lo.uvfits\", \"hi.uvfits\"]").visibilities->rows.size(), 2 * rows);
  EXPECT_THROW(load("files = [\"a.npz\", \"a.npz\"]"), ConfigError);
  EXPECT_THROW(load("file = \"lo.uvfits\"\nscan_avrage = true"), ConfigError);
}

}  // namespace scoreprior
