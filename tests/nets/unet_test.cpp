#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <optional>

#include "scoreprior/core/errors.h"
#include "scoreprior/nets/double_backward.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::relative_error;

template <class T>
void put(Config& c, const std::string& key, T value) {
  auto n = std::make_shared<ConfigNode>();
  n->value = value;
  c.set(key, n);
}
void put_list(Config& c, const std::string& key, std::vector<int64_t> values) {
  ConfigArray a;
  for (int64_t v : values) {
    a.push_back(std::make_shared<ConfigNode>());
    a.back()->value = v;
  }
  put(c, key, a);
}

struct Variant {
  const char* label;
  const char* name;
  std::function<void(Config&)> set;
};

// Small, but with every kind of layer between them.
std::vector<Variant> variants() {
  return {
      {"default", "ncsnpp", [](Config&) {}},
      {"fourier_cat_outputskip", "ncsnpp",
       [](Config& c) {
         put(c, "embedding_type", std::string("fourier"));
         put(c, "fourier_scale", 0.3);
         put(c, "label_scale", std::string("log"));
         put(c, "progressive", std::string("output_skip"));
         put(c, "progressive_input", std::string("input_skip"));
         put(c, "progressive_combine", std::string("cat"));
         put(c, "nonlinearity", std::string("elu"));
         put(c, "channels", int64_t{3});
       }},
      {"ddpmblock_residual", "ncsnpp",
       [](Config& c) {
         put(c, "resblock_type", std::string("ddpm"));
         put(c, "progressive", std::string("residual"));
         put(c, "embedding_type", std::string("positional"));
       }},
      {"plain_resampling", "ncsnpp",
       [](Config& c) {
         put(c, "fir", false);
         put(c, "progressive", std::string("residual"));
         put(c, "scale_by_sigma", true);
         put(c, "skip_rescale", false);
       }},
      // 64: with one channel per group every bias before a norm would be idle
      {"ddpm", "ddpm", [](Config& c) { put(c, "nf", int64_t{64}); }},
  };
}

std::unique_ptr<ScoreNet> small_net(const Variant& v, double dropout = 0,
                                    at::ScalarType dtype = at::kFloat) {
  Config c;
  put(c, "image_size", int64_t{8});
  put(c, "nf", int64_t{16});
  put_list(c, "ch_mult", {1, 2});
  put_list(c, "attn_resolutions", {4});
  put(c, "init_scale", 1.0);
  put(c, "dropout", dropout);
  put(c, "name", std::string(v.name));
  v.set(c);
  auto net = score_nets().make(c, "ncsnpp");
  c.require_all_used();
  net->initialize(Rng(7));
  // Away from the symmetric start: biases and norms off their initial values.
  at::NoGradGuard no_grad;
  for (auto& [name, p] : net->parameters())
    p.add_(Rng(8).split(name).normal(p.sizes(), at::kDouble).to(p.scalar_type()), 0.05);
  net->to(dtype, at::kCPU);
  return net;
}

at::Tensor images(const ScoreNet& net, int64_t batch, at::ScalarType dtype,
                  const char* name = "x") {
  return Rng(1).split(name).normal(batched(batch, net.image_shape()), dtype);
}
at::Tensor labels(int64_t batch, at::ScalarType dtype) {
  return at::linspace(3, 700, batch, at::TensorOptions().dtype(dtype));
}

class UnetTest : public ::testing::TestWithParam<int> {
 protected:
  Variant variant() const { return variants()[static_cast<size_t>(GetParam())]; }
};
INSTANTIATE_TEST_SUITE_P(Variants, UnetTest, ::testing::Range(0, 5), [](const auto& info) {
  return std::string(variants()[static_cast<size_t>(info.param)].label);
});

