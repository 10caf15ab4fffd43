#include "scoreprior/infer/adam.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/rng.h"
#include "scoreprior/infer/vi.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

TEST(BufferAdam, ReferenceSteps) {
  SP_REQUIRE_GOLDEN("losses/optimizer_steps");
  const GoldenCase g("losses/optimizer_steps");
  const at::Tensor grads = g.array("grads"), wanted = g.array("dpi_params"), lr = g.array("dpi_lr");
  at::Tensor p = g.array("p0").clone();
  BufferAdamOptions o;
  o.clip = 1;
  o.ema = 0.9;
  BufferAdam adam(p, o);
  at::Tensor average = p.clone();
  for (int64_t k = 0; k < grads.size(0); ++k) {
    adam.step(p, grads[k].contiguous(), lr[k].item<double>());
    EXPECT_LT(relative_error(p, wanted[k]), 1e-12) << k;  // the case's float64 limit
    // Ours starts from zero and divides the bias out; the case's starts from p0.
    average = 0.9 * average + 0.1 * p;
    EXPECT_LT(relative_error(average, g.array("dpi_true_ema")[k]), 1e-12) << k;
    EXPECT_LT(relative_error(adam.average() + std::pow(0.9, k + 1) * g.array("p0"),
                             g.array("dpi_true_ema")[k]),
              1e-12);
  }
}

TEST(Annealing, ReferenceSchedules) {
  SP_REQUIRE_GOLDEN("losses/optimizer_steps");
  const GoldenCase g("losses/optimizer_steps");
  const at::Tensor steps = g.array("anneal_steps"), data = g.array("data_weight"),
                   entropy = g.array("entropy_weight");
  for (int64_t i = 0; i < steps.size(0); ++i) {
    const int64_t k = steps[i].item<int64_t>();
    EXPECT_NEAR(sigmoid_anneal(k, 0.002, 12000) / data[i].item<double>(), 1, 1e-12);
    EXPECT_NEAR(power_anneal(k, 2, 4000) / entropy[i].item<double>(), 1, 1e-12);
  }
}

TEST(BufferAdam, DoesNotDependOnThreadsAndSurvivesNan) {
  const at::Tensor start = Rng(1).normal({100003}), g = Rng(2).normal({100003});
  BufferAdamOptions o;
  o.clip = 0.5;
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int n : {1, 2}) {
    at::set_num_threads(n);
    at::Tensor p = start.clone();
    BufferAdam adam(p, o);
    for (int k = 0; k < 3; ++k) adam.step(p, g, 1e-2);
    at::Tensor bad = g.clone();
    bad[7] = NAN;
    const at::Tensor before = p.clone();
    EXPECT_FALSE(std::isfinite(adam.step(p, bad, 1e-2)));
    EXPECT_TRUE(at::equal(p, before));
    EXPECT_EQ(adam.steps(), 3);
    results.push_back(p);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(results[0], results[1]));
}

TEST(BufferAdam, NormIsTheEuclideanNorm) {
  const at::Tensor g = Rng(3).normal({54321});
  at::Tensor p = at::zeros_like(g);
  BufferAdam adam(p, {});
  const double exact = g.to(at::kDouble).norm().item<double>();
  EXPECT_NEAR(adam.step(p, g, 0) / exact, 1, 1e-6);  // float32 partial sums of 64 terms
}

}  // namespace
}  // namespace scoreprior
