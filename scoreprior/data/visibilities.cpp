#include "scoreprior/data/visibilities.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <map>
#include <set>

#include "scoreprior/core/config.h"
#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

template <class Keep>
VisibilityTable keep_rows(VisibilityTable table, const Keep& keep) {
  auto& rows = table.rows;
  rows.erase(
      std::remove_if(rows.begin(), rows.end(), [&](const VisibilityRow& r) { return !keep(r); }),
      rows.end());
  return table;
}

// The middle value, or the mean of the two in the middle.
double median_of(std::vector<double> v) {
  const size_t half = v.size() / 2;
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(half), v.end());
  const double upper = v[half];
  if (v.size() % 2) return upper;
  return (*std::max_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(half)) + upper) / 2;
}

// Index of a site by name, also by the other of the two customary names of ALMA and APEX; -1 when
// absent.
int32_t find_site(const VisibilityTable& table, const std::string& name) {
  static const std::map<std::string, std::string> alias = {
      {"AA", "ALMA"}, {"AP", "APEX"}, {"ALMA", "AA"}, {"APEX", "AP"}};
  const auto other = alias.find(name);
  int32_t found = -1;
  for (size_t s = 0; s < table.sites.size(); ++s) {
    if (table.sites[s].name == name) return static_cast<int32_t>(s);
    if (other != alias.end() && table.sites[s].name == other->second)
      found = static_cast<int32_t>(s);
  }
  return found;
}

int32_t require_site(const VisibilityTable& table, const std::string& name) {
  const int32_t s = find_site(table, name);
  if (s >= 0) return s;
  std::string known;
  for (const auto& site : table.sites) known += (known.empty() ? "" : ", ") + site.name;
  throw ConfigError({}, "no site \"" + name + "\" in the observation (sites: " + known + ")");
}

double uv_length(const VisibilityRow& r) { return std::sqrt(r.u * r.u + r.v * r.v); }

constexpr double kUas = M_PI / (180 * 3600e6);  // [rad]

// Visibility of a circular Gaussian of unit flux.
double gaussian_taper(const VisibilityRow& r, double fwhm_rad) {
  const double w = M_PI * fwhm_rad * uv_length(r);
  return std::exp(-w * w / (4 * std::log(2)));
}

VisibilityTable flag_and_average(const VisibilityTable& in, const VisibilityOptions& o) {
  VisibilityTable t = drop_sites(in, o.drop_sites);
  t = drop_baselines(std::move(t), o.drop_baselines);
  if (o.start_hours != 0 || o.stop_hours != 0)
    t = cut_times(std::move(t), o.start_hours, o.stop_hours);
  if (o.scan_average) t = scan_average(t, o.scan_gap_hours);
  return t;
}

}  // namespace

void check_table(const VisibilityTable& table, const std::string& name) {
  if (table.rows.empty()) throw DataError(name + ": no visibilities");
  for (size_t k = 0; k < table.rows.size(); ++k) {
    const auto& r = table.rows[k];
    const std::string where = name + ": visibility " + std::to_string(k + 1) + " ";
    if (!std::isfinite(r.vis.real()) || !std::isfinite(r.vis.imag()))
      throw DataError(where + "is not a number");
    if (!std::isfinite(r.u) || !std::isfinite(r.v) || !std::isfinite(r.time))
      throw DataError(where + "has no finite u, v or time");
    if (!(r.sigma > 0) || !std::isfinite(r.sigma))
      throw DataError(where + "has sigma = " + std::to_string(r.sigma) +
                      ", expected a positive number");
  }
}

