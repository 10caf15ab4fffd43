#include "scoreprior/ode/integrate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>

namespace scoreprior::ode {
namespace {

const auto kF64 = at::TensorOptions().dtype(at::kDouble);

// y' = -2 t y + cos(t) y^2 / 4, nonlinear and nonautonomous: every order condition matters.
State nonlinear(const at::Tensor& t, const State& y, const at::Tensor&) {
  const at::Tensor tt = t.reshape({-1, 1});
  return {-2 * tt * y[0] + tt.cos() * y[0].square() / 4};
}

// A rotation with frequency w per image: y = (cos wt, sin wt).
Rhs rotation(const std::vector<double>& w) {
  const at::Tensor omega = at::tensor(w, kF64);
  return [omega](const at::Tensor&, const State& y, const at::Tensor& rows) -> State {
    const at::Tensor o = omega.index_select(0, rows);
    return {at::stack({-o * y[0].select(1, 1), o * y[0].select(1, 0)}, 1)};
  };
}

TEST(Tableau, RowSumsAreNodesAndWeightsSumToOne) {
  for (const auto& name : tableau_names()) {
    const Tableau& m = tableau(name);
    double total = 0;
    for (double b : m.b) total += b;
    EXPECT_NEAR(total, 1, 1e-14) << name;
    for (int i = 0; i < m.stages(); ++i) {
      double row = 0;
      for (double a : m.a[i]) row += a;
      EXPECT_NEAR(row, m.c[i], 2e-14) << name << " row " << i;
    }
    double e = 0;
    for (double v : m.e) e += v;
    EXPECT_NEAR(e, 0, 1e-14) << name;
  }
  EXPECT_THROW(tableau("rk99"), std::invalid_argument);
}

// Halving the step divides the error by 2^order; the finest error stays above rounding.
TEST(Integrate, OrderOfConvergence) {
  const State y0{at::full({1, 1}, 1.3, kF64)};
  OdeOptions fine;
  fine.solver = "dopri8";
  fine.steps = 400;
  const double exact = integrate(nonlinear, y0, 0, 1.5, fine).y[0].item<double>();
  for (const auto& name : tableau_names()) {
    const Tableau& m = tableau(name);
    const int64_t base = m.order >= 8 ? 4 : m.order >= 5 ? 8 : 20;
    double error[3];
    for (int i = 0; i < 3; ++i) {
      OdeOptions o;
      o.solver = name;
      o.steps = base << i;
      error[i] = std::abs(integrate(nonlinear, y0, 0, 1.5, o).y[0].item<double>() - exact);
    }
    const double order = std::log2(error[1] / error[2]);
    EXPECT_GT(order, m.order - 0.4)
        << name << ": " << error[0] << " " << error[1] << " " << error[2];
    EXPECT_LT(order, m.order + 1.2) << name;
  }
}

TEST(Integrate, EmbeddedEstimateHasItsOrder) {
  // |h sum e_i k_i| of one step falls as h^(error_order + 1).
  for (const auto& name : adaptive_tableau_names()) {
    const Tableau& m = tableau(name);
    double estimate[2];
    for (int i = 0; i < 2; ++i) {
      const double h = (m.order >= 8 ? 0.4 : 0.1) / (1 << i);
      std::vector<double> k;
      const auto f = [](double t, double y) { return -2 * t * y + std::cos(t) * y * y / 4; };
      double sum = 0;
      for (int s = 0; s < m.stages(); ++s) {
        double y = 1.3;
        for (int j = 0; j < s; ++j) y += h * m.a[s][j] * k[j];
        k.push_back(f(0.3 + m.c[s] * h, y));
        sum += m.e[s] * k[s];
      }
      estimate[i] = std::abs(h * sum);
    }
    EXPECT_NEAR(std::log2(estimate[0] / estimate[1]), m.error_order + 1, 0.8) << name;
  }
}

TEST(Integrate, ErrorFollowsTheTolerance) {
  for (const auto& name : adaptive_tableau_names()) {
    if (name == "heun") continue;  // thousands of steps at these tolerances
    for (double tol : {1e-4, 1e-6, 1e-8}) {
      if (name == "bosh3" && tol < 1e-6) continue;
      OdeOptions o;
      o.solver = name;
      o.rtol = o.atol = tol;
      const Solution s =
          integrate(rotation({3.0}), {at::tensor({1.0, 0.0}, kF64).reshape({1, 2})}, 0, 5, o);
      const at::Tensor exact = at::tensor({std::cos(15.0), std::sin(15.0)}, kF64).reshape({1, 2});
      const double error = (s.y[0] - exact).abs().max().item<double>();
      EXPECT_EQ(s.summary.status, Status::kConverged);
      // Global error: the local tolerance accumulated over about 15 radians.
      EXPECT_LT(error, 100 * tol) << name;
      EXPECT_GT(s.accepted[0], s.rejected[0]);
    }
  }
}

TEST(Integrate, ImagesDoNotSeeTheirBatchMates) {
  const std::vector<double> w{0.5, 20.0, 3.0};
  const at::Tensor y0 = at::tensor({1.0, 0.0}, kF64).reshape({1, 2}).repeat({3, 1});
  OdeOptions o;
  o.rtol = o.atol = 1e-7;
  const Solution all = integrate(rotation(w), {y0}, 0, 2, o);
  for (int b = 0; b < 3; ++b) {
    const Solution one = integrate(rotation({w[b]}), {y0.slice(0, 0, 1)}, 0, 2, o);
    EXPECT_TRUE(at::equal(one.y[0][0], all.y[0][b])) << b;
    EXPECT_EQ(one.evaluations[0], all.evaluations[b]);
  }
  EXPECT_LT(all.evaluations[0], all.evaluations[1] / 4);  // the slow image left the batch early
}

TEST(Integrate, ThereAndBack) {
  const State y0{at::tensor({0.3, 1.1}, kF64).reshape({2, 1})};
  OdeOptions o;
  o.rtol = o.atol = 1e-10;
  const Solution there = integrate(nonlinear, y0, 1, 0.1, o);
  const Solution back = integrate(nonlinear, there.y, 0.1, 1, o);
  EXPECT_LT((back.y[0] - y0[0]).abs().max().item<double>(), 1e-8);
}

TEST(Integrate, EveryPartMeetsTheTolerance) {
  // The second part oscillates quickly; averaged with 1000 calm pixels its error would vanish.
  const Rhs f = [](const at::Tensor& t, const State& y, const at::Tensor&) -> State {
    return {at::zeros_like(y[0]), 30 * (30 * t).cos()};
  };
  OdeOptions o;
  o.rtol = o.atol = 1e-6;
  const Solution s = integrate(f, {at::zeros({1, 1000}, kF64), at::zeros({1}, kF64)}, 0, 1, o);
  EXPECT_NEAR(s.y[1].item<double>(), std::sin(30.0), 1e-5);
}

TEST(Integrate, StepLimitAndBlowUpAreStatuses) {
  OdeOptions o;
  o.rtol = o.atol = 1e-9;
  o.max_steps = 7;
  const Solution s = integrate(rotation({1.0, 50.0}), {at::ones({2, 2}, kF64)}, 0, 10, o);
  EXPECT_EQ(s.summary.status, Status::kMaxSteps);
  EXPECT_NE(s.summary.message.find("in 2 of 2 images"), std::string::npos) << s.summary.message;
  EXPECT_LT(s.t[1], 10);
  o.max_steps = 10000;
  const Rhs square = [](const at::Tensor&, const State& y, const at::Tensor&) -> State {
    return {y[0].square()};
  };
  const Solution pole =
      integrate(square, {at::tensor({1.0, 0.1}, kF64)}, 0, 2, o);  // pole at t = 1
  EXPECT_EQ(pole.status[0], Status::kDiverged);
  EXPECT_NEAR(pole.t[0], 1, 1e-6);
  EXPECT_EQ(pole.status[1], Status::kConverged);
  EXPECT_NEAR(pole.y[0][1].item<double>(), 1 / (10.0 - 2), 1e-8);
}

TEST(Integrate, DifferentiableInTheInitialState) {
  at::Tensor y0 = at::tensor({0.3, 1.1}, kF64).reshape({2, 1}).requires_grad_(true);
  OdeOptions o;
  o.rtol = o.atol = 1e-10;
  const auto value = [&](const at::Tensor& y) { return integrate(nonlinear, {y}, 0, 1, o).y[0]; };
  const at::Tensor grad = torch::autograd::grad({value(y0).sum()}, {y0})[0];
  const double eps = 1e-5;
  const at::Tensor fd = (value(y0.detach() + eps) - value(y0.detach() - eps)) / (2 * eps);
  EXPECT_LT((grad - fd).abs().max().item<double>(), 1e-6);
}

TEST(Integrate, Float32ReachesItsPrecision) {
  OdeOptions o;
  o.rtol = o.atol = 1e-5;
  const Rhs f = [](const at::Tensor& t, const State& y, const at::Tensor&) -> State {
    return {-y[0] * t.reshape({-1, 1})};
  };
  const Solution s = integrate(f, {at::ones({2, 3})}, 0, 2, o);
  EXPECT_EQ(s.y[0].scalar_type(), at::kFloat);
  EXPECT_LT((s.y[0] - std::exp(-2.0)).abs().max().item<double>(), 1e-4);
}

}  // namespace
}  // namespace scoreprior::ode
