#pragma once
/// Visibilities without calibration: station gains integrated out, or inferred with the image.

#include <ATen/core/Tensor.h>

#include <complex>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/likelihood/data_products.h"
#include "scoreprior/likelihood/station_gains_solver.h"

namespace scoreprior {

struct GainOptions {
  std::string gains = "none";
  double gain_amp_std = 0.1;
  std::string gain_amp_std_by_site;
  std::string gain_phases = "uniform";
  double gain_phase_std = 1;
  double gain_seconds = 0;
  template <class F>
  void fields(F&& f) {
    f("gains", gains,
      "station gains of the visibilities: none (calibrated), marginal (integrated out) or joint "
      "(their best values for each image)");
    f("gain_amp_std", gain_amp_std,
      "prior standard deviation of ln|gain|, every site and interval");
    f("gain_amp_std_by_site", gain_amp_std_by_site, "other values, written \"LM:0.5,AA:0.05\"");
    f("gain_phases", gain_phases, "prior of the gain phases: uniform or normal");
    f("gain_phase_std", gain_phase_std, "standard deviation of normal phases [rad]");
    f("gain_seconds", gain_seconds,
      "a gain is constant this long [s] from the first datum on, 0 = one time stamp");
  }
};

/// The gains that fit a model best, ln|g| and arg g [rad], each [B,T,S] float64 for T solution
/// intervals and S sites; 0 where a site has no data. With uniform phases one site of every
/// connected part of an interval, the one with most signal, has phase 0.
struct GainSolution {
  at::Tensor log_amplitude, phase;
  at::Tensor decrement;  ///< [B,T] g^T H^-1 g at the end: twice what F could still fall, about
};

/// Rows k = (t,a,b) of a table with V_k = g_a conj(g_b) m_k + n_k, g = exp(alpha + i phi),
/// alpha ~ N(0, s_a^2), phi uniform or N(0, s_phi^2), one gain per site and solution interval.
///
///   F(theta) = sum_k |V_k - g_a conj(g_b) m_k|^2/(2 sigma_k^2) + sum alpha^2/(2 s_a^2)
///              [+ sum phi^2/(2 s_phi^2)]
///   joint     L = min_theta F: the gains' best values stand beside the image
///   marginal  L = min F + ln det(H)/2 [+ n ln(2 pi)/2 for n free uniform phases],
///
/// the Laplace approximation of -ln integral p(V, theta | m) d theta with H the Gauss-Newton matrix
/// of F in units of the prior's standard deviations: J^T J + 1, or J^T J for uniform phases. It is
/// exact where F is quadratic, at high signal-to-noise; as all s -> 0 it becomes the calibrated
/// likelihood, and for wide priors that of the closure phases and log closure amplitudes with their
/// full covariance [Blackburn20]. H is block diagonal: amplitudes see sums of two sites, phases
/// differences. Sizes: 2 S numbers per interval and image, all solved at once in float64.
///
/// The minimum is found from a start without local minima in sight (phases by a generalised power
/// iteration [Boumal16], amplitudes by least squares in the logarithm), by damped Newton steps.
/// Gradients are exact for L as defined: the envelope theorem gives dF = partial F, and the
/// log-determinant is followed through theta(m) by the implicit function theorem. For models far
/// from the data F may have several minima, and L is continuous but kinked where they swap.
class UncalibratedVisibilities final : public DataProduct {
 public:
  UncalibratedVisibilities(const VisibilityTable& table, const GainOptions& options,
                           at::ScalarType dtype, at::Device device);

  int64_t size() const override { return 2 * rows_; }
  /// Throws std::invalid_argument when a second derivative in x is asked for.
  Misfit misfit(const ModelVisibilities& model, bool gradient) const override;
  /// [2M + 2TS,B]: real and imaginary data residuals, then alpha/s_a and phi/s_phi (0 for uniform
  /// phases); the sum of squares is 2 min F, without the log-determinant.
  at::Tensor residuals(const ModelVisibilities& model) const override;
  /// The slopes of those residuals with the gains following the model.
  std::pair<at::Tensor, at::Tensor> residual_slopes(const ModelVisibilities& model) const override;
  /// -sum ln(2 pi sigma^2).
  double log_constant() const override { return log_constant_; }
  /// sum |V - g conj(g) m|^2/sigma^2 over 2M less the effective number of gains that the data
  /// fixed, trace(H^-1 J^T J): about 1 under the truth. [B]
  at::Tensor reduced_chi2(const ModelVisibilities& model) const override;

  GainSolution solve(const ModelVisibilities& model) const;
  /// g_a conj(g_b) of every row for gains drawn from the prior.
  std::vector<std::complex<double>> draw(const Rng& rng) const;
  const std::vector<double>& interval_hours() const { return interval_hours_; }  ///< starts, [T]
  const std::vector<double>& amplitude_std() const { return amplitude_std_; }    ///< [S]
  /// Whether a site has data in an interval, [T,S].
  const at::Tensor& observed() const { return observed_; }

 private:
  struct Model;  // model visibilities by interval
  struct State;  // where the search stands
  Model arranged(const ModelVisibilities& model) const;
  State evaluate(const Model& m, const at::Tensor& theta) const;
  State minimise(const Model& m) const;
  at::Tensor assemble(const at::Tensor& aa, const at::Tensor& ap, const at::Tensor& pp) const;
  at::Tensor to_rows(const at::Tensor& by_interval) const;

  int64_t rows_, sites_, intervals_, width_;  // M, S, T, rows of the largest interval
  bool marginal_, uniform_;
  double log_constant_ = 0, free_phases_ = 0;
  std::vector<double> interval_hours_, amplitude_std_;
  double phase_std_ = 1;
  std::vector<int64_t> interval_;  // of each row
  at::ScalarType dtype_;
  at::Tensor slot_, place_;            // [M] -> flat [T*K] place, and back (padding: row 0)
  at::Tensor data_re_, data_im_, iv_;  // [T,K], iv = 1/sigma^2 and 0 for padding
  at::Tensor sum_, difference_;        // [T,K,S]: d ln|g_a g_b| / d alpha in units of s_a; phases
  at::Tensor precision_;               // [T,2S] of the prior in those units: 1, or 0 if uniform
  at::Tensor scale_;                   // [T,2S] s_a, s_phi; 0 = pinned
  at::Tensor incidence_a_, incidence_b_;  // [T,K,S] one-hot, 0 for padding
  std::vector<IntervalGains> solvers_;    // [T]
  at::Tensor observed_;
};

/// "LM:0.5,AA:0.05" as numbers >= 0 by site; ConfigError.
std::map<std::string, double> parse_gain_stds(const std::string& text);

}  // namespace scoreprior