VisibilityTable combine(const std::vector<VisibilityTable>& tables) {
  SP_CHECK(!tables.empty(), "combine", "expected at least one table");
  VisibilityTable out = tables[0];
  std::vector<double> bands = {out.rf_hz};
  for (size_t k = 1; k < tables.size(); ++k) {
    const VisibilityTable& t = tables[k];
    constexpr double kArcsec = 1 / 3600.0;
    if (std::abs(t.ra_hours - out.ra_hours) * 15 > kArcsec ||
        std::abs(t.dec_deg - out.dec_deg) > kArcsec)
      throw DataError("cannot combine " + out.source + " and " + t.source +
                      ": the files point at different sources");
    std::vector<int32_t> place;
    for (const Site& s : t.sites) {
      auto known = std::find_if(out.sites.begin(), out.sites.end(),
                                [&](const Site& o) { return o.name == s.name; });
      if (known == out.sites.end()) {
        out.sites.push_back(s);
        known = out.sites.end() - 1;
      } else if (std::hypot(known->x - s.x, known->y - s.y, known->z - s.z) > 10) {
        throw DataError("cannot combine the files: the site " + s.name +
                        " stands at two positions");
      }
      place.push_back(static_cast<int32_t>(known - out.sites.begin()));
    }
    auto band = std::find(bands.begin(), bands.end(), t.rf_hz);
    if (band == bands.end()) band = bands.insert(bands.end(), t.rf_hz);
    constexpr double kMicrosecond = 1e-6 / 3600;
    const double stamp = static_cast<double>(band - bands.begin()) * kMicrosecond;
    for (VisibilityRow r : t.rows) {
      r.t1 = place[static_cast<size_t>(r.t1)];
      r.t2 = place[static_cast<size_t>(r.t2)];
      r.time += 24 * static_cast<double>(t.mjd - out.mjd) + stamp;
      out.rows.push_back(r);
    }
  }
  if (tables.size() == 1) return out;
  arrange(out);
  std::set<std::pair<int32_t, int32_t>> seen;
  for (size_t k = 0; k < out.rows.size(); ++k) {
    const auto& r = out.rows[k];
    if (k == 0 || r.time != out.rows[k - 1].time) seen.clear();
    if (!seen.emplace(r.t1, r.t2).second)
      throw DataError("cannot combine the files: the baseline " +
                      out.sites[static_cast<size_t>(r.t1)].name + "-" +
                      out.sites[static_cast<size_t>(r.t2)].name + " appears twice at " +
                      std::to_string(r.time) + " h; was one file given twice?");
  }
  return out;
}

VisibilityTable drop_sites(VisibilityTable table, const std::vector<std::string>& sites) {
  for (const auto& name : sites) {
    const int32_t s = require_site(table, name);
    table =
        keep_rows(std::move(table), [s](const VisibilityRow& r) { return r.t1 != s && r.t2 != s; });
  }
  return table;
}

VisibilityTable drop_baselines(VisibilityTable table, const std::vector<std::string>& baselines) {
  for (const auto& text : baselines) {
    const size_t dash = text.find('-');
    if (dash == std::string::npos)
      throw ConfigError({}, "expected a baseline like \"AA-AP\", got \"" + text + "\"");
    const int32_t a = require_site(table, text.substr(0, dash)),
                  b = require_site(table, text.substr(dash + 1));
    table = keep_rows(std::move(table), [a, b](const VisibilityRow& r) {
      return !((r.t1 == a && r.t2 == b) || (r.t1 == b && r.t2 == a));
    });
  }
  return table;
}

VisibilityTable cut_times(VisibilityTable table, double start_hours, double stop_hours) {
  return keep_rows(std::move(table), [=](const VisibilityRow& r) {
    return r.time >= start_hours && (stop_hours == 0 || r.time <= stop_hours);
  });
}

VisibilityTable cut_snr(VisibilityTable table, double min_snr) {
  return keep_rows(std::move(table),
                   [=](const VisibilityRow& r) { return std::abs(r.vis) >= min_snr * r.sigma; });
}

VisibilityTable cut_short_baselines(VisibilityTable table, double min_uv) {
  return keep_rows(std::move(table),
                   [=](const VisibilityRow& r) { return uv_length(r) >= min_uv; });
}

std::vector<std::pair<double, double>> scans(const VisibilityTable& table, double gap_hours) {
  std::vector<double> times;
  for (const auto& r : table.rows) times.push_back(r.time);
  std::sort(times.begin(), times.end());
  constexpr double kMargin = 1e-4;
  std::vector<std::pair<double, double>> out;
  for (size_t k = 0; k < times.size(); ++k) {
    if (k == 0 || times[k] - times[k - 1] > gap_hours) out.emplace_back(times[k] - kMargin, 0);
    out.back().second = times[k] + kMargin;
  }
  return out;
}

