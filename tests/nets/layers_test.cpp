#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "scoreprior/core/rng.h"
#include "scoreprior/nets/detail/layers.h"
#include "scoreprior/nets/detail/resample.h"
#include "scoreprior/nets/double_backward.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior::nets {
namespace {

using testing::relative_error;

at::Tensor draw(const char* name, at::IntArrayRef shape, at::ScalarType t = at::kFloat) {
  return Rng(1).split(name).normal(shape, t);
}

// The definition: insert zeros, pad, correlate with the reversed kernel, keep every down-th sample.
at::Tensor up_fir_down(const at::Tensor& x, const Taps& taps, int64_t up, int64_t down,
                       int64_t pad0, int64_t pad1, double gain) {
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  at::Tensor z = at::zeros({B, C, H, up, W, up}, x.options());
  z.select(3, 0).select(4, 0).copy_(x);
  z = at::constant_pad_nd(z.reshape({B * C, 1, H * up, W * up}), {pad0, pad1, pad0, pad1});
  const at::Tensor k = at::tensor(at::ArrayRef<double>(taps.data(), 4)).flip(0) * gain;
  const at::Tensor y =
      at::conv2d(z, (k.unsqueeze(1) * k.unsqueeze(0)).view({1, 1, 4, 4}).to(x.scalar_type()));
  const at::Tensor s = y.slice(2, 0, c10::nullopt, down).slice(3, 0, c10::nullopt, down);
  return s.reshape({B, C, s.size(2), s.size(3)});
}

TEST(Resample, MatchesItsDefinition) {
  const Taps taps{0.1, 0.2, 0.3, 0.4};  // lopsided, so that direction matters
  const at::Tensor x = draw("x", {2, 5, 6, 8}, at::kDouble);
  EXPECT_LT(relative_error(fir_down(x, taps), up_fir_down(x, taps, 1, 2, 1, 1, 1)), 1e-14);
  EXPECT_LT(relative_error(fir_up(x, taps), up_fir_down(x, taps, 2, 1, 2, 1, 2)), 1e-14);
  EXPECT_LT(relative_error(fir_same(x, taps, 2, 1), up_fir_down(x, taps, 1, 1, 2, 2, 1)), 1e-14);
  EXPECT_LT(relative_error(fir_same(x, taps, 1, 2), up_fir_down(x, taps, 1, 1, 1, 1, 2)), 1e-14);
  EXPECT_LT(relative_error(mean_down(x), at::avg_pool2d(x, {2, 2})), 1e-14);
  EXPECT_LT(relative_error(nearest_up(x), at::upsample_nearest2d(x, {12, 16})), 1e-14);
  EXPECT_LT(relative_error(fir_down(x.to(at::kFloat), taps), fir_down(x, taps)), 1e-6);
}

TEST(Resample, BackwardIsTheAdjoint) {
  const Taps taps{0.1, 0.2, 0.3, 0.4};
  const std::vector<std::function<at::Tensor(const at::Tensor&)>> all{
      [&](const at::Tensor& x) { return fir_down(x, taps); },
      [&](const at::Tensor& x) { return fir_up(x, taps); },
      [&](const at::Tensor& x) { return fir_same(x, taps, 2, 1); },
      [&](const at::Tensor& x) { return fir_same(x, taps, 1, 2); }};
  for (const auto& op : all) {
    at::Tensor x = draw("x", {2, 3, 8, 8}, at::kDouble).requires_grad_(true);
    const at::Tensor y = op(x);
    const at::Tensor v = draw("v", y.sizes(), at::kDouble).requires_grad_(true);
    const at::Tensor g = torch::autograd::grad({(y * v).sum()}, {x}, {}, true, true)[0];
    // <A x, v> = <x, A^T v>
    EXPECT_NEAR((y * v).sum().item<double>(), (x * g).sum().item<double>(), 1e-11);
    // derivative of <A^T v, u> in v is A u
    const at::Tensor u = draw("u", x.sizes(), at::kDouble);
    const at::Tensor gv = torch::autograd::grad({(g * u).sum()}, {v})[0];
    EXPECT_LT(relative_error(gv, op(u)), 1e-13);
  }
}

NormAct norm_layer(int64_t channels, int64_t groups, Act act) {
  NormAct n;
  n.weight = (draw("gamma", {channels}) * 0.3 + 1).requires_grad_(true);
  n.bias = (draw("beta", {channels}) * 0.3).requires_grad_(true);
  n.groups = groups;
  n.act = act;
  return n;
}

TEST(NormAct, FusedMatchesComposite) {
  const Rng rng(4);
  for (const int64_t batch : {1, 3})
    for (const int64_t channels : {8, 16, 40, 64})
      for (const Act act : {Act::kIdentity, Act::kSwish, Act::kElu, Act::kRelu, Act::kLrelu})
        for (const double rate : {0.0, 0.25}) {
          const NormAct layer = norm_layer(channels, channels / 4, act);
          NormAct exact = layer;
          exact.weight = layer.weight.detach().to(at::kDouble).requires_grad_(true);
          exact.bias = layer.bias.detach().to(at::kDouble).requires_grad_(true);
          // A large mean: the variance must not be formed as E[x^2] - E[x]^2 in float32.
          const at::Tensor x = (draw("x", {batch, channels, 6, 5}) + 20).requires_grad_(true);
          const at::Tensor t = draw("t", {batch, channels}).requires_grad_(true);
          const at::Tensor xd = x.detach().to(at::kDouble).requires_grad_(true);
          const at::Tensor td = t.detach().to(at::kDouble).requires_grad_(true);
          const at::Tensor v = draw("v", x.sizes());
          const DropoutPass dropout{&rng, rate};
          const at::Tensor y = layer(x, t, dropout, "layer");
          const at::Tensor yd = exact(xd, td, dropout, "layer");
          EXPECT_LT(relative_error(y, yd), 2e-5) << channels << " " << int(act);
          const auto g = torch::autograd::grad({(y * v).sum()}, {x, t, layer.weight, layer.bias});
          const auto gd = torch::autograd::grad({(yd * v.to(at::kDouble)).sum()},
                                                {xd, td, exact.weight, exact.bias});
          for (size_t i = 0; i < 4; ++i)
            EXPECT_LT(relative_error(g[i], gd[i]), 1e-4) << channels << " " << int(act) << " " << i;
        }
}

TEST(NormAct, SecondDerivativesMatchComposite) {
  const Rng rng(4);
  for (const int64_t channels : {8, 16, 40})
    for (const Act act : {Act::kIdentity, Act::kSwish, Act::kElu, Act::kRelu, Act::kLrelu})
      for (const double rate : {0.0, 0.25}) {
        NormAct layer = norm_layer(channels, channels / 4, act);
        layer.weight.set_requires_grad(false);
        layer.bias.set_requires_grad(false);
        NormAct exact = layer;
        exact.weight = layer.weight.to(at::kDouble);
        exact.bias = layer.bias.to(at::kDouble);
        const auto derivative = [&](const NormAct& n, at::ScalarType dtype) {
          DoubleBackwardScope scope;
          const at::Tensor x = (draw("x", {3, channels, 6, 5}) + 3).to(dtype).requires_grad_(true);
          const at::Tensor v = draw("v", x.sizes()).to(dtype).requires_grad_(true);
          const at::Tensor t = draw("t", {3, channels}).to(dtype);
          const at::Tensor y = n(x, t, {&rng, rate}, "layer");
          const at::Tensor g = torch::autograd::grad({(y * v).sum()}, {x}, {}, true, true)[0];
          return torch::autograd::grad({(g * draw("w", x.sizes()).to(dtype)).sum()}, {x, v});
        };
        const auto f = derivative(layer, at::kFloat), d = derivative(exact, at::kDouble);
        for (size_t i = 0; i < 2; ++i)
          EXPECT_LT(relative_error(f[i], d[i]), 1e-4) << channels << " " << int(act) << " " << i;
      }
}

TEST(NormAct, DropoutRateAndScale) {
  const Rng rng(9);
  NormAct layer = norm_layer(32, 8, Act::kIdentity);
  const at::Tensor x = draw("x", {4, 32, 32, 32});
  at::NoGradGuard no_grad;
  const at::Tensor full = layer(x);
  for (const double rate : {0.1, 0.5}) {
    const at::Tensor y = layer(x, {}, {&rng, rate}, "layer");
    const at::Tensor kept = y != 0;
    const double n = double(x.numel());
    const double z =
        (kept.sum().item<double>() - n * (1 - rate)) / std::sqrt(n * rate * (1 - rate));
    EXPECT_LT(std::abs(z), 4.5) << rate;
    EXPECT_LT(relative_error(y, full * kept / (1 - rate)), 1e-6);
    // Images, channels and neighbours are uncorrelated.
    const at::Tensor k = kept.to(at::kDouble) - (1 - rate);
    const auto corr = [&](const at::Tensor& a, const at::Tensor& b) {
      return (a * b).sum().item<double>() / (std::sqrt(double(a.numel())) * rate * (1 - rate));
    };
    EXPECT_LT(std::abs(corr(k[0], k[1])), 4.5);
    EXPECT_LT(std::abs(corr(k.narrow(1, 0, 31), k.narrow(1, 1, 31))), 4.5);
    EXPECT_LT(std::abs(corr(k.narrow(3, 0, 31), k.narrow(3, 1, 31))), 4.5);
    EXPECT_LT(std::abs(corr(k.narrow(2, 0, 31), k.narrow(2, 1, 31))), 4.5);
  }
}

TEST(Layers, AttentionFusedMatchesComposite) {
  for (const int64_t pixels : {16, 256, 12}) {
    const at::Tensor qkv = draw("qkv", {3, pixels, 96}).requires_grad_(true);
    const at::Tensor exact = qkv.detach().to(at::kDouble).requires_grad_(true);
    const at::Tensor v = draw("v", {3, pixels, 32});
    const at::Tensor y = attention(qkv), yd = attention(exact);
    EXPECT_LT(relative_error(y, yd), 1e-5) << pixels;
    EXPECT_LT(relative_error(torch::autograd::grad({(y * v).sum()}, {qkv})[0],
                             torch::autograd::grad({(yd * v.to(at::kDouble)).sum()}, {exact})[0]),
              1e-5)
        << pixels;
  }
}

TEST(Layers, RowsTimesMatchesMatmul) {
  for (const int64_t rows : {1, 7, 64, 1030}) {
    const at::Tensor x = draw("x", {rows, 48}).requires_grad_(true);
    const at::Tensor w = draw("w", {48, 32}).requires_grad_(true);
    const at::Tensor b = draw("b", {32}).requires_grad_(true), v = draw("v", {rows, 32});
    const at::Tensor y = rows_times(x, w, b), expected = at::addmm(b, x, w);
    EXPECT_LT(relative_error(y, expected), 1e-5);
    const auto g = torch::autograd::grad({(y * v).sum()}, {x, w, b});
    const auto e = torch::autograd::grad({(expected * v).sum()}, {x, w, b});
    for (size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(g[i], e[i]), 1e-5) << rows;
  }
}

TEST(Layers, AttentionIsPermutationEquivariant) {
  const at::Tensor qkv = draw("qkv", {2, 10, 24});
  const at::Tensor order = at::tensor({3, 1, 4, 0, 5, 9, 2, 6, 8, 7}, at::kLong);
  EXPECT_LT(
      relative_error(attention(qkv.index_select(1, order)), attention(qkv).index_select(1, order)),
      1e-5);
}

}  // namespace
}  // namespace scoreprior::nets
