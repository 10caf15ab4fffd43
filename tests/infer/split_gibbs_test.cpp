#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/toml.h"
#include "tests/infer/gaussian_problem.h"

namespace scoreprior::testing {
namespace {

/// N(mean, covariance) that draws x | x + sigma n exactly.
class GaussianDenoiser final : public LogDensity, public DenoisingPrior {
 public:
  GaussianDenoiser(at::Tensor mean, at::Tensor covariance)
      : mean_(mean), precision_(at::linalg_inv(covariance)), density_(mean, precision_) {}
  Shape event_shape() const override { return density_.event_shape(); }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    return density_.log_prob(x, rng);
  }
  at::Tensor draw_given_noisy(const at::Tensor& noisy, double sigma, double,
                              const Rng& rng) const override {
    const at::Tensor eye = at::eye(mean_.size(0), at::kDouble);
    const at::Tensor c = at::linalg_inv(precision_ + eye / (sigma * sigma));
    const at::Tensor y = noisy.flatten(1).to(at::kDouble);
    const at::Tensor m = (precision_.matmul(mean_) + y / (sigma * sigma)).matmul(c);
    const at::Tensor n = rng.normal({y.size(0), y.size(1)}, at::kDouble);
    return (m + n.matmul(at::linalg_cholesky(c).t()))
        .reshape(noisy.sizes())
        .to(noisy.scalar_type());
  }

 private:
  at::Tensor mean_, precision_;
  GaussianDensity density_;
};

/// y = A x + noise that shows its Jacobian.
class OpenLinearLikelihood final : public LogDensity, public ResidualJacobian {
 public:
  OpenLinearLikelihood(at::Tensor a, at::Tensor y, double sigma)
      : a_(a), sigma_(sigma), inner_(a, y, sigma) {}
  Shape event_shape() const override { return inner_.event_shape(); }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    return inner_.log_prob(x, rng);
  }
  at::Tensor linear_part() const override { return a_ / sigma_; }
  at::Tensor slopes(const at::Tensor&) const override { return {}; }

 private:
  at::Tensor a_;
  double sigma_;
  LinearLikelihood inner_;
};

/// -(f(a.x) - y)^2 / (2 sigma^2) with f(u) = u + u^3: not linear, with one maximum.
class CubicLikelihood final : public LogDensity, public ResidualJacobian {
 public:
  CubicLikelihood(at::Tensor a, double y, double sigma) : a_(a), y_(y), sigma_(sigma) {}
  Shape event_shape() const override { return {1, 1, a_.size(0)}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor u = x.flatten(1).matmul(a_.to(x.scalar_type()));
    return (u + u.pow(3) - y_).square() * (-0.5 / (sigma_ * sigma_));
  }
  at::Tensor linear_part() const override { return a_.unsqueeze(0); }
  at::Tensor slopes(const at::Tensor& x) const override {
    const at::Tensor u = x.flatten(1).matmul(a_.to(x.scalar_type()));
    return ((1 + 3 * u.square()) / sigma_).view({-1, 1, 1});
  }

 private:
  at::Tensor a_;
  double y_, sigma_;
};

std::unique_ptr<Inference> split_gibbs(const std::string& overrides) {
  const Config config = io::parse_toml("name = \"split_gibbs\"\n" + overrides);
  return inferences().make(config, "", InferenceContext{at::kDouble, at::kCPU});
}

struct Problem {
  at::Tensor a, y, mean, covariance, posterior_mean, posterior_covariance;
  double sigma;
  explicit Problem(at::Tensor matrix = Rng(5).split("a").normal({2, 4}, at::kDouble),
                   double noise = 0.2)
      : a(matrix), sigma(noise) {
    const Rng rng(5);
    y = rng.split("y").normal({a.size(0)}, at::kDouble);
    mean = at::tensor({0.5, -0.2, 0.1, 0.0}, at::kDouble);
    const at::Tensor b = rng.split("b").normal({4, 4}, at::kDouble) * 0.4;
    covariance = b.matmul(b.t()) + 0.1 * at::eye(4, at::kDouble);
    const at::Tensor p = at::linalg_inv(covariance);
    posterior_covariance = at::linalg_inv(p + a.t().matmul(a) / (sigma * sigma));
    posterior_mean =
        posterior_covariance.matmul(p.matmul(mean) + a.t().matmul(y) / (sigma * sigma));
  }
};

