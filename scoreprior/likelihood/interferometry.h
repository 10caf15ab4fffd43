#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/forward/visibilities.h"
#include "scoreprior/likelihood/data_products.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/likelihood/station_gains.h"

namespace scoreprior {

struct InterferometryOptions {
  double vis_weight = 0, amp_weight = 0, cphase_weight = 1, logcamp_weight = 1;
  std::string closure_covariance = "exact";
  bool normalized = false;
  double fov_uas = 160;
  int64_t image_size = 0;
  std::string pulse = "triangle";
  std::string units = "flux_scaled";
  double flux_scale = 0, total_flux = 0, pixel_sum = 0, scale_fwhm_uas = 40;
  GainOptions gain;
  template <class F>
  void fields(F&& f) {
    f("vis_weight", vis_weight, "weight of the complex visibilities' log-likelihood");
    f("amp_weight", amp_weight, "weight of the visibility amplitudes");
    f("cphase_weight", cphase_weight, "weight of the closure phases");
    f("logcamp_weight", logcamp_weight, "weight of the log closure amplitudes");
    f("closure_covariance", closure_covariance,
      "exact (full covariance, wrapped residuals), ehtim (its diagonalisation) or independent");
    f("normalized", normalized, "include the constants of the log-likelihood");
    f("fov_uas", fov_uas, "width of the image [micro-arcsec]");
    f("image_size", image_size, "side of the image [pixels], 0 = that of the prior");
    f("pulse", pulse, "pixel shape: triangle or delta");
    f("units", units, "jy: pixels are Jy; flux_scaled: pixel x flux_scale is Jy");
    f("flux_scale", flux_scale, "Jy per unit of pixel value, 0 = total_flux / pixel_sum");
    f("total_flux", total_flux, "total flux [Jy], 0 = median amplitude of the shortest baselines");
    f("pixel_sum", pixel_sum,
      "pixel sum of an image of that flux, 0 = of a Gaussian of peak 1 and width scale_fwhm_uas");
    f("scale_fwhm_uas", scale_fwhm_uas, "full width at half maximum of that Gaussian");
    gain.fields(f);
  }
};

/// log p(visibilities | image) as a weighted sum over data products (weight 1 is the product's
/// log-likelihood):
///
///   log p = sum_product weight (log_constant - L)     L as in data_products.h, constants only if
///   `normalized`
///
/// Images [B,1,H,W], row 0 north, column 0 east; x * flux_scale is Jy/pixel. Closures are set up in
/// double precision, with errors s/|V| from the observed |V|. At low signal-to-noise these are too
/// small and not Gaussian: with the truth as model and 14 % of the rows below |V| = 3 s, the
/// reduced chi^2 of `exact` is about 1.2; without those rows 1.1. Cost: one transform and one
/// adjoint, 4 B N M multiply-adds for N pixels and M visibilities. With `gains` the visibilities
/// may be uncalibrated (see UncalibratedVisibilities); closures of the same data then count them
/// twice, and have weight 0 unless the table gives them one. Where a model visibility is 0 the
/// gradient is finite (see ModelVisibilities); wrapped residuals jump at +-pi.
class InterferometryLikelihood final : public Likelihood, public ResidualJacobian {
 public:
  /// Throws DataError for unusable data (not finite, sigma <= 0, nothing to fit).
  InterferometryLikelihood(VisibilityTable table, const InterferometryOptions& options,
                           int64_t height, int64_t width, at::ScalarType dtype, at::Device device);

  Shape event_shape() const override { return transform_.input_shape(); }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override;
  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override;
  /// log-likelihood of each product times its weight.
  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override;
  /// Products of positive weight one after another: visibilities (real, imaginary), amplitudes,
  /// phases, log amplitudes.
  at::Tensor residuals(const at::Tensor& x) const override;
  /// 2 L / N of the products of positive weight, of "cphase" and "logcamp" with independent sigmas
  /// (the field's usual numbers), and of "cphase_exact", "logcamp_exact" (or "_ehtim") when the
  /// likelihood uses a covariance.
  ChiSquares chi2(const at::Tensor& x) const override;
  /// The same (u,v), times and sigmas with thermal noise, and gains of the prior if there is one.
  Observation simulate(const at::Tensor& x, const Rng& rng) const override;
  /// Re V and Im V of an image, [2M,D].
  at::Tensor linear_part() const override;
  /// [B,N,2M], each product's rows times the square root of its weight.
  at::Tensor slopes(const at::Tensor& x) const override;
  /// Dirty image with uniform weights in the units of x, [1,1,H,W].
  at::Tensor naive_image() const override;
  /// Amplitudes against baseline length, closure phases and log closure amplitudes against time,
  /// and the closure phases of the triangles with most data.
  std::vector<DataFit> data_fits(const at::Tensor& x) const override;

  const VisibilityTable& table() const { return table_; }
  const SkyGrid& grid() const { return transform_.grid(); }
  double flux_scale() const { return flux_scale_; }  ///< Jy/pixel per unit of x
  /// Whether the data change when the source moves: visibilities whose phases are calibrated or
  /// have a prior; not closures and amplitudes, nor visibilities with uniform gain phases.
  bool position_known() const { return position_known_; }
  /// The best station gains for each image; empty tensors without `gains`.
  GainSolution best_gains(const at::Tensor& x) const;

  /// (log p [B], gradient or undefined); differentiable once more in x where autograd is on.
  std::pair<at::Tensor, at::Tensor> evaluate(const at::Tensor& x, bool gradient) const;

 private:
  struct Term {
    std::string name;
    double weight;
    std::unique_ptr<DataProduct> product;
  };
  ModelVisibilities model(const at::Tensor& x) const;

  VisibilityTable table_;
  VisibilityTransform transform_;
  at::Tensor floor2_;
  double flux_scale_ = 1;
  bool normalized_ = false;
  bool position_known_ = false;
  std::string covariance_;
  std::vector<Term> terms_;                           ///< weight > 0
  const UncalibratedVisibilities* gains_ = nullptr;   ///< one of terms_, if any
  std::unique_ptr<DataProduct> amplitude_;            ///< for plots and chi^2
  std::unique_ptr<ClosureProduct> cphase_, logcamp_;  ///< independent sigmas, for plots and chi^2
};

/// Median |V| [Jy] of the baselines shorter than 0.1 Glambda, else of the shortest tenth.
double zero_baseline_flux(const VisibilityTable& table);

/// Jy/pixel per unit of pixel value for a grid: 1 for "jy", else options.flux_scale or total_flux /
/// pixel_sum.
double image_flux_scale(const InterferometryOptions& options, const VisibilityTable& table,
                        const SkyGrid& grid);

}  // namespace scoreprior