struct Pass {
  at::Tensor out, grad_x;
  std::map<std::string, at::Tensor> grads;
};
Pass run(const ScoreNet& net, const at::Tensor& x0, const at::Tensor& label, const Rng* dropout,
         bool composite) {
  Pass r;
  std::optional<DoubleBackwardScope> scope;
  if (composite) scope.emplace();
  const at::Tensor x = x0.detach().clone().requires_grad_(true);
  r.out = net.forward(x, label, dropout);
  std::vector<at::Tensor> wanted{x};
  std::vector<std::string> names;
  for (auto& [name, p] : net.parameters()) {
    wanted.push_back(p);
    names.push_back(name);
  }
  const at::Tensor v = Rng(2).normal(x.sizes(), x.scalar_type());
  const auto g = torch::autograd::grad({(r.out * v).sum()}, wanted);
  r.grad_x = g[0];
  for (size_t i = 0; i < names.size(); ++i) r.grads[names[i]] = g[i + 1];
  return r;
}

TEST_P(UnetTest, SamplesAreIndependent) {
  const auto net = small_net(variant());
  const at::Tensor x = images(*net, 3, at::kFloat), label = labels(3, at::kFloat);
  const at::Tensor all = net->forward(x, label);
  for (int64_t b = 0; b < 3; ++b) {
    const at::Tensor one = net->forward(x.narrow(0, b, 1), label.narrow(0, b, 1));
    EXPECT_LT(relative_error(one, all.narrow(0, b, 1)), 1e-5);  // float32 sums in another order
  }
}

TEST_P(UnetTest, LoadedWeightsGiveTheSameNetwork) {
  const auto net = small_net(variant());
  auto other = small_net(variant());
  other->initialize(Rng(99));
  const at::Tensor x = images(*net, 2, at::kFloat), label = labels(2, at::kFloat);
  EXPECT_GT(relative_error(other->forward(x, label), net->forward(x, label)), 1e-2);
  std::map<std::string, at::Tensor> weights = net->parameters();
  for (auto& b : net->buffers()) weights.insert(b);
  other->load(weights, "memory");
  EXPECT_TRUE(at::equal(other->forward(x, label), net->forward(x, label)));

  auto missing = weights;
  missing.erase("conv_in.bias");
  EXPECT_THROW(other->load(missing, "memory"), DataError);
  auto surplus = weights;
  surplus["extra"] = at::zeros({1});
  EXPECT_THROW(other->load(surplus, "memory"), DataError);
  auto wrong = weights;
  wrong["conv_in.bias"] = at::zeros({3});
  EXPECT_THROW(other->load(wrong, "memory"), DataError);
}

TEST_P(UnetTest, EveryParameterGetsAGradient) {
  const auto net = small_net(variant(), 0, at::kDouble);
  const Pass p = run(*net, images(*net, 2, at::kDouble), labels(2, at::kDouble), nullptr, false);
  for (const auto& [name, g] : p.grads) {
    ASSERT_TRUE(g.defined()) << name;
    // The key bias moves every logit of a row alike: its gradient is zero but for rounding.
    if (name.find(".k.b") != std::string::npos) continue;
    EXPECT_GT(g.abs().max().item<double>(), 1e-12) << name;
  }
}

TEST_P(UnetTest, FusedAndCompositeAgree) {
  for (const double rate : {0.0, 0.3}) {
    const auto net = small_net(variant(), rate);
    auto exact = small_net(variant(), rate, at::kDouble);
    const Rng rng(5);
    const at::Tensor x = images(*net, 3, at::kFloat), label = labels(3, at::kFloat);
    const Pass fused = run(*net, x, label, &rng, false);
    const Pass composite = run(*net, x, label, &rng, true);
    const Pass truth = run(*exact, x.to(at::kDouble), label.to(at::kDouble), &rng, false);
    // float32 rounding through ~20 layers
    EXPECT_LT(relative_error(fused.out, truth.out), 2e-5);
    EXPECT_LT(relative_error(composite.out, truth.out), 2e-5);
    EXPECT_LT(relative_error(fused.grad_x, truth.grad_x), 1e-4);
    EXPECT_LT(relative_error(composite.grad_x, truth.grad_x), 1e-4);
    for (const auto& [name, g] : truth.grads) {
      if (name.find(".k.b") != std::string::npos) continue;
      EXPECT_LT(relative_error(fused.grads.at(name), g), 2e-4) << name;
    }
  }
}

