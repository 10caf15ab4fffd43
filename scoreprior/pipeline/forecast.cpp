#include "scoreprior/pipeline/forecast.h"

#include <algorithm>

namespace scoreprior {
namespace {

int64_t ceil_ratio(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t images_in_memory(int64_t batch, int64_t rows_per_image, int64_t max_rows) {
  if (max_rows < 1) return batch;
  return std::min(batch, std::max<int64_t>(1, max_rows / std::max<int64_t>(1, rows_per_image)));
}

double split_gibbs_seconds(const SplitGibbsPlan& plan, const SplitGibbsCost& cost) {
  const double chains = static_cast<double>(ceil_ratio(plan.n_draws, plan.keep));
  const double first = std::max(0.0, 2 * cost.middle - cost.last);
  return cost.setup + chains / static_cast<double>(cost.chains) *
                          (first + static_cast<double>(plan.anneal) * cost.middle +
                           static_cast<double>(plan.hold) * cost.last);
}

int64_t sampler_calls(const SamplerOptions& o) {
  if (o.method != "pc") return 0;
  const int64_t corrections = o.corrector == "none" ? 0 : o.corrector_steps;
  return o.steps * ((o.predictor == "none" ? 0 : 1) + corrections);
}

double training_seconds(const TrainingOptions& o, double step_seconds, double forward_seconds,
                        int64_t validation_images, int64_t calls) {
  const auto times = [&](int64_t every) {  // the last step always counts
    return every > 0 ? static_cast<double>(ceil_ratio(o.steps, every)) : 0.0;
  };
  return static_cast<double>(o.steps) * step_seconds +
         forward_seconds * (times(o.validate_every) * static_cast<double>(validation_images) +
                            times(o.sample_every) * static_cast<double>(o.samples * calls));
}

}  // namespace scoreprior
