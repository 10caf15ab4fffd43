#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "scoreprior/core/observer.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

struct SamplerOptions {
  std::string method = "pc";  // pc | ode
  std::string predictor =
      "euler_maruyama";            // none | euler_maruyama | reverse_diffusion | ancestral
  std::string corrector = "none";  // none | langevin | ald
  int64_t steps = 1000;
  int64_t corrector_steps = 1;
  double snr = 0.17;
  double t0 = 1e-3;
  bool denoise = true;
  bool probability_flow = false;
  bool batch_norms = false;
  std::string solver = "dopri5";
  double data_std = 0.5;
  double rtol = 1e-5, atol = 1e-5;
  int64_t max_batch = 256;
  template <class F>
  void fields(F&& f) {
    f("method", method, "pc (predictor-corrector) | ode (probability flow)");
    f("predictor", predictor, "none | euler_maruyama | reverse_diffusion | ancestral");
    f("corrector", corrector, "none | langevin | ald");
    f("steps", steps, "time steps");
    f("corrector_steps", corrector_steps, "corrector updates per time step");
    f("snr", snr, "signal-to-noise ratio of the Langevin step");
    f("t0", t0, "smallest diffusion time");
    f("denoise", denoise, "return the noise-free mean of the last step");
    f("probability_flow", probability_flow, "deterministic predictor");
    f("batch_norms", batch_norms, "Langevin norms averaged over the batch, as in [Song21]");
    f("solver", solver,
      "method ode: heun | bosh3 | dopri5 | tsit5 | dopri8 in time | exp2 | exp3 | exp2m | exp3m | "
      "exp4m in log-SNR");
    f("data_std", data_std, "exp solvers: root mean square of the pixels");
    f("rtol", rtol, "method ode: relative tolerance");
    f("atol", atol, "method ode: absolute tolerance");
    f("max_batch", max_batch, "most images in one network call");
  }
};

/// n draws from the model, [n, event...]; row b depends on rng and b only. Batch norms of the
/// Langevin corrector are per image, so draws do not depend on their batch mates (unless
/// batch_norms asks for the reference's rule). When the observer asks to stop, only the draws
/// finished so far come back. Throws std::invalid_argument for unknown names and for ancestral
/// steps of a sub-VP process.
at::Tensor sample_score_model(const ScoreModel& model, const SamplerOptions& options, int64_t n,
                              const Rng& rng, Observer& observer);

/// The state after one update and the same without its fresh noise.
struct SamplerUpdate {
  at::Tensor x, mean;
};

/// One reverse step at time t [B] of the chain with `steps` steps, given the score at (x,t) and
/// noise z [Song21, App. D-F]:
///   none               x
///   euler_maruyama     x - (f - g^2 s)/N + g sqrt(1/N) z
///   reverse_diffusion  x - (f_i - G_i^2 s) + G_i z, with the discrete f_i, G_i of step i = trunc(t
///   (N-1)) ancestral          VP (x + beta_i s)/sqrt(1-beta_i) + sqrt(beta_i) z; VE the posterior
///   step of sigma_i -> sigma_{i-1}
/// probability_flow halves the score term and drops the noise (euler_maruyama and
/// reverse_diffusion).
SamplerUpdate predictor_update(const Sde& sde, const std::string& name, const at::Tensor& x,
                               const at::Tensor& t, const at::Tensor& score, const at::Tensor& z,
                               int64_t steps, bool probability_flow);

/// One corrector update x + eps s + sqrt(2 eps) z [Song21, Alg. 4-5]: langevin eps = 2 alpha_i (snr
/// |z|/|s|)^2, ald eps = 2 alpha_i (snr std)^2; alpha_i = 1 - beta_i (1 for VE). batch_norms: |z|
/// and |s| are means over the batch.
SamplerUpdate corrector_update(const Sde& sde, const std::string& name, const at::Tensor& x,
                               const at::Tensor& t, const at::Tensor& score, const at::Tensor& z,
                               int64_t steps, double snr, bool batch_norms);

/// The probability-flow map of latents z at t = 1 to x at options.t0 (method ode without the final
/// denoising step). Throws DataError when the solver does not arrive.
at::Tensor probability_flow_sample(const ScoreModel& model, const SamplerOptions& options,
                                   const at::Tensor& z);

}  // namespace scoreprior