TEST_P(UnetTest, FrozenWeightsGiveTheSameInputGradient) {
  auto net = small_net(variant());
  const at::Tensor label = labels(2, at::kFloat);
  const Pass trained = run(*net, images(*net, 2, at::kFloat), label, nullptr, false);
  net->freeze();
  const at::Tensor x = images(*net, 2, at::kFloat).requires_grad_(true);
  const at::Tensor v = Rng(2).normal(x.sizes(), at::kFloat);
  const at::Tensor out = net->forward(x, label);
  const at::Tensor g = torch::autograd::grad({(out * v).sum()}, {x})[0];
  EXPECT_LT(relative_error(g, trained.grad_x), 1e-5);
  for (auto& [name, p] : net->parameters()) EXPECT_FALSE(p.requires_grad()) << name;
}

// grad_x of e . d(e . net)/dx against central differences of the divergence estimate.
TEST_P(UnetTest, SecondDerivativesMatchFiniteDifferences) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    auto net = small_net(variant(), 0, dtype);
    net->freeze();
    const at::Tensor label = labels(2, dtype);
    const at::Tensor e = Rng(3).rademacher(batched(2, net->image_shape()), dtype);
    const auto divergence = [&](const ScoreNet& n, const at::Tensor& x, const at::Tensor& l,
                                const at::Tensor& probe, bool graph) {
      DoubleBackwardScope scope;
      const at::Tensor out = n.forward(x, l);
      const at::Tensor j = torch::autograd::grad({(out * probe).sum()}, {x}, {}, true, graph)[0];
      return (j * probe).sum();
    };
    const at::Tensor x = images(*net, 2, dtype).requires_grad_(true);
    const at::Tensor g = torch::autograd::grad({divergence(*net, x, label, e, true)}, {x})[0];
    auto exact = small_net(variant(), 0, at::kDouble);
    exact->freeze();
    const at::Tensor u = Rng(4).normal(x.sizes(), at::kDouble), l = label.to(at::kDouble);
    const double h = 1e-5;
    const auto at_step = [&](double s) {
      const at::Tensor y = (x.detach().to(at::kDouble) + s * u).requires_grad_(true);
      return divergence(*exact, y, l, e.to(at::kDouble), false).item<double>();
    };
    const double fd = (at_step(h) - at_step(-h)) / (2 * h);
    const double ad = (g.to(at::kDouble) * u).sum().item<double>();
    const double scale = (g.to(at::kDouble) * u).abs().sum().item<double>();
    // central differences leave h^2 and 1e-16/h; float32 leaves its own rounding
    EXPECT_LT(std::abs(ad - fd) / scale, dtype == at::kDouble ? 1e-7 : 1e-4) << variant().label;
  }
}

TEST(Unet, FrozenNetworkFollowsItsWeights) {
  const auto net = small_net(variants()[0]);
  net->freeze();
  const at::Tensor x = images(*net, 4, at::kFloat), label = labels(4, at::kFloat);
  const at::Tensor before = net->forward(x, label);
  at::Tensor w = net->parameters().at("mid.block0.conv0.weight");
  w.mul_(2);  // counted by autograd's version
  const at::Tensor after = net->forward(x, label);
  EXPECT_GT(relative_error(after, before), 1e-3);
  for (int64_t i = 0; i < w.numel(); ++i) w.data_ptr<float>()[i] *= 0.5f;  // not counted
  net->parameters_changed();
  EXPECT_TRUE(at::equal(net->forward(x, label), before));
}

