#include "scoreprior/diffusion/probability_flow.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/divergence.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"
#include "tests/diffusion/small_network.h"

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
    o.solver = "dopri8";
    o.rtol = o.atol = 1e-9;
    const at::Tensor x = points(3), t = at::tensor({o.t0, 1.0}, at::kDouble);
    const at::Tensor alpha = model->sde().mean_coeff(t),
                     v = alpha.square() * 0.16 + model->sde().std(t).square();
    const at::Tensor stretch = (v[1] / v[0]).sqrt();
    const at::Tensor latent = alpha[1] * 0.3 + stretch * (x - alpha[0] * 0.3);
    const at::Tensor exact = model->sde().prior_log_prob(latent) + 9 * stretch.log();
    const at::Tensor grad = -latent * stretch / std::pow(model->sde().prior_std(), 2);
    for (const char* adjoint : {"backsolve", "direct", "checkpoint"})
      for (const char* variable : {"time", "log_snr"}) {
        o.adjoint = adjoint;
        o.variable = variable;
        const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, {}, true);
        EXPECT_EQ(f.summary.status, Status::kConverged);
        EXPECT_LT((f.log_prob - exact).abs().max().item<double>(), 1e-5)
            << type;  // some 100 times the tolerance times D
        EXPECT_LT(relative_error(f.latent, latent), 1e-6) << type;
        EXPECT_LT(relative_error(f.grad, grad), 1e-5) << type << " " << adjoint;
        EXPECT_EQ(f.standard_error.abs().max().item<double>(), 0);
        EXPECT_LT(f.solver_error.max().item<double>(), 1e-4) << type << " " << variable;
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

// Two components in 6 pixels: nothing about it is linear.
struct Mixture {
  std::unique_ptr<ScoreModel> model;
  at::Tensor means, sigmas;
  at::Tensor points(int64_t n) const { return means[0] + 0.4 * Rng(3).normal({n, 6}, at::kDouble); }
  at::Tensor log_prob(const at::Tensor& x, double t0) const {
    const at::Tensor t = at::full({1}, t0, at::kDouble);
    const at::Tensor v =
        (model->sde().mean_coeff(t) * sigmas).square() + model->sde().std(t).square();
    const at::Tensor d2 = (x.unsqueeze(1) - model->sde().mean_coeff(t) * means).square().sum(2);
    return at::logsumexp(d2 * (-0.5 / v) - 3 * (2 * M_PI * v).log() - std::log(2.0), {1});
  }
};

Mixture mixture(const std::string& type, double spread = 0.4, double sigma = 0.3) {
  const auto dir = std::filesystem::path(::testing::TempDir()) / "probability_flow_mixture";
  std::filesystem::create_directories(dir);
  Mixture m;
  m.means = spread * Rng(7).normal({2, 6}, at::kDouble);
  m.sigmas = at::tensor({sigma, sigma * 2 / 3}, at::kDouble);
  io::write_npy(dir / "means.npy", m.means);
  io::write_npy(dir / "sigmas.npy", m.sigmas);
  io::write_npy(dir / "weights.npy", at::ones({2}, at::kDouble));
  const std::string d = dir.string();
  m.model = make_score_model(
      io::parse_toml("name = \"mixture\"\nmeans = \"" + d + "/means.npy\"\nsigmas = \"" + d +
                     "/sigmas.npy\"\nweights = \"" + d + "/weights.npy\"\n[sde]\ntype = \"" + type +
                     "\"\n"),
      at::kDouble, at::kCPU);
  return m;
}

