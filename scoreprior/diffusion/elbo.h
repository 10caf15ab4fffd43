#pragma once
#include <ATen/core/Tensor.h>

#include <utility>

#include "scoreprior/core/config.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// The denoising-score-matching lower bound on log p(x) [Song21ml] [Feng24]:
///
///   log p(x) >= E log prior(alpha_1 x + std_1 z)  -  1/2 E_t [ w(t) ( g^2 (|s + z/std|^2 -
///   |z/std|^2) - 2 div f ) ]  -  offset offset    = E [ |z + std s|^2 / 2 ] - D/2 - D ln alpha at
///   t = t0:  the price of starting at t0 instead of 0
///
/// with s the score at (alpha x + std z, t) and div f = D drift_coeff(t). Times come from the
/// density g^2/std^2 / Z on [t0,1] with w = std^2 Z / g^2 (importance), or uniformly from [t0,1]
/// with w = 1: without the factor 1 - t0, as in the reference, so that bound is low by a relative
/// t0. Where the process has no importance density (VE: g^2/std^2 is constant) importance means
/// uniform times with w = 1 - t0. Cost: n_times network evaluations per image, one more with the
/// offset; a gradient adds their vector-Jacobian products.
struct ElboOptions {
  double t0 = 1e-3;
  bool importance = true;
  bool offset = true;
  int64_t n_times = 1;
  bool stratified = true;
  bool antithetic = true;
  int64_t max_batch = 256;
  double max_memory_mib = 0;
  template <class F>
  void fields(F&& f) {
    f("t0", t0, "smallest diffusion time");
    f("importance", importance, "times from the density g^2/std^2 instead of uniform ones");
    f("offset", offset, "add the term for the interval [0, t0]");
    f("n_times", n_times, "times (and noises) per image and evaluation");
    f("stratified", stratified, "spread the times evenly over an image's draws and over the batch");
    f("antithetic", antithetic, "pair noises z and -z at one time");
    f("max_batch", max_batch, "most images in one network call");
    f("max_memory_mib", max_memory_mib,
      "memory a network call may take; 0 = half of what is free [MiB]");
  }
};

/// ConfigError at the key of a value that cannot be.
void check_options(const Config& config, const ElboOptions& options);

/// What one evaluation draws.
struct ElboDraws {
  at::Tensor times;         ///< [n,B] float64
  at::Tensor noise;         ///< [n,B,event...]
  at::Tensor noise_prior;   ///< [B,event...] z of the prior term; undefined = its expectation in
                            ///< closed form
  at::Tensor noise_offset;  ///< [B,event...] z of the offset; undefined = no offset
  /// Subtract the offset's |z|^2/2 instead of its mean D/2: same expectation and gradient, less
  /// noise.
  bool centred_offset = false;
};

/// Draws for images in rows 0..batch-1 of rng. Row b depends on (rng, b) alone, and every image's
/// estimate by itself is unbiased: each of its times has the right law given nothing else, each
/// noise is N(0, I). What is coupled:
///   stratified   time j of an image falls into the j-th of n equal parts of the cumulative weight,
///   at
///                frac(shift_j + b phi) of it, phi = the golden ratio, shift_j shared by all rows
///                of rng: any block of rows covers each part evenly.
///   antithetic   n_times even: draws 2j and 2j+1 of an image are one time with z and -z (n/2 time
///   strata).
///                n_times odd: images 2k and 2k+1 use the same times with z and -z.
/// So the errors of different images of one rng are dependent (as wanted: averages over a batch,
/// the gradient of variational inference, gain), and their spread is no estimate of the Monte-Carlo
/// error; different rng's are independent.
ElboDraws draw_elbo(const ScoreModel& model, const ElboOptions& options, int64_t batch,
                    const Rng& rng);

/// Contributions to the bound, [B] nats each; log p(x) >= prior + integral + offset.
struct ElboTerms {
  at::Tensor prior, integral, offset;  ///< offset is zero when not asked for
  at::Tensor value() const;
};

/// The bound for given draws; differentiable in x when gradients are on and x requires one.
ElboTerms elbo(const ScoreModel& model, const ElboOptions& options, const at::Tensor& x,
               const ElboDraws& draws);

/// The same and its gradient in x with times and noises fixed, [B,event...]; both detached. Memory
/// is that of max_batch images in the network, whatever n_times, or of as many as max_memory_mib
/// allows (at least one).
std::pair<ElboTerms, at::Tensor> elbo_and_grad(const ScoreModel& model, const ElboOptions& options,
                                               const at::Tensor& x, const ElboDraws& draws);

}  // namespace scoreprior
