#pragma once
/// Ring parameters of an image, after [EHT19IV] section 9.1 (eqs. 18-23).
///
/// With r_pk(theta) the distance of the brightness peak along the ray at position angle theta, the
/// centre is where std_theta(r_pk) / mean_theta(r_pk) is least; then d = 2 <r_pk>, w = <FWHM of I -
/// I_floor>, and over the annulus (d -+ w)/2: orientation <arg sum I e^{i theta}>, asymmetry <|sum
/// I e^{i theta}| / sum I>; fractional central brightness = <I>(r < 5 uas) / <I>(r = d/2). Image
/// row 0 north, column 0 east; angles east of north.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace scoreprior::stats {

struct RingOptions {
  double min_diameter_uas = 10, max_diameter_uas = 100;
  double search_uas = 20;
  double floor_radius_uas = 50;
  double central_radius_uas = 5;
  double blur_fwhm_uas = 0;
  template <class F>
  void fields(F&& f) {
    f("min_diameter_uas", min_diameter_uas, "smallest ring looked for [micro-arcseconds]");
    f("max_diameter_uas", max_diameter_uas, "largest ring looked for [micro-arcseconds]");
    f("search_uas", search_uas,
      "distance of ring centres from the middle of the image [micro-arcseconds]");
    f("floor_radius_uas", floor_radius_uas,
      "radius at which the background is measured [micro-arcseconds]");
    f("central_radius_uas", central_radius_uas, "radius of the central disc [micro-arcseconds]");
    f("blur_fwhm_uas", blur_fwhm_uas,
      "resolution to correct for: diameter + blur^2 / (4 ln 2 diameter), sqrt(width^2 - blur^2); 0 "
      "= as measured");
  }
};

struct Ring {
  double diameter_uas = 0;
  double diameter_spread_uas = 0;  ///< standard deviation over position angle of 2 r_pk
  double width_uas = 0;
  double orientation_deg = 0;  ///< (-180, 180], east of north
  double asymmetry = 0;        ///< 0 = uniform ring
  double central_brightness = 0;
  double east_uas = 0, north_uas = 0;  ///< the centre, from the middle of the image
  /// Whether the image is a ring at all: three quarters of the rays peak between the smallest and
  /// the largest radius (not a filled disc or a blank), the peaks' radii scatter by at most a
  /// quarter of their mean (not scattered spots), and along the ridge the faintest 30 degrees reach
  /// a twentieth of the brightest (not one arc).
  bool found = false;
};

/// image [H,W] (or [1,H,W]). Radii that leave the image are not looked at.
Ring measure_ring(const at::Tensor& image, double pixel_uas, const RingOptions& options = {});
/// draws [N,1,H,W]; in parallel over draws.
std::vector<Ring> measure_rings(const at::Tensor& draws, double pixel_uas,
                                const RingOptions& options = {});

/// A central credible interval.
struct Interval {
  double low = 0, median = 0, high = 0;
};
Interval credible_interval(std::vector<double> values, double level = 0.68);

/// Intervals of "diameter_uas", "width_uas", "orientation_deg" (around its circular mean; ends may
/// pass +-180), "asymmetry", "central_brightness" over the draws where a ring was found, and that
/// share as "found".
std::map<std::string, Interval> ring_intervals(const std::vector<Ring>& rings, double level = 0.68);

}  // namespace scoreprior::stats
