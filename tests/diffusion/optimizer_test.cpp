#include "scoreprior/diffusion/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::map<std::string, at::Tensor> two_parameters(at::ScalarType type) {
  const Rng rng(5);
  return {{"a", rng.split("a").normal({37, 5}, type).requires_grad_(true)},
          {"b", rng.split("b").normal({11}, type).requires_grad_(true)}};
}

void give_gradients(std::map<std::string, at::Tensor>& p, int64_t step, double scale = 1) {
  for (auto& [name, t] : p)
    (t * (Rng(9).split(name).at(step).normal(t.sizes(), t.scalar_type()) * scale)).sum().backward();
}

TEST(FlatAdam, FollowsTheTextbookUpdate) {
  for (const double clip : {0.0, 0.7}) {
    auto p = two_parameters(at::kDouble);
    AdamOptions o;
    o.clip = clip;
    o.ema_rate = 0.9;
    o.ema_warmup = false;
    std::map<std::string, at::Tensor> want, m, v, ema;
    for (const auto& [name, t] : p) {
      want[name] = t.detach().clone();
      ema[name] = want[name].clone();
      m[name] = v[name] = at::zeros_like(want[name]);
    }
    FlatAdam adam(p);
    EXPECT_EQ(adam.size(), 37 * 5 + 11);
    for (int64_t k = 1; k <= 6; ++k) {
      adam.zero_grad();
      give_gradients(p, k);
      std::map<std::string, at::Tensor> g;
      double norm = 0;
      for (const auto& [name, t] : p) {
        g[name] = t.grad().clone();
        norm += g[name].square().sum().item<double>();
      }
      norm = std::sqrt(norm);
      const auto outcome = adam.step(o, 0.01);
      EXPECT_TRUE(outcome.applied);
      EXPECT_NEAR(outcome.grad_norm, norm, 1e-12 * norm);
      const double shrink = clip > 0 ? std::min(1.0, clip / norm) : 1;
      for (auto& [name, t] : p) {
        const at::Tensor gi = g[name] * shrink;
        m[name] = m[name] * 0.9 + gi * 0.1;
        v[name] = v[name] * 0.999 + gi.square() * 0.001;
        want[name] = want[name] - m[name] / (1 - std::pow(0.9, k)) * 0.01 /
                                      ((v[name] / (1 - std::pow(0.999, k))).sqrt() + 1e-8);
        ema[name] = ema[name] * 0.9 + want[name] * 0.1;
        EXPECT_LT(relative_error(t, want[name]), 1e-13);  // rounding of six updates
        EXPECT_LT(relative_error(adam.average().at(name), ema[name]), 1e-13);
      }
    }
  }
}

TEST(FlatAdam, FloatFollowsDouble) {
  auto p32 = two_parameters(at::kFloat), p64 = two_parameters(at::kDouble);
  FlatAdam a32(p32), a64(p64);
  const AdamOptions o;
  for (int64_t k = 0; k < 20; ++k) {
    a32.zero_grad();
    a64.zero_grad();
    give_gradients(p32, k);
    give_gradients(p64, k);
    a32.step(o, 1e-2);
    a64.step(o, 1e-2);
  }
  for (const auto& [name, t] : p32)
    EXPECT_LT(relative_error(t, p64.at(name)), 1e-5);  // float32 rounding
}

TEST(FlatAdam, DoesNotDependOnThreads) {
  std::vector<at::Tensor> results;
  const int before = at::get_num_threads();
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    std::map<std::string, at::Tensor> p = {{"w", Rng(1).normal({100003}).requires_grad_(true)}};
    FlatAdam adam(p);
    for (int64_t k = 0; k < 3; ++k) {
      adam.zero_grad();
      give_gradients(p, k);
      adam.step(AdamOptions{}, 1e-3);
    }
    results.push_back(p.at("w").detach().clone());
  }
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(results[0], results[1]));
}

TEST(FlatAdam, RefusesNonFiniteGradients) {
  auto p = two_parameters(at::kFloat);
  FlatAdam adam(p);
  const at::Tensor before = p.at("a").detach().clone();
  adam.zero_grad();
  give_gradients(p, 0, NAN);
  EXPECT_FALSE(adam.step(AdamOptions{}, 0.1).applied);
  EXPECT_EQ(adam.updates(), 0);
  EXPECT_TRUE(at::equal(before, p.at("a")));
}

TEST(FlatAdam, StateAndSwapKeepEveryBit) {
  auto p = two_parameters(at::kFloat), q = two_parameters(at::kFloat);
  FlatAdam a(p), b(q);
  const AdamOptions o;
  for (int64_t k = 0; k < 8; ++k) {
    a.zero_grad();
    give_gradients(p, k);
    a.step(o, 0.01);
    if (k == 3) {
      std::map<std::string, at::Tensor> copy;
      for (const auto& [name, t] : a.state()) copy[name] = t.clone();
      b.load_state(copy, "state");
    }
    if (k > 3) {
      b.swap_average();
      b.swap_average();
      b.zero_grad();
      give_gradients(q, k);
      b.step(o, 0.01);
    }
  }
  for (const auto& [name, t] : p) {
    EXPECT_TRUE(at::equal(t, q.at(name)));
    EXPECT_TRUE(at::equal(a.average().at(name), b.average().at(name)));
  }
  const at::Tensor average = a.average().at("a");
  a.swap_average();
  EXPECT_TRUE(at::equal(p.at("a"), average));
  std::map<std::string, at::Tensor> other = {{"w", at::zeros({3}).requires_grad_(true)}};
  FlatAdam c(other);
  EXPECT_THROW(c.load_state(a.state(), "state"), DataError);
}

TEST(FlatAdam, WarmupAndCosine) {
  AdamOptions o;
  o.lr = 2;
  o.warmup = 10;
  EXPECT_EQ(learning_rate(o, 0, 100), 0);
  EXPECT_DOUBLE_EQ(learning_rate(o, 5, 100), 1);
  EXPECT_DOUBLE_EQ(learning_rate(o, 50, 100), 2);
  o.schedule = "cosine";
  EXPECT_DOUBLE_EQ(learning_rate(o, 10, 110), 2);
  EXPECT_NEAR(learning_rate(o, 60, 110), 1, 1e-12);
  EXPECT_NEAR(learning_rate(o, 110, 110), 0, 1e-12);
}

TEST(FlatAdam, GoldenSteps) {
  SP_REQUIRE_GOLDEN("losses/optimizer_steps");
  const GoldenCase g("losses/optimizer_steps");
  AdamOptions o;
  o.lr = 2e-2;
  o.warmup = 5;
  o.ema_rate = 0.9;
  o.ema_warmup = false;
  for (const std::string kind : {"score", "dpi"}) {
    std::map<std::string, at::Tensor> p = {{"p", g.array("p0").clone().requires_grad_(true)}};
    FlatAdam adam(p);
    const at::Tensor grads = g.array("grads");
    for (int64_t k = 0; k < grads.size(0); ++k) {
      adam.zero_grad();
      p.at("p").mutable_grad().copy_(grads[k]);
      const double lr = learning_rate(o, k, 12);
      EXPECT_NEAR(lr, g.array(kind + "_lr")[k].item<double>(), 1e-16);
      adam.step(o, lr, kind == "dpi" ? 1e-6 : 0.0);
      // The manifest's float64 limit.
      EXPECT_LT(relative_error(p.at("p"), g.array(kind + "_params")[k]), 1e-12);
      EXPECT_LT(relative_error(adam.average().at("p"), g.array(kind + "_true_ema")[k]), 1e-12);
    }
  }
}

}  // namespace
}  // namespace scoreprior
