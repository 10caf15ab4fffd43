#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/pipeline/session.h"

namespace scoreprior {

/// log p of every image by one method, nats in the model's own pixel scale.
struct LogpColumn {
  std::string method;  ///< "ode" | "elbo" | "path"
  /// The density is that of x at t0, where the noise has this std; 0 for a bound that reaches t =
  /// 0.
  double t0 = 0, noise = 0;
  at::Tensor log_prob;  ///< [N] float64; not finite where the method failed
  at::Tensor
      random_error;        ///< [N] standard error over probes, draws or paths; 0 for an exact trace
  at::Tensor step_error;   ///< [N] error of the time steps; undefined for the elbo, which has none
  at::Tensor evaluations;  ///< [N] int64 network evaluations, all of them
  at::Tensor error_evaluations;  ///< [N] int64 those that only step_error took; undefined = none
  double seconds = 0;
  std::string settings;    ///< one line: solver, tolerances, draws
  std::string message;     ///< what went wrong for some image, or ""
  int64_t failed() const;  ///< images without a finite value
};

struct LogpResult {
  std::string model, images;  ///< one line each
  Shape shape;                ///< {C,H,W}
  std::string range;          ///< "unit", "centered", or "" for an analytic law
  bool bytes = false;         ///< the pixels were 8-bit numbers
  bool dequantized = false;
  bool perturbed = false;          ///< ode and path saw the images with the noise of t0
  std::vector<std::string> names;  ///< [N]
  std::vector<LogpColumn> columns;
  std::vector<std::string> notes;
  bool interrupted = false;  ///< only the first images are there
};

/// log p of images under a score model, by the probability-flow ODE, the denoising-score-matching
/// bound and the path estimator.
///   config  [score] weights = "model.safetensors" (or an analytic law), or the [prior] table of a
///           run configuration; [ode], [elbo], [path], [images] as listed by logp_help(); unknown
///           keys are errors.
///   images  .npy, .npz, .png, .fits, a folder of PNG or FITS files, or the name of a data set
///           (its settings in [data]).
///   method  ode | elbo | path | all
/// Throws UsageError, DataError in one sentence for images of another size, channels or range and
/// for pixels that are not finite, MissingFileError, ConfigError.
LogpResult log_densities(const Config& config, const std::string& images, const std::string& method,
                         uint64_t seed, const Session& session, Observer& observer);

/// "ode: no value for 1 of 4 images, left out of the means: step limit reached at ...", for every
/// method that has some;
/// "" when every image has every value.
std::string logp_failure(const LogpResult& result);

/// A table for people: every image, the means over those that have a value, what the numbers refer
/// to, and the cost.
std::string logp_text(const LogpResult& result);
std::string logp_json(const LogpResult& result);
/// METHOD_logp, METHOD_random_error, METHOD_step_error, METHOD_nfe, each [N].
io::Arrays logp_arrays(const LogpResult& result);

/// The keys of [ode], [elbo], [path] and [images] with their defaults.
std::string logp_help();

}  // namespace scoreprior
