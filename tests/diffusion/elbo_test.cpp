#include "scoreprior/diffusion/elbo.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::string sde_toml(const nlohmann::json& s, bool branch, const std::string& table = "sde") {
  std::string type = s.at("type");
  for (auto& c : type) c = static_cast<char>(std::tolower(c));
  if (s.value("linear", false)) type = "linear_ve";
  std::ostringstream t;
  t.precision(17);
  t << "[" << table << "]\ntype = \"" << type
    << "\"\nsmall_time_branch = " << (branch ? "true" : "false") << "\n";
  for (const char* k : {"beta_min", "beta_max", "sigma_min", "sigma_max"})
    if (s.contains(k)) t << k << " = " << s.at(k).get<double>() << "\n";
  return t.str();
}

// Exact score of N(mean, sigma^2 I), or of an equal mixture of such.
class IsotropicMixture : public ScoreModel {
 public:
  IsotropicMixture(const std::string& sde, at::Tensor means, double sigma, Shape event)
      : sde_(make_sde(io::parse_toml(sde).table("sde"))),
        means_(means.flatten(1)),
        sigma_(sigma),
        event_(event) {}
  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return event_; }
  at::ScalarType dtype() const override { return means_.scalar_type(); }
  at::Device device() const override { return at::kCPU; }
  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override {
    ++calls;
    images += x.size(0);
    const at::Tensor a = sde_->mean_coeff(t).reshape({-1, 1, 1});
    const at::Tensor v =
        (a.square() * (sigma_ * sigma_)) + sde_->std(t).square().reshape({-1, 1, 1});
    const at::Tensor pull = (a * means_.unsqueeze(0) - x.flatten(1).unsqueeze(1)) / v;  // [B,K,D]
    const at::Tensor r = ((pull.square() * v).sum(2) * -0.5).softmax(1).unsqueeze(2);
    return (r * pull).sum(1).reshape_as(x);
  }
  mutable int64_t calls = 0, images = 0;

 private:
  std::unique_ptr<Sde> sde_;
  at::Tensor means_;
  double sigma_;
  Shape event_;
};

const char* kVp = "[sde]\ntype=\"vp\"\n";

std::unique_ptr<ScoreModel> golden_network(const GoldenCase& g, at::ScalarType dtype) {
  std::ostringstream t;
  t << "weights = \"" << g.weights_path().string()
    << "\"\n[net]\nimage_size = " << g.config()["data"]["image_size"]
    << "\nchannels = " << g.config()["data"]["num_channels"]
    << "\ncentered = " << g.config()["data"]["centered"] << "\n";
  for (const auto& [k, v] : g.config().at("model").items())
    if (k != "sigma_min" && k != "sigma_max" && k != "beta_min" && k != "beta_max" &&
        k != "num_scales")
      t << k << " = " << v.dump() << "\n";
  return make_score_model(io::parse_toml(t.str() + sde_toml(g.config().at("sde"), true)), dtype,
                          at::kCPU);
}

void expect_golden(const std::string& name, bool network) {
  GoldenCase g(name);
  const std::string sde = sde_toml(g.config().at("sde"), true);
  std::unique_ptr<ScoreModel> model;
  if (network) {
    model = golden_network(g, at::kDouble);
  } else {
    const at::Tensor mean = g.array("mean").to(at::kDouble);
    model = std::make_unique<IsotropicMixture>(sde, mean.reshape({1, -1}),
                                               g.array("sigma").item<double>(),
                                               Shape(mean.sizes().begin(), mean.sizes().end()));
  }
  ElboOptions o;
  o.t0 = g.config().at("eps");
  o.importance = g.config().at("importance_weighting");
  o.max_batch = 5;  // chunks that end inside a time
  ElboDraws draws{g.array("times"), g.array("noise"), g.array("noise_T"), {}};
  if (g.config().at("eps_offset").get<bool>()) draws.noise_offset = g.array("noise_offset");
  const at::Tensor x = g.array("x", at::kDouble);

  const auto [terms, grad] = elbo_and_grad(*model, o, x, draws);
  EXPECT_LT(relative_error(terms.value(), g.array("elbo")), 1e-9);  // the manifest's limit
  EXPECT_LT(relative_error(terms.prior, -g.array("neg_prior_logp")), 1e-9);
  EXPECT_LT(relative_error(terms.integral, -0.5 * g.array("integral")), 1e-9);
  if (draws.noise_offset.defined()) {
    EXPECT_LT(relative_error(terms.offset, -g.array("offset")), 1e-9);
  }
  EXPECT_LT(relative_error(grad, g.array("grad_elbo")), 1e-9);

  const at::Tensor leaf = x.clone().requires_grad_(true);
  const at::Tensor value = elbo(*model, o, leaf, draws).value();
  EXPECT_LT(relative_error(value, g.array("elbo")), 1e-9);
  EXPECT_LT(relative_error(torch::autograd::grad({value.sum()}, {leaf})[0], g.array("grad_elbo")),
            1e-9);
}

