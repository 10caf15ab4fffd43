#include "scoreprior/data/observe.h"

#include <ATen/ATen.h>
#include <erfa.h>
#include <erfam.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "scoreprior/core/config.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/data/eht_array.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior {
namespace {

constexpr double kRadian = 3.14159265358979323846 / 180;
constexpr double kSpeedOfLight = 299792458.0;

void require_option(bool good, const char* name, const char* wanted, double got) {
  std::ostringstream s;
  s << name << ": expected " << wanted << ", got " << got;
  if (!good) throw ConfigError({}, s.str());
}

void check_options(const ObserveOptions& o) {
  require_option(o.ra_hours >= 0 && o.ra_hours <= 24, "ra_hours", "0 to 24", o.ra_hours);
  require_option(o.dec_deg >= -90 && o.dec_deg <= 90, "dec_deg", "-90 to 90", o.dec_deg);
  // 1972, when leap seconds began, to 2100.
  require_option(o.mjd >= 41317 && o.mjd < 88069, "mjd", "a day from 1972 to 2099",
                 static_cast<double>(o.mjd));
  require_option(o.stop_hours > o.start_hours && o.stop_hours - o.start_hours <= 24 * 366,
                 "stop_hours", "a time after start_hours, within a year", o.stop_hours);
  require_option(o.integration_seconds > 0, "integration_seconds", "a positive time",
                 o.integration_seconds);
  require_option(
      o.advance_seconds > 0 && (o.stop_hours - o.start_hours) * 3600 / o.advance_seconds < 1e6,
      "advance_seconds", "a positive time, at most a million steps", o.advance_seconds);
  require_option(o.frequency_hz > 0, "frequency_hz", "a positive frequency", o.frequency_hz);
  require_option(o.bandwidth_hz > 0, "bandwidth_hz", "a positive bandwidth", o.bandwidth_hz);
  require_option(o.elevation_min < o.elevation_max, "elevation_max", "more than elevation_min",
                 o.elevation_max);
  require_option(std::abs(o.dut1_seconds) <= 1, "dut1_seconds", "-1 to 1", o.dut1_seconds);
  require_option(o.efficiency > 0 && o.efficiency <= 1, "efficiency", "0 to 1", o.efficiency);
  if (o.noise_convention != "sensible" && o.noise_convention != "ehtim")
    throw ConfigError(
        {}, "noise_convention: expected sensible | ehtim, got \"" + o.noise_convention + "\"");
}

struct RotatedSite {
  double x, y, z;
};

RotatedSite rotated(const Site& s, double theta) {
  const double c = std::cos(theta), n = std::sin(theta);
  return {c * s.x - n * s.y, n * s.x + c * s.y, s.z};
}

}  // namespace

double Dut1::at(double t) const {
  SP_CHECK(!mjd.empty() && mjd.size() == seconds.size(), "Dut1", "expected at least one point");
  const auto next = std::lower_bound(mjd.begin(), mjd.end(), t);
  if (next == mjd.begin()) return seconds.front();
  if (next == mjd.end()) return seconds.back();
  const size_t k = static_cast<size_t>(next - mjd.begin());
  const double w = (t - mjd[k - 1]) / (mjd[k] - mjd[k - 1]);
  return seconds[k - 1] + w * (seconds[k] - seconds[k - 1]);
}

Dut1 read_dut1(const std::filesystem::path& path) {
  std::istringstream in(io::read_text(path));
  Dut1 table;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    std::istringstream words(line.substr(0, line.find('#')));
    double mjd = 0, seconds = 0;
    if (!(words >> mjd)) {
      if (words.eof()) continue;
      throw DataError(where + "expected MJD SECONDS");
    }
    if (!(words >> seconds)) throw DataError(where + "expected MJD SECONDS");
    if (!(std::abs(seconds) <= 1)) throw DataError(where + "UT1-UTC is not between -1 s and 1 s");
    if (!table.mjd.empty() && !(mjd > table.mjd.back()))
      throw DataError(where + "the days do not ascend");
    table.mjd.push_back(mjd);
    table.seconds.push_back(seconds);
  }
  if (table.mjd.empty()) throw DataError(path.string() + ": no UT1-UTC values");
  return table;
}

