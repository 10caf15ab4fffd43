#include "scoreprior/diffusion/memory_budget.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/testing/golden.h"
#include "tests/diffusion/small_network.h"

namespace scoreprior {
namespace {

using testing::relative_error;

TEST(MemoryBudget, FreeMemoryIsANumberOfThisMachine) {
  const double free = usable_memory();
  EXPECT_GT(free, 16.0 * 1024 * 1024);
  EXPECT_LT(free, 1e15);
  EXPECT_EQ(memory_budget(3), 3.0 * 1024 * 1024);
  EXPECT_NEAR(memory_budget(0) / (0.5 * free), 1, 0.5);
}

TEST(MemoryBudget, PeakAllocationSeesTensors) {
  const double bytes = peak_allocation([] {
    const at::Tensor a = at::zeros({1000}, at::kDouble);
    { const at::Tensor b = at::zeros({3000}, at::kDouble); }
    const at::Tensor c = at::zeros({500}, at::kDouble);
  });
  EXPECT_GE(bytes, 4000 * 8);
  EXPECT_LT(bytes, 4100 * 8);
}

TEST(MemoryBudget, PiecesFollowTheLaw) {
  // 10 + A 2 + max(R, A) 5 <= budget
  for (const double budget : {0.0, 17.0, 30.0, 60.0, 200.0, 1e9})
    for (const int64_t images : {1, 7, 64}) {
      const Pieces p = fit_into(budget, 10, 2, 5, images, 32);
      EXPECT_GE(p.images, 1);
      EXPECT_LE(p.images, std::min<int64_t>(images, 32));
      EXPECT_GE(p.rows, p.images);
      EXPECT_LE(p.rows, 32);
      if (p.rows > 1) {
        EXPECT_LE(10 + 2 * p.images + 5 * p.rows, budget) << budget << " " << images;
      }
    }
  EXPECT_EQ(fit_into(10 + 4 * 7, 10, 2, 5, 7, 32).images, 4);  // 4 + 3, not 4 + 2 + 1
  EXPECT_EQ(fit_into(1e9, 10, 2, 5, 64, 32).rows, 32);
  EXPECT_FALSE(fit_into(1e9, 10, 2, 5, 64, 32).limited);
  EXPECT_TRUE(fit_into(60, 10, 2, 5, 64, 32).limited);
  EXPECT_EQ(fit_into(-1e9, 10, 2, 5, 64, 32).images, 1);
}

// Value, gradient and errors do not depend on the budget; one image goes however little there is.
TEST(MemoryBudget, FlowPiecesGiveTheSame) {
  const auto model = small_network();
  const at::Tensor x = Rng(3).uniform({2, 1, 4, 4}, at::kDouble);
  struct Case {
    const char *trace, *adjoint, *solver;
  };
  for (const Case c : {Case{"hutchinson", "checkpoint", "exp3m"},
                       {"hutchinson", "direct", "exp2"},
                       {"hutchinson", "backsolve", "heun"},
                       {"exact", "checkpoint", "exp3m"}}) {
    ProbabilityFlowOptions o;
    o.trace = c.trace;
    o.adjoint = c.adjoint;
    o.solver = c.solver;
    o.n_probes = 4;
    o.steps = 2;
    const at::Tensor probes = draw_probes(*model, o, 2, Rng(1));
    o.max_memory_mib = 1e6;
    const ProbabilityFlow whole = probability_flow_log_prob(*model, o, x, probes, true);
    EXPECT_EQ(whole.summary.numbers.at("pieces"), 1);
    EXPECT_EQ(whole.summary.message.find("piece"), std::string::npos) << whole.summary.message;
    o.max_memory_mib = 1e-6;
    const ProbabilityFlow tiny = probability_flow_log_prob(*model, o, x, probes, true);
    EXPECT_EQ(tiny.summary.numbers.at("pieces"), 2);
    EXPECT_EQ(tiny.summary.numbers.at("piece_rows"), 1);
    EXPECT_NE(tiny.summary.message.find("computed in 2 pieces of up to 1 image"), std::string::npos)
        << tiny.summary.message;
    EXPECT_LT(relative_error(tiny.log_prob, whole.log_prob), 1e-12) << c.trace << c.adjoint;
    EXPECT_LT(relative_error(tiny.latent, whole.latent), 1e-12) << c.trace << c.adjoint;
    EXPECT_LT(relative_error(tiny.grad, whole.grad), 1e-12) << c.trace << c.adjoint;
    EXPECT_EQ(tiny.evaluations, whole.evaluations);
  }
}

// Steps that follow tolerances are each image's own, so that pieces leave them alone too.
TEST(MemoryBudget, FlowPiecesKeepAdaptiveSteps) {
  const auto model = small_network();
  const at::Tensor x = Rng(4).uniform({2, 1, 4, 4}, at::kDouble);
  ProbabilityFlowOptions o;
  o.solver = "exp4m";
  o.rtol = o.atol = 1e-2;
  const at::Tensor probes = draw_probes(*model, o, 2, Rng(1));
  o.max_memory_mib = 1e6;
  const ProbabilityFlow whole = probability_flow_log_prob(*model, o, x, probes, true);
  o.max_memory_mib = 1e-6;
  const ProbabilityFlow tiny = probability_flow_log_prob(*model, o, x, probes, true);
  EXPECT_EQ(tiny.evaluations, whole.evaluations);
  EXPECT_LT(relative_error(tiny.log_prob, whole.log_prob), 1e-10);
  EXPECT_LT(relative_error(tiny.grad, whole.grad), 1e-10);
}

// The law holds: what is allocated stays within the budget, and most of the budget is used.
TEST(MemoryBudget, AllocationsStayWithinTheBudget) {
  const auto model = small_network();
  const at::Tensor x = Rng(3).uniform({12, 1, 4, 4}, at::kDouble);
  ProbabilityFlowOptions o;
  o.solver = "exp3m";
  o.steps = 2;
  for (const int64_t n : {1, 4})
    for (const char* adjoint : {"checkpoint", "direct"}) {
      o.n_probes = n;
      o.adjoint = adjoint;
      const at::Tensor probes = draw_probes(*model, o, 12, Rng(1));
      const auto peak = [&](double mib, double* pieces) {
        o.max_memory_mib = mib;
        return peak_allocation([&] {
          *pieces = probability_flow_log_prob(*model, o, x, probes, true).summary.numbers["pieces"];
        });
      };
      double one = 0, several = 0;
      const double whole = peak(1e6, &one);
      const double budget = whole / 3;
      const double within = peak(budget / (1 << 20), &several);
      EXPECT_EQ(one, 1);
      EXPECT_GT(within, 0.2 * budget) << n << adjoint;
      EXPECT_LT(within, budget) << n << adjoint << " in " << several << " pieces";
    }
}

TEST(MemoryBudget, BoundPiecesGiveTheSame) {
  const auto model = small_network();
  const at::Tensor x = Rng(3).uniform({6, 1, 4, 4}, at::kDouble);
  ElboOptions o;
  o.n_times = 4;
  const ElboDraws draws = draw_elbo(*model, o, 6, Rng(2));
  o.max_memory_mib = 1e6;
  const auto [whole, whole_grad] = elbo_and_grad(*model, o, x, draws);
  const double most = peak_allocation([&] { elbo_and_grad(*model, o, x, draws); });
  o.max_memory_mib = most / 3 / (1 << 20);
  const double less = peak_allocation([&] { elbo_and_grad(*model, o, x, draws); });
  EXPECT_LT(less, 0.5 * most);
  o.max_memory_mib = 1e-6;
  const auto [tiny, tiny_grad] = elbo_and_grad(*model, o, x, draws);
  EXPECT_LT(relative_error(tiny.value(), whole.value()), 1e-12);
  EXPECT_LT(relative_error(tiny_grad, whole_grad), 1e-12);
  const at::NoGradGuard off;
  EXPECT_LT(relative_error(elbo(*model, o, x, draws).value(), whole.value()), 1e-12);
}

}  // namespace
}  // namespace scoreprior