TEST(ElboGolden, GaussVp) {
  SP_REQUIRE_GOLDEN("logp/elbo_gauss_vp");
  expect_golden("logp/elbo_gauss_vp", false);
}
TEST(ElboGolden, GaussSubVp) {
  SP_REQUIRE_GOLDEN("logp/elbo_gauss_subvp");
  expect_golden("logp/elbo_gauss_subvp", false);
}
TEST(ElboGolden, GaussVpUniformTime) {
  SP_REQUIRE_GOLDEN("logp/elbo_gauss_vp_uniform_time");
  expect_golden("logp/elbo_gauss_vp_uniform_time", false);
}
TEST(ElboGolden, NetVp) {
  SP_REQUIRE_GOLDEN("logp/elbo_net_vp");
  expect_golden("logp/elbo_net_vp", true);
}
TEST(ElboGolden, NetSubVp) {
  SP_REQUIRE_GOLDEN("logp/elbo_net_subvp");
  expect_golden("logp/elbo_net_subvp", true);
}

at::Tensor gaussian_log_prob(const at::Tensor& x, const at::Tensor& mean, double sigma) {
  const double d = static_cast<double>(x[0].numel());
  return (x - mean).flatten(1).square().sum(1) * (-0.5 / (sigma * sigma)) -
         0.5 * d * std::log(2 * M_PI * sigma * sigma);
}

// With the exact score the bound is tight up to the prior's mismatch (alpha(1)^2 = 4e-5 for beta
// 0.1/20): the mean over seeds of every design must agree with log p within 4.5 standard errors,
// image by image.
TEST(Elbo, EveryDesignIsUnbiasedForEveryImage) {
  const Shape event{1, 4, 4};
  const at::Tensor mean = Rng(3).normal({1, 1, 4, 4}, at::kDouble) * 0.3 + 0.5;
  const IsotropicMixture model(kVp, mean.reshape({1, -1}), 0.4, event);
  const at::Tensor x = mean + 0.4 * Rng(4).normal({3, 1, 4, 4}, at::kDouble);
  const at::Tensor exact = gaussian_log_prob(x, mean, 0.4);
  for (int64_t n : {1, 2, 3})
    for (int design = 0; design < 4; ++design) {
      ElboOptions o;
      o.n_times = n;
      o.stratified = design & 1;
      o.antithetic = design & 2;
      std::vector<at::Tensor> values;
      for (int64_t seed = 0; seed < 400; ++seed) {
        const Rng rng = Rng(7).at(seed);
        values.push_back(elbo(model, o, x, draw_elbo(model, o, 3, rng)).value());
      }
      const at::Tensor v = at::stack(values);
      const at::Tensor z = (v.mean(0) - exact) / (v.std(0, true) / std::sqrt(400.0));
      EXPECT_LT(z.abs().max().item<double>(), 4.5) << "n " << n << " design " << design << "\n"
                                                   << z;
    }
}

TEST(Elbo, VeIsUnbiasedToo) {
  const Shape event{1, 2, 2};
  const at::Tensor mean = at::full({1, 1, 2, 2}, 0.5, at::kDouble);
  const IsotropicMixture model("[sde]\ntype=\"ve\"\nsigma_max=20.0\n", mean.reshape({1, -1}), 0.4,
                               event);
  const at::Tensor x = mean + 0.4 * Rng(4).normal({2, 1, 2, 2}, at::kDouble);
  ElboOptions o;
  o.n_times = 2;
  std::vector<at::Tensor> values;
  for (int64_t seed = 0; seed < 2000; ++seed)
    values.push_back(elbo(model, o, x, draw_elbo(model, o, 2, Rng(8).at(seed))).value());
  const at::Tensor v = at::stack(values);
  // Prior mismatch: the law at t = 1 has variance sigma_max^2 + 0.4^2.
  const at::Tensor z =
      (v.mean(0) - gaussian_log_prob(x, mean, 0.4)) / (v.std(0, true) / std::sqrt(2000.0));
  EXPECT_LT(z.abs().max().item<double>(), 4.5) << z;
}