// Density and latent of every exponential integrator fall with its order; the density of the
// mixture is known, the latent from a tight solution.
TEST(ProbabilityFlow, ExponentialIntegratorsHaveTheirOrder) {
  for (const char* type : kSdeTypes) {
    // Components that overlap: the error is in its asymptotic range at 100 steps.
    const Mixture m = mixture(type, 0.2, 0.5);
    const at::Tensor x = m.points(2);
    ProbabilityFlowOptions o;
    o.trace = "exact";
    o.solver = "dopri8";
    o.rtol = o.atol = 1e-11;
    const ProbabilityFlow exact = probability_flow_log_prob(*m.model, o, x, {}, false);
    // The flow ends in the prior, not in the diffused law itself: alpha(1) of VP is 0.0066.
    EXPECT_LT((exact.log_prob - m.log_prob(x, o.t0)).abs().max().item<double>(), 1e-2) << type;
    for (const char* solver : {"exp2", "exp3", "exp2m", "exp3m", "exp4m"}) {
      o.solver = solver;
      double error[2], latent[2];
      for (int i = 0; i < 2; ++i) {
        o.steps = 100 << i;
        const ProbabilityFlow f = probability_flow_log_prob(*m.model, o, x, {}, false);
        error[i] = (f.log_prob - exact.log_prob).abs().max().item<double>();
        latent[i] = relative_error(f.latent, exact.latent);
        EXPECT_LT(error[i], 20 * f.solver_error.max().item<double>() + 1e-9) << type << solver;
      }
      const int order = solver[3] - '0';
      EXPECT_GT(std::log2(error[0] / error[1]), order - 0.5)
          << type << " " << solver << " " << error[0] << " " << error[1];
      EXPECT_GT(std::log2(latent[0] / latent[1]), order - 0.5)
          << type << " " << solver << " " << latent[0] << " " << latent[1];
      o.steps = 0;
    }
  }
}

TEST(ProbabilityFlow, ErrorFollowsTheToleranceInBothVariables) {
  for (const char* type : kSdeTypes) {
    const Mixture m = mixture(type);
    const at::Tensor x = m.points(3);
    ProbabilityFlowOptions o;
    o.trace = "exact";
    o.solver = "dopri8";
    o.rtol = o.atol = 1e-11;
    const at::Tensor exact = probability_flow_log_prob(*m.model, o, x, {}, false).log_prob;
    for (const char* variable : {"time", "log_snr"})
      for (const char* solver : {"dopri5", "dopri8", "exp4m", "heun", "exp2", "exp2m"})
        for (double tol : {1e-3, 1e-5}) {
          const std::string name = solver;
          if (variable[0] == 't' && solver[0] == 'e') continue;
          // Order 2 takes thousands of steps for more.
          if ((name == "heun" || name == "exp2" || name == "exp2m") && tol < 1e-3) continue;
          o.variable = variable;
          o.solver = solver;
          o.rtol = o.atol = tol;
          const ProbabilityFlow f = probability_flow_log_prob(*m.model, o, x, {}, false);
          EXPECT_EQ(f.summary.status, Status::kConverged);
          // Global error: the local ones of some tens of steps, the values of size 1 to 30.
          EXPECT_LT((f.log_prob - exact).abs().max().item<double>(), 300 * tol)
              << type << " " << variable << " " << solver << " " << tol;
        }
    // The data scale changes the work, not the answer.
    o.variable = "log_snr";
    o.solver = "dopri5";
    o.rtol = o.atol = 1e-8;
    for (double c : {0.0, 50.0}) {
      o.data_std = c;
      EXPECT_LT((probability_flow_log_prob(*m.model, o, x, {}, false).log_prob - exact)
                    .abs()
                    .max()
                    .item<double>(),
                1e-6)
          << type << " " << c;
    }
  }
}

// Narrow data, so that what the branch changes at small t is seen.
TEST(ProbabilityFlow, SmallTimeBranchesAgreeInBothVariables) {
  for (const char* type : {"vp", "subvp"}) {
    const auto value = [&](const char* variable, const char* branch) {
      const auto model = make_score_model(
          io::parse_toml(
              std::string("name = \"gaussian\"\nmean = 0.3\nshape = [9]\nsigma = 0.003\n[sde]\n") +
              "type = \"" + type + "\"\nsmall_time_branch = " + branch + "\n"),
          at::kDouble, at::kCPU);
      ProbabilityFlowOptions o;
      o.rtol = o.atol = 1e-9;
      o.solver = "dopri5";
      o.variable = variable;
      const at::Tensor x = 0.3 + 0.01 * Rng(2).normal({2, 9}, at::kDouble);
      return probability_flow_log_prob(*model, o, x, draw_probes(*model, o, 2, Rng(1)), false)
          .log_prob;
    };
    const at::Tensor with = value("log_snr", "true");
    EXPECT_LT((value("time", "true") - with).abs().max().item<double>(), 1e-6) << type;
    EXPECT_GT((value("log_snr", "false") - with).abs().max().item<double>(), 1e-5) << type;
  }
}