const std::string kLoose =
    "n_draws = 4000\nbatch = 4000\nrho_start = 1.0\nanneal = 60\nhold = 10\n"
    "data_start = 0.1\ndata_full = 0.2\n";
const std::string kSmall = kLoose + "rho_end = 0.04\n";

// Independent chains, so the mean of N draws has standard error sqrt(C_ii / N) and an entry of the
// covariance sqrt((C_ii C_jj + C_ij^2) / N). Five of them.
void expect_posterior(const Problem& p, const Draws& draws, double widening,
                      const std::string& what) {
  const at::Tensor x = draws.x.flatten(1);
  const double n = static_cast<double>(x.size(0));
  const at::Tensor& c = p.posterior_covariance;
  const at::Tensor d = c.diagonal();
  const at::Tensor z = (x.mean(0) - p.posterior_mean).abs() / (d / n).sqrt();
  EXPECT_LT(z.max().item<double>(), 5) << what;
  const at::Tensor centred = x - x.mean(0);
  const at::Tensor sample = centred.t().matmul(centred) / n;
  const at::Tensor error = ((d.unsqueeze(0) * d.unsqueeze(1) + c.square()) / n).sqrt();
  const at::Tensor excess = ((sample - c).abs() - widening).clamp_min(0) / error;
  EXPECT_LT(excess.max().item<double>(), 5) << what;
}

// rho_end = 0.04 against posterior standard deviations of 0.1 and more widens no direction by more
// than its square; data that show that they are linear leave no trace of any coupling below their
// noise, which the automatic one is.
TEST(SplitGibbs, GaussianPosterior) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const OpenLinearLikelihood open(p.a, p.y, p.sigma);
  const LinearLikelihood closed(p.a, p.y, p.sigma);
  for (const bool metric : {true, false})
    for (const uint64_t seed : {1, 2, 3}) {
      const Target target{prior, metric ? static_cast<const LogDensity&>(open) : closed};
      MemoryStore store;
      StoppingObserver observer;
      const Draws draws =
          split_gibbs(kLoose + std::string(metric ? "" : "rho_end = 0.04\nleapfrog = 12\n"))
              ->run(target, Rng(seed), observer, store);
      EXPECT_EQ(draws.summary.status, Status::kConverged) << draws.summary.message;
      // They need no Hamiltonian moves either.
      EXPECT_EQ(draws.summary.numbers.at("acceptance") == 1, metric);
      const double last = draws.history.at("rho")[-1].item<double>();
      if (metric)
        EXPECT_NEAR(last, p.sigma / at::linalg_svdvals(p.a).max().item<double>(), 1e-9);
      else
        EXPECT_EQ(last, 0.04);
      expect_posterior(p, draws, metric ? 0 : 0.04 * 0.04,
                       detail::concat("metric ", metric, " seed ", seed));
    }
}

// One noise in all directions: rho ends at exactly that, and rounding must not take any direction
// for one whose noise is narrower.
TEST(SplitGibbs, DenoisingWithOneNoise) {
  for (const double sigma : {0.1, 0.2, 0.3, 0.7}) {
    const Problem p(at::eye(4, at::kDouble), sigma);
    const GaussianDenoiser prior(p.mean, p.covariance);
    const OpenLinearLikelihood likelihood(p.a, p.y, p.sigma);
    MemoryStore store;
    StoppingObserver observer;
    const Draws draws = split_gibbs(kLoose)->run({prior, likelihood}, Rng(2), observer, store);
    expect_posterior(p, draws, 0, detail::concat("sigma ", sigma));
  }
}

