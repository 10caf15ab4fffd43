#pragma once
/// Simulated interferometric observations: where an array samples the (u,v) plane, and with what
/// errors.
#include <complex>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/visibility_table.h"

namespace scoreprior {

struct ObserveOptions {
  std::string array = "eht2017";
  std::filesystem::path array_file;
  std::string source = "M87";
  double ra_hours = 12.51373, dec_deg = 12.39112;
  int64_t mjd = 57854;
  double start_hours = 0, stop_hours = 24;
  double integration_seconds = 12, advance_seconds = 600;
  double frequency_hz = 229070703125, bandwidth_hz = 1.856e9;
  double elevation_min = 10, elevation_max = 85;
  double dut1_seconds = 0.4554115;
  std::filesystem::path dut1_file;
  double efficiency = 0.88;
  std::string noise_convention = "sensible";
  bool thermal_noise = true;
  double gain_std = 0, gain_offset_std = 0;
  bool phase_errors = false;
  double coherence_seconds = 0;

  template <class F>
  void fields(F&& f) {
    f("array", array, "the telescopes: eht2017");
    f("array_file", array_file, "a text table of telescopes instead: NAME X Y Z SEFD_R SEFD_L");
    f("source", source, "name of the source");
    f("ra_hours", ra_hours, "right ascension [h]");
    f("dec_deg", dec_deg, "declination [deg]");
    f("mjd", mjd, "modified Julian day of 0h [UTC]");
    f("start_hours", start_hours, "first time [h UTC]");
    f("stop_hours", stop_hours, "times end before this [h UTC]");
    f("integration_seconds", integration_seconds, "integration time of a visibility [s]");
    f("advance_seconds", advance_seconds, "time between visibilities [s]");
    f("frequency_hz", frequency_hz, "observing frequency [Hz]");
    f("bandwidth_hz", bandwidth_hz, "bandwidth [Hz]");
    f("elevation_min", elevation_min, "lowest elevation of the source [deg]");
    f("elevation_max", elevation_max, "highest elevation of the source [deg]");
    f("dut1_seconds", dut1_seconds, "UT1-UTC [s] (IERS); 1 s turns the (u,v) plane by 7e-5 rad");
    f("dut1_file", dut1_file, "a text table MJD UT1-UTC instead, interpolated linearly");
    f("efficiency", efficiency, "of the digitisation (0.88: two bits)");
    f("noise_convention", noise_convention, "thermal noise of LL: sensible | ehtim");
    f("thermal_noise", thermal_noise, "add thermal noise");
    f("gain_std", gain_std, "spread of ln(gain) from one coherence interval to the next");
    f("gain_offset_std", gain_offset_std, "spread of ln(gain) between sites, constant in time");
    f("phase_errors", phase_errors, "a random phase for each site and coherence interval");
    f("coherence_seconds", coherence_seconds,
      "length of a coherence interval [s], 0 = one visibility time");
  }
};

/// UT1-UTC [s] as a function of time, linear between its points and constant beyond them.
struct Dut1 {
  std::vector<double> mjd, seconds;
  double at(double mjd_utc) const;
};
/// Lines "MJD SECONDS", ascending; # begins a comment. MissingFileError, DataError.
Dut1 read_dut1(const std::filesystem::path& path);

/// Greenwich mean sidereal time [h], IAU 2006: the Earth rotation angle at UT1 plus the polynomial
/// in TT.
double gmst_hours(int64_t mjd, double hours_utc, double dut1_seconds);

/// Angle [deg] of the source above the plane normal to the geocentric position vector of the site.
double elevation_deg(const Site& site, double gmst_hours, double ra_hours, double dec_deg);

/// The empty table (vis = 0) of an observation: times start + k advance, rows where both sites see
/// the source within the elevation limits; sites by sensitivity (sort_sites_by_sefd).
///   theta = GMST - RA; r rotated by theta about z; (u, v) = ((r1-r2)_y, -(r1-r2)_x sin d +
///   (r1-r2)_z cos d)/lambda; sigma_pq = sqrt(SEFD_p SEFD_q / (2 bw tint))/efficiency for RR and
///   LL, sigma = sqrt(RR^2 + LL^2)/2.
/// noise_convention "sensible" takes LL from SEFD_L of both sites, "ehtim" from SEFD_R(t1) and
/// SEFD_L(t2), which is what that program's observe() does. No refraction, precession, polar motion
/// or opacity. ConfigError for impossible options; DataError when the source is never up.
VisibilityTable coverage(const ObserveOptions& options, const std::vector<Site>& sites,
                         const Dut1& dut1);
/// With the array and UT1-UTC that the options name.
VisibilityTable coverage(const ObserveOptions& options);

/// Model visibilities [Jy] of the rows of a table, for instance the Fourier transform of an image.
using VisibilityModel = std::function<std::vector<std::complex<double>>(const VisibilityTable&)>;

/// vis <- g1 conj(g2) vis + n. Gains g = exp(gain_offset_std a + gain_std b + i phi) with a ~
/// N(0,1) per site and b ~ N(0,1), phi ~ U[0, 2 pi) (phase_errors) per site and coherence interval;
/// n has N(0, sigma^2) real and imaginary parts (thermal_noise). Closure phases and log closure
/// amplitudes do not see g. Draws are keyed by the site's name and the interval (gains), by the row
/// (noise).
VisibilityTable corrupt(VisibilityTable table, const ObserveOptions& options, const Rng& rng);

/// coverage(), filled with the model's visibilities, corrupted.
VisibilityTable observe(const ObserveOptions& options, const VisibilityModel& model,
                        const Rng& rng);
/// The model observed exactly where `like` has data, with its sigmas; only the error options are
/// used.
VisibilityTable observe_like(VisibilityTable like, const ObserveOptions& options,
                             const VisibilityModel& model, const Rng& rng);

}  // namespace scoreprior