double gmst_hours(int64_t mjd, double hours_utc, double dut1_seconds) {
  const double day = ERFA_DJM0 + static_cast<double>(mjd), fraction = hours_utc / 24;
  double ut1_day = 0, ut1 = 0, tai_day = 0, tai = 0, tt_day = 0, tt = 0;
  // Positive statuses only warn of dates far from the leap second table.
  const int bad = std::min(eraUtcut1(day, fraction, dut1_seconds, &ut1_day, &ut1),
                           eraUtctai(day, fraction, &tai_day, &tai));
  SP_CHECK(bad >= 0, "gmst_hours", "unacceptable date, MJD ", mjd);
  eraTaitt(tai_day, tai, &tt_day, &tt);
  return eraGmst06(ut1_day, ut1, tt_day, tt) / ERFA_D2PI * 24;
}

double elevation_deg(const Site& site, double gmst, double ra_hours, double dec_deg) {
  const RotatedSite r = rotated(site, (gmst - ra_hours) * 15 * kRadian);
  const double d = dec_deg * kRadian;
  const double length = std::sqrt(r.x * r.x + r.y * r.y + r.z * r.z);
  return std::asin((r.x * std::cos(d) + r.z * std::sin(d)) / length) / kRadian;
}

VisibilityTable coverage(const ObserveOptions& o, const std::vector<Site>& sites,
                         const Dut1& dut1) {
  check_options(o);
  VisibilityTable table;
  table.source = o.source;
  table.ra_hours = o.ra_hours;
  table.dec_deg = o.dec_deg;
  table.rf_hz = o.frequency_hz;
  table.bw_hz = o.bandwidth_hz;
  table.mjd = o.mjd;
  table.sites = sites;
  sort_sites_by_sefd(table);
  for (const auto& s : table.sites)
    if (!(s.sefd_r > 0 && s.sefd_l > 0))
      throw DataError("the SEFD of the site " + s.name + " is not known");

  const double d = o.dec_deg * kRadian, sin_d = std::sin(d), cos_d = std::cos(d);
  const double lambda = kSpeedOfLight / o.frequency_hz;
  const double step = o.advance_seconds / 3600;
  const auto steps = static_cast<int64_t>(std::ceil((o.stop_hours - o.start_hours) / step));
  std::vector<RotatedSite> at(table.sites.size());
  std::vector<bool> up(table.sites.size());
  const double scale = 1 / (2 * o.bandwidth_hz * o.integration_seconds);
  for (int64_t k = 0; k < steps; ++k) {
    const double time = o.start_hours + static_cast<double>(k) * step;
    const double gmst = gmst_hours(o.mjd, time, dut1.at(static_cast<double>(o.mjd) + time / 24));
    const double theta = (gmst - o.ra_hours) * 15 * kRadian;
    for (size_t s = 0; s < at.size(); ++s) {
      at[s] = rotated(table.sites[s], theta);
      const double elevation = elevation_deg(table.sites[s], gmst, o.ra_hours, o.dec_deg);
      up[s] = elevation > o.elevation_min && elevation < o.elevation_max;
    }
    for (size_t i = 0; i < at.size(); ++i)
      for (size_t j = i + 1; j < at.size(); ++j) {
        if (!up[i] || !up[j]) continue;
        const double dx = at[i].x - at[j].x, dy = at[i].y - at[j].y, dz = at[i].z - at[j].z;
        VisibilityRow r;
        r.time = time;
        r.tint = o.integration_seconds;
        r.t1 = static_cast<int32_t>(i);
        r.t2 = static_cast<int32_t>(j);
        r.u = dy / lambda;
        r.v = (-dx * sin_d + dz * cos_d) / lambda;
        const Site &a = table.sites[i], &b = table.sites[j];
        const double rr = a.sefd_r * b.sefd_r * scale;
        const double ll = (o.noise_convention == "ehtim" ? a.sefd_r : a.sefd_l) * b.sefd_l * scale;
        r.sigma = std::sqrt(rr + ll) / o.efficiency / 2;
        table.rows.push_back(r);
      }
  }
  if (table.rows.empty())
    throw DataError(
        "no two telescopes see the source within the elevation limits; look at dec_deg, "
        "start_hours, stop_hours and elevation_min");
  arrange(table);
  return table;
}