// Coefficients jump at the branch: steps that end there keep the order of the solver (single-step
// ones; a multistep one starts again beyond it, with a step of order 2), steps that straddle it
// have order 1.
TEST(ProbabilityFlow, FixedStepsKeepTheirOrderAcrossTheSmallTimeBranch) {
  const auto model = make_score_model(
      io::parse_toml("name = \"gaussian\"\nmean = 0.3\nshape = [9]\nsigma = 0.05\n[sde]\n"
                     "type = \"vp\"\nsmall_time_branch = true\n"),
      at::kDouble, at::kCPU);
  const at::Tensor x = 0.3 + 0.01 * Rng(2).normal({2, 9}, at::kDouble);
  ProbabilityFlowOptions o;
  o.trace = "exact";
  o.solver = "dopri8";
  o.rtol = o.atol = 1e-12;
  const at::Tensor exact = probability_flow_log_prob(*model, o, x, {}, false).log_prob;
  // From 160 to 640 steps; exp2's own error hides the jump's there.
  for (const auto& [solver, order] :
       {std::make_pair("rk4", 4), {"exp3", 3}, {"exp3m", 3}, {"exp4m", 3}}) {
    o.solver = solver;
    double error[2];
    for (int i = 0; i < 2; ++i) {
      o.steps = i ? 640 : 160;
      error[i] = (probability_flow_log_prob(*model, o, x, {}, false).log_prob - exact)
                     .abs()
                     .max()
                     .item<double>();
    }
    EXPECT_GT(std::log2(error[0] / error[1]) / 2, order - 0.5)
        << solver << " " << error[0] << " " << error[1];
  }
}

// Three gradients against each other and against central differences of the value.
TEST(ProbabilityFlow, GradientsAgree) {
  for (const char* type : kSdeTypes) {
    const Mixture m = mixture(type, 0.2, 0.5);
    const at::Tensor x = m.points(2);
    for (const char* trace : {"exact", "hutchinson"}) {
      // What probes change does not depend on the process.
      if (trace[0] == 'h' && std::string(type) != "vp") continue;
      ProbabilityFlowOptions o;
      o.trace = trace;
      o.n_probes = 2;
      o.solver = "dopri8";
      o.rtol = o.atol = 1e-7;
      const at::Tensor probes = draw_probes(*m.model, o, 2, Rng(1));
      const auto flow = [&](const at::Tensor& at, bool grad) {
        return probability_flow_log_prob(*m.model, o, at, probes, grad);
      };
      const at::Tensor direction = Rng(9).normal({2, 6}, at::kDouble);
      const double h = 1e-4;
      const at::Tensor fd =
          (flow(x + h * direction, false).log_prob - flow(x - h * direction, false).log_prob) /
          (2 * h);
      std::map<std::string, at::Tensor> grads;
      for (const char* adjoint : {"checkpoint", "direct", "backsolve"}) {
        o.adjoint = adjoint;
        grads[adjoint] = flow(x, true).grad;
        // Central differences err by h^2 times third derivatives of order 100; backsolve by some
        // tens of the tolerance.
        EXPECT_LT(relative_error((grads[adjoint] * direction).sum(1), fd), 1e-5)
            << type << adjoint << trace;
      }
      EXPECT_LT(relative_error(grads["checkpoint"], grads["direct"]), 1e-11) << type << trace;
      EXPECT_LT(relative_error(grads["backsolve"], grads["direct"]), 1e-5) << type << trace;
      o.adjoint = "backsolve";
      o.seminorm = false;
      EXPECT_LT(relative_error(flow(x, true).grad, grads["direct"]), 1e-5) << type << trace;
    }
    // Coarse steps: checkpoint and direct still are the gradient of the computed number.
    ProbabilityFlowOptions o;
    o.trace = "exact";
    for (const char* solver : {"exp3m", "exp3", "dopri5"}) {
      o.solver = solver;
      o.steps = 6;
      o.adjoint = "checkpoint";
      const at::Tensor c = probability_flow_log_prob(*m.model, o, x, {}, true).grad;
      o.adjoint = "direct";
      EXPECT_LT(relative_error(c, probability_flow_log_prob(*m.model, o, x, {}, true).grad), 1e-11)
          << solver;
    }
  }
}

