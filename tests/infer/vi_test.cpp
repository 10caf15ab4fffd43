#include "scoreprior/infer/vi.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gaussian_problem.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/flows/realnvp.h"
#include "scoreprior/infer/adam.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GaussianProblem;
using testing::GoldenCase;
using testing::MemoryStore;
using testing::relative_error;
using testing::StoppingObserver;

// -1/2 |(y - [Re, Im] of the low-frequency corner of the un-normalised FFT) / sigma|^2
class LowDftLikelihood final : public LogDensity {
 public:
  LowDftLikelihood(at::Tensor y, at::Tensor sigma, int64_t size, int64_t nf)
      : y_(std::move(y)), sigma_(std::move(sigma)), size_(size), nf_(nf) {}
  Shape event_shape() const override { return {1, size_, size_}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor f = at::fft_fft2(x.squeeze(1)).narrow(1, 0, nf_).narrow(2, 0, nf_);
    const at::Tensor ax = at::cat({at::real(f).flatten(1), at::imag(f).flatten(1)}, 1);
    return -0.5 * ((y_.to(x.scalar_type()) - ax) / sigma_.to(x.scalar_type())).square().sum(1);
  }

 private:
  at::Tensor y_, sigma_;
  int64_t size_, nf_;
};

class NormalizedGaussian final : public LogDensity {
 public:
  NormalizedGaussian(const at::Tensor& mean, const at::Tensor& covariance, Shape event)
      : mean_(mean), precision_(at::linalg_inv(covariance)), event_(std::move(event)) {
    constant_ = -0.5 * (mean.numel() * std::log(2 * M_PI) +
                        std::get<1>(at::slogdet(covariance)).item<double>());
  }
  Shape event_shape() const override { return event_; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor d = x.flatten(1) - mean_.to(x.scalar_type());
    return constant_ - 0.5 * (d * d.matmul(precision_.to(x.scalar_type()))).sum(1);
  }

 private:
  at::Tensor mean_, precision_;
  Shape event_;
  double constant_;
};

// -(mean |dx/di| + mean |dx/dj|)
class MeanVariation final : public LogDensity {
 public:
  explicit MeanVariation(int64_t size) : size_(size) {}
  Shape event_shape() const override { return {1, size_, size_}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const auto differences = [&](int64_t axis) {
      return (x.narrow(axis, 1, size_ - 1) - x.narrow(axis, 0, size_ - 1)).abs().flatten(1);
    };
    return -(differences(2).mean(1) + differences(3).mean(1));
  }

 private:
  int64_t size_;
};

class DpiStep : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Golden, DpiStep,
                         ::testing::Values("dpi_step_gaussian", "dpi_step_tv_softplus"));