VisibilityTable coverage(const ObserveOptions& o) {
  const Dut1 constant{{static_cast<double>(o.mjd)}, {o.dut1_seconds}};
  return coverage(o, o.array_file.empty() ? array_sites(o.array) : read_array(o.array_file),
                  o.dut1_file.empty() ? constant : read_dut1(o.dut1_file));
}

VisibilityTable corrupt(VisibilityTable table, const ObserveOptions& o, const Rng& rng) {
  require_option(o.gain_std >= 0 && o.gain_std <= 10, "gain_std", "0 to 10", o.gain_std);
  require_option(o.gain_offset_std >= 0 && o.gain_offset_std <= 10, "gain_offset_std", "0 to 10",
                 o.gain_offset_std);
  require_option(o.coherence_seconds >= 0, "coherence_seconds", "a time >= 0", o.coherence_seconds);
  std::map<std::pair<int32_t, int64_t>, std::complex<double>> gains;
  // Intervals count from 0h in whole microseconds, so that a row's gain does not depend on which
  // other rows exist.
  const auto interval = static_cast<int64_t>(std::max(o.coherence_seconds * 1e6, 1.0));
  const auto gain = [&](int32_t site, double time) {
    const int64_t microseconds = std::llround(time * 3600e6);
    const int64_t number = microseconds / interval - (microseconds % interval < 0);
    const auto [it, fresh] = gains.try_emplace({site, number});
    if (fresh) {
      const Rng own = rng.split("gain").split(table.sites[static_cast<size_t>(site)].name);
      const Rng now = own.split("interval").at(number);
      double log_amplitude = 0, phase = 0;
      if (o.gain_offset_std > 0)
        log_amplitude += o.gain_offset_std * own.split("offset").normals(1)[0];
      if (o.gain_std > 0) log_amplitude += o.gain_std * now.split("amplitude").normals(1)[0];
      if (o.phase_errors) phase = 360 * kRadian * now.split("phase").uniforms(1)[0];
      it->second = std::polar(std::exp(log_amplitude), phase);
    }
    return it->second;
  };
  if (o.gain_std > 0 || o.gain_offset_std > 0 || o.phase_errors)
    for (auto& r : table.rows) r.vis *= gain(r.t1, r.time) * std::conj(gain(r.t2, r.time));
  if (o.thermal_noise && !table.rows.empty()) {
    const at::Tensor noise =
        rng.split("thermal").normal({static_cast<int64_t>(table.rows.size()), 2}, at::kDouble);
    const double* n = noise.data_ptr<double>();
    for (size_t k = 0; k < table.rows.size(); ++k)
      table.rows[k].vis += table.rows[k].sigma * std::complex<double>(n[2 * k], n[2 * k + 1]);
  }
  return table;
}

VisibilityTable observe_like(VisibilityTable like, const ObserveOptions& options,
                             const VisibilityModel& model, const Rng& rng) {
  const std::vector<std::complex<double>> vis = model(like);
  SP_CHECK(vis.size() == like.rows.size(), "observe", "expected ", like.rows.size(),
           " model visibilities, got ", vis.size());
  for (size_t k = 0; k < vis.size(); ++k) like.rows[k].vis = vis[k];
  return corrupt(std::move(like), options, rng);
}

VisibilityTable observe(const ObserveOptions& options, const VisibilityModel& model,
                        const Rng& rng) {
  return observe_like(coverage(options), options, model, rng);
}

}  // namespace scoreprior
