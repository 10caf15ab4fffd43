#pragma once
/// Generated images of black-hole accretion flows: a seeded, infinite family with known parameters.
///
/// Brightness at (east x, north y) of the centre, r = elliptical radius, phi = position angle east
/// of north, u = ln(r / R), R = diameter / 2:
///
///   ring    inner(r) outer(r) M(phi, r),    inner = f + (1-f) exp(-(R-r)_+^2 / 2 w_in^2) about the
///   shadow's centre,
///           outer = (1-h) exp(-(r-R)_+^2 / 2 w_out(phi)^2) + h exp(-(r-R)_+ / L)
///   M       exp(sum_m a_m cos(m (phi - phi_m) + m p u) + s g): spiral azimuthal modes m = 1..3
///   (Doppler beaming is
///           m = 1) and turbulence g, a unit Gaussian random field with power-law spectrum (k^2 +
///           k0^2)^(-slope/2), drawn on (phi, u) or on the sky and wound up by the same
///           differential rotation p u
///   + photon ring, hot-spot arcs, Gaussian halo, and a parabolic limb-brightened jet with
///   counter-jet, all convolved with a circular Gaussian of blur_fwhm_uas and averaged over the
///   pixel.
///
/// Pixels are surface brightness in arbitrary units, >= 0, row 0 north, column 0 east. By default
/// every image has the same sum, so the unit of flux is fixed: image * (Jy / total_flux()) is in
/// Jy/pixel.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

struct BlackholeOptions {
  int64_t image_size = 32;
  double fov_uas = 128;
  uint64_t seed = 0;
  double diameter_min_uas = 25, diameter_max_uas = 60;
  double blur_min_uas = 5, blur_max_uas = 15;
  double offset_uas = 4;
  double turbulence = 1;
  double jet_probability = 0.4, halo_probability = 0.5, spot_probability = 0.55;
  double total_flux = 0;
  bool peak_one = false;
  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("fov_uas", fov_uas, "field of view [micro-arcseconds]");
    f("seed", seed, "the family's seed: image `index` of a split never changes under it");
    f("diameter_min_uas", diameter_min_uas, "smallest ring diameter [micro-arcseconds]");
    f("diameter_max_uas", diameter_max_uas, "largest ring diameter [micro-arcseconds]");
    f("blur_min_uas", blur_min_uas, "smallest FWHM of the final blur [micro-arcseconds]");
    f("blur_max_uas", blur_max_uas, "largest FWHM of the final blur [micro-arcseconds]");
    f("offset_uas", offset_uas,
      "largest distance of the centre from the middle [micro-arcseconds]");
    f("turbulence", turbulence, "factor on the strength of the turbulence (0 = smooth rings)");
    f("jet_probability", jet_probability, "fraction of images with a jet");
    f("halo_probability", halo_probability, "fraction of images with a diffuse halo");
    f("spot_probability", spot_probability, "fraction of images with one to three hot spots");
    f("total_flux", total_flux,
      "sum of the pixels of every image; 0 = 0.03 size^2 (128 / fov_uas)^2, the same brightness at "
      "every size");
    f("peak_one", peak_one, "scale each image to a peak of 1 instead of a fixed sum");
  }
};

/// What one image was made from. Angles in radians east of north, lengths in micro-arcseconds,
/// widths FWHM.
struct BlackholeParameters {
  double diameter_uas = 42;
  double inner_width_uas = 3,
         outer_width_uas = 8;  ///< half widths at half maximum inside and outside the ridge
  double tail_fraction = 0, tail_length_uas = 8;  ///< h, L
  double outer_asymmetry = 0, outer_angle = 0;    ///< w_out (1 + b cos(phi - angle))
  double axis_ratio = 1, ellipse_angle = 0;       ///< minor / major, angle of the major axis
  double mode_amplitude[3] = {0, 0, 0}, mode_angle[3] = {0, 0, 0};
  double pitch = 0;  ///< radians of winding per e-fold of radius
  double floor = 0;  ///< central brightness / ridge brightness, before blur
  double shadow_offset_uas = 0, shadow_angle = 0;
  double photon_ring = 0, photon_radius_uas = 20, photon_width_uas = 3;
  double halo = 0, halo_fwhm_uas = 60;  ///< brightness at the centre
  double jet = 0, jet_angle = 0, jet_length_uas = 20, jet_base_uas = 6, jet_opening_uas = 20;
  double jet_spine = 0, jet_asymmetry = 0, counter_jet = 0;
  struct Spot {
    double brightness, radius_uas, angle, radial_fwhm_uas, azimuthal_fwhm_uas;
  };
  std::vector<Spot> spots;
  double turbulence = 0, turbulence_slope = 3, turbulence_k0 = 1;
  bool turbulence_on_sky = false;
  double turbulence_length_uas = 120;    ///< side of the sky tile
  std::vector<double> turbulence_modes;  ///< unit normals; empty = no turbulence
  double blur_fwhm_uas = 10;
  double east_uas = 0, north_uas = 0;  ///< position of the centre
};

/// The brightness of one parameter set averaged over size x size pixels, not normalised:
/// [size,size] float32. `fineness` multiplies the supersampling (chosen so that a subpixel is at
/// most 2/5 of the blur), at least 2 x 2.
at::Tensor render_blackhole(const BlackholeParameters& parameters, int64_t size, double fov_uas,
                            int fineness = 1);

class Blackhole final : public Dataset {
 public:
  /// std::invalid_argument for options out of range.
  Blackhole(const BlackholeOptions& options, const std::string& split);

  Shape image_shape() const override;
  int64_t size() const override { return 0; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string describe() const override;

  BlackholeParameters parameters(int64_t index) const;
  /// The sum of every image's pixels (not meaningful with peak_one).
  double total_flux() const;

 private:
  BlackholeOptions options_;
  std::string split_;
  Rng rng_;
};

}  // namespace scoreprior
