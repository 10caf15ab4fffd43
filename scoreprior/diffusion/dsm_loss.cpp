#include "scoreprior/diffusion/dsm_loss.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

// Half the sum, or the mean, of r^2 over each image.
at::Tensor residual_value(const at::Tensor& r, bool reduce_mean) {
  const double pixels = static_cast<double>(r.numel()) / static_cast<double>(r.size(0));
  return sum_event(r.square()) * (reduce_mean ? 1.0 / pixels : 0.5);
}

}  // namespace

at::Tensor dsm_loss(const NetworkScore& model, const DsmOptions& options, const at::Tensor& x,
                    const at::Tensor& t, const at::Tensor& z, const Rng* dropout) {
  const Sde& sde = model.sde();
  const at::Tensor std = sde.std(t);
  const auto along = [&](const at::Tensor& a) { return expand_like_batch(a, x); };
  const at::Tensor noisy = x * along(sde.mean_coeff(t)) + z * along(std);
  // std * score in one factor: 1/std never meets a large network output in float32.
  const at::Tensor r = model.net_output(noisy, t, dropout) * along(std * sde.net_to_score(t)) + z;
  const at::Tensor value = residual_value(r, options.reduce_mean);
  if (!options.likelihood_weighting || options.importance_weighting) return value;
  return value * (sde.diffusion(t) / std).square();
}

at::Tensor dsm_times(const Sde& sde, const DsmOptions& options, const Rng& rng, int64_t batch,
                     int64_t first, int64_t n) {
  at::Tensor u;
  if (options.stratified_time) {
    const double shift = rng.uniforms(1)[0];
    u = (at::arange(first, first + n, at::kDouble) + shift) / static_cast<double>(batch);
  } else {
    u = rng.from_row(first).uniform({n}, at::kDouble);
  }
  if (options.importance_weighting) return sde.importance_time(u, options.t_min);
  return u * (1 - options.t_min) + options.t_min;
}

at::Tensor ddpm_loss(const at::Tensor& out, const at::Tensor& z, bool reduce_mean) {
  return residual_value(out - z, reduce_mean);
}

at::Tensor smld_loss(const at::Tensor& out, const at::Tensor& z, const at::Tensor& sigma,
                     bool reduce_mean) {
  return residual_value(out * expand_like_batch(sigma, out) + z, reduce_mean);
}

}  // namespace scoreprior