TEST_P(DpiStep, LossesGradientsAndUpdate) {
  const std::string name = std::string("losses/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  const GoldenCase g(name);
  const int64_t n = g.config().at("image_size"), nf = g.config().at("n_freqs_per_direction");
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const double tol = dtype == at::kDouble ? 1e-8 : 1e-3;  // the case's limits
    RealNvpOptions o;
    o.dim = n * n;
    o.n_flow = g.config().at("n_flow");
    o.seqfrac = g.config().at("seqfrac");
    o.softplus = g.config().at("include_softplus");
    // The case's permutations are those of the flow area for the same size.
    SP_REQUIRE_GOLDEN("flow/realnvp_dim64_nflow2_softplus");
    const at::Tensor orders =
        GoldenCase("flow/realnvp_dim64_nflow2_softplus").array("orders").contiguous();
    std::vector<std::vector<int64_t>> rows;
    for (int64_t k = 0; k < o.n_flow; ++k)
      rows.emplace_back(orders[k].data_ptr<int64_t>(), orders[k].data_ptr<int64_t>() + o.dim);
    RealNvp flow(o, dtype, rows);
    flow.load(g.weights(), "weights");

    const LowDftLikelihood likelihood(g.array("y"), g.array("sigmas"), n, nf);
    std::unique_ptr<LogDensity> prior;
    if (g.has("prior_mean"))
      prior = std::make_unique<NormalizedGaussian>(g.array("prior_mean"), g.array("prior_cov"),
                                                   Shape{1, n, n});
    else
      prior = std::make_unique<MeanVariation>(n);
    const auto& w = g.config().at("weights");
    const ElboWeights weights{w.at("data"), w.at("prior"), w.at("entropy")};
    const at::Tensor z = g.array("z", dtype);
    const ElboEstimate e = elbo_step(flow, {*prior, likelihood}, z, Rng(0), weights);
    EXPECT_EQ(e.rows, z.size(0));
    const auto near = [&](double got, double want, const char* what) {
      EXPECT_NEAR(got, want, tol * std::max(1.0, std::abs(want))) << what;
    };
    near(e.data, g.scalar("loss_data"), "data");
    near(e.prior, g.scalar("loss_prior"), "prior");
    // The case counts -logdet only; log q also has the base density.
    const double base = base_log_prob(z.to(at::kDouble)).mean().item<double>();
    near(e.entropy - base, g.scalar("loss_entropy"), "entropy");
    near(e.loss - weights.entropy * base, g.scalar("loss_total"), "total");

    double scale = 0;
    const auto wanted = g.weights("grads");
    for (const auto& [key, value] : wanted)
      scale = std::max(scale, value.abs().max().item<double>());
    for (const auto& [key, value] : wanted) {
      const double error =
          (flow.named_gradients().at(key).to(at::kDouble) - value).abs().max().item<double>();
      EXPECT_LT(error, tol * std::max(value.abs().max().item<double>(), 1e-2 * scale)) << key;
    }
    BufferAdamOptions a;
    a.clip = g.config().at("grad_clip");
    BufferAdam adam(flow.flat_parameters(), a);
    near(adam.step(flow.flat_parameters(), flow.flat_grad(), g.config().at("learning_rate")),
         g.scalar("grad_norm"), "norm");
    const auto after = flow.named_tensors();
    for (const auto& [key, value] : g.weights("params_after_step")) {
      // Adam divides by |g|: entries whose gradient is rounding noise may move by 2 lr either way.
      const double limit = dtype == at::kDouble ? 1e-7 : 2.1e-3;
      const at::Tensor error = (after.at(key).to(at::kDouble) - value.to(at::kDouble)).abs();
      const auto it = wanted.find(key);
      if (it == wanted.end()) {
        EXPECT_LT(relative_error(after.at(key), value), tol) << key;
        continue;
      }
      const at::Tensor solid = it->second.abs() > 1e-9 * scale;
      EXPECT_LT((error * solid).max().item<double>(), limit) << key;
      EXPECT_LT(error.max().item<double>(), 2.1e-3) << key;
    }
  }
}

// The reference's own unit test: 100 clipped Adam steps on mean(out) - mean(logdet).
TEST(ReferenceTraining, HundredSteps) {
  SP_REQUIRE_GOLDEN("flow/reference_test_training");
  const GoldenCase g("flow/reference_test_training");
  RealNvpOptions o;
  o.dim = 8;
  o.n_flow = 1;
  const auto order =
      g.manifest().at("scalars").at("ref_orders").at("value").get<std::vector<int64_t>>();
  RealNvp flow(o, at::kDouble, {order});
  flow.load(g.weights("weights_init"), "weights_init");
  BufferAdamOptions a;
  a.clip = 0.01;
  BufferAdam adam(flow.flat_parameters(), a);
  const at::Tensor inputs = g.array("inputs"), losses = g.array("f64_loss_history"),
                   norms = g.array("f64_grad_norm");
  for (int64_t k = 0; k < 100; ++k) {
    const Flow::Sample s = flow.sample(inputs[k], true);
    const double loss = (s.x.mean() - s.log_det.mean()).item<double>();
    EXPECT_NEAR(loss, losses[k].item<double>(), 1e-7) << k;
    flow.backward(at::full({2, 8}, 1.0 / 16, at::kDouble), at::full({2}, -0.5, at::kDouble));
    EXPECT_NEAR(adam.step(flow.flat_parameters(), flow.flat_grad(), 1e-3), norms[k].item<double>(),
                1e-7);
  }
  const auto got = flow.named_tensors();
  for (const auto& [key, value] : g.weights("f64_final"))
    EXPECT_LT(relative_error(got.at(key), value), 1e-6) << key;
  for (const auto& [key, value] : g.weights("ref_final")) {
    if (key.find("running_var") != std::string::npos) continue;  // Bessel-corrected there
    EXPECT_LT((got.at(key) - value.to(at::kDouble)).abs().max().item<double>(), 1e-4) << key;
  }
}