VisibilityTable scan_average(const VisibilityTable& table, double gap_hours) {
  const auto limits = scans(table, gap_hours);
  struct Sum {
    VisibilityRow row;
    double variance = 0;
    int64_t n = 0;
  };
  VisibilityTable out = table;
  out.rows.clear();
  std::map<std::pair<int32_t, int32_t>, Sum> sums;
  const auto flush = [&] {
    for (auto& [pair, s] : sums) {
      const double n = static_cast<double>(s.n);
      VisibilityRow r = s.row;
      r.vis /= n;
      r.u /= n;
      r.v /= n;
      r.tau1 /= n;
      r.tau2 /= n;
      r.sigma = std::sqrt(s.variance) / n;
      out.rows.push_back(r);
    }
    sums.clear();
  };
  size_t scan = 0;
  for (const auto& r : table.rows) {  // in time order
    while (r.time > limits[scan].second) {
      flush();
      ++scan;
    }
    Sum& s = sums[{r.t1, r.t2}];
    if (s.n++ == 0) {
      s.row = r;
    } else {
      s.row.vis += r.vis;
      s.row.u += r.u;
      s.row.v += r.v;
      s.row.tau1 += r.tau1;
      s.row.tau2 += r.tau2;
      s.row.tint += r.tint;
    }
    s.variance += r.sigma * r.sigma;
  }
  flush();
  arrange(out);
  return out;
}

double median_amplitude(const VisibilityTable& table, const std::string& site1,
                        const std::string& site2) {
  const int32_t a = find_site(table, site1), b = find_site(table, site2);
  std::vector<double> amplitudes;
  for (const auto& r : table.rows)
    if ((r.t1 == a && r.t2 == b) || (r.t1 == b && r.t2 == a)) amplitudes.push_back(std::abs(r.vis));
  if (a < 0 || b < 0 || amplitudes.empty())
    throw DataError("the observation has no visibility on the baseline " + site1 + "-" + site2);
  return median_of(std::move(amplitudes));
}

VisibilityTable scale_short_baselines(VisibilityTable table, double factor, double max_uv) {
  for (auto& r : table.rows) {
    if (uv_length(r) >= max_uv) continue;
    r.vis *= factor;
    r.sigma *= factor;
  }
  return table;
}

VisibilityTable scale_flux(VisibilityTable table, double factor) {
  for (auto& r : table.rows) {
    r.vis *= factor;
    r.sigma *= factor;
  }
  return table;
}

VisibilityTable drop_empty_sites(VisibilityTable table) {
  std::vector<bool> used(table.sites.size());
  for (const auto& r : table.rows)
    used[static_cast<size_t>(r.t1)] = used[static_cast<size_t>(r.t2)] = true;
  std::vector<int32_t> order;
  for (size_t s = 0; s < used.size(); ++s)
    if (used[s]) order.push_back(static_cast<int32_t>(s));
  if (order.size() != used.size()) reorder_sites(table, order);
  return table;
}

std::vector<double> median_snr(const VisibilityTable& table) {
  std::vector<std::vector<double>> ratios(table.sites.size());
  for (const auto& r : table.rows) {
    const double snr = std::abs(r.vis) / r.sigma;
    ratios[static_cast<size_t>(r.t1)].push_back(snr);
    ratios[static_cast<size_t>(r.t2)].push_back(snr);
  }
  std::vector<double> out;
  for (auto& r : ratios) out.push_back(r.empty() ? 0 : median_of(std::move(r)));
  return out;
}

VisibilityTable order_by_snr(VisibilityTable table) {
  const auto snr = median_snr(table);
  std::vector<int32_t> order(snr.size());
  for (size_t s = 0; s < order.size(); ++s) order[s] = static_cast<int32_t>(s);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return snr[static_cast<size_t>(a)] > snr[static_cast<size_t>(b)];
  });
  reorder_sites(table, order);
  return table;
}

