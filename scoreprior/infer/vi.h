#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/infer/inference.h"

namespace scoreprior {

/// Weights of the three parts of the objective.
struct ElboWeights {
  double data = 1, prior = 1, entropy = 1;
};

/// One estimate of L = E_q[-w_data log p(y|x) - w_prior log p(x) + w_entropy log q(x)], x =
/// flow(z).
struct ElboEstimate {
  double loss = 0, data = 0, prior = 0,
         entropy = 0;   ///< batch means: L, -log p(y|x), -log p(x), log q(x)
  int64_t rows = 0;     ///< rows with finite densities and gradients
  int64_t dropped = 0;  ///< the others, which count for nothing
};

/// Evaluates L on the latents z [B,D] and leaves dL/dparameters in flow.flat_grad() (untouched when
/// no row is usable). The event shape of x is the prior's, else the likelihood's. Densities are
/// evaluated on `device`.
ElboEstimate elbo_step(Flow& flow, const Target& target, const at::Tensor& z, const Rng& rng,
                       const ElboWeights& weights, at::Device device = at::kCPU);

/// 1 / (1 + exp(-rate (step - pivot))): the data come in gradually.
double sigmoid_anneal(int64_t step, double rate, double pivot);
/// max(10^(start_order - step / decay_steps), 1): a broad q at the start.
double power_anneal(int64_t step, double start_order, double decay_steps);

/// The event shape a target's parts agree on; throws std::invalid_argument when they do not.
Shape target_event_shape(const Target& target);

}  // namespace scoreprior
