#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "scoreprior/flows/flow.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

/// What every flow of the catalogue owes, tested unasked.
class FlowContract : public ::testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  static constexpr int64_t kDim = 6;
  std::unique_ptr<Flow> make() {
    Config c;
    auto yes = std::make_shared<ConfigNode>();
    yes->value = std::get<1>(GetParam());
    c.set("softplus", yes);
    auto flow = flows().make(c, std::get<0>(GetParam()), {kDim, at::kDouble});
    flow->flat_parameters().add_(Rng(3).normal(flow->flat_parameters().sizes(), at::kDouble) * 0.2);
    return flow;
  }
};
INSTANTIATE_TEST_SUITE_P(All, FlowContract,
                         ::testing::Combine(::testing::ValuesIn(flows().names()),
                                            ::testing::Bool()));

TEST_P(FlowContract, InverseUndoesSample) {
  auto flow = make();
  const at::Tensor z = Rng(1).normal({9, kDim}, at::kDouble);
  const auto s = flow->sample(z, false);
  const auto back = flow->inverse(s.x);
  // float64 rounding through a few dozen well-conditioned affine maps.
  EXPECT_LT(testing::relative_error(back.x, z), 1e-9);
  EXPECT_LT(testing::relative_error(back.log_det, -s.log_det), 1e-9);
}

TEST_P(FlowContract, LogDetIsTheJacobianDeterminant) {
  auto flow = make();
  const at::Tensor z = Rng(2).normal({1, kDim}, at::kDouble);
  const double h = 1e-6;
  const at::Tensor steps = at::eye(kDim, at::kDouble) * h;
  const at::Tensor jacobian =
      (flow->sample(z + steps, false).x - flow->sample(z - steps, false).x) / (2 * h);
  EXPECT_NEAR(flow->sample(z, false).log_det.item<double>(),
              std::get<1>(at::slogdet(jacobian)).item<double>(), 1e-6);
}

TEST_P(FlowContract, GradientMatchesFiniteDifferences) {
  auto flow = make();
  flow->freeze(true);
  const at::Tensor z = Rng(4).normal({5, kDim}, at::kDouble);
  const at::Tensor cx = Rng(5).normal({5, kDim}, at::kDouble), cl = Rng(6).normal({5}, at::kDouble);
  const auto value = [&] {
    const auto s = flow->sample(z, true);
    return ((s.x * cx).sum() + (s.log_det * cl).sum()).item<double>();
  };
  value();
  flow->backward(cx, cl);
  const at::Tensor gradient = flow->flat_grad().clone();
  for (int trial = 0; trial < 3; ++trial) {
    const at::Tensor d = Rng(20 + trial).normal({gradient.size(0)}, at::kDouble) * (gradient != 0);
    const double h = 1e-6;
    flow->flat_parameters().add_(d, h);
    const double up = value();
    flow->flat_parameters().add_(d, -2 * h);
    const double down = value();
    flow->flat_parameters().add_(d, h);
    const double slope = (d * gradient).sum().item<double>();
    EXPECT_NEAR((up - down) / (2 * h), slope, 1e-5 * (1 + std::abs(slope)));
  }
}

TEST_P(FlowContract, Float32FollowsFloat64) {
  auto flow = make();
  Config c;
  auto yes = std::make_shared<ConfigNode>();
  yes->value = std::get<1>(GetParam());
  c.set("softplus", yes);
  auto single = flows().make(c, std::get<0>(GetParam()), {kDim, at::kFloat});
  single->load(flow->named_tensors(), "test");
  const at::Tensor z = Rng(7).normal({9, kDim}, at::kDouble);
  EXPECT_LT(
      testing::relative_error(single->sample(z.to(at::kFloat), false).x, flow->sample(z, false).x),
      1e-4);
}

TEST(BaseLogProb, IsTheStandardNormal) {
  const at::Tensor z = at::tensor({0.0, 1.0, 2.0}, at::kDouble).view({1, 3});
  EXPECT_NEAR(base_log_prob(z).item<double>(), -1.5 * std::log(2 * M_PI) - 2.5, 1e-14);
}

}  // namespace
}  // namespace scoreprior
