#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "scoreprior/core/rng.h"
#include "scoreprior/nets/detail/conv.h"
#include "scoreprior/nets/detail/layers.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior::nets {
namespace {

using testing::relative_error;

at::Tensor conv_draw(const char* name, at::IntArrayRef shape) {
  return Rng(3).split(name).normal(shape, at::kFloat);
}

TEST(Conv, MatchesDirectSumAndItsDerivatives) {
  struct Case {
    int64_t batch, in, out, height, width;
  };
  for (const Case c : {Case{64, 16, 32, 4, 4}, Case{5, 48, 32, 16, 8}, Case{1, 32, 64, 32, 32},
                       Case{3, 128, 16, 8, 12}, Case{13, 16, 16, 4, 4}, Case{2, 3, 16, 16, 16},
                       Case{2, 16, 1, 16, 16}, Case{2, 16, 16, 6, 6}}) {
    const at::Tensor x =
        channels_last(conv_draw("x", {c.batch, c.in, c.height, c.width})).requires_grad_(true);
    const at::Tensor w = (conv_draw("w", {c.out, c.in, 3, 3}) * 0.1).requires_grad_(true);
    const at::Tensor b = conv_draw("b", {c.out}).requires_grad_(true);
    const at::Tensor v = conv_draw("v", {c.batch, c.out, c.height, c.width});
    const at::Tensor xd = x.detach().to(at::kDouble).requires_grad_(true);
    const at::Tensor wd = w.detach().to(at::kDouble).requires_grad_(true);
    const at::Tensor bd = b.detach().to(at::kDouble).requires_grad_(true);
    const at::Tensor y = conv2d(x, w, b), yd = at::conv2d(xd, wd, bd, 1, 1);
    EXPECT_TRUE(y.is_contiguous(at::MemoryFormat::ChannelsLast));
    // Winograd's constants reach 64; the sums have up to 1152 terms
    EXPECT_LT(relative_error(y, yd), 5e-6) << c.in << " " << c.out;
    const auto g = torch::autograd::grad({(y * v).sum()}, {x, w, b});
    const auto gd = torch::autograd::grad({(yd * v.to(at::kDouble)).sum()}, {xd, wd, bd});
    for (size_t i = 0; i < 3; ++i)
      EXPECT_LT(relative_error(g[i], gd[i]), 1e-5) << c.in << " " << c.out << " " << i;
  }
}

TEST(Conv, FrozenWeightsAllowSecondDerivatives) {
  const at::Tensor x = channels_last(conv_draw("x", {4, 16, 8, 8})).requires_grad_(true);
  const at::Tensor w = conv_draw("w", {32, 16, 3, 3}) * 0.1, b = conv_draw("b", {32});
  const at::Tensor v = conv_draw("v", {4, 32, 8, 8});
  const auto hessian_product = [&](bool own) {
    const at::Tensor y = own ? conv2d(x, w, b) : at::conv2d(x, w, b, 1, 1);
    const at::Tensor g = torch::autograd::grad({(y * y * v).sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({(g * g).sum()}, {x})[0];
  };
  EXPECT_LT(relative_error(hessian_product(true), hessian_product(false)), 2e-5);
}

}  // namespace
}  // namespace scoreprior::nets
