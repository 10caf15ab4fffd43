#pragma once
/// Visibility tables made ready for imaging: flagging, averaging, rescaling, station order, noise
/// budget.
///
/// prepare() runs the steps in one fixed order; each step is a function of its own that takes and
/// returns a table in the order of arrange().

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/visibility_table.h"

namespace scoreprior {

/// What prepare() does, in the order of these fields. The defaults leave the table as it is.
struct VisibilityOptions {
  std::vector<std::string> drop_sites;
  std::vector<std::string> drop_baselines;
  double start_hours = 0, stop_hours = 0;
  bool scan_average = false;
  double scan_gap_hours = 0.0165;
  double min_snr = 0;
  double zero_baseline_flux = 0;
  std::vector<std::string> zero_baseline_sites = {"AA", "AP"};
  double zero_baseline_uv = 0.1e9;
  double min_uv = 0;
  bool drop_empty_sites = false;
  bool order_by_snr = false;
  std::string calibrate_site;
  double calibrate_fwhm_uas = 60;
  double calibrate_flux = 0;
  double calibrate_max_uv = 2e9;
  double calibrate_gap_hours = 0;
  double reverse_taper_uas = 0;
  double fractional_noise = 0;
  double systematic_noise = 0;
  std::string station_noise = "none";

  template <class F>
  void fields(F&& f) {
    f("drop_sites", drop_sites, "flag every visibility of these sites");
    f("drop_baselines", drop_baselines, "flag these baselines, written \"AA-AP\"");
    f("start_hours", start_hours, "flag earlier visibilities [h UTC since the first day]");
    f("stop_hours", stop_hours, "flag later visibilities [h], 0 = none");
    f("scan_average", scan_average, "average each baseline over each scan");
    f("scan_gap_hours", scan_gap_hours, "a longer pause begins a new scan [h]");
    f("min_snr", min_snr, "flag visibilities with |V|/sigma below this");
    f("zero_baseline_flux", zero_baseline_flux,
      "scale the short baselines to this median flux [Jy], 0 = leave them");
    f("zero_baseline_sites", zero_baseline_sites,
      "the two sites whose baseline sees the total flux");
    f("zero_baseline_uv", zero_baseline_uv, "a baseline is short below this length [wavelengths]");
    f("min_uv", min_uv, "drop baselines shorter than this [wavelengths], 0 = keep all");
    f("drop_empty_sites", drop_empty_sites, "remove sites without data from the site table");
    f("order_by_snr", order_by_snr, "order the sites by median signal-to-noise ratio, best first");
    f("calibrate_site", calibrate_site,
      "solve this site's gains against a Gaussian source on its short baselines (M87: LM)");
    f("calibrate_fwhm_uas", calibrate_fwhm_uas, "width of that Gaussian [micro-arcsec]");
    f("calibrate_flux", calibrate_flux, "its flux [Jy], 0 = zero_baseline_flux");
    f("calibrate_max_uv", calibrate_max_uv, "a baseline is short below this length [wavelengths]");
    f("calibrate_gap_hours", calibrate_gap_hours,
      "flag the site's visibilities farther in time from a solved gain than this [h], 0 = none");
    f("reverse_taper_uas", reverse_taper_uas,
      "divide vis and sigma by the transform of a Gaussian this wide [micro-arcsec], 0 = none");
    f("fractional_noise", fractional_noise, "add this fraction of |V| to sigma in quadrature");
    f("systematic_noise", systematic_noise,
      "add sqrt(2) times this fraction of the debiased |V| to sigma");
    f("station_noise", station_noise,
      "fractional noise by site: none | m87 | m87_lm | a list \"AA:0.01,LM:0.2\"");
  }
};

/// Flags, averages, rescales, reorders and inflates as the options say, in the order of
/// VisibilityOptions. DataError when nothing is left, or when the zero-baseline pair has no data.
VisibilityTable prepare(const VisibilityTable& table, const VisibilityOptions& options);
/// Several files of one source (frequency bands, nights): each is flagged and averaged by itself,
/// then combine(), then the other steps.
VisibilityTable prepare(const std::vector<VisibilityTable>& tables,
                        const VisibilityOptions& options);

/// DataError "<name>: ..." unless the table has rows, every number is finite and every sigma
/// positive.
void check_table(const VisibilityTable& table, const std::string& name);

/// Rows of several tables under the union of their site tables (the first file's order, then new
/// sites), with times counted from the first table's day. u, v stay in wavelengths of each row's
/// own band; rf_hz is the first table's. Closures combine rows of equal time, so rows of another
/// frequency are stamped 1 microsecond later per frequency: bands never mix in a closure. DataError
/// for different sources (position off by more than 1 arcsec), a site at two positions (more than
/// 10 m apart), or the same baseline twice at one time and frequency.
VisibilityTable combine(const std::vector<VisibilityTable>& tables);

/// Removes the rows of sites, of baselines "AA-AP" (either order), and outside start <= time <=
/// stop (stop 0 = none). ConfigError for a site that the table lacks.
VisibilityTable drop_sites(VisibilityTable table, const std::vector<std::string>& sites);
VisibilityTable drop_baselines(VisibilityTable table, const std::vector<std::string>& baselines);
VisibilityTable cut_times(VisibilityTable table, double start_hours, double stop_hours);
/// Removes rows with |V| < min_snr sigma.
VisibilityTable cut_snr(VisibilityTable table, double min_snr);
/// Removes rows with sqrt(u^2+v^2) < min_uv [wavelengths].
VisibilityTable cut_short_baselines(VisibilityTable table, double min_uv);

/// Limits (first, last) of the scans [h]: the sorted distinct times, cut at every pause longer than
/// `gap_hours`; padded by 1e-4 h on both sides.
std::vector<std::pair<double, double>> scans(const VisibilityTable& table, double gap_hours);

/// Coherent average of each baseline over each scan: plain means of vis, u, v and the opacities
/// (tint and sigma are not weights), sigma = sqrt(sum sigma^2)/n, tint = sum, time = the first time
/// of that baseline in that scan. A baseline that joins late thus keeps a time stamp of its own.
VisibilityTable scan_average(const VisibilityTable& table, double gap_hours = 0.0165);

/// Median of |V| over the rows of one baseline (either direction); the sites "AA", "AP" also match
/// "ALMA", "APEX". DataError when there is no such row.
double median_amplitude(const VisibilityTable& table, const std::string& site1,
                        const std::string& site2);

/// vis and sigma of the rows with sqrt(u^2+v^2) < max_uv times `factor`.
VisibilityTable scale_short_baselines(VisibilityTable table, double factor, double max_uv = 0.1e9);
/// vis and sigma of every row times `factor`.
VisibilityTable scale_flux(VisibilityTable table, double factor);

/// The site table without the sites that no row names.
VisibilityTable drop_empty_sites(VisibilityTable table);

/// Median of |V|/sigma over the rows of each site; 0 for a site without rows.
std::vector<double> median_snr(const VisibilityTable& table);
/// Sites in descending order of median_snr (stable).
VisibilityTable order_by_snr(VisibilityTable table);

/// One complex gain g of `site` per time stamp, least squares of V - g m over its rows shorter than
/// max_uv [wavelengths], m a circular Gaussian of `flux` [Jy] and FWHM `fwhm_rad` at the phase
/// centre; then V / g and sigma / |g| on every row of the site (conj(g) where it stands second).
/// Times without a short baseline take the gain of the nearest one; with gap_hours > 0 the site's
/// rows farther than that from it are dropped. Closures do not see a gain, so a wrong one harms
/// visibilities and amplitudes only; dropped rows are lost to closures too. This is the
/// pre-calibration of the LMT on its baseline to the SMT [EHT19IV]. DataError when no short
/// baseline has data.
VisibilityTable calibrate_to_gaussian(VisibilityTable table, const std::string& site, double flux,
                                      double fwhm_rad, double max_uv = 2e9, double gap_hours = 0);
/// vis and sigma of every row over exp(-(pi fwhm_rad)^2 (u^2+v^2)/(4 ln 2)): an image of these
/// data, convolved with that Gaussian, is an image of the old ones. It bounds the resolution of
/// what is reconstructed [EHT19IV].
VisibilityTable reverse_taper(VisibilityTable table, double fwhm_rad);

/// Amplitude without its noise bias: sqrt(|V|^2 - sigma^2), 0 where |V| <= sigma (ehtim's
/// `amp_unpack`).
double debiased_amplitude(const VisibilityRow& row);

/// sigma <- sqrt(sigma^2 + (f |V|)^2), |V| with its bias.
VisibilityTable add_fractional_noise(VisibilityTable table, double fraction);
/// sigma <- sqrt(sigma^2 + 2 (f A)^2), A = debiased_amplitude: the fraction f at each of the two
/// sites.
VisibilityTable add_systematic_noise(VisibilityTable table, double fraction);
/// sigma <- sqrt(sigma^2 + (y1^2 + y2^2) A^2), A = debiased_amplitude, y the fraction of each site
/// (0 if not named).
VisibilityTable add_station_noise(VisibilityTable table,
                                  const std::map<std::string, double>& fraction);

/// Station fractions for M87 in April 2017: (sqrt(1 + b) - 1)/4 with b the amplitude calibration
/// budget of each site [EHT19III]; `extra_lm` adds 0.15 to LM.
std::map<std::string, double> m87_station_noise(bool extra_lm);
/// none | m87 | m87_lm | "AA:0.01,LM:0.2". ConfigError.
std::map<std::string, double> parse_station_noise(const std::string& text);

}  // namespace scoreprior
