#pragma once
#include <ATen/core/Tensor.h>

#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// Draws x0 ~ p(x0) N(noisy; x0, sigma^2 I) / Z by the reverse diffusion that starts where the
/// forward process has the noise-to-signal ratio r = std/alpha = sigma, in u = x_t / alpha:
///
///   u' = D + k (u - D) + r' sqrt(1 - k) n + (1 - k) r e,   k = (r'/r)^2,
///   D = u + r std s(alpha u, t) ~ E[x0 | u]
///
/// on ratios that fall evenly in log r from sigma to the ratio at t0, `steps_per_efold` steps per
/// factor e and at least one. Without e it is the exact posterior step for a known x0 = D [Ho20,
/// eq. 6-7]; e carries what x0 | u has of its own, of covariance J = dD/du (of r^2 J, the Hessian
/// form of Tweedie's formula), without which every step would narrow the draws by up to 1 - k. It
/// is made of one finite difference of D, c J n with c from the trace of J, so that a step gives
/// the right mean and total variance of u'; exact for a normal law of one variance. The last step,
/// or the only one when sigma lies below the ratio at t0, returns D + r e at t0. noisy
/// [B,event...]; two network calls of B rows per step. Throws std::invalid_argument unless sigma >
/// 0 and steps_per_efold > 0.
at::Tensor draw_denoised(const ScoreModel& model, const at::Tensor& noisy, double sigma, double t0,
                         double steps_per_efold, const Rng& rng);

}  // namespace scoreprior