TEST(Elbo, RowsDependOnRngAndRowOnly) {
  const Shape event{1, 3, 3};
  const IsotropicMixture model(kVp, at::zeros({1, 9}, at::kDouble), 1.0, event);
  for (int64_t n : {1, 2, 5})
    for (int design = 0; design < 4; ++design) {
      ElboOptions o;
      o.n_times = n;
      o.stratified = design & 1;
      o.antithetic = design & 2;
      const ElboDraws all = draw_elbo(model, o, 8, Rng(5));
      for (int64_t first : {0, 3, 4}) {
        const ElboDraws some = draw_elbo(model, o, 3, Rng(5).from_row(first));
        EXPECT_TRUE(at::equal(some.times, all.times.slice(1, first, first + 3)))
            << n << design << first;
        EXPECT_TRUE(at::equal(some.noise, all.noise.slice(1, first, first + 3)));
        EXPECT_TRUE(at::equal(some.noise_offset, all.noise_offset.slice(0, first, first + 3)));
      }
    }
}

TEST(Elbo, DesignsAreWhatTheySay) {
  const Shape event{1, 3, 3};
  const IsotropicMixture model(kVp, at::zeros({1, 9}, at::kDouble), 1.0, event);
  ElboOptions o;
  o.importance = false;
  const auto cumulative = [&](const at::Tensor& times) { return (times - o.t0) / (1 - o.t0); };
  {  // one time per image: neighbours are antithetic, and 64 images cover [0,1) evenly
    const ElboDraws d = draw_elbo(model, o, 64, Rng(2));
    EXPECT_TRUE(at::equal(d.times.select(1, 6), d.times.select(1, 7)));
    EXPECT_TRUE(at::equal(d.noise.select(1, 6), -d.noise.select(1, 7)));
    const at::Tensor u = std::get<0>(cumulative(d.times[0]).slice(0, 0, 64, 2).sort());
    EXPECT_LT((u.slice(0, 1) - u.slice(0, 0, 31)).max().item<double>(),
              3.0 / 32);  // three-gap bound phi^2/32
  }
  {  // four times per image: two strata, each with z and -z
    o.n_times = 4;
    const ElboDraws d = draw_elbo(model, o, 5, Rng(2));
    EXPECT_TRUE(at::equal(d.times[0], d.times[1]));
    EXPECT_TRUE(at::equal(d.noise[2], -d.noise[3]));
    EXPECT_LT(cumulative(d.times[0]).max().item<double>(), 0.5);
    EXPECT_GE(cumulative(d.times[2]).min().item<double>(), 0.5);
  }
}

TEST(Elbo, OneNetworkBatchAndChunksAgree) {
  const Shape event{1, 3, 3};
  const IsotropicMixture model(kVp, at::rand({2, 9}, at::kDouble), 0.3, event);
  const at::Tensor x = Rng(1).uniform({4, 1, 3, 3}, at::kDouble);
  ElboOptions o;
  o.n_times = 3;
  const ElboDraws draws = draw_elbo(model, o, 4, Rng(6));
  elbo_and_grad(model, o, x, draws);  // the first use also measures what a row takes
  model.calls = model.images = 0;
  const auto [whole, grad] = elbo_and_grad(model, o, x, draws);
  EXPECT_EQ(model.calls, 1);
  EXPECT_EQ(model.images, 4 * 3 + 4);
  o.max_batch = 3;
  const auto [parts, grad2] = elbo_and_grad(model, o, x, draws);
  EXPECT_LT(relative_error(parts.value(), whole.value()), 1e-13);
  EXPECT_LT(relative_error(grad2, grad), 1e-13);
}

// Variance of the batch-mean gradient per network evaluation, plain over default design, for images
// 0.03 around one.
double gradient_gain(const ScoreModel& model, const at::Tensor& centre, int64_t batch, int64_t n,
                     int64_t seeds) {
  const at::Tensor x =
      centre + 0.03 * Rng(12).normal(batched(batch, model.event_shape()), centre.scalar_type());
  const auto variance = [&](bool reduced) {
    ElboOptions o;
    o.n_times = n;
    o.offset = false;
    o.stratified = o.antithetic = reduced;
    std::vector<at::Tensor> grads;
    for (int64_t seed = 0; seed < seeds; ++seed)
      grads.push_back(
          elbo_and_grad(model, o, x, draw_elbo(model, o, batch, Rng(13).at(seed))).second.mean(0));
    return at::stack(grads).to(at::kDouble).var(0, true).sum().item<double>();
  };
  const double gain = variance(false) / variance(true);
  std::printf(
      "  batch %2d, n_times %d: gradient variance per network evaluation falls %.1f times\n",
      int(batch), int(n), gain);
  return gain;
}

