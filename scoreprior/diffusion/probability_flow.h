#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/core/summary.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// The exact log-density of the probability-flow ODE [Song21, eq. 39] [Feng23]:
///
///   log p(x) = log prior(x_1) + int_t0^1 div v dt,   dx/dt = v = f - g^2 s / 2,   x(t0) = x
///
/// It is the density at time t0 of x taken as x(t0). trace = exact sums all D diagonal entries of
/// dv/dx (one evaluation of D network rows per right-hand side); hutchinson averages e . (dv/dx) e
/// over fixed probes e with entries +-1: unbiased for the log-density of the same path, with an
/// error of the size of the off-diagonal part of dv/dx.
struct ProbabilityFlowOptions {
  double t0 = 1e-3;
  std::string trace = "hutchinson";
  int64_t n_probes = 1;
  std::string solver = "dopri5";
  double rtol = 1e-5;
  double atol = 1e-5;
  int64_t steps = 0;
  int64_t max_steps = 10000;
  std::string adjoint = "backsolve";
  int64_t max_batch = 256;
  template <class F>
  void fields(F&& f) {
    f("t0", t0, "smallest diffusion time");
    f("trace", trace, "exact | hutchinson");
    f("n_probes", n_probes, "probes of the hutchinson trace");
    f("solver", solver, "euler | midpoint | rk4 | heun | bosh3 | dopri5 | tsit5 | dopri8");
    f("rtol", rtol, "relative tolerance");
    f("atol", atol, "absolute tolerance");
    f("steps", steps, "number of equal steps; 0 = steps from the error estimate");
    f("max_steps", max_steps, "most steps an image may try");
    f("adjoint", adjoint,
      "gradient: backsolve (adjoint ODE, constant memory) | direct (through the solver's steps)");
    f("max_batch", max_batch, "most network rows in one call");
  }
};

/// ConfigError at the key of a value that cannot be.
void check_options(const Config& config, const ProbabilityFlowOptions& options);

struct ProbabilityFlow {
  at::Tensor log_prob;               ///< [B]
  at::Tensor latent;                 ///< [B,event...] x_1
  at::Tensor grad;                   ///< [B,event...] d log_prob / dx, if asked for
  std::vector<int64_t> evaluations;  ///< [B] right-hand sides of each image, gradient included
  Summary summary;
};

/// Probes for images in rows 0..batch-1 of rng, [n,B,event...]; undefined for the exact trace.
at::Tensor draw_probes(const ScoreModel& model, const ProbabilityFlowOptions& options,
                       int64_t batch, const Rng& rng);

/// probes [n,B,event...], or [n,1,event...] shared by the images; ignored for the exact trace.
/// Results are detached.
///   backsolve: da/dt = -grad_x (a . v + div v) beside x from t = 1 back to t0, started at grad log
///   prior(x_1); a(t0) is the
///     gradient up to the solver's tolerance.
///   direct: reverse mode through the accepted steps, the gradient of the computed number; memory
///   grows with the steps.
/// A solver that does not arrive says so in summary and leaves NaN in the image's values.
/// Throws std::invalid_argument for unknown words.
ProbabilityFlow probability_flow_log_prob(const ScoreModel& model,
                                          const ProbabilityFlowOptions& options,
                                          const at::Tensor& x, const at::Tensor& probes,
                                          bool with_grad);

}  // namespace scoreprior