// The same through a network with attention, whose second derivatives are its own code.
TEST(ProbabilityFlow, GradientsAgreeThroughANetwork) {
  const auto model = small_network(0.1);
  const at::Tensor x = Rng(3).uniform({1, 1, 4, 4}, at::kDouble);
  ProbabilityFlowOptions o;
  o.t0 = 1e-2;
  o.solver = "dopri8";
  o.rtol = o.atol = 1e-6;
  const at::Tensor probes = draw_probes(*model, o, 1, Rng(1));
  const at::Tensor direction = Rng(9).normal({1, 1, 4, 4}, at::kDouble);
  const double h = 1e-3;
  const auto value = [&](double step) {
    return probability_flow_log_prob(*model, o, x + step * direction, probes, false).log_prob;
  };
  const at::Tensor fd = (value(h) - value(-h)) / (2 * h);
  std::map<std::string, at::Tensor> grads;
  for (const char* adjoint : {"checkpoint", "direct", "backsolve"}) {
    o.adjoint = adjoint;
    grads[adjoint] = probability_flow_log_prob(*model, o, x, probes, true).grad;
    // Differences err by h^2 times third derivatives and by the solver's 1e-6 over h.
    EXPECT_LT(relative_error((grads[adjoint] * direction).flatten(1).sum(1), fd), 5e-4) << adjoint;
  }
  EXPECT_LT(relative_error(grads["checkpoint"], grads["direct"]), 1e-9);
  EXPECT_LT(relative_error(grads["backsolve"], grads["direct"]), 5e-4);  // some hundred tolerances
}

// An image that failed takes no part in the comparison of gradients.
TEST(ProbabilityFlow, OnlyImagesWithBothGradientsAreCompared) {
  const auto model = isotropic("vp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  o.check_gradient = true;
  at::Tensor x = points(3);
  x[1][0][0][0] = std::nan("");
  const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, {}, true);
  EXPECT_TRUE(at::isnan(f.gradient_difference[1]).item<bool>());
  EXPECT_LT(f.summary.numbers.at("gradient_difference"), 1e-2);
  EXPECT_TRUE(f.summary.warnings.empty()) << f.summary.warnings[0];
  // Where the check itself does not arrive, that is said: the way back, with the density, is
  // longer.
  const Mixture m = mixture("vp");
  o.seminorm = false;
  o.max_nfe = static_cast<int64_t>(
      probability_flow_log_prob(*m.model, o, m.points(2), {}, false).summary.numbers.at("nfe"));
  const ProbabilityFlow g = probability_flow_log_prob(*m.model, o, m.points(2), {}, true);
  EXPECT_TRUE(at::isfinite(g.grad).all().item<bool>());
  EXPECT_GT(g.summary.numbers.at("gradient_unchecked"), 0);
  ASSERT_FALSE(g.summary.warnings.empty());
  EXPECT_NE(g.summary.warnings.back().find("the second gradient did not arrive"),
            std::string::npos);
}