// A coupling wider than the noise of a direction widens it by no more than its square.
TEST(SplitGibbs, LooseCoupling) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const OpenLinearLikelihood likelihood(p.a, p.y, p.sigma);
  const double rho = 0.15;
  ASSERT_GT(rho, p.sigma / at::linalg_svdvals(p.a).max().item<double>());
  for (const char* resample : {"", "resample = true\n"}) {
    MemoryStore store;
    StoppingObserver observer;
    const Draws draws = split_gibbs(kLoose + std::string("rho_end = 0.15\n") + resample)
                            ->run({prior, likelihood}, Rng(4), observer, store);
    const at::Tensor x = draws.x.flatten(1), d = p.posterior_covariance.diagonal();
    const at::Tensor excess = (x.var(0) - d).abs() - rho * rho;
    EXPECT_LT((excess / d).max().item<double>(), *resample ? 0.35 : 5 * std::sqrt(2.0 / 4000));
    // The wider noise moves the mean as well, by less than a standard deviation.
    EXPECT_LT(((x.mean(0) - p.posterior_mean) / d.sqrt()).abs().max().item<double>(), 1);
    if (*resample) {
      EXPECT_GT(draws.summary.numbers.at("lineages"), 400);
    }
  }
}

// The posterior of u = a.x is a one-dimensional integral.
TEST(SplitGibbs, NonlinearPosteriorAgainstQuadrature) {
  const at::Tensor a = at::tensor({0.6, -0.8, 0.0}, at::kDouble);  // a unit vector
  const at::Tensor mean = at::zeros({3}, at::kDouble), covariance = at::eye(3, at::kDouble) * 0.49;
  const double y = 1.2, sigma = 0.3;
  const at::Tensor u = at::linspace(-4, 4, 8001, at::kDouble);
  const at::Tensor log_density =
      u.square() * (-0.5 / 0.49) - (u + u.pow(3) - y).square() * (0.5 / (sigma * sigma));
  const at::Tensor w = at::softmax(log_density, 0);
  const double exact = (w * u).sum().item<double>();
  const double variance = (w * (u - exact).square()).sum().item<double>();
  const GaussianDenoiser prior(mean, covariance);
  const CubicLikelihood likelihood(a, y, sigma);
  for (const uint64_t seed : {1, 2, 3}) {
    MemoryStore store;
    StoppingObserver observer;
    const Draws draws = split_gibbs(kSmall)->run({prior, likelihood}, Rng(seed), observer, store);
    const at::Tensor x = draws.x.flatten(1);
    const at::Tensor v = x.matmul(a);
    const double n = static_cast<double>(x.size(0));
    EXPECT_LT(std::abs(v.mean().item<double>() - exact), 5 * std::sqrt(variance / n));
    // The law of u is close to normal: its sample variance has standard error 2 v^2 / n.
    EXPECT_LT(std::abs(v.var().item<double>() - variance),
              5 * variance * std::sqrt(2 / n) + 0.04 * 0.04);
    // What the data do not see keeps the prior: the third pixel.
    const at::Tensor free = x.select(1, 2);
    EXPECT_LT(std::abs(free.mean().item<double>()), 5 * 0.7 / std::sqrt(n));
    EXPECT_LT(std::abs(free.var().item<double>() - 0.49), 5 * 0.49 * std::sqrt(2 / n));
  }
}

/// Two narrow modes at a.x = -1 and 1, of which the second is e^(2 tilt) times the likelier.
class TwoModes final : public LogDensity {
 public:
  TwoModes(at::Tensor a, double sigma, double tilt)
      : a_(std::move(a)), sigma_(sigma), tilt_(tilt) {}
  Shape event_shape() const override { return {1, 1, a_.size(0)}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor u = x.flatten(1).matmul(a_.to(x.scalar_type()));
    return (u.square() - 1).square() * (-0.5 / (sigma_ * sigma_)) + u * tilt_;
  }

 private:
  at::Tensor a_;
  double sigma_, tilt_;
};

