#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "scoreprior/core/observer.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

struct SamplerOptions {
  std::string method = "pc";                   // pc | ode
  std::string predictor = "euler_maruyama";    // none | euler_maruyama | reverse_diffusion | ancestral
  std::string corrector = "none";              // none | langevin | ald
  int64_t steps = 1000;
  int64_t corrector_steps = 1;
  double snr = 0.17;
  double t0 = 1e-3;
  bool denoise = true;
  bool probability_flow = false;
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
  }
};

/// n draws from the model, [n, event...]; row b depends on rng and b only. Batch norms of the Langevin corrector are
/// per image, so draws do not depend on their batch mates.
at::Tensor sample_score_model(const ScoreModel& model, const SamplerOptions& options, int64_t n,
                              const Rng& rng, Observer& observer);

}  // namespace scoreprior
