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
/// It is the density at time t0 of x taken as x(t0).
///
/// variable = time integrates this equation as it stands. variable = log_snr integrates
///
///   u = x / s(t),  du/dlambda = w(lambda) F(u, lambda),  lambda = -ln(std/alpha)
///   s^2 = alpha^2 (c^2 + e^{-2 lambda}) / (1 + c^2),  w = e^{-lambda} (1 + c^2) / (c^2 + e^{-2
///   lambda}) F = (std s / alpha) [score + x / (alpha^2 c^2 + std^2)]
///
/// (std here is the one that belongs to alpha and g), the flow of N(0, c^2 I) data taken out
/// exactly: with c = data_std the pixels' root mean square, F is what the network knows beyond it
/// and du/dlambda is small at both ends. c = 0 is the data prediction, c -> infinity the noise
/// prediction of [Lu22]. The exp solvers (ode/integrate.h) always use it and integrate w exactly.
///
/// Divergence, see diffusion/divergence.h: exact, or hutchinson: n_probes/colours estimates
/// averaged, each the sum of `colours` +-1 or normal probes that share the pixels out. Probes are
/// fixed along the path, so that the log-density is a smooth function of x.
struct ProbabilityFlowOptions {
  double t0 = 1e-3;
  std::string trace = "hutchinson";
  int64_t n_probes = 1;
  int64_t colours = 1;
  std::string probe_law = "rademacher";
  std::string solver = "exp4m";
  std::string variable = "log_snr";
  double data_std = 0.5;
  double rtol = 1e-4;
  double atol = 1e-4;
  int64_t steps = 0;
  int64_t max_steps = 10000;
  int64_t max_nfe = 0;
  std::string adjoint = "checkpoint";
  bool seminorm = true;
  bool check_gradient = false;
  double gradient_tolerance = 1e-2;
  std::string solver_error = "embedded";
  int64_t max_batch = 256;
  double max_memory_mib = 0;
  template <class F>
  void fields(F&& f) {
    value_fields(f);
    gradient_fields(f);
  }
  /// What the value depends on.
  template <class F>
  void value_fields(F&& f) {
    f("t0", t0, "smallest diffusion time");
    f("trace", trace, "exact | hutchinson");
    f("n_probes", n_probes, "hutchinson: probes (vector-Jacobian products)");
    f("colours", colours,
      "probes that share the pixels out, neighbours apart; divides n_probes "
      "(logp: 0 = as many as leave 2 sets, from 8 probes on 4)");
    f("probe_law", probe_law, "rademacher | gaussian");
    f("solver", solver,
      "euler | midpoint | rk4 | heun | bosh3 | dopri5 | tsit5 | dopri8 | exp2 | exp3 | exp2m | "
      "exp3m | exp4m");
    f("variable", variable, "log_snr (linear part solved exactly) | time; exp solvers: log_snr");
    f("data_std", data_std, "log_snr: root mean square of the pixels, 0 = data prediction");
    f("rtol", rtol, "relative tolerance");
    f("atol", atol, "absolute tolerance");
    f("steps", steps, "number of fixed steps; 0 = steps from the error estimate");
    f("max_steps", max_steps, "most steps an image may try");
    f("max_nfe", max_nfe, "most evaluations of an image's value; 0 = no limit");
    f("solver_error", solver_error,
      "embedded (free, of the steps) | second (a second, looser solution) | none");
    f("max_batch", max_batch, "most network rows in one call");
    f("max_memory_mib", max_memory_mib,
      "memory the images of a piece may take together; 0 = half of what is free [MiB]");
  }
  template <class F>
  void gradient_fields(F&& f) {
    f("adjoint", adjoint,
      "gradient: checkpoint (through the steps, one evaluation at a time) | direct (through all "
      "at once) | backsolve (adjoint ODE, constant memory)");
    f("seminorm", seminorm, "backsolve: no error control of what does not feed back");
    f("check_gradient", check_gradient, "compute the gradient a second way and compare");
    f("gradient_tolerance", gradient_tolerance, "relative difference that check_gradient allows");
  }
};