// Chains that are cooled fast choose their mode before they know its weight; resampled, they have
// it: 1 / (1 + e^(-2 tilt)) of them are in the second.
TEST(SplitGibbs, ResampledChainsHaveTheWeightsOfTheModes) {
  const GaussianDenoiser prior(at::zeros({3}, at::kDouble), at::eye(3, at::kDouble) * 0.49);
  const TwoModes likelihood(at::tensor({0.6, -0.8, 0.0}, at::kDouble), 0.1, 1.0);
  const double exact = 1 / (1 + std::exp(-2.0));
  const auto share = [&](const std::string& more, uint64_t seed) {
    MemoryStore store;
    StoppingObserver observer;
    const Draws draws =
        split_gibbs(
            "n_draws = 2000\nbatch = 2000\nrho_start = 1.0\nrho_end = 0.03\nanneal = 60\n"
            "hold = 4\ndata_start = 1e-4\ndata_full = 0.5\n" +
            more)
            ->run({prior, likelihood}, Rng(seed), observer, store);
    const at::Tensor u = draws.x.flatten(1).matmul(at::tensor({0.6, -0.8, 0.0}, at::kDouble));
    if (!more.empty()) {
      EXPECT_GT(draws.summary.numbers.at("resamplings"), 1);
      EXPECT_GT(draws.summary.numbers.at("lineages"), 100);
    }
    return (u > 0).to(at::kDouble).mean().item<double>();
  };
  // Descendants of one chain count once: a standard error of 0.03 with 150 of them.
  double mean = 0;
  for (const uint64_t seed : {1, 2, 3}) mean += share("resample = true\n", seed) / 3;
  EXPECT_NEAR(mean, exact, 0.05);
  EXPECT_LT(share("", 1), exact - 0.05);
}

constexpr const char* kShort =
    "n_draws = 10\nanneal = 6\nhold = 4\nkeep = 2\nrho_start = 1.0\nrho_end = 0.1\n"
    "checkpoint_every = 3\n";

TEST(SplitGibbs, DrawsDoNotDependOnTheBatchSize) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const OpenLinearLikelihood likelihood(p.a, p.y, p.sigma);
  at::Tensor first;
  for (const char* batch : {"batch = 5\n", "batch = 2\n"}) {
    MemoryStore store;
    StoppingObserver observer;
    const at::Tensor x = split_gibbs(std::string(kShort) + batch)
                             ->run({prior, likelihood}, Rng(1), observer, store)
                             .x;
    EXPECT_EQ(x.sizes(), (std::vector<int64_t>{10, 1, 1, 4}));
    // Matrix products of other sizes round differently.
    if (first.defined()) {
      EXPECT_LT((x - first).abs().max().item<double>(), 1e-9);
    }
    first = x;
  }
}

TEST(SplitGibbs, InterruptedRunsEqualWholeOnes) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const OpenLinearLikelihood likelihood(p.a, p.y, p.sigma);
  const std::string settings = std::string(kShort) + "batch = 3\n";
  MemoryStore whole_store;
  StoppingObserver patient;
  const Draws whole = split_gibbs(settings)->run({prior, likelihood}, Rng(1), patient, whole_store);
  for (const int64_t stop : {1, 5, 10, 13, 20}) {
    MemoryStore store;
    StoppingObserver observer(stop);
    const Draws part = split_gibbs(settings)->run({prior, likelihood}, Rng(1), observer, store);
    EXPECT_EQ(part.summary.status, stop < 20 ? Status::kInterrupted : whole.summary.status);
    StoppingObserver again;
    const Draws rest = split_gibbs(settings)->run({prior, likelihood}, Rng(1), again, store);
    EXPECT_TRUE(at::equal(rest.x, whole.x)) << stop;
    EXPECT_TRUE(at::equal(rest.history.at("log_likelihood"), whole.history.at("log_likelihood")));
    EXPECT_EQ(rest.summary.numbers.at("acceptance"), whole.summary.numbers.at("acceptance"));
  }
}

