#pragma once
#include <ATen/core/Tensor.h>

#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

struct DsmOptions {
  bool likelihood_weighting = false;
  bool importance_weighting = false;
  bool reduce_mean = false;
  double t_min = 1e-5;
  bool stratified_time = true;
  template <class F>
  void fields(F&& f) {
    f("likelihood_weighting", likelihood_weighting, "weight g^2: the loss bounds -log p");
    f("importance_weighting", importance_weighting,
      "likelihood weighting by choice of times (vp, subvp): less noise");
    f("reduce_mean", reduce_mean, "mean over pixels instead of half their sum");
    f("t_min", t_min, "smallest diffusion time seen in training");
    f("stratified_time", stratified_time,
      "times spread evenly over a batch (same law of each, less noise)");
  }
};

/// Denoising score matching, one value per image [B], nats-like and always >= 0 [Song21] eq. 7.
///   x_t = alpha x + std z,  r = std s(x_t,t) + z,   loss = sum r^2 / 2   (mean r^2 with
///   reduce_mean)
/// likelihood_weighting: r = s + z/std and the value times g^2 [Song21ml]. With
/// importance_weighting the times follow g^2/std^2 and the weight is 1, which is the same objective
/// up to the constant Z. Differentiable in the parameters.
at::Tensor dsm_loss(const NetworkScore& model, const DsmOptions& options, const at::Tensor& x,
                    const at::Tensor& t, const at::Tensor& z, const Rng* dropout = nullptr);

/// Training times of rows first..first+n-1 of a batch of `batch` images, [n] float64 in [t_min,1].
/// Row b depends on (rng, b), and on `batch` when stratified.
at::Tensor dsm_times(const Sde& sde, const DsmOptions& options, const Rng& rng, int64_t batch,
                     int64_t first, int64_t n);

/// The losses of discrete-time training [Ho20], [Song19], for a network output `out` at the noisy
/// image sqrt(abar) x + sqrt(1-abar) z (DDPM) or x + sigma z (SMLD): sum (out - z)^2 / 2 and sum
/// (sigma out + z)^2 / 2, or means.
at::Tensor ddpm_loss(const at::Tensor& out, const at::Tensor& z, bool reduce_mean);
at::Tensor smld_loss(const at::Tensor& out, const at::Tensor& z, const at::Tensor& sigma,
                     bool reduce_mean);

}  // namespace scoreprior
