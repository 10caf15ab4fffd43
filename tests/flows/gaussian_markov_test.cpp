#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "scoreprior/flows/flow.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

constexpr int64_t kChannels = 2, kHeight = 3, kWidth = 5, kDim = kChannels * kHeight * kWidth;

std::unique_ptr<Flow> make(int64_t radius) {
  Config c;
  auto value = std::make_shared<ConfigNode>();
  value->value = radius;
  c.set("radius", value);
  auto flow = flows().make(c, "gaussian_markov",
                           {kDim, at::kDouble, at::kCPU, {kChannels, kHeight, kWidth}});
  flow->flat_parameters().add_(Rng(3).normal(flow->flat_parameters().sizes(), at::kDouble) * 0.1);
  return flow;
}

// dx/dz: the flow is affine.
at::Tensor jacobian(Flow& flow) {
  const at::Tensor none = at::zeros({1, kDim}, at::kDouble);
  return (flow.sample(at::eye(kDim, at::kDouble), false).x - flow.sample(none, false).x).t();
}

// In raster order a Cholesky row reaches `radius` back, so that an entry of the precision reaches
// at most 2 radius in any direction; the covariance is dense.
TEST(MarkovGaussian, PrecisionIsLocal) {
  auto flow = make(1);
  const at::Tensor j = jacobian(*flow);
  const at::Tensor covariance = j.matmul(j.t()), precision = at::linalg_inv(covariance);
  const auto column = [](int64_t i) { return i % kWidth; };
  int64_t far = 0;
  for (int64_t a = 0; a < kDim; ++a)
    for (int64_t b = 0; b < kDim; ++b) {
      if (std::abs(column(a) - column(b)) <= 2) continue;
      ++far;
      EXPECT_LT(std::abs(precision[a][b].item<double>()), 1e-12);  // rounding of the inverse
    }
  EXPECT_GT(far, 0);
  EXPECT_EQ((covariance.abs() < 1e-12).sum().item<int64_t>(), 0);
}

// Neighbourhoods that hold every earlier pixel: one regression weight for each pair.
TEST(MarkovGaussian, TheWidestNeighbourhoodHasAllPairs) {
  auto flow = make(100);
  flow->sample(Rng(1).normal({7, kDim}, at::kDouble), true);
  flow->backward(Rng(2).normal({7, kDim}, at::kDouble), at::ones({7}, at::kDouble));
  const at::Tensor weights = flow->named_tensors().at("regression");
  const auto used = static_cast<int64_t>((flow->flat_grad() != 0).sum().item<int64_t>()) - 2 * kDim;
  EXPECT_EQ(used, kDim * (kDim - 1) / 2);
  EXPECT_EQ(weights.size(0), kDim);
}

}  // namespace
}  // namespace scoreprior
