#include "scoreprior/diffusion/probability_flow.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::relative_error;

const char* kSdeTypes[] = {"vp", "subvp", "ve"};

std::unique_ptr<ScoreModel> isotropic(const std::string& type, double sigma = 0.4) {
  return make_score_model(
      io::parse_toml("name = \"gaussian\"\nmean = 0.3\nshape = [1, 3, 3]\nsigma = " +
                     std::to_string(sigma) + "\n[sde]\ntype = \"" + type + "\"\n"),
      at::kDouble, at::kCPU);
}

at::Tensor points(int64_t n) { return 0.3 + 0.5 * Rng(3).normal({n, 1, 3, 3}, at::kDouble); }

// For N(m, sigma^2 I) the flow maps x affinely onto t = 1: x_1 = alpha_1 m + sqrt(v_1/v_0) (x -
// alpha_0 m) with v = alpha^2 sigma^2 + std^2, and log p = log prior(x_1) + D/2 log(v_1/v_0).
TEST(ProbabilityFlow, MatchesTheClosedFormOfAGaussian) {
  for (const char* type : kSdeTypes) {
    const auto model = isotropic(type);
    ProbabilityFlowOptions o;
    o.trace = "exact";
    o.rtol = o.atol = 1e-9;
    const at::Tensor x = points(3), t = at::tensor({o.t0, 1.0}, at::kDouble);
    const at::Tensor alpha = model->sde().mean_coeff(t),
                     v = alpha.square() * 0.16 + model->sde().std(t).square();
    const at::Tensor stretch = (v[1] / v[0]).sqrt();
    const at::Tensor latent = alpha[1] * 0.3 + stretch * (x - alpha[0] * 0.3);
    const at::Tensor exact = model->sde().prior_log_prob(latent) + 9 * stretch.log();
    const at::Tensor grad = -latent * stretch / std::pow(model->sde().prior_std(), 2);
    for (const char* adjoint : {"backsolve", "direct"}) {
      o.adjoint = adjoint;
      const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, {}, true);
      EXPECT_EQ(f.summary.status, Status::kConverged);
      EXPECT_LT((f.log_prob - exact).abs().max().item<double>(), 1e-5)
          << type;  // some 100 times the tolerance times D
      EXPECT_LT(relative_error(f.latent, latent), 1e-6) << type;
      EXPECT_LT(relative_error(f.grad, grad), 1e-5) << type << " " << adjoint;
    }
  }
}

// Isotropic drifts have a multiple of the identity as Jacobian: one +-1 probe gives the exact
// trace.
TEST(ProbabilityFlow, ProbesAreExactForIsotropicDrifts) {
  const auto model = isotropic("vp");
  ProbabilityFlowOptions o;
  const at::Tensor x = points(2);
  const ProbabilityFlow probed =
      probability_flow_log_prob(*model, o, x, draw_probes(*model, o, 2, Rng(1)), false);
  o.trace = "exact";
  EXPECT_LT(
      relative_error(probed.log_prob, probability_flow_log_prob(*model, o, x, {}, false).log_prob),
      1e-10);
}

TEST(ProbabilityFlow, GroupsOfProbesAgree) {
  const auto model = isotropic("subvp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  const at::Tensor x = points(2);
  const ProbabilityFlow whole = probability_flow_log_prob(*model, o, x, {}, true);
  o.max_batch = 5;
  const ProbabilityFlow parts = probability_flow_log_prob(*model, o, x, {}, true);
  EXPECT_LT(relative_error(parts.log_prob, whole.log_prob), 1e-10);
  EXPECT_LT(relative_error(parts.grad, whole.grad), 1e-8);
}

TEST(ProbabilityFlow, FailureIsSaidAndMarked) {
  const auto model = isotropic("vp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  o.max_steps = 3;
  const ProbabilityFlow f = probability_flow_log_prob(*model, o, points(2), {}, false);
  EXPECT_EQ(f.summary.status, Status::kMaxSteps);
  EXPECT_TRUE(at::isnan(f.log_prob).all().item<bool>());
  o.trace = "guess";
  EXPECT_THROW(probability_flow_log_prob(*model, o, points(2), {}, false), std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior
