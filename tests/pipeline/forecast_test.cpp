#include "scoreprior/pipeline/forecast.h"

#include <gtest/gtest.h>

#include <cmath>

namespace scoreprior {
namespace {

TEST(Forecast, MemoryStopsGrowingAtTheLargestCall) {
  EXPECT_EQ(images_in_memory(64, 1, 0), 64);
  EXPECT_EQ(images_in_memory(64, 1, 256), 64);
  EXPECT_EQ(images_in_memory(64, 8, 256), 32);
  EXPECT_EQ(images_in_memory(8, 8, 256), 8);
  EXPECT_EQ(images_in_memory(64, 1000, 256), 1);
}

// Against the sum over iterations of a sampler whose calls cost a + b ln(rho / r0).
TEST(Forecast, SplitGibbsAgreesWithTheSumOverIterations) {
  const double a = 0.02, b = 0.013, start = 1, end = 0.05, r0 = 0.01;
  const auto iteration = [&](double rho) { return a + b * std::log(rho / r0); };
  const SplitGibbsPlan plan{100, 2, 200, 30};
  const int64_t together = 8;
  double chain = iteration(start);  // the draw it starts from
  for (int64_t k = 0; k < plan.anneal; ++k)
    chain += iteration(start * std::pow(end / start, static_cast<double>(k) / 200));
  chain += 30 * iteration(end);
  const SplitGibbsCost cost{together, 1.5, together * iteration(std::sqrt(start * end)),
                            together * iteration(end)};
  // The mean over k < anneal lies half a step above the middle.
  EXPECT_NEAR(split_gibbs_seconds(plan, cost) / (1.5 + 50 * chain), 1, 2e-3);
  // One chain more begins a new one.
  const double one = split_gibbs_seconds({2, 2, 200, 30}, cost) - cost.setup;
  EXPECT_NEAR(split_gibbs_seconds({3, 2, 200, 30}, cost) - cost.setup, 2 * one, 1e-9);
}

TEST(Forecast, TrainingCountsValidationsAndGrids) {
  SamplerOptions sampler;
  sampler.method = "pc";
  sampler.predictor = "reverse_diffusion";
  sampler.corrector = "langevin";
  sampler.steps = 100;
  sampler.corrector_steps = 2;
  EXPECT_EQ(sampler_calls(sampler), 300);
  sampler.corrector = "none";
  EXPECT_EQ(sampler_calls(sampler), 100);
  TrainingOptions o;
  o.steps = 1050;
  o.validate_every = 100;
  o.sample_every = 1000;
  o.samples = 4;
  // 11 validations of 20 images, two grids of four images at 100 calls.
  EXPECT_NEAR(training_seconds(o, 0.5, 0.01, 20, 100), 525 + 0.01 * (11 * 20 + 2 * 4 * 100), 1e-9);
  o.validate_every = o.sample_every = 0;
  EXPECT_NEAR(training_seconds(o, 0.5, 0.01, 20, 100), 525, 1e-9);
}

}  // namespace
}  // namespace scoreprior