TEST(Unet, FusedLayersRefuseCreateGraph) {
  const auto net = small_net(variants()[0]);
  const at::Tensor x = images(*net, 1, at::kFloat).requires_grad_(true);
  const at::Tensor out = net->forward(x, labels(1, at::kFloat));
  EXPECT_THROW(torch::autograd::grad({out.sum()}, {x}, {}, true, true), std::invalid_argument);
}

TEST(Unet, DropoutIsKeyedPerImage) {
  const auto net = small_net(variants()[0], 0.4);
  const at::Tensor x = images(*net, 4, at::kFloat), label = labels(4, at::kFloat);
  const Rng rng(11), other(12);
  const at::Tensor a = net->forward(x, label, &rng);
  EXPECT_TRUE(at::equal(a, net->forward(x, label, &rng)));
  EXPECT_GT(relative_error(net->forward(x, label, &other), a), 1e-3);
  EXPECT_GT(relative_error(net->forward(x, label), a), 1e-3);
  const Rng tail = rng.from_row(2);
  const at::Tensor b = net->forward(x.narrow(0, 2, 2), label.narrow(0, 2, 2), &tail);
  EXPECT_LT(relative_error(b, a.narrow(0, 2, 2)), 1e-5);
}

TEST(Unet, SmoothEmbeddingHasSmallTimeDerivative) {
  const auto slope = [](const char* type) {
    Variant v{"", "ncsnpp", [type](Config& c) { put(c, "embedding_type", std::string(type)); }};
    auto net = small_net(v, 0, at::kDouble);
    net->freeze();
    const at::Tensor x = images(*net, 1, at::kDouble);
    double total = 0;  // mean squared difference of neighbours half a label apart, around t = 0.5
    for (int i = 0; i < 20; ++i) {
      const auto f = [&](double l) { return net->forward(x, at::full({1}, l, at::kDouble)); };
      total += (f(500 + i + 0.5) - f(500 + i)).square().mean().item<double>();
    }
    return std::sqrt(total);
  };
  EXPECT_LT(slope("smooth"), 0.02 * slope("positional"));
}

TEST(Unet, InitialisationIsVarianceScaled) {
  const auto net = score_nets().make(Config(), "ncsnpp");
  net->initialize(Rng(3));
  const auto p = net->parameters();
  const at::Tensor w = p.at("mid.block0.conv0.weight");  // [64,64,3,3]
  const double limit = std::sqrt(3.0 / (64 * 9));
  EXPECT_LE(w.abs().max().item<double>(), limit);
  // 36864 draws: the sample variance of U(-l,l) has relative standard error 0.9/192
  EXPECT_NEAR(w.var().item<double>() / (limit * limit / 3), 1, 5 * 0.9 / 192);
  EXPECT_LT(p.at("out.conv.weight").abs().max().item<double>(), 1e-5);
  EXPECT_EQ(p.at("out.conv.bias").abs().max().item<double>(), 0);
  EXPECT_TRUE(at::equal(p.at("out.norm.weight"), at::ones({32})));
  const auto other = score_nets().make(Config(), "ncsnpp");
  other->initialize(Rng(3));
  EXPECT_TRUE(at::equal(other->parameters().at("mid.block0.conv0.weight"), w));
}

TEST(Unet, WrongOptionsAreConfigErrors) {
  const auto fails = [](const char* key, auto value) {
    Config c;
    put(c, key, value);
    EXPECT_THROW(score_nets().make(c, "ncsnpp"), ConfigError) << key;
  };
  fails("name", std::string("ncsnp"));
  fails("resblock_type", std::string("bigan"));
  fails("image_size", int64_t{20});
  fails("dropout", 1.0);
  fails("nonlinearity", std::string("gelu"));
  Config c;
  put(c, "nf", int64_t{16});
  EXPECT_THROW(score_nets().make(c, "ddpm"), ConfigError);  // 16 channels, 32 groups
}

}  // namespace
}  // namespace scoreprior