VisibilityTable calibrate_to_gaussian(VisibilityTable table, const std::string& site, double flux,
                                      double fwhm_rad, double max_uv, double gap_hours) {
  const int32_t s = require_site(table, site);
  struct GainSum {
    std::complex<double> product;
    double power = 0;
  };
  std::map<double, GainSum> by_time;
  for (const auto& r : table.rows) {
    if ((r.t1 != s && r.t2 != s) || uv_length(r) >= max_uv) continue;
    const double m = flux * gaussian_taper(r, fwhm_rad), weight = 1 / (r.sigma * r.sigma);
    GainSum& sum = by_time[r.time];
    sum.product += weight * m * (r.t1 == s ? r.vis : std::conj(r.vis));
    sum.power += weight * m * m;
  }
  std::map<double, std::complex<double>> gain;
  for (const auto& [time, sum] : by_time)
    if (std::abs(sum.product) > 0 && sum.power > 0) gain[time] = sum.product / sum.power;
  if (gain.empty())
    throw DataError("the site " + site + " has no baseline shorter than " +
                    std::to_string(max_uv / 1e9) + " Glambda to calibrate on");
  const auto nearest = [&](double time) {
    auto next = gain.lower_bound(time);
    if (next == gain.end() ||
        (next != gain.begin() && time - std::prev(next)->first < next->first - time))
      --next;
    return next;
  };
  const auto unsolved = [&](const VisibilityRow& r) {
    return gap_hours > 0 && (r.t1 == s || r.t2 == s) &&
           std::abs(nearest(r.time)->first - r.time) > gap_hours;
  };
  table.rows.erase(std::remove_if(table.rows.begin(), table.rows.end(), unsolved),
                   table.rows.end());
  for (auto& r : table.rows) {
    if (r.t1 != s && r.t2 != s) continue;
    const auto next = nearest(r.time);
    r.vis /= r.t1 == s ? next->second : std::conj(next->second);
    r.sigma /= std::abs(next->second);
  }
  return table;
}

VisibilityTable reverse_taper(VisibilityTable table, double fwhm_rad) {
  for (auto& r : table.rows) {
    const double taper = gaussian_taper(r, fwhm_rad);
    r.vis /= taper;
    r.sigma /= taper;
  }
  return table;
}

double debiased_amplitude(const VisibilityRow& r) {
  const double amplitude = std::abs(r.vis);
  return amplitude > r.sigma ? std::sqrt(amplitude * amplitude - r.sigma * r.sigma) : 0;
}

VisibilityTable add_fractional_noise(VisibilityTable table, double fraction) {
  for (auto& r : table.rows)
    r.sigma = std::sqrt(r.sigma * r.sigma + fraction * fraction * std::norm(r.vis));
  return table;
}

VisibilityTable add_systematic_noise(VisibilityTable table, double fraction) {
  for (auto& r : table.rows) {
    const double extra = fraction * debiased_amplitude(r);
    r.sigma = std::sqrt(r.sigma * r.sigma + 2 * extra * extra);
  }
  return table;
}

VisibilityTable add_station_noise(VisibilityTable table,
                                  const std::map<std::string, double>& fraction) {
  std::vector<double> y;
  for (const auto& s : table.sites) {
    const auto it = fraction.find(s.name);
    y.push_back(it == fraction.end() ? 0 : it->second);
  }
  for (auto& r : table.rows) {
    const double y1 = y[static_cast<size_t>(r.t1)], y2 = y[static_cast<size_t>(r.t2)];
    const double amplitude = debiased_amplitude(r);
    r.sigma = std::sqrt(r.sigma * r.sigma + (y1 * y1 + y2 * y2) * amplitude * amplitude);
  }
  return table;
}

std::map<std::string, double> m87_station_noise(bool extra_lm) {
  const std::pair<const char*, double> budget[] = {{"AA", .10}, {"AP", .11}, {"AZ", .07},
                                                   {"LM", .22}, {"PV", .10}, {"SM", .15},
                                                   {"JC", .14}, {"SP", .07}};
  std::map<std::string, double> out;
  for (const auto& [name, b] : budget) out[name] = (std::sqrt(1 + b) - 1) / 4;
  if (extra_lm) out["LM"] += 0.15;
  return out;
}