template <class T>
void put(Config& c, const std::string& key, T value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = value;
  c.set(key, node);
}

Config settings(const std::string& flow, int64_t steps) {
  Config c;
  put(c, "steps", steps);
  put(c, "flow.name", flow);
  put(c, "n_draws", int64_t{2000});
  return c;
}

Draws run(const Config& c, const Target& target, uint64_t seed, at::ScalarType dtype = at::kFloat) {
  MemoryStore store;
  StoppingObserver observer;
  return inferences()
      .make(c, "dpi", InferenceContext{dtype})
      ->run(target, Rng(seed), observer, store);
}

// z-scores of the draws' mean, and the relative error of the covariance, against the closed form.
void expect_posterior(const Draws& d, const GaussianProblem& p, double bias,
                      double covariance_error) {
  const at::Tensor x = d.x.flatten(1).to(at::kDouble);
  const at::Tensor mean = x.mean(0), centred = x - mean;
  const double n = static_cast<double>(x.size(0));
  const at::Tensor covariance = centred.t().matmul(centred) / (n - 1);
  const at::Tensor sd = p.covariance.diagonal().sqrt();
  EXPECT_LT(((mean - p.mean) / sd).abs().max().item<double>(), bias);
  EXPECT_LT((covariance - p.covariance).norm().item<double>() / p.covariance.norm().item<double>(),
            covariance_error);
}

// Families that contain every Gaussian of 16 pixels: full rank, and neighbourhoods of all pixels.
void expect_full_gaussian_fits(const std::string& name, const std::string& key, int64_t value) {
  const GaussianProblem p(16);
  Config c = settings(name, 3000);
  put(c, "flow." + key, value);
  put(c, "lr", 0.01);
  put(c, "grad_clip", 0.0);
  const Draws d = run(c, p.target(), 1, at::kDouble);
  EXPECT_EQ(d.summary.status, Status::kConverged) << d.summary.message;
  EXPECT_EQ(d.summary.numbers.at("invalid_draws"), 0);
  // 2000 draws: the mean's standard error is 0.022 sd (largest of 16: 0.06), the covariance's
  // relative Frobenius error sqrt((D+1)/N) = 0.09; plus as much for the stochastic optimisation.
  expect_posterior(d, p, 0.12, 0.2);
}

TEST(Vi, FullRankGaussianRecoversThePosterior) {
  expect_full_gaussian_fits("gaussian_low_rank", "rank", 16);
}
TEST(Vi, MarkovGaussianRecoversThePosterior) {
  expect_full_gaussian_fits("gaussian_markov", "radius", 15);
}

