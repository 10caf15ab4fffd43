#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// log p(x) from scores along forward-noising paths: no vector-Jacobian product, and all time
/// points of a path in one batch.
///
/// Along a path of dx = f dt + g dw the score's divergence in d log p_t(x_t) is the one of Ito's
/// correction when the stochastic integral takes the score at the later end of each step, so
///
///   log p(x) = log p_1(x_1) + int [ div f + f.s - g^2 |s|^2 / 2 ] dt - int s . dx    (later end)
///
/// holds path by path for an exact score. Here the steps t0 = t_0 < ... < t_N = 1 are equal in
/// ln(std^2/alpha^2), x_k = r_k x_{k-1} + sigma_k z_k are exact draws of the process from x_0 = x,
/// and the sum is the log-ratio of the learnt reverse chain to them [Ho20], [Bao22]:
///
///   log w = log prior(x_N)
///     + sum_k log N(x_{k-1}; (x_k + sigma_k^2 s_k)/r_k, sigma_k^2 rho_k I/r_k^2)
///     - sum_k log N(x_k; r_k x_{k-1}, sigma_k^2 I)
///         = log prior(x_N)
///     + sum_k [ D ln r_k - D/2 ln rho_k + |z_k|^2/2 - |z_k + sigma_k s_k|^2/(2 rho_k) ]
///   rho_k = 1 - sigma_k^2 |s_k|^2 / D, kept within [(r_k std_{k-1}/std_k)^2, 1]:
///
/// the mean is the one of E[x_{k-1}|x_k], rho_k removes the isotropic part of the curvature from
/// bias and variance, and the chain is a normalised density for every N. Hence
///   bound       E log w <= log p of that chain: a lower bound without discretisation error. For an
///               exact score it falls short of log p by O(1/N); for a learnt one its limit N ->
///               infinity is the bound of the reverse SDE [Song21ml], as in elbo.h but from t0.
///   log_prob    with extrapolate, 2 log w(N) - log w(N/2), where the coarse chain takes every
///               other point of the same path and so costs nothing: bias O(1/N^2).
///   importance  log of the mean of w over the paths: between bound and log p of the chain, which
///               it reaches as paths -> infinity.
/// One path's standard deviation falls as N^{-1/2} and as paths^{-1/2} over paths; for a learnt
/// score a part stays however large N is. x is taken as x(t0), as in probability_flow.h. Cost:
/// paths N network evaluations per image.
struct PathOptions {
  double t0 = 1e-3;
  int64_t steps = 256;
  int64_t paths = 4;
  bool extrapolate = true;
  int64_t max_batch = 256;
  template <class F>
  void fields(F&& f) {
    f("t0", t0, "smallest diffusion time");
    f("steps", steps, "time steps of a path");
    f("paths", paths, "forward-noising paths per image");
    f("extrapolate", extrapolate, "remove the leading error of the steps with every other of them");
    f("max_batch", max_batch, "most network rows in one call");
  }
};

/// ConfigError at the key of a value that cannot be.
void check_options(const Config& config, const PathOptions& options);

struct PathEstimate {
  at::Tensor log_prob;        ///< [B] mean over paths
  at::Tensor standard_error;  ///< [B] of log_prob, from the spread over paths; NaN for one path
  at::Tensor step_error;    ///< [B] log w(N) - log w(N/2), mean over paths: what halving the steps
                            ///< changed, about the error of `bound`; NaN for odd N
  at::Tensor bound;         ///< [B] mean over paths of log w(N)
  at::Tensor importance;    ///< [B] log mean w(N)
  int64_t evaluations = 0;  ///< network evaluations per image
};

/// x [B,event...]; row b depends on (rng, b) alone. Float64 results without graph; NaN where the
/// network's score is not finite. Throws std::invalid_argument for options out of range.
PathEstimate path_log_prob(const ScoreModel& model, const PathOptions& options, const at::Tensor& x,
                           const Rng& rng);

/// The times of a path, [steps+1] float64 from t0 to 1, equal in ln(std^2/alpha^2).
at::Tensor path_times(const Sde& sde, double t0, int64_t steps);

}  // namespace scoreprior