TEST(SplitGibbs, InterruptedResamplingEqualsWholeRuns) {
  const GaussianDenoiser prior(at::zeros({3}, at::kDouble), at::eye(3, at::kDouble) * 0.49);
  const TwoModes likelihood(at::tensor({0.6, -0.8, 0.0}, at::kDouble), 0.1, 1.0);
  const std::string settings = std::string(kShort) + "batch = 4\nresample = true\n";
  MemoryStore whole_store;
  StoppingObserver patient;
  const Draws whole = split_gibbs(settings)->run({prior, likelihood}, Rng(1), patient, whole_store);
  EXPECT_GT(whole.summary.numbers.at("resamplings"), 1);
  for (const int64_t stop : {2, 5, 6, 7, 13}) {
    MemoryStore store;
    StoppingObserver observer(stop);
    split_gibbs(settings)->run({prior, likelihood}, Rng(1), observer, store);
    StoppingObserver again;
    const Draws rest = split_gibbs(settings)->run({prior, likelihood}, Rng(1), again, store);
    EXPECT_TRUE(at::equal(rest.x, whole.x)) << stop;
    for (const char* number : {"resamplings", "lineages"})
      EXPECT_EQ(rest.summary.numbers.at(number), whole.summary.numbers.at(number)) << stop;
  }
}

TEST(SplitGibbs, NanDensitiesAreRejectedMoves) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const LinearLikelihood likelihood(p.a, p.y, p.sigma);
  const SometimesNan flaky(likelihood, 0.05);
  MemoryStore store;
  StoppingObserver observer;
  const Draws draws = split_gibbs(kShort)->run({prior, flaky}, Rng(1), observer, store);
  EXPECT_TRUE(at::isfinite(draws.x).all().item<bool>());
  EXPECT_GT(draws.summary.numbers.at("nonfinite_densities"), 0);
}

/// A second mode 500 nats below the first, behind a wall wider than the last coupling.
class WalledLikelihood final : public LogDensity {
 public:
  explicit WalledLikelihood(const LogDensity& inner) : inner_(inner) {}
  Shape event_shape() const override { return inner_.event_shape(); }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    const at::Tensor v = x.flatten(1).select(1, 3);
    const at::Tensor beyond = (v > 0.1).to(x.scalar_type()), wall = beyond * (v < 0.5);
    return inner_.log_prob(x, rng) - 500 * beyond - 1e6 * wall;
  }

 private:
  const LogDensity& inner_;
};

// Chains that start behind the wall stay there: counted, left out.
TEST(SplitGibbs, StuckChainsAreCountedAndLeftOut) {
  const Problem p;
  const GaussianDenoiser prior(p.mean, p.covariance);
  const LinearLikelihood inner(p.a, p.y, p.sigma);
  const WalledLikelihood likelihood(inner);
  MemoryStore store;
  StoppingObserver observer;
  const Draws draws = split_gibbs(
                          "n_draws = 64\nanneal = 1\nhold = 2\nrho_start = 0.5\nrho_end = 0.02\n"
                          "init_mean = 0.0\ndata_start = 1.0\ntrajectories = 1\nleapfrog = 2\n")
                          ->run({prior, likelihood}, Rng(2), observer, store);
  const double stuck = draws.summary.numbers.at("stuck_chains");
  EXPECT_GT(stuck, 0);
  EXPECT_LT(stuck, 32);
  EXPECT_EQ(draws.x.size(0), 64 - static_cast<int64_t>(stuck));
  EXPECT_NE(draws.summary.message.find("left out"), std::string::npos);
  EXPECT_LT(draws.x.flatten(1).select(1, 3).max().item<double>(), 0.1 + 0.2);
}

TEST(SplitGibbs, NeedsADenoiser) {
  const GaussianProblem problem(4);
  MemoryStore store;
  StoppingObserver observer;
  EXPECT_THROW(split_gibbs("")->run(problem.target(), Rng(1), observer, store), UsageError);
  EXPECT_THROW(split_gibbs("rho_end = -0.1\n"), ConfigError);
  EXPECT_THROW(split_gibbs("data_start = -1.0\n"), ConfigError);
  EXPECT_THROW(split_gibbs("rho_start = 0.001\n"), ConfigError);
  EXPECT_THROW(split_gibbs("keep = 9\nhold = 4\n"), ConfigError);
}

}  // namespace
}  // namespace scoreprior::testing