// A fit stopped far too early, whose draws alone are wrong by many standard errors; resampled by
// p/q they have the posterior's mean within five standard errors of that many effective draws.
TEST(Vi, ResamplingMendsAnUnfinishedFit) {
  const GaussianProblem p(4);
  Config c = settings("gaussian_low_rank", 180);
  put(c, "flow.rank", int64_t{4});
  put(c, "flow.init_mean", 0.5);
  put(c, "flow.init_std", 0.8);
  put(c, "lr", 0.01);
  const auto error = [&](const Draws& d, double effective) {
    const at::Tensor x = d.x.flatten(1).to(at::kDouble);
    const at::Tensor variance = p.covariance.diagonal();
    return ((x.var(0) / variance - 1).abs() / std::sqrt(2 / effective)).max().item<double>();
  };
  const Draws plain = run(c, p.target(), 1, at::kDouble);
  put(c, "proposals", int64_t{20});
  const Draws mended = run(c, p.target(), 1, at::kDouble);
  const double effective = mended.summary.numbers.at("effective_proposals");
  EXPECT_EQ(mended.x.size(0), 2000);
  EXPECT_GT(effective, 200);
  EXPECT_LT(effective, 40000);
  EXPECT_GT(error(plain, 2000), 5);
  EXPECT_LT(error(mended, std::min(effective, 2000.0)), 5);
}

TEST(Vi, RealNvpRecoversThePosteriorWithoutExplodingDraws) {
  const GaussianProblem p(16);
  for (const uint64_t seed : {1, 2, 3}) {
    Config c = settings("realnvp", 2500);
    put(c, "flow.n_flow", int64_t{6});
    put(c, "flow.seqfrac", int64_t{1});
    put(c, "flow.init_mean", 0.5);
    put(c, "flow.init_std", 0.5);
    put(c, "lr", 2e-3);
    put(c, "batch", int64_t{128});
    put(c, "n_draws", int64_t{20000});
    const Draws d = run(c, p.target(), seed);
    EXPECT_NE(d.summary.status, Status::kDiverged);
    // Bound: 3 in 20000 is the 95 % upper limit of "none seen".
    EXPECT_LE(d.summary.numbers.at("invalid_draws"), 0)
        << "seed " << seed << ": " << d.summary.message;
    // What a short optimisation of a non-Gaussian family leaves.
    expect_posterior(d, p, 0.25, 0.3);
  }
}

// Precise data, a deep flow, small batches, a short run. With the reference's settings (running
// averages to the end, constant rate, no bound on normalised activations) 0.2 % of the draws of
// this problem are invalid, 0.7 % after 1500 steps.
TEST(Vi, DrawsOfAStiffProblemDoNotExplode) {
  const GaussianProblem p(64, 0.01);
  Config c = settings("realnvp", 400);
  put(c, "flow.n_flow", int64_t{32});
  put(c, "flow.init_mean", 0.5);
  put(c, "flow.init_std", 0.5);
  put(c, "lr", 2e-3);
  put(c, "batch", int64_t{32});
  put(c, "n_draws", int64_t{5000});
  const Draws d = run(c, p.target(), 1);
  EXPECT_EQ(d.summary.numbers.at("invalid_draws"), 0) << d.summary.message;
  EXPECT_EQ(d.summary.status, Status::kMaxSteps)
      << d.summary.message;  // and 400 steps are not called enough
}

TEST(Vi, SameSeedSameDraws) {
  const GaussianProblem p(8);
  Config c = settings("realnvp", 60);
  put(c, "flow.n_flow", int64_t{2});
  const Draws a = run(c, p.target(), 5), b = run(c, p.target(), 5), other = run(c, p.target(), 6);
  EXPECT_TRUE(at::equal(a.x, b.x));
  EXPECT_TRUE(at::equal(a.history.at("loss"), b.history.at("loss")));
  EXPECT_FALSE(at::equal(a.x, other.x));
}

TEST(Vi, NanDensitiesAreDroppedAndCounted) {
  const GaussianProblem p(8);
  const testing::SometimesNan prior(*p.prior, 0.2);
  Config c = settings("gaussian_low_rank", 1500);
  put(c, "flow.rank", int64_t{8});
  put(c, "lr", 0.01);
  const Draws d = run(c, {prior, *p.likelihood}, 1, at::kDouble);
  const double share = d.summary.numbers.at("nonfinite_densities") / (1500 * 64.0);
  EXPECT_NEAR(share, 0.2, 4 * std::sqrt(0.16 / (1500 * 64)));
  EXPECT_NE(d.summary.message.find("non-finite"), std::string::npos);
  expect_posterior(d, p, 0.2, 0.25);
  const testing::SometimesNan never(*p.prior, 1.1);
  const Draws none = run(c, {never, *p.likelihood}, 1, at::kDouble);
  EXPECT_EQ(none.summary.status, Status::kDiverged);
  EXPECT_TRUE(at::isfinite(none.x).all().item<bool>());
}