// The limits are about half of what was measured with 300 seeds.
TEST(Elbo, DefaultDesignLowersTheGradientNoise) {
  const Shape event{1, 8, 8};
  std::vector<at::Tensor> modes;
  for (int64_t k = 0; k < 6; ++k) {
    const auto p = Rng(10).at(k).uniforms(3);
    const at::Tensor i = at::arange(8, at::kDouble);
    modes.push_back(0.5 + 0.4 * at::sin(i.reshape({8, 1}) * (p[0] - 0.5) * 1.5 +
                                        i.reshape({1, 8}) * (p[1] - 0.5) * 1.5 + 6 * p[2]));
  }
  const IsotropicMixture mixture(kVp, at::stack(modes).flatten(1), 0.15, event);
  const at::Tensor centre =
      modes[0].reshape({1, 1, 8, 8}) + 0.15 * Rng(11).normal({1, 1, 8, 8}, at::kDouble);

  struct Case {
    int64_t batch, n;
    double at_least;
  };
  for (const Case c :
       {Case{1, 2, 1.3}, Case{1, 8, 2}, Case{16, 1, 8}, Case{16, 4, 8}, Case{64, 1, 15}}) {
    const double gain = gradient_gain(mixture, centre, c.batch, c.n, 120);
    EXPECT_GT(gain, c.at_least);
  }
}

TEST(Elbo, DefaultDesignLowersTheGradientNoiseOfANetwork) {
  SP_REQUIRE_GOLDEN("logp/elbo_net_vp");
  GoldenCase g("logp/elbo_net_vp");
  const auto model = golden_network(g, at::kFloat);
  const at::Tensor centre = g.array("x", at::kFloat).slice(0, 0, 1);
  EXPECT_GT(gradient_gain(*model, centre, 1, 8, 60), 1.5);
  // One time per image: 1.2 was measured. The noise of this small, roughly trained network is in z,
  // not in t, and antithetic pairs lie on different images; what is asked is that the design never
  // costs.
  EXPECT_GT(gradient_gain(*model, centre, 16, 1, 60), 1);
}

TEST(Elbo, BadInputIsSaid) {
  const Shape event{1, 4, 4};
  const IsotropicMixture model(kVp, at::zeros({1, 16}, at::kDouble), 0.4, event);
  const auto rejects = [&](double t0, int64_t n_times, double memory) {
    ElboOptions o;
    o.t0 = t0;
    o.n_times = n_times;
    o.max_memory_mib = memory;
    EXPECT_THROW(check_options(Config(), o), ConfigError);
    if (memory >= 0) {
      EXPECT_THROW(draw_elbo(model, o, 2, Rng(1)), std::invalid_argument);
    }
  };
  rejects(1, 1, 0);
  rejects(0, 1, 0);
  rejects(1e-3, 0, 0);
  rejects(1e-3, 1, -1);
  // An image that is not finite leaves its batch mates alone.
  at::Tensor x = Rng(4).normal({3, 1, 4, 4}, at::kDouble);
  x[1][0][2][2] = std::nan("");
  const ElboOptions o;
  const auto [terms, grad] = elbo_and_grad(model, o, x, draw_elbo(model, o, 3, Rng(5)));
  const at::Tensor finite = at::isfinite(terms.value());
  EXPECT_TRUE(finite[0].item<bool>() && !finite[1].item<bool>() && finite[2].item<bool>());
  EXPECT_TRUE(at::isfinite(grad[0]).all().item<bool>() && at::isfinite(grad[2]).all().item<bool>());
}

TEST(Elbo, Float32FollowsFloat64) {
  const Shape event{1, 8, 8};
  const at::Tensor mean = Rng(3).normal({1, 64}, at::kDouble) * 0.3;
  const IsotropicMixture m64(kVp, mean, 0.4, event), m32(kVp, mean.to(at::kFloat), 0.4, event);
  const at::Tensor x = Rng(4).normal({3, 1, 8, 8}, at::kDouble);
  ElboOptions o;
  o.n_times = 4;
  const ElboDraws draws = draw_elbo(m64, o, 3, Rng(5));
  const auto [a, ga] = elbo_and_grad(m64, o, x, draws);
  const auto [b, gb] = elbo_and_grad(m32, o, x.to(at::kFloat), draws);
  EXPECT_EQ(gb.scalar_type(), at::kFloat);
  // The golden limit for float32: rounding of x_t times Z = 19 in sums over 64 pixels.
  EXPECT_LT(relative_error(b.value(), a.value()), 2e-3);
  EXPECT_LT(relative_error(gb, ga), 2e-3);
}

}  // namespace
}  // namespace scoreprior
