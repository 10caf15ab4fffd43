#pragma once
/// From what a few steps cost to what a whole run will: the arithmetic of `check`, without a clock.

#include <cstdint>

#include "scoreprior/diffusion/sampler.h"
#include "scoreprior/pipeline/train.h"

namespace scoreprior {

/// Images of a batch that hold memory at once where a network call has at most max_rows rows and an
/// image takes rows_per_image of them; max_rows = 0: no limit. At least one image.
int64_t images_in_memory(int64_t batch, int64_t rows_per_image, int64_t max_rows);

/// How many chains split_gibbs runs for how long.
struct SplitGibbsPlan {
  int64_t n_draws = 0, keep = 1, anneal = 0, hold = 0;
};

/// Seconds of `chains` chains of a short run: what comes before the first iteration, an iteration
/// at the geometric middle of the couplings and one at the last.
struct SplitGibbsCost {
  int64_t chains = 1;
  double setup = 0, middle = 0, last = 0;
};

/// Seconds of a run of split_gibbs:
///
///   setup + ceil(n_draws/keep)/chains * (first + anneal * middle + hold * last)
///
/// An iteration's denoising calls grow with ln rho, which falls evenly: the mean over `anneal` is
/// the middle one, and the draw that chains start from costs first = 2 middle - last.
double split_gibbs_seconds(const SplitGibbsPlan& plan, const SplitGibbsCost& cost);

/// Network calls of one image of a sample grid; those of the adaptive method `ode` are not known
/// beforehand and count as 0.
int64_t sampler_calls(const SamplerOptions& options);

/// Seconds of a training: its steps, validations on validation_images images of forward_seconds
/// each, and sample grids of `calls` such per image.
double training_seconds(const TrainingOptions& options, double step_seconds, double forward_seconds,
                        int64_t validation_images, int64_t calls);

}  // namespace scoreprior