TEST(Vi, InterruptedRunsEndLikeUninterruptedOnes) {
  const GaussianProblem p(8);
  Config c = settings("realnvp", 60);
  put(c, "flow.n_flow", int64_t{2});
  put(c, "checkpoint_every", int64_t{7});
  put(c, "ema", 0.9);
  put(c, "n_draws", int64_t{32});
  const auto method = inferences().make(c, "dpi", InferenceContext{});
  MemoryStore whole_store;
  StoppingObserver quiet;
  const Draws whole = method->run(p.target(), Rng(3), quiet, whole_store);
  for (const int64_t at_step : {1, 7, 23, 24, 25, 43, 59}) {
    MemoryStore store;
    StoppingObserver stopper(at_step);
    const Draws part = method->run(p.target(), Rng(3), stopper, store);
    EXPECT_EQ(part.summary.status, Status::kInterrupted);
    EXPECT_EQ(part.summary.numbers.at("steps"), static_cast<double>(at_step));
    const Draws rest = method->run(p.target(), Rng(3), quiet, store);
    EXPECT_TRUE(at::equal(rest.x, whole.x)) << "stopped at " << at_step;
    EXPECT_TRUE(at::equal(rest.log_q, whole.log_q));
    EXPECT_TRUE(at::equal(rest.history.at("loss"), whole.history.at("loss")));
  }
}

TEST(Vi, CheckpointsOfAnotherProblemAreRefused) {
  const GaussianProblem p(8);
  Config c = settings("realnvp", 20);
  put(c, "flow.n_flow", int64_t{2});
  MemoryStore store;
  StoppingObserver quiet;
  inferences().make(c, "dpi", InferenceContext{})->run(p.target(), Rng(3), quiet, store);
  put(c, "flow.n_flow", int64_t{3});
  EXPECT_THROW(
      inferences().make(c, "dpi", InferenceContext{})->run(p.target(), Rng(3), quiet, store),
      DataError);
}

TEST(Vi, TooFewStepsAreNotCalledConverged) {
  const GaussianProblem p(8);
  Config c = settings("realnvp", 30);
  const Draws d = run(c, p.target(), 1);
  EXPECT_EQ(d.summary.status, Status::kMaxSteps);
}

TEST(Vi, UnknownFlowSettingsFailBeforeAnyCompute) {
  Config c = settings("realnvp", 30);
  put(c, "flow.n_flows", int64_t{3});
  inferences().make(c, "dpi", InferenceContext{});
  EXPECT_THROW(c.require_all_used(), ConfigError);
  Config d = settings("realnvq", 30);
  EXPECT_THROW(inferences().make(d, "dpi", InferenceContext{}), ConfigError);
}

TEST(Map, FindsThePosteriorMode) {
  const GaussianProblem p(16);
  Config c;
  put(c, "steps", int64_t{2000});
  put(c, "starts", int64_t{3});
  MemoryStore store;
  StoppingObserver quiet;
  const auto method = inferences().make(c, "map", InferenceContext{at::kDouble});
  EXPECT_EQ(method->run(p.target(), Rng(1), quiet, store).summary.status, Status::kConverged);
  MemoryStore fresh;
  StoppingObserver stopper(777);
  const Draws part = method->run(p.target(), Rng(1), stopper, fresh);
  EXPECT_EQ(part.summary.status, Status::kInterrupted);
  const Draws d = method->run(p.target(), Rng(1), quiet, fresh);
  // Adam's last steps are lr * lr_final = 1e-4.
  EXPECT_LT((d.x.flatten(1) - p.mean).abs().max().item<double>(), 1e-3);
}

}  // namespace
}  // namespace scoreprior
