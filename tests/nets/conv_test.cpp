#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <memory>

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
                       Case{3, 1, 24, 5, 7}, Case{2, 16, 1, 16, 16}, Case{2, 16, 16, 6, 6}}) {
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

// The first layer adds no rounding but that of its result, and can be differentiated twice.
TEST(Conv, FewChannelsAreSummedInDouble) {
  const double unit = std::pow(2.0, -24);
  for (const int64_t in : {1, 3, 4}) {
    const at::Tensor x = channels_last(conv_draw("x", {3, in, 9, 6}));
    const at::Tensor w = conv_draw("w", {16, in, 3, 3}), b = conv_draw("b", {16});
    const at::Tensor exact =
        at::conv2d(x.to(at::kDouble), w.to(at::kDouble), b.to(at::kDouble), 1, 1);
    const at::Tensor error = (conv2d(x, w, b).to(at::kDouble) - exact).abs();
    EXPECT_TRUE((error <= unit * exact.abs() + 1e-300).all().item<bool>()) << in;
    const at::Tensor v = conv_draw("v", {3, 16, 9, 6});
    const auto hessian_product = [&](bool own) {
      const at::Tensor leaf = x.clone().requires_grad_(true);
      const at::Tensor y = own ? conv2d(leaf, w, b) : at::conv2d(leaf, w, b, 1, 1);
      const at::Tensor g = torch::autograd::grad({(y * y * v).sum()}, {leaf}, {}, true, true)[0];
      return torch::autograd::grad({(g * g).sum()}, {leaf})[0];
    };
    EXPECT_LT(relative_error(hessian_product(true), hessian_product(false)), 1e-5);
  }
}

// Against float64 sums of the rounded operands: what is left is the rounding of the result, half a
// unit in the last of 8 bits. Against the exact convolution: three such roundings.
TEST(Conv, Bfloat16RoundsOperandsAndResults) {
  const double unit = std::pow(2.0, -8);
  for (const int64_t channels : {3, 16}) {
    for (const bool frozen : {false, true}) {
      const at::Tensor x = channels_last(conv_draw("x", {4, channels, 8, 8})).requires_grad_(true);
      const at::Tensor w = (conv_draw("w", {32, channels, 3, 3}) * 0.1).requires_grad_(!frozen);
      const at::Tensor b = at::zeros({32});
      const at::Tensor v = conv_draw("v", {4, 32, 8, 8});
      const auto packed = std::make_shared<PackedWeights>();
      packed->use_bfloat16();
      const auto rounded = [](const at::Tensor& a) {
        return a.detach().to(at::kBFloat16).to(at::kDouble);
      };
      const at::Tensor y = conv2d(x, w, b, 1, 1, packed);
      EXPECT_EQ(y.scalar_type(), at::kFloat);
      const at::Tensor of_rounded = at::conv2d(rounded(x), rounded(w), {}, 1, 1);
      const at::Tensor error = (y.to(at::kDouble) - of_rounded).abs();
      // float32 sums may push a value over to the next step, hence a whole unit
      EXPECT_TRUE((error <= unit * of_rounded.abs() + 1e-6).all().item<bool>()) << channels;
      EXPECT_GT(error.max().item<double>(), 1e-4) << "nothing was rounded";
      const at::Tensor exact = at::conv2d(x, w, b, 1, 1);
      EXPECT_LT(relative_error(y, exact.to(at::kDouble)), 3 * unit);

      const at::Tensor gx = torch::autograd::grad({(y * v).sum()}, {x})[0];
      const at::Tensor gx_exact = torch::autograd::grad({(exact * v).sum()}, {x})[0];
      EXPECT_LT(relative_error(gx, gx_exact.to(at::kDouble)), 3 * unit);
      EXPECT_GT(relative_error(gx, gx_exact.to(at::kDouble)), 1e-4) << "the gradient was exact";
    }
  }
}

}  // namespace
}  // namespace scoreprior::nets