std::map<std::string, double> parse_station_noise(const std::string& text) {
  if (text.empty() || text == "none") return {};
  if (text == "m87" || text == "m87_lm") return m87_station_noise(text == "m87_lm");
  std::map<std::string, double> out;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, comma - at);
    item.erase(std::remove(item.begin(), item.end(), ' '), item.end());
    at = comma + 1;
    const size_t colon = item.find(':');
    char* end = nullptr;
    const double value =
        colon == std::string::npos ? -1 : std::strtod(item.c_str() + colon + 1, &end);
    if (colon == 0 || !end || *end || item.c_str() + colon + 1 == end || !(value >= 0) ||
        !std::isfinite(value))
      throw ConfigError(
          {}, "station_noise: expected none, m87, m87_lm or a list \"AA:0.01,LM:0.2\", got \"" +
                  text + "\"");
    out[item.substr(0, colon)] = value;
  }
  return out;
}

VisibilityTable prepare(const VisibilityTable& table, const VisibilityOptions& options) {
  return prepare(std::vector<VisibilityTable>{table}, options);
}

VisibilityTable prepare(const std::vector<VisibilityTable>& tables, const VisibilityOptions& o) {
  const auto station_noise = parse_station_noise(o.station_noise);
  const struct {
    const char* name;
    double value;
  } non_negative[] = {
      {"scan_gap_hours", o.scan_gap_hours},         {"min_snr", o.min_snr},
      {"zero_baseline_flux", o.zero_baseline_flux}, {"min_uv", o.min_uv},
      {"calibrate_fwhm_uas", o.calibrate_fwhm_uas}, {"calibrate_flux", o.calibrate_flux},
      {"calibrate_max_uv", o.calibrate_max_uv},     {"calibrate_gap_hours", o.calibrate_gap_hours},
      {"reverse_taper_uas", o.reverse_taper_uas},   {"fractional_noise", o.fractional_noise},
      {"systematic_noise", o.systematic_noise}};
  for (const auto& [name, value] : non_negative)
    if (!(value >= 0) || !std::isfinite(value))
      throw ConfigError(
          {}, std::string(name) + ": expected a number >= 0, got " + std::to_string(value));
  if (o.zero_baseline_flux > 0 && o.zero_baseline_sites.size() != 2)
    throw ConfigError({}, "zero_baseline_sites: expected two sites");
  const double calibrate_flux = o.calibrate_flux > 0 ? o.calibrate_flux : o.zero_baseline_flux;
  if (!o.calibrate_site.empty() && !(calibrate_flux > 0))
    throw ConfigError({},
                      "calibrate_site: the Gaussian needs calibrate_flux or zero_baseline_flux");

  std::vector<VisibilityTable> parts;
  for (const auto& t : tables) parts.push_back(flag_and_average(t, o));
  VisibilityTable t = combine(parts);
  if (o.min_snr > 0) t = cut_snr(std::move(t), o.min_snr);
  if (t.rows.empty()) throw DataError("no visibilities are left after flagging");
  if (o.zero_baseline_flux > 0) {
    const double measured = median_amplitude(t, o.zero_baseline_sites[0], o.zero_baseline_sites[1]);
    t = scale_short_baselines(std::move(t), o.zero_baseline_flux / measured, o.zero_baseline_uv);
  }
  if (o.min_uv > 0) t = cut_short_baselines(std::move(t), o.min_uv);
  if (t.rows.empty()) throw DataError("no baseline is longer than min_uv");
  if (o.drop_empty_sites) t = drop_empty_sites(std::move(t));
  if (o.order_by_snr) t = order_by_snr(std::move(t));
  if (!o.calibrate_site.empty())
    t = calibrate_to_gaussian(std::move(t), o.calibrate_site, calibrate_flux,
                              o.calibrate_fwhm_uas * kUas, o.calibrate_max_uv,
                              o.calibrate_gap_hours);
  if (o.reverse_taper_uas > 0) t = reverse_taper(std::move(t), o.reverse_taper_uas * kUas);
  if (o.fractional_noise > 0) t = add_fractional_noise(std::move(t), o.fractional_noise);
  if (o.systematic_noise > 0) t = add_systematic_noise(std::move(t), o.systematic_noise);
  if (!station_noise.empty()) t = add_station_noise(std::move(t), station_noise);
  return t;
}

}  // namespace scoreprior
