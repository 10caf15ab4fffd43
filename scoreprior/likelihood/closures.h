#pragma once
/// Closure quantities of a visibility table, set up in double precision.
///
/// A station gain g_a multiplies V_ab by g_a conj(g_b). Closure phases arg(V_12 V_23 V_31) and log
/// closure amplitudes ln|V_12| + ln|V_34| - ln|V_14| - ln|V_23| do not depend on the gains
/// [Chael18] [Blackburn20]. The sets here are the minimal ones, in the order of eht-imaging's
/// count='min'.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/core/visibility_table.h"

namespace scoreprior {

enum class ClosureKind { kPhase, kLogAmplitude };

/// One closure. Its model value is sum_l coefficient_l * f(V_row_l) with f = arg for phases (then
/// wrapped to
/// (-pi, pi]) and f = ln|.| for amplitudes.
struct Closure {
  double time = 0;                   ///< [h]
  std::array<int32_t, 4> site{};     ///< indices into the site table; three are used by a phase
  std::array<int64_t, 4> row{};      ///< row of each leg; legs 12, 23, 31 or 12, 34, 14, 23
  std::array<int, 4> direction{};    ///< +1: the leg is the row, -1: the row's conjugate
  std::array<int, 4> coefficient{};  ///< direction for phases, +1 +1 -1 -1 for amplitudes
  double value = 0, sigma = 0;       ///< [rad] or nepers, from raw |V|
  double debiased = 0, debiased_sigma = 0;  ///< amplitudes only, see closures()
};

struct ClosureSet {
  ClosureKind kind = ClosureKind::kPhase;
  int64_t legs = 3;
  std::vector<Closure> closures;  ///< ascending time; equal times are adjacent
};

/// The minimal set. For each time stamp the sites with data, in site-table order, are S; with
/// reference S[0]
///   phases      (S0, Si, Sj), 0 < i < j;
///   amplitudes  (S0, Si, Sj, Sk), i = 3.., 0 < j < i, k = j+1, except k = 1 when j = i-1.
/// A closure with a missing leg (no row, or a visibility of exactly zero) is left out.
/// sigma^2 = sum (s/|V|)^2. Debiased amplitudes: A = sqrt(|V|^2 - s^2) if |V| > s else s, q = s/A,
/// value = sum of +-ln A + (q1^2 + q2^2 - q3^2 - q4^2)/2, sigma^2 = sum q^2.
ClosureSet closures(const VisibilityTable& table, ClosureKind kind);

/// How the errors of closures that share baselines enter the likelihood.
enum class ClosureCovariance {
  kIndependent,  ///< each closure with its own sigma
  kEhtim,  ///< eht-imaging's diagonalisation: a baseline and its conjugate count as independent
  kExact,  ///< C = M diag((s/|V|)^2) M^T with one signed column per baseline
};
ClosureCovariance closure_covariance_from(const std::string& name);

/// The closures of one time stamp and their covariance.
struct ClosureBlock {
  double time = 0;
  int64_t first = 0, size = 0;  ///< range in ClosureSet::closures
  at::Tensor covariance;        ///< [k,k] float64, rad^2 or nepers^2
  at::Tensor
      transform;     ///< [k,k] eigenvectors as rows, ascending eigenvalue; row signs are arbitrary
  at::Tensor sigma;  ///< [k] square roots of the eigenvalues
};
std::vector<ClosureBlock> closure_blocks(const VisibilityTable& table, const ClosureSet& set,
                                         ClosureCovariance covariance);

/// Amplitude debiasing: sqrt(|V|^2 - s^2), where |V| is not above the noise s either
enum class Debias {
  kFloor,  ///< s: sqrt(max(|V|^2 - s^2, s^2)), never below sigma
  kZero,   ///< 0
};
std::vector<double> amplitudes(const VisibilityTable& table, Debias debias);

/// Throws DataError naming the first row that is not finite or has no positive sigma, or that is
/// out of time order.
void check_visibilities(const VisibilityTable& table);

}  // namespace scoreprior
