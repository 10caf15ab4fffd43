#pragma once
/// What an interferometer sees without inference: dirty beam and image, resolution, fitted beam.
/// float64 throughout.

#include <ATen/core/Tensor.h>

#include "scoreprior/core/visibility_table.h"
#include "scoreprior/forward/visibilities.h"

namespace scoreprior {

/// Weights of the rows: all one, or 1/sigma^2.
enum class VisibilityWeighting { kUniform, kNatural };

/// B[r,c] = sum_k w_k cos(2 pi (u_k X_c + v_k Y_r)), divided by its pixel sum; [H,W]. No pulse, no
/// conjugates.
at::Tensor dirty_beam(const VisibilityTable& table, const SkyGrid& grid,
                      VisibilityWeighting weighting = VisibilityWeighting::kUniform);
/// sum_k w_k Re(V_k exp(-2 pi i (u_k X_c + v_k Y_r))), divided by the pixel sum of the dirty beam's
/// numerator; [H,W] in Jy/pixel. The divisor depends on the field and may be small.
at::Tensor dirty_image(const VisibilityTable& table, const SkyGrid& grid,
                       VisibilityWeighting weighting = VisibilityWeighting::kUniform);

/// 1 / longest baseline [rad].
double resolution_rad(const VisibilityTable& table);

/// Elliptical Gaussian; theta from north towards east, in [0, pi).
struct GaussianBeam {
  double major_rad = 0, minor_rad = 0;  ///< full widths at half maximum
  double theta = 0;                     ///< [rad]
};
/// The Gaussian that agrees with the dirty beam to second order at its centre: with a = 2 pi^2
/// <u^2>, b = 2 pi^2 <v^2>, c = 4 pi^2 <u v>, the eigenvalues e of [[a,c/2],[c/2,b]] give FWHM =
/// sqrt(4 ln 2 / e).
GaussianBeam fit_beam(const VisibilityTable& table,
                      VisibilityWeighting weighting = VisibilityWeighting::kUniform);
/// The Gaussian at pixel centres, centred at (x,y) [rad east, north] and scaled to sum to `flux`;
/// [H,W].
at::Tensor gaussian_image(const GaussianBeam& beam, const SkyGrid& grid, double flux = 1,
                          double x = 0, double y = 0);

}  // namespace scoreprior
