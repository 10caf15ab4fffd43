#pragma once
/// The gains of one solution interval that fit given model visibilities best.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace scoreprior {

/// Added to the curvature of uniform phases, where a visibility with signal counts >= 1.
inline constexpr double kPhaseRidge = 1e-10;

/// Rows V_k = g_a conj(g_b) m_k + n_k of one interval, g = exp(s_a alpha + i s_phi phi) per site:
///
///   F(alpha, phi) = sum_k |V_k - g_a conj(g_b) m_k|^2/(2 sigma_k^2) + sum alpha^2/2
///                   [+ sum phi^2/2 for normal phases].
///
/// Plain loops over a dozen sites: tensors of such sizes cost more to start than to compute.
class IntervalGains {
 public:
  struct Row {
    int64_t a, b;
    double re, im, iv;  ///< V, 1/sigma^2
  };
  /// `scale_a`, `scale_phi` [sites]: s, 0 = the gain's part is fixed at 0. `reference` [sites]: the
  /// site of phase 0 in each site's part; `sites` for none (normal phases, no data).
  IntervalGains(std::vector<Row> rows, std::vector<double> scale_a, std::vector<double> scale_phi,
                std::vector<int64_t> reference, bool uniform);

  /// theta [2 sites], alpha then phi, at the minimum of F for the model m_re, m_im [rows]; the
  /// decrement slope^T H^-1 slope of the last step.
  double minimise(const double* m_re, const double* m_im, double* theta) const;

 private:
  struct Scratch;
  double value(const double* m_re, const double* m_im, const double* theta) const;
  double curvature(const double* m_re, const double* m_im, Scratch& s) const;
  void start(const double* m_re, const double* m_im, Scratch& s) const;
  void phase_start(const double* m_re, const double* m_im, double* phase) const;

  int64_t sites_;
  bool uniform_;
  std::vector<Row> rows_;
  std::vector<double> scale_a_, scale_phi_;
  std::vector<int64_t> reference_;
  std::vector<int64_t> free_;    // entries of theta that move
  std::vector<int64_t> column_;  // of each entry of theta among them, -1 = fixed
};

}  // namespace scoreprior
