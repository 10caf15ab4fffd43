#pragma once
#include <ATen/core/Tensor.h>

#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// Draws x0 ~ p(x0) N(noisy; x0, sigma^2 I) / Z by the reverse diffusion that starts where the
/// forward process has the noise-to-signal ratio r = std/alpha = sigma, in u = x_t / alpha:
///
///   u' = D + (r'/r)^2 (u - D) + r' sqrt(1 - (r'/r)^2) n,   D = u + r std s(alpha u, t) ~ E[x0 | u]
///
/// (the exact posterior step for a constant D [Ho20, eq. 6-7]) on ratios that fall evenly in log r
/// from sigma to the ratio at t0, `steps_per_efold` steps per factor e and at least two; the last
/// step returns D. A sigma below the ratio at t0 returns D of one evaluation at t0.
/// noisy [B,event...]; one network call of B rows per step. Throws std::invalid_argument unless
/// sigma > 0 and steps_per_efold > 0.
at::Tensor draw_denoised(const ScoreModel& model, const at::Tensor& noisy, double sigma, double t0,
                         double steps_per_efold, const Rng& rng);

}  // namespace scoreprior