/// ConfigError at the key of a value that cannot be.
void check_options(const Config& config, const ProbabilityFlowOptions& options);
/// Of value_fields alone.
void check_value_options(const Config& config, const ProbabilityFlowOptions& options);

struct ProbabilityFlow {
  at::Tensor log_prob;        ///< [B]
  at::Tensor latent;          ///< [B,event...] x_1
  at::Tensor grad;            ///< [B,event...] d log_prob / dx, if asked for
  at::Tensor standard_error;  ///< [B] of log_prob over the n_probes/colours estimates; 0 for the
                              ///< exact trace, NaN where one estimate cannot tell
  /// [B] estimate of |log_prob - log_prob at zero step size|, probes fixed. second: difference to
  /// a solution with ten times the tolerance (or half the steps; NaN for a single one), about the
  /// error of that one and so an upper estimate. embedded: size of the summed embedded differences
  /// of the steps in the volume and, through grad log prior, the latent: the lower-order method's
  /// error without its propagation. NaN where the method has no estimate.
  at::Tensor solver_error;
  /// [B] |g - g2| / |g| of the gradient and the one check_gradient computes the other way, NaN for
  /// an image that has not both; undefined unless asked for.
  at::Tensor gradient_difference;
  std::vector<int64_t> evaluations;  ///< [B] right-hand sides of each image: value, gradient,
                                     ///< second solution and second gradient
  std::vector<int64_t> second_evaluations;  ///< [B] those of the second solution among them
  std::vector<Status> status;               ///< [B] of the value
  /// Worst status and its sentence, with the number of images that have no value. A gradient
  /// difference beyond the tolerance is a warning, pieces that the memory asked for add a sentence.
  /// numbers: nfe (worst image's right-hand sides for the value), grad_nfe (of those again for the
  /// gradient), second_nfe, forwards, vjps, second_order (network rows per image, means),
  /// record_bytes, failed (images without a value), grad_failed (with one but no gradient),
  /// standard_error, solver_error, gradient_difference (largest of the images that have one),
  /// gradient_unchecked (images with a gradient whose second one did not arrive), pieces the batch
  /// was computed in, piece_images, piece_rows (of a network call).
  Summary summary;
  std::string failure;  ///< of the worst image, without their number; empty when all have a value
};

/// Probes for images in rows 0..batch-1 of rng, [n,B,event...]; undefined for the exact trace.
at::Tensor draw_probes(const ScoreModel& model, const ProbabilityFlowOptions& options,
                       int64_t batch, const Rng& rng);

/// probes [n,B,event...], or [n,1,event...] shared by the images; ignored for the exact trace.
/// Results are detached.
///   checkpoint: reverse mode through the accepted steps, evaluation by evaluation: the gradient of
///   the computed number. Memory: evaluations x batch x image, and one evaluation's network graph.
///   direct: the same by autograd; memory of all evaluations' network graphs.
///   backsolve: da/dt = -grad_x (a . v + div v) beside x from t = 1 back to t0, started at grad log
///   prior(x_1); a(t0) is the gradient up to the solver's tolerance. seminorm = false also carries
///   the log-density back and controls its error.
/// A batch larger than max_batch, or one that the memory cannot hold, is computed in pieces by the
/// law of docs/logp.md: the same numbers but for rounding (and, where steps follow tolerances, a
/// step that rounding takes over its limit). One image is always tried. A solver that does not
/// arrive, or an image or log-density that is not finite, says so in summary and leaves NaN in the
/// image's values.
/// Throws std::invalid_argument for unknown words and numbers out of range.
ProbabilityFlow probability_flow_log_prob(const ScoreModel& model,
                                          const ProbabilityFlowOptions& options,
                                          const at::Tensor& x, const at::Tensor& probes,
                                          bool with_grad);

/// nats per image to bits per dimension: -log_prob / (D ln 2) [B]. No dequantisation and no change
/// of data range is in it: pixels are the model's own real numbers. For 8-bit images dequantised
/// as x = (k + u)/256 add 8 (7 for a model on [-1,1]).
at::Tensor bits_per_dim(const at::Tensor& log_prob, const Shape& event);

}  // namespace scoreprior
