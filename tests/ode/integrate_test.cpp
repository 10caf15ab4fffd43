#include "scoreprior/ode/integrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <algorithm>
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
    // A low order takes thousands of steps for the last digits.
    const double finest = name == "heun" ? 1e-4 : name == "bosh3" ? 1e-6 : 1e-8;
    for (double tol : {1e-4, 1e-6, 1e-8}) {
      if (tol < finest) continue;
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

// y' = w(t) f(t, y) with a weight that varies over the interval by e^3.
double weight(double t) { return std::exp(2 - 2 * t); }

State oscillating(const at::Tensor& t, const State& y, const at::Tensor&) {
  const at::Tensor tt = t.reshape({-1, 1});
  return {(1 - y[0].square()) * (3 * tt).cos(), y[0].sum(1) * tt.squeeze(1)};
}

State start_of_oscillating(int64_t batch = 1) {
  return {0.3 + 0.1 * at::arange(batch * 2, kF64).reshape({batch, 2}), at::zeros({batch}, kF64)};
}

int order_of(const std::string& name) {
  return name.rfind("exp", 0) == 0 ? name[3] - '0' : tableau(name).order;
}

TEST(Exponential, OrderOfConvergenceWithAWeight) {
  Problem problem;
  problem.weight = weight;
  OdeOptions fine;
  fine.solver = "dopri8";
  fine.steps = 400;
  const State exact = integrate(oscillating, start_of_oscillating(), 0, 1.5, fine, problem).y;
  for (const char* name : {"exp2", "exp3", "exp2m", "exp3m", "exp4m"}) {
    double error[2][2];
    for (int i = 0; i < 2; ++i) {
      OdeOptions o;
      o.solver = name;
      o.steps = 160 << i;
      const Solution s = integrate(oscillating, start_of_oscillating(), 0, 1.5, o, problem);
      for (int p = 0; p < 2; ++p) error[i][p] = (s.y[p] - exact[p]).abs().max().item<double>();
      if (name[4] == 'm') {
        EXPECT_EQ(s.evaluations[0], o.steps + (name[3] == '4' ? 3 : 1)) << name;
      }
    }
    for (int p = 0; p < 2; ++p) {
      const double order = std::log2(error[0][p] / error[1][p]);
      EXPECT_GT(order, order_of(name) - 0.35) << name << " part " << p << " " << error[1][p];
      EXPECT_LT(order, order_of(name) + 1.5) << name << " part " << p;
    }
  }
}

// A constant f is integrated exactly whatever the weight: the linear part of a semi-linear problem.
TEST(Exponential, AConstantIsExactInOneStep) {
  const Rhs f = [](const at::Tensor&, const State& y, const at::Tensor&) -> State {
    return {at::full_like(y[0], 0.7)};
  };
  Problem problem;
  problem.weight = weight;
  for (const char* name : {"exp2", "exp3", "exp2m", "exp3m", "exp4m"}) {
    OdeOptions o;
    o.solver = name;
    o.steps = 1;
    const Solution s = integrate(f, {at::zeros({1, 1}, kF64)}, 0, 1.5, o, problem);
    EXPECT_NEAR(s.y[0].item<double>(), 0.7 * (std::exp(2.0) - std::exp(-1.0)) / 2, 1e-12) << name;
  }
}

TEST(Exponential, ErrorFollowsTheTolerance) {
  Problem problem;
  problem.weight = weight;
  OdeOptions fine;
  fine.solver = "dopri8";
  fine.steps = 400;
  const State exact = integrate(oscillating, start_of_oscillating(3), 0, 1.5, fine, problem).y;
  for (const std::string name : {"exp2", "exp2m", "exp3", "exp3m", "exp4m"})
    for (double tol : {1e-4, 1e-6}) {
      OdeOptions o;
      o.solver = name;
      o.rtol = o.atol = tol;
      const Solution s = integrate(oscillating, start_of_oscillating(3), 0, 1.5, o, problem);
      EXPECT_EQ(s.summary.status, Status::kConverged);
      for (int p = 0; p < 2; ++p)
        EXPECT_LT((s.y[p] - exact[p]).abs().max().item<double>(), 100 * tol) << name;
      // The estimate of a quadrature part is no smaller than its error: it is the lower order's.
      EXPECT_LT(s.embedded[1].abs().max().item<double>(), 1e4 * tol) << name;
    }
}

TEST(DenseOutput, HasTheStatedOrder) {
  OdeOptions fine;
  fine.solver = "dopri8";
  fine.steps = 60;
  Problem problem;
  problem.weight = weight;
  const std::vector<double> wanted{0.31, 0.61803, 0.853, 1.234};
  std::vector<at::Tensor> exact;
  for (double t : wanted)
    exact.push_back(integrate(oscillating, start_of_oscillating(), 0, t, fine, problem).y[0]);
  problem.outputs = wanted;
  problem.outputs.push_back(0);
  problem.outputs.push_back(1.5);
  for (const auto& name : solver_names()) {
    int dense = 3;
    if (name == "dopri5" || name == "tsit5" || name == "exp4m") dense = 4;
    if (name == "exp3") dense = 2;
    const int expected =
        std::min(order_of(name), dense + 1);  // a step's interpolation errs by h^(dense+1)
    double error[2] = {0, 0};
    for (int i = 0; i < 2; ++i) {
      OdeOptions o;
      o.solver = name;
      o.steps = i ? 160 : 40;
      const Solution s = integrate(oscillating, start_of_oscillating(), 0, 1.5, o, problem);
      for (size_t k = 0; k < wanted.size(); ++k)
        error[i] = std::max(error[i], (s.at[k][0] - exact[k]).abs().max().item<double>());
      EXPECT_TRUE(at::equal(s.at[4][0], start_of_oscillating()[0]));
      EXPECT_LT((s.at[5][0] - s.y[0]).abs().max().item<double>(), 1e-11) << name;
    }
    EXPECT_GT(std::log2(error[0] / error[1]) / 2, expected - 0.8)
        << name << " " << error[0] << " " << error[1];
  }
}

TEST(DenseOutput, AdaptiveStepsReachEveryImage) {
  const std::vector<double> w{0.5, 8.0};
  const at::Tensor y0 = at::tensor({1.0, 0.0}, kF64).reshape({1, 2}).repeat({2, 1});
  OdeOptions o;
  o.rtol = o.atol = 1e-9;
  Problem problem;
  problem.outputs = {0.3, 1.1, 2.0};
  for (const char* name : {"dopri5", "tsit5", "bosh3", "dopri8", "exp4m"}) {
    o.solver = name;
    if (o.solver == "bosh3" || o.solver == "exp4m") o.rtol = o.atol = 1e-7;
    const Solution s = integrate(rotation(w), {y0}, 0, 2, o, problem);
    for (size_t k = 0; k < 3; ++k)
      for (int b = 0; b < 2; ++b)
        // Hermite's cubic inside the long steps of dopri8 is the worst.
        EXPECT_NEAR(s.at[k][0][b][0].item<double>(), std::cos(w[b] * problem.outputs[k]),
                    o.solver == "dopri8" ? 2e-2 : 1e-5)
            << name;
  }
}

// A jump of f at t = 0.7 leaves every method at order 1 unless steps end there.
TEST(Stops, NoStepStraddlesAJump) {
  const Rhs f = [](const at::Tensor& t, const State& y, const at::Tensor&) -> State {
    const at::Tensor late = (t > 0.7).to(at::kDouble).reshape({-1, 1});
    return {y[0] * (1 + late)};
  };
  const double exact = std::exp(0.7 + 2 * 0.8);
  for (const char* name : {"rk4", "dopri5", "exp4m", "exp3"}) {
    OdeOptions o;
    o.solver = name;
    o.steps = 64;
    Problem problem;
    const auto error = [&] {
      return std::abs(
          integrate(f, {at::ones({1, 1}, kF64)}, 0, 1.5, o, problem).y[0].item<double>() - exact);
    };
    const double straddled = error();
    problem.stops = {0.7};
    EXPECT_LT(error(), 1e-4) << name;  // the first step beyond is of order 2
    EXPECT_GT(straddled, 100 * error()) << name;
    if (o.solver == "rk4") continue;
    o.steps = 0;
    o.rtol = o.atol = 1e-8;
    const Solution s = integrate(f, {at::ones({2, 1}, kF64)}, 0, 1.5, o, problem);
    EXPECT_LT((s.y[0] - exact).abs().max().item<double>(), 1e-6) << name;
  }
}

// Reverse mode by the record equals autograd through the same steps, for every method, with images
// of different speeds, a stop and rejected steps.
TEST(PullBack, EqualsAutogradThroughTheSteps) {
  const at::Tensor speed = at::tensor({0.3, 4.0, 1.0}, kF64);
  const Rhs f = [&](const at::Tensor& t, const State& y, const at::Tensor& rows) -> State {
    const at::Tensor s = speed.index_select(0, rows).reshape({-1, 1});
    const at::Tensor rate = s * (y[0] * t.reshape({-1, 1})).sin();
    return {rate, y[0].square().sum(1)};
  };
  const Pullback vjp = [&](const at::Tensor& t, const State& y, const at::Tensor& rows,
                           const State& bar) -> State {
    at::AutoGradMode on(true);
    const at::Tensor u = y[0].detach().clone().requires_grad_(true);
    const State v = f(t, {u, y[1]}, rows);
    return {torch::autograd::grad({v[0], v[1]}, {u}, {bar[0], bar[1]})[0], at::Tensor()};
  };
  const at::Tensor bar0 = at::linspace(-1, 1, 6, kF64).reshape({3, 2});
  const at::Tensor bar1 = at::tensor({1.0, -0.5, 2.0}, kF64);
  for (const auto& name : solver_names())
    for (int64_t steps : {0, 7}) {
      const auto adaptive = adaptive_solver_names();
      if (steps == 0 && std::find(adaptive.begin(), adaptive.end(), name) == adaptive.end())
        continue;
      OdeOptions o;
      o.solver = name;
      o.steps = steps;
      o.rtol = o.atol = 1e-4;
      o.first_step = 0.8;  // too long: some images are turned back
      Problem problem;
      problem.weight = weight;
      problem.stops = {1.0};
      problem.record = true;
      at::Tensor y0 = (0.5 + 0.2 * at::arange(6, kF64)).reshape({3, 2}).requires_grad_(true);
      const Solution s = integrate(f, {y0, at::zeros({3}, kF64)}, 0.2, 2, o, problem);
      const at::Tensor truth =
          torch::autograd::grad({(s.y[0] * bar0).sum() + (s.y[1] * bar1).sum()}, {y0})[0];
      std::vector<int64_t> evaluations;
      const State got = pull_back(*s.record, vjp, {bar0, bar1}, &evaluations);
      EXPECT_LT((got[0] - truth).abs().max().item<double>(),
                1e-11 * truth.abs().max().item<double>())
          << name << " " << steps;
      EXPECT_TRUE(at::equal(got[1], bar1)) << name;
      EXPECT_GT(evaluations[1], 0);
      EXPECT_LE(evaluations[1], s.evaluations[1]) << name;
      EXPECT_GT(record_bytes(*s.record), 0);
    }
}

TEST(Integrate, UncontrolledPartsComeAlong) {
  const Rhs f = [](const at::Tensor& t, const State& y, const at::Tensor&) -> State {
    return {-y[0], 50 * (200 * t).cos()};
  };
  OdeOptions o;
  o.rtol = o.atol = 1e-6;
  Problem problem;
  const State y0{at::ones({1, 1}, kF64), at::zeros({1}, kF64)};
  const Solution strict = integrate(f, y0, 0, 1, o, problem);
  problem.controlled = 1;
  const Solution loose = integrate(f, y0, 0, 1, o, problem);
  EXPECT_LT(10 * loose.evaluations[0], strict.evaluations[0]);
  EXPECT_NEAR(loose.y[0].item<double>(), std::exp(-1.0), 1e-5);
}

// Whatever the limit: with f to start from, with the search for the first step, at a stop and with
// outputs that ask for one more f.
TEST(Integrate, TheEvaluationLimitIsNeverExceeded) {
  std::vector<int64_t> seen;
  const Rhs turning = rotation({1.0, 30.0});
  const Rhs counted = [&](const at::Tensor& t, const State& y, const at::Tensor& rows) {
    for (int64_t i = 0; i < rows.numel(); ++i) ++seen[rows[i].item<int64_t>()];
    return turning(t, y, rows);
  };
  for (const auto& name : solver_names())
    for (const int64_t steps : {0, 5})
      for (const bool extras : {false, true}) {
        const auto adaptive = adaptive_solver_names();
        if (steps == 0 && std::find(adaptive.begin(), adaptive.end(), name) == adaptive.end())
          continue;
        Problem problem;
        if (extras) {
          problem.stops = {0.9};
          problem.outputs = {0.2, 0.95};
        }
        int64_t arrived = 0;
        for (const int64_t limit : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 29, 41}) {
          OdeOptions o;
          o.solver = name;
          o.steps = steps;
          o.rtol = o.atol = 1e-5;
          o.max_nfe = limit;
          seen.assign(2, 0);
          const Solution s = integrate(counted, {at::ones({2, 2}, kF64)}, 0, 2, o, problem);
          EXPECT_EQ(s.evaluations, seen) << name << " " << limit;
          for (size_t b = 0; b < 2; ++b) {
            EXPECT_LE(seen[b], limit) << name << " " << steps << extras << " image " << b;
            if (s.status[b] == Status::kConverged)
              ++arrived;
            else
              EXPECT_NE(s.failure.find("evaluation limit"), std::string::npos) << s.failure;
          }
        }
        // The limit is no more than a limit: five steps of any method but dopri8 (13 a step) fit.
        if (steps == 5 && name != "dopri8") {
          EXPECT_GT(arrived, 0) << name;
        }
      }
}

// What an image costs does not depend on whether its batch mates were turned back.
TEST(Integrate, EvaluationsDoNotSeeBatchMates) {
  const std::vector<double> w{0.5, 20.0, 3.0};
  const at::Tensor y0 = at::tensor({1.0, 0.0}, kF64).reshape({1, 2});
  for (const char* name : {"heun", "dopri8", "exp2", "exp3", "exp4m", "tsit5"}) {
    OdeOptions o;
    o.solver = name;
    o.rtol = o.atol = 1e-4;
    o.first_step = 0.5;
    Problem problem;
    problem.outputs = {0.3, 1.7};
    const Solution all = integrate(rotation(w), {y0.repeat({3, 1})}, 0, 2, o, problem);
    for (size_t b = 0; b < 3; ++b)
      EXPECT_EQ(integrate(rotation({w[b]}), {y0}, 0, 2, o, problem).evaluations[0],
                all.evaluations[b])
          << name << " " << b;
  }
}

TEST(Integrate, MessagesSayTheCallersTime) {
  OdeOptions o;
  o.max_steps = 1;
  o.rtol = o.atol = 1e-9;
  Problem problem;
  problem.said_time = [](double t) { return 1000 + t; };
  const Solution s = integrate(rotation({9.0}), {at::ones({1, 2}, kF64)}, 0, 10, o, problem);
  EXPECT_NE(s.failure.find("step limit reached at t = 1000"), std::string::npos) << s.failure;
}

TEST(Integrate, EvaluationLimitAndBadStartAreStatuses) {
  OdeOptions o;
  o.rtol = o.atol = 1e-9;
  o.max_nfe = 40;
  for (const char* name : {"dopri5", "exp3m", "dopri8"}) {
    o.solver = name;
    const Solution s = integrate(rotation({1.0, 50.0}), {at::ones({2, 2}, kF64)}, 0, 10, o);
    EXPECT_EQ(s.summary.status, Status::kMaxSteps);
    EXPECT_NE(s.summary.message.find("evaluation limit"), std::string::npos) << s.summary.message;
    EXPECT_LE(s.evaluations[1], 40) << name;
  }
  o = OdeOptions();
  at::Tensor y0 = at::ones({3, 2}, kF64);
  y0[1][0] = std::nan("");
  const Solution s = integrate(rotation({1.0, 1.0, 1.0}), {y0}, 0, 1, o);
  EXPECT_EQ(s.status[1], Status::kDiverged);
  EXPECT_EQ(s.evaluations[1], 1);
  EXPECT_EQ(s.status[0], Status::kConverged);
  EXPECT_EQ(s.status[2], Status::kConverged);
  o.rtol = -1;
  EXPECT_THROW(integrate(rotation({1.0}), {at::ones({1, 2}, kF64)}, 0, 1, o),
               std::invalid_argument);
  o = OdeOptions();
  o.solver = "exp9";
  EXPECT_THROW(integrate(rotation({1.0}), {at::ones({1, 2}, kF64)}, 0, 1, o),
               std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior::ode