TEST(ProbabilityFlow, DisagreeingGradientsAreSaid) {
  const Mixture m = mixture("vp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  o.check_gradient = true;
  o.rtol = o.atol = 1e-6;
  for (const char* adjoint : {"checkpoint", "backsolve", "direct"}) {
    o.adjoint = adjoint;
    const ProbabilityFlow fine = probability_flow_log_prob(*m.model, o, m.points(2), {}, true);
    EXPECT_LT(fine.summary.numbers.at("gradient_difference"), 1e-4) << adjoint;
    EXPECT_TRUE(fine.summary.warnings.empty());
  }
  o.adjoint = "checkpoint";
  o.steps = 3;
  o.gradient_tolerance = 1e-6;
  const ProbabilityFlow coarse = probability_flow_log_prob(*m.model, o, m.points(2), {}, true);
  ASSERT_EQ(coarse.summary.warnings.size(), 1u);
  EXPECT_NE(coarse.summary.warnings[0].find("two gradients differ"), std::string::npos)
      << coarse.summary.warnings[0];
}

// Half of one step is one step: no error can be told from the same solution again.
TEST(ProbabilityFlow, OneStepHasNoSecondSolution) {
  const Mixture m = mixture("vp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  o.solver_error = "second";
  o.steps = 1;
  const ProbabilityFlow one = probability_flow_log_prob(*m.model, o, m.points(2), {}, false);
  EXPECT_TRUE(at::isfinite(one.log_prob).all().item<bool>());
  EXPECT_TRUE(at::isnan(one.solver_error).all().item<bool>());
  EXPECT_EQ(one.summary.numbers.count("second_nfe"), 0u);
  o.steps = 2;
  const ProbabilityFlow two = probability_flow_log_prob(*m.model, o, m.points(2), {}, false);
  EXPECT_GT(two.solver_error.min().item<double>(), 0);
  // All right-hand sides are counted, those of the second solution too.
  EXPECT_EQ(two.second_evaluations, one.evaluations);
  EXPECT_EQ(two.evaluations[0],
            two.summary.numbers.at("nfe") + two.summary.numbers.at("second_nfe"));
}

// Of a Gaussian the log-volume is the trace of A = ln(v(1)/v(t0))/2, v = alpha^2 cov + std^2, whose
// entries give the estimators' variances: 2/n of the squared off-diagonal ones for n +-1 probes,
// 2/sets of those between pixels of one colour for coloured ones. Normal probes see the diagonal
// too, of the score's share A - ln(alpha(1)/alpha(t0)).
TEST(ProbabilityFlow, TraceEstimatorsHaveTheirVariance) {
  const auto dir = std::filesystem::path(::testing::TempDir()) / "probability_flow_cov";
  std::filesystem::create_directories(dir);
  const int64_t side = 5, d = side * side, n = 200;
  const at::Tensor at_y = at::arange(d, at::kDouble).div(side, "floor"),
                   at_x = at::arange(d, at::kDouble).remainder(side);
  const at::Tensor distance =
      ((at_y.unsqueeze(1) - at_y).square() + (at_x.unsqueeze(1) - at_x).square()).sqrt();
  const at::Tensor cov = 0.25 * (-distance / 1.5).exp();
  io::write_npy(dir / "cov.npy", cov);
  io::write_npy(dir / "mean.npy", at::zeros({1, side, side}, at::kDouble));
  const auto model = make_score_model(
      io::parse_toml("name = \"gaussian\"\nmean = \"" + (dir / "mean.npy").string() +
                     "\"\ncov = \"" + (dir / "cov.npy").string() + "\"\n[sde]\ntype = \"vp\"\n"),
      at::kDouble, at::kCPU);
  const at::Tensor x = (0.2 * Rng(3).normal({1, 1, side, side}, at::kDouble)).repeat({n, 1, 1, 1});
  ProbabilityFlowOptions o;
  o.rtol = o.atol = 1e-4;
  o.trace = "exact";
  const double exact =
      probability_flow_log_prob(*model, o, x.slice(0, 0, 1), {}, false).log_prob.item<double>();
  const at::Tensor t = at::tensor({o.t0, 1.0}, at::kDouble);
  const at::Tensor a2 = model->sde().mean_coeff(t).square(), v2 = model->sde().std(t).square();
  const auto [values, axes] = at::linalg_eigh(cov);
  const at::Tensor grown = 0.5 * ((a2[1] * values + v2[1]) / (a2[0] * values + v2[0])).log();
  const at::Tensor squares = at::matmul(axes * grown, axes.t()).square();
  const at::Tensor share = grown - 0.5 * (a2[1] / a2[0]).log();
  const at::Tensor masks = colour_masks({1, side, side}, 4).reshape({4, d}).to(at::kDouble);
  const at::Tensor diagonal = squares.diagonal().sum(),
                   same = (squares * at::matmul(masks.t(), masks)).sum() - diagonal;
  struct Case {
    const char* law;
    int64_t colours;
    double variance;  // of one set
  } cases[] = {{"rademacher", 1, 2 * (squares.sum() - diagonal).item<double>()},
               {"gaussian", 1, 2 * share.square().sum().item<double>()},
               {"rademacher", 4, 2 * same.item<double>()}};
  o.trace = "hutchinson";
  o.n_probes = 8;
  for (const auto& c : cases) {
    o.probe_law = c.law;
    o.colours = c.colours;
    const int64_t sets = o.n_probes / o.colours;
    const ProbabilityFlow f =
        probability_flow_log_prob(*model, o, x, draw_probes(*model, o, n, Rng(11)), false);
    const double predicted = std::sqrt(c.variance / sets);
    // Four standard errors of a spread and of a mean of 200 draws; solver 1e-2.
    EXPECT_NEAR(f.log_prob.std().item<double>() / predicted, 1, 4 / std::sqrt(2.0 * n))
        << c.law << c.colours;
    EXPECT_LT(std::abs(f.log_prob.mean().item<double>() - exact),
              4 * predicted / std::sqrt(n) + 1e-2)
        << c.law << c.colours;
    // sets - 1 degrees of freedom, 200 draws
    EXPECT_NEAR(f.standard_error.square().mean().sqrt().item<double>() / predicted, 1,
                4 / std::sqrt(2.0 * n * (sets - 1)))
        << c.law << c.colours;
  }
  // What the colours are for: at equal cost the spread of Rademacher probes is more than halved.
  EXPECT_LT(cases[2].variance / 2, 0.25 * cases[0].variance / 8);
}

TEST(ProbabilityFlow, ColoursShareThePixelsOut) {
  for (const Shape& event : {Shape{12}, Shape{3, 6, 6}, Shape{1, 8, 8}})
    for (const int64_t colours : {2, 4, 5, 12}) {
      const at::Tensor masks = colour_masks(event, colours).flatten(1).to(at::kDouble);
      EXPECT_TRUE(at::equal(masks.sum(0), at::ones(masks.size(1), at::kDouble)));
      EXPECT_LE(masks.sum(1).max().item<double>(),
                std::ceil(1.5 * masks.size(1) / static_cast<double>(colours)));
    }
  // Four colours of the plane: no neighbours have the same.
  const at::Tensor masks = colour_masks({8, 8}, 4);
  EXPECT_FALSE((masks.slice(2, 1) & masks.slice(2, 0, -1)).any().item<bool>());
  EXPECT_FALSE((masks.slice(1, 1) & masks.slice(1, 0, -1)).any().item<bool>());
}

TEST(ProbabilityFlow, WorkIsCounted) {
  const Mixture m = mixture("vp");
  ProbabilityFlowOptions o;
  o.solver = "exp3m";
  o.steps = 10;
  const at::Tensor x = m.points(20);
  const at::Tensor probes = draw_probes(*m.model, o, 20, Rng(1));
  const ProbabilityFlow f = probability_flow_log_prob(*m.model, o, x, probes, true);
  // One evaluation at each of the 11 nodes, with one forward and one product; once more back.
  EXPECT_EQ(f.summary.numbers.at("nfe"), 11);
  EXPECT_EQ(f.summary.numbers.at("grad_nfe"), 11);
  EXPECT_EQ(f.summary.numbers.at("forwards"), 22);
  EXPECT_EQ(f.summary.numbers.at("vjps"), 22);
  EXPECT_EQ(f.summary.numbers.at("second_order"), 11);
  EXPECT_EQ(f.evaluations, std::vector<int64_t>(20, 22));
  // The stated memory: evaluations x batch x (image, density, probe form).
  EXPECT_EQ(f.summary.numbers.at("record_bytes"), 11 * 20 * (6 + 1 + 1) * 8);
}

TEST(ProbabilityFlow, ASplitBatchGivesTheSame) {
  const Mixture m = mixture("ve");
  ProbabilityFlowOptions o;
  o.n_probes = 3;
  const at::Tensor x = m.points(7);
  const at::Tensor probes = draw_probes(*m.model, o, 7, Rng(1));
  const ProbabilityFlow whole = probability_flow_log_prob(*m.model, o, x, probes, true);
  o.max_batch = 3;
  const ProbabilityFlow parts = probability_flow_log_prob(*m.model, o, x, probes, true);
  // Matrix products round otherwise in another batch size, and the step sizes follow: what is left
  // is that rounding, unless a step at its limit is taken by one and not by the other, and then a
  // change of the order of the tolerance 1e-5.
  EXPECT_LT(relative_error(parts.log_prob, whole.log_prob), 1e-5);
  EXPECT_LT(relative_error(parts.grad, whole.grad), 1e-4);
  EXPECT_LT(relative_error(parts.standard_error, whole.standard_error), 1e-4);
  for (size_t b = 0; b < 7; ++b)
    EXPECT_LE(std::abs(parts.evaluations[b] - whole.evaluations[b]), 2 * 6) << b;  // a dopri5 step
  // With fixed steps nothing is left but rounding.
  o.steps = 20;
  const at::Tensor split = probability_flow_log_prob(*m.model, o, x, probes, true).grad;
  o.max_batch = 256;
  EXPECT_LT(relative_error(split, probability_flow_log_prob(*m.model, o, x, probes, true).grad),
            1e-11);
}

TEST(ProbabilityFlow, BadInputIsSaid) {
  const auto model = isotropic("vp");
  ProbabilityFlowOptions o;
  o.trace = "exact";
  at::Tensor x = points(3);
  x[1][0][0][0] = std::nan("");
  const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, {}, true);
  EXPECT_EQ(f.summary.status, Status::kDiverged);
  EXPECT_NE(f.summary.message.find("in 1 of 3 images"), std::string::npos) << f.summary.message;
  for (int b : {0, 2}) {
    EXPECT_TRUE(at::isfinite(f.log_prob[b]).item<bool>());
    EXPECT_TRUE(at::isfinite(f.grad[b]).all().item<bool>());
  }
  EXPECT_TRUE(at::isnan(f.log_prob[1]).item<bool>());
  EXPECT_TRUE(at::isnan(f.grad[1]).all().item<bool>());

  const auto rejects = [&](const std::function<void(ProbabilityFlowOptions&)>& change) {
    ProbabilityFlowOptions bad;
    change(bad);
    EXPECT_THROW(probability_flow_log_prob(*model, bad, points(1),
                                           at::ones({1, 1, 1, 3, 3}, at::kDouble), false),
                 std::invalid_argument);
    EXPECT_THROW(check_options(Config(), bad), ConfigError);
  };
  rejects([](auto& b) { b.t0 = 1; });
  rejects([](auto& b) { b.t0 = 0; });
  rejects([](auto& b) { b.rtol = -1e-3; });
  rejects([](auto& b) { b.atol = -1; });
  rejects([](auto& b) { b.solver = "exp7"; });
  rejects([](auto& b) { b.data_std = -1; });
  rejects([](auto& b) { b.max_steps = 0; });
  rejects([](auto& b) { b.variable = "clock"; });
  rejects([](auto& b) { b.variable = "time", b.solver = "exp3m"; });
  rejects([](auto& b) { b.max_batch = 0; });
  rejects([](auto& b) { b.max_memory_mib = -1; });
  rejects([](auto& b) { b.colours = 2; });
  o.trace = "hutchinson";
  o.n_probes = 0;
  EXPECT_THROW(check_options(Config(), o), ConfigError);
  EXPECT_THROW(draw_probes(*model, o, 1, Rng(1)), std::invalid_argument);
  o.n_probes = 1;
  o.max_nfe = 9;
  const ProbabilityFlow few = probability_flow_log_prob(
      *model, o, points(1), at::ones({1, 1, 1, 3, 3}, at::kDouble), false);
  EXPECT_EQ(few.summary.status, Status::kMaxSteps);
  EXPECT_NE(few.summary.message.find("evaluation limit"), std::string::npos) << few.summary.message;
}

// A score that explodes on the way leaves a status, not an endless loop.
class ExplodingScore final : public ScoreModel {
 public:
  explicit ExplodingScore(const Sde& sde) : sde_(sde) {}
  const Sde& sde() const override { return sde_; }
  Shape event_shape() const override { return {4}; }
  at::ScalarType dtype() const override { return at::kDouble; }
  at::Device device() const override { return at::kCPU; }
  at::Tensor score(const at::Tensor& x, const at::Tensor&) const override {
    return -x.pow(3) * 1e3;
  }

 private:
  const Sde& sde_;
};

TEST(ProbabilityFlow, AStiffBlowUpIsAStatus) {
  const auto model = isotropic("vp");
  const ExplodingScore bad(model->sde());
  ProbabilityFlowOptions o;
  o.trace = "exact";
  for (const char* solver : {"dopri5", "exp3m"})
    for (const char* variable : {"time", "log_snr"}) {
      if (solver[0] == 'e' && variable[0] == 't') continue;
      o.solver = solver;
      o.variable = variable;
      const ProbabilityFlow f =
          probability_flow_log_prob(bad, o, at::full({2, 4}, 3.0, at::kDouble), {}, false);
      EXPECT_NE(f.summary.status, Status::kConverged) << solver << variable;
      EXPECT_TRUE(at::isnan(f.log_prob).all().item<bool>());
    }
}

// On the way back too: a limit or a blow-up is a status, and no gradient is made up.
TEST(ProbabilityFlow, GradientsOfWhatFailedAreMarked) {
  const auto model = isotropic("vp");
  for (const char* adjoint : {"checkpoint", "direct", "backsolve"}) {
    ProbabilityFlowOptions o;
    o.trace = "exact";
    o.adjoint = adjoint;
    o.max_steps = 3;
    const ProbabilityFlow few = probability_flow_log_prob(*model, o, points(2), {}, true);
    EXPECT_EQ(few.summary.status, Status::kMaxSteps) << adjoint;
    EXPECT_TRUE(at::isnan(few.log_prob).all().item<bool>()) << adjoint;
    EXPECT_TRUE(at::isnan(few.grad).all().item<bool>()) << adjoint;
    o.max_steps = 200;
    const ExplodingScore bad(model->sde());
    const ProbabilityFlow blown =
        probability_flow_log_prob(bad, o, at::full({2, 4}, 3.0, at::kDouble), {}, true);
    EXPECT_NE(blown.summary.status, Status::kConverged) << adjoint;
    EXPECT_TRUE(at::isnan(blown.log_prob).all().item<bool>()) << adjoint;
    EXPECT_TRUE(at::isnan(blown.grad).all().item<bool>()) << adjoint;
  }
}

TEST(ProbabilityFlow, BitsPerDim) {
  EXPECT_NEAR(
      bits_per_dim(at::full({1}, -std::log(2.0) * 12 * 3.5, at::kDouble), {3, 2, 2}).item<double>(),
      3.5, 1e-12);
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
  for (const char* variable : {"log_snr", "time"}) {
    o.variable = variable;
    o.solver = "dopri5";
    const ProbabilityFlow f = probability_flow_log_prob(*model, o, points(2), {}, false);
    EXPECT_EQ(f.summary.status, Status::kMaxSteps);
    EXPECT_TRUE(at::isnan(f.log_prob).all().item<bool>());
    // The diffusion time is said, whatever the variable: three steps do not come far.
    const size_t at = f.failure.find("at t = ");
    ASSERT_NE(at, std::string::npos) << f.failure;
    const double t = std::stod(f.failure.substr(at + 7));
    EXPECT_GE(t, o.t0) << f.failure;
    EXPECT_LT(t, 0.5) << f.failure;
  }
  // Of a batch in pieces the images are counted over the batch.
  o.max_memory_mib = 1e-6;
  const ProbabilityFlow pieces = probability_flow_log_prob(*model, o, points(3), {}, false);
  EXPECT_NE(pieces.summary.message.find("in 3 of 3 images"), std::string::npos)
      << pieces.summary.message;
  // The solver arrives, at a number whose square is none.
  o = ProbabilityFlowOptions();
  o.trace = "exact";
  at::Tensor x = points(2);
  x[1].fill_(1e200);
  const ProbabilityFlow far = probability_flow_log_prob(*model, o, x, {}, true);
  EXPECT_TRUE(at::isnan(far.grad[1]).all().item<bool>());
  EXPECT_TRUE(at::isnan(far.latent[1]).all().item<bool>());
  EXPECT_TRUE(at::isfinite(far.grad[0]).all().item<bool>());
  EXPECT_EQ(far.status[0], Status::kConverged);
  EXPECT_EQ(far.status[1], Status::kDiverged);
  EXPECT_TRUE(at::isnan(far.log_prob[1]).item<bool>());
  EXPECT_NE(far.summary.message.find("not finite in 1 of 2 images"), std::string::npos)
      << far.summary.message;
  o.trace = "guess";
  EXPECT_THROW(probability_flow_log_prob(*model, o, points(2), {}, false), std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior
