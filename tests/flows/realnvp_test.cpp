#include "scoreprior/flows/realnvp.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::vector<std::vector<int64_t>> rows_of(const at::Tensor& orders) {
  std::vector<std::vector<int64_t>> v;
  const at::Tensor o = orders.to(at::kLong).contiguous();
  for (int64_t k = 0; k < o.size(0); ++k)
    v.emplace_back(o[k].data_ptr<int64_t>(), o[k].data_ptr<int64_t>() + o.size(1));
  return v;
}

RealNvpOptions golden_options(const GoldenCase& g) {
  RealNvpOptions o;
  o.dim = g.config().at("out_dim");
  o.n_flow = g.config().at("n_flow");
  o.seqfrac = g.config().at("seqfrac");
  o.batch_norm = g.config().value("batch_norm", true);
  o.softplus = g.config().value("include_softplus", false);
  o.norm_clip = 0;
  return o;
}

RealNvp golden_flow(const GoldenCase& g, at::ScalarType dtype) {
  RealNvp flow(golden_options(g), dtype, rows_of(g.array("orders")));
  flow.load(g.weights(), g.weights_path().string());
  return flow;
}

const char* const kCases[] = {"realnvp_dim8_nflow3", "realnvp_dim8_nflow2_nobn",
                              "realnvp_dim64_nflow4", "realnvp_dim64_nflow2_softplus"};

class RealNvpGolden : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, RealNvpGolden, ::testing::ValuesIn(kCases));

TEST_P(RealNvpGolden, ValuesGradientsAndStatistics) {
  const std::string name = std::string("flow/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  const GoldenCase g(name);
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    // The case's own limits (its `tolerance`).
    const double tol = dtype == at::kDouble ? 1e-8 : 1e-4;
    for (const std::string mode : {"eval", "train"}) {
      if (!g.has("x_" + mode)) continue;
      RealNvp flow = golden_flow(g, dtype);
      flow.freeze(mode == "eval");
      const at::Tensor z = g.array("z", dtype), cot = g.array("cot", dtype);
      const Flow::Sample s = flow.sample(z, true);
      EXPECT_LT(relative_error(s.x, g.array("x_" + mode)), tol) << mode;
      EXPECT_LT(relative_error(s.log_det, g.array("logdet_" + mode)), tol) << mode;
      EXPECT_LT(relative_error(base_log_prob(z) - s.log_det, g.array("log_q_" + mode)), tol)
          << mode;
      const double B = static_cast<double>(z.size(0));
      flow.backward(cot / B, at::full({z.size(0)}, -1 / B, z.options()));
      const auto wanted = g.weights("grads_" + mode);
      const auto got = flow.named_gradients();
      ASSERT_EQ(wanted.size(), got.size());
      // A gradient is compared on the scale of all gradients of its kind: a few are rounding noise
      // around zero (a bias in front of batch norm).
      double scale = 0;
      for (const auto& [key, value] : wanted)
        scale = std::max(scale, value.abs().max().item<double>());
      for (const auto& [key, value] : wanted) {
        const double error =
            (got.at(key).to(at::kDouble) - value.to(at::kDouble)).abs().max().item<double>();
        EXPECT_LT(error, tol * std::max(value.abs().max().item<double>(), 1e-2 * scale))
            << mode << " " << key;
      }
      if (mode == "train" && golden_options(g).batch_norm) {
        for (const auto& [key, value] : g.weights("batch_stats_after_train"))
          EXPECT_LT(relative_error(flow.named_tensors().at(key), value), tol) << key;
      }
      if (mode == "eval") {
        const Flow::Sample drawn = flow.sample(z, false);
        EXPECT_TRUE(at::equal(drawn.x, s.x));
        const Flow::Sample back = flow.inverse(s.x);
        EXPECT_LT(relative_error(back.x, z), dtype == at::kDouble ? 1e-7 : 1e-3);
        EXPECT_LT(relative_error(back.log_det, -s.log_det), tol);
      }
    }
  }
}

TEST(RealNvp, ReferenceCouplingInit) {
  SP_REQUIRE_GOLDEN("flow/reference_test_affine_coupling_init");
  const GoldenCase g("flow/reference_test_affine_coupling_init");
  RealNvpOptions o;
  o.dim = 8;
  o.n_flow = 1;
  std::vector<int64_t> reversal{7, 6, 5, 4, 3, 2, 1, 0};  // cancels the one in front of coupling2
  RealNvp flow(o, at::kDouble, {reversal});
  auto all = flow.named_tensors();
  for (const auto& [key, value] : g.weights()) {
    const size_t dot = key.find("dense") != std::string::npos    ? key.find("dense")
                       : key.find("bn") != std::string::npos     ? key.find("bn")
                       : key.find("zerofc") != std::string::npos ? key.find("zerofc")
                                                                 : std::string::npos;
    ASSERT_NE(dot, std::string::npos) << key;
    all.at("flow.0.coupling2." + key.substr(dot)).copy_(value);
  }
  const Flow::Sample s = flow.sample(g.array("input", at::kDouble), true);
  EXPECT_LT((s.x.flip(1) - g.array("ref_output")).abs().max().item<double>(), 1e-4);
  EXPECT_LT((s.log_det - g.array("ref_logdet")).abs().max().item<double>(), 1e-4);
  for (const int i : {0, 1}) {
    const std::string bn = "flow.0.coupling2.bn" + std::to_string(i);
    EXPECT_NEAR(all.at(bn + ".running_mean").item<double>(),
                g.scalar("ref_bn_mean" + std::to_string(i)), 1e-6);
    EXPECT_NEAR(all.at(bn + ".running_var").item<double>(),
                g.scalar("ref_bn_var" + std::to_string(i)), 1e-6);
  }
}

RealNvp random_flow(RealNvpOptions o, at::ScalarType dtype, double size = 0.3) {
  RealNvp flow(o, dtype);
  const Rng rng(7);
  for (const auto& [name, view] : flow.named_tensors()) {
    if (name.find("order") != std::string::npos) continue;
    const at::Tensor noise = rng.split(name).normal(view.sizes(), dtype);
    if (name.find("running_var") != std::string::npos)
      view.copy_((0.3 * noise).exp());
    else
      view.add_(noise * (name.find("weight") != std::string::npos ? size : 0.2 * size));
  }
  return flow;
}

TEST(RealNvp, GradientMatchesFiniteDifferences) {
  for (const bool batch_norm : {true, false})
    for (const bool frozen : {false, true}) {
      RealNvpOptions o;
      o.dim = 13;  // odd: the halves differ
      o.n_flow = 2;
      o.seqfrac = 2;
      o.batch_norm = batch_norm;
      o.softplus = frozen;
      o.norm_clip = 1.1;  // active
      RealNvp flow = random_flow(o, at::kDouble);
      flow.freeze(frozen);
      const at::Tensor z = Rng(1).normal({21, 13}, at::kDouble);  // not a whole number of panels
      const at::Tensor cx = Rng(2).normal({21, 13}, at::kDouble),
                       cl = Rng(3).normal({21}, at::kDouble);
      const at::Tensor statistics = flow.flat_statistics().clone();
      const auto value = [&] {
        flow.flat_statistics().copy_(statistics);
        const Flow::Sample s = flow.sample(z, true);
        return ((s.x * cx).sum() + (s.log_det * cl).sum()).item<double>();
      };
      value();
      flow.backward(cx, cl);
      const at::Tensor gradient = flow.flat_grad().clone();
      // Along random directions: one central difference sees every parameter. The clip and the
      // leaky-ReLU have kinks, so the step is small and the tolerance is what rounding leaves at it
      // (1e-15 * |value| / 1e-6).
      for (int trial = 0; trial < 4; ++trial) {
        const at::Tensor d =
            Rng(10 + trial).normal({gradient.size(0)}, at::kDouble) * (gradient != 0);
        const double h = 1e-6;
        flow.flat_parameters().add_(d, h);
        const double up = value();
        flow.flat_parameters().add_(d, -2 * h);
        const double down = value();
        flow.flat_parameters().add_(d, h);
        const double slope = (d * gradient).sum().item<double>();
        EXPECT_NEAR((up - down) / (2 * h), slope, 1e-5 * (1 + std::abs(slope)))
            << "batch_norm " << batch_norm << " frozen " << frozen;
      }
    }
}

TEST(RealNvp, LogDetIsTheJacobianDeterminant) {
  RealNvpOptions o;
  o.dim = 7;
  o.n_flow = 2;
  o.seqfrac = 1;
  o.softplus = true;
  RealNvp flow = random_flow(o, at::kDouble);
  const at::Tensor z = Rng(4).normal({1, 7}, at::kDouble);
  const double h = 1e-6;
  const at::Tensor steps = at::eye(7, at::kDouble) * h;
  const at::Tensor jacobian =
      (flow.sample(z + steps, false).x - flow.sample(z - steps, false).x) / (2 * h);
  const double log_det = std::get<1>(at::slogdet(jacobian)).item<double>();
  // Central differences at h = 1e-6: error 1e-10 per entry.
  EXPECT_NEAR(flow.sample(z, false).log_det.item<double>(), log_det, 1e-7);
}

TEST(RealNvp, RowsOfADrawDoNotDependOnTheBatch) {
  RealNvpOptions o;
  o.dim = 24;
  o.n_flow = 3;
  RealNvp flow = random_flow(o, at::kFloat);
  const at::Tensor z = Rng(5).normal({300, 24});
  const at::Tensor all = flow.sample(z, false).x;
  for (const int64_t n : {1, 7, 64})
    EXPECT_TRUE(at::equal(flow.sample(z.narrow(0, 200, n), false).x, all.narrow(0, 200, n))) << n;
}

TEST(RealNvp, CalibrationMakesDrawingEqualToTraining) {
  RealNvpOptions o;
  o.dim = 16;
  o.n_flow = 4;
  o.seqfrac = 1;
  RealNvp flow = random_flow(o, at::kDouble);
  const at::Tensor z = Rng(6).normal({500, 16}, at::kDouble);
  flow.calibrate(z);
  const at::Tensor drawn = flow.sample(z, false).x;
  // Same statistics by definition: only the 0.9/0.1 update in between rounds.
  EXPECT_LT(relative_error(drawn, flow.sample(z, true).x), 1e-12);
}

TEST(RealNvp, StartsWithTheAskedMeanAndSpread) {
  for (const bool softplus : {false, true}) {
    RealNvpOptions o;
    o.dim = 32;
    o.n_flow = 3;
    o.softplus = softplus;
    o.init_mean = 0.4;
    o.init_std = 0.05;
    RealNvp flow(o, at::kDouble);
    const at::Tensor x = flow.sample(Rng(8).normal({2000, 32}, at::kDouble), false).x;
    // 64000 numbers: standard error 2e-4; softplus bends by second order in std/mean.
    EXPECT_NEAR(x.mean().item<double>(), 0.4, 0.01);
    EXPECT_NEAR(x.std().item<double>(), 0.05, 0.005);
  }
}

TEST(RealNvp, SavedTensorsRestoreTheFlow) {
  RealNvpOptions o;
  o.dim = 10;
  o.n_flow = 2;
  RealNvp flow = random_flow(o, at::kFloat);
  std::map<std::string, at::Tensor> saved;
  for (const auto& [name, t] : flow.named_tensors()) saved[name] = t.clone();
  o.order_seed = 99;
  RealNvp other(o, at::kFloat);
  other.load(saved, "saved");
  const at::Tensor z = Rng(9).normal({5, 10});
  EXPECT_TRUE(at::equal(flow.sample(z, false).x, other.sample(z, false).x));
  saved.erase("flow.1.coupling2.zerofc.bias");
  try {
    other.load(saved, "weights.safetensors");
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("flow.1.coupling2.zerofc.bias"), std::string::npos);
  }
}

TEST(RealNvp, BadSettingsNameTheKey) {
  EXPECT_THROW(flows().make(Config(), "realnvp", FlowContext{}), ConfigError);
  EXPECT_NO_THROW(flows().make(Config(), "realnvp", FlowContext{4}));
  EXPECT_THROW(flows().make(Config(), "realnvpp", FlowContext{4}), ConfigError);
}

}  // namespace
}  // namespace scoreprior
