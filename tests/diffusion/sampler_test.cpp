#include "scoreprior/diffusion/sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::unique_ptr<Sde> golden_sde(const nlohmann::json& s, bool branch) {
  std::string type = s.at("type");
  for (auto& c : type) c = static_cast<char>(std::tolower(c));
  std::ostringstream t;
  t.precision(17);
  t << "type = \"" << type << "\"\nsmall_time_branch = " << (branch ? "true" : "false") << "\n";
  for (const char* k : {"beta_min", "beta_max", "sigma_min", "sigma_max"})
    if (s.contains(k)) t << k << " = " << s.at(k).get<double>() << "\n";
  return make_sde(io::parse_toml(t.str()));
}

// Score of a mixture of isotropic Gaussians in the plane.
class PlaneMixture : public ScoreModel {
 public:
  PlaneMixture(std::unique_ptr<Sde> sde, at::Tensor weights, at::Tensor means, at::Tensor sigmas)
      : sde_(std::move(sde)), log_w_(weights.log()), means_(means), var_(sigmas.square()) {}
  explicit PlaneMixture(const GoldenCase& g)
      : PlaneMixture(golden_sde(g.config().at("sde"), false), g.array("mix_weights"),
                     g.array("mix_means"), g.array("mix_sigmas")) {}
  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return {2}; }
  at::ScalarType dtype() const override { return at::kDouble; }
  at::Device device() const override { return at::kCPU; }
  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override {
    const at::Tensor a = sde_->mean_coeff(t).reshape({-1, 1}),
                     s2 = sde_->std(t).square().reshape({-1, 1});
    const at::Tensor v = a.square() * var_ + s2;                                 // [B,K]
    const at::Tensor d = a.unsqueeze(2) * means_.unsqueeze(0) - x.unsqueeze(1);  // [B,K,2]
    const at::Tensor r = (log_w_ - v.log() - d.square().sum(2) / (2 * v)).softmax(1);
    return (d * (r / v).unsqueeze(2)).sum(1);
  }
  /// Component with the largest density at x.
  at::Tensor assignment(const at::Tensor& x) const {
    const at::Tensor d2 = (x.unsqueeze(1) - means_.unsqueeze(0)).square().sum(2);
    return (log_w_ - var_.log() - d2 / (2 * var_)).argmax(1);
  }

 private:
  std::unique_ptr<Sde> sde_;
  at::Tensor log_w_, means_, var_;
};

class SamplerSteps : public ::testing::TestWithParam<const char*> {};

TEST_P(SamplerSteps, MatchGolden) {
  const std::string name = std::string("sampling/steps_") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  GoldenCase g(name);
  const auto sde = golden_sde(g.config().at("sde"), true);
  const int64_t n = g.config().at("sde").at("N");
  const at::Tensor x = g.array("x"), t = g.array("t"), s = g.array("score"), z = g.array("z");
  struct P {
    const char *file, *name;
    bool flow;
  };
  int seen = 0;
  for (const P p : {P{"euler_maruyama", "euler_maruyama", false},
                    P{"reverse_diffusion", "reverse_diffusion", false},
                    P{"reverse_diffusion_pf", "reverse_diffusion", true},
                    P{"ancestral_sampling", "ancestral", false}}) {
    if (!g.has(std::string(p.file) + "_x")) continue;
    const SamplerUpdate u = predictor_update(*sde, p.name, x, t, s, z, n, p.flow);
    EXPECT_LT(relative_error(u.x, g.array(std::string(p.file) + "_x")), 1e-10)
        << p.file;  // manifest limit
    EXPECT_LT(relative_error(u.mean, g.array(std::string(p.file) + "_x_mean")), 1e-10) << p.file;
    ++seen;
  }
  for (const char* c : {"langevin", "ald"}) {
    if (!g.has(std::string(c) + "_x")) continue;
    const SamplerUpdate u = corrector_update(*sde, c, x, t, s, z, n, g.config().at("snr"), true);
    EXPECT_LT(relative_error(u.x, g.array(std::string(c) + "_x")), 1e-10) << c;
    EXPECT_LT(relative_error(u.mean, g.array(std::string(c) + "_x_mean")), 1e-10) << c;
    ++seen;
  }
  EXPECT_GE(seen, 3);
}
INSTANTIATE_TEST_SUITE_P(Sampler, SamplerSteps, ::testing::Values("vp", "subvp", "ve"));

class OdeMap : public ::testing::TestWithParam<const char*> {};
TEST_P(OdeMap, MatchesGolden) {
  const std::string name = std::string("sampling/") + GetParam() + "_ode_map";
  SP_REQUIRE_GOLDEN(name);
  GoldenCase g(name);
  const PlaneMixture model(g);
  SamplerOptions o;
  o.t0 = g.config().at("eps");
  o.rtol = o.atol = 1e-9;
  for (const char* solver : {"dopri5", "exp4m"}) {
    o.solver = solver;
    const at::Tensor x = probability_flow_sample(model, o, g.array("z"));
    EXPECT_LT(relative_error(x, g.array("x")), 1e-6) << solver;  // manifest limit at rtol 1e-8
  }
}
INSTANTIATE_TEST_SUITE_P(Sampler, OdeMap, ::testing::Values("vp", "subvp", "ve"));

// Moments of the reference's chains within five Monte-Carlo errors of both programs.
class ChainMoments : public ::testing::TestWithParam<const char*> {};
TEST_P(ChainMoments, MatchGolden) {
  const std::string name = std::string("sampling/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  GoldenCase g(name);
  const PlaneMixture model(g);
  SamplerOptions o;
  o.steps = g.config().at("sde").at("N");
  o.t0 = g.config().at("eps");
  o.predictor = g.config().at("predictor");
  if (o.predictor == "ancestral_sampling") o.predictor = "ancestral";
  o.corrector = g.config().at("corrector");
  o.snr = g.config().at("snr");
  o.probability_flow = g.config().at("probability_flow");
  o.batch_norms = true;
  o.max_batch = g.config().at("langevin_norm_batch");
  const int64_t n = 1000;
  Observer quiet;
  const at::Tensor x = sample_score_model(model, o, n, Rng(17), quiet);
  const double reference = g.config().at("n_samples_reference");
  const double spread = 5 / std::sqrt(double(n)) + 5 / std::sqrt(reference);
  const auto& mc = g.manifest()["scalars"]["mc_std_one_sample"]["value"];
  const at::Tensor mean = x.mean(0), centred = x - mean,
                   cov = at::matmul(centred.t(), centred) / double(n - 1);
  for (int i = 0; i < 2; ++i) {
    EXPECT_NEAR(mean[i].item<double>(), g.array("sampler_mean")[i].item<double>(),
                spread * mc["mean"][i].get<double>());
    EXPECT_NEAR(cov[i][i].item<double>(), g.array("sampler_cov")[i][i].item<double>(),
                spread * mc["cov_diag"][i].get<double>());
  }
  const at::Tensor component = model.assignment(x);
  for (int64_t k = 0; k < 3; ++k) {
    const double p = g.array("sampler_assignment")[k].item<double>();
    const double q = (component == k).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(q, p, 5 * std::sqrt(p * (1 - p) / double(n)) + 0.005);
  }
}
INSTANTIATE_TEST_SUITE_P(Sampler, ChainMoments,
                         ::testing::Values("vp_euler_none", "vp_ancestral_none",
                                           "vp_euler_probability_flow", "vp_reverse_langevin",
                                           "ve_reverse_langevin", "subvp_euler_none"));

PlaneMixture two_modes(const std::string& type) {
  return PlaneMixture(make_sde(io::parse_toml("type = \"" + type + "\"\n")),
                      at::tensor({0.3, 0.7}, at::kDouble),
                      at::tensor({-1.0, 0.0, 1.0, 0.5}, at::kDouble).reshape({2, 2}),
                      at::tensor({0.2, 0.3}, at::kDouble));
}

TEST(Sampler, DrawsDependOnTheirRowOnly) {
  const PlaneMixture model = two_modes("vp");
  Observer quiet;
  for (const char* method : {"pc", "ode"}) {
    SamplerOptions o;
    o.method = method;
    o.steps = 30;
    o.corrector = "langevin";
    const at::Tensor all = sample_score_model(model, o, 6, Rng(1), quiet);
    o.max_batch = 4;
    const at::Tensor chunks = sample_score_model(model, o, 6, Rng(1), quiet);
    const at::Tensor tail = sample_score_model(model, o, 2, Rng(1).from_row(4), quiet);
    EXPECT_LT((all - chunks).abs().max().item<double>(), 1e-12) << method;
    EXPECT_LT((all.slice(0, 4) - tail).abs().max().item<double>(), 1e-12) << method;
  }
}

TEST(Sampler, OdeDrawsHaveTheRightMoments) {
  const PlaneMixture model = two_modes("subvp");
  SamplerOptions o;
  o.method = "ode";
  Observer quiet;
  const int64_t n = 4000;
  o.max_batch = n;
  const at::Tensor x = sample_score_model(model, o, n, Rng(2), quiet);
  // mean 0.3 m1 + 0.7 m2 = (0.4, 0.35); variances from the mixture; 4.5 standard errors
  EXPECT_NEAR(x.select(1, 0).mean().item<double>(), 0.4, 4.5 * std::sqrt(0.92 / n));
  EXPECT_NEAR(x.select(1, 1).mean().item<double>(), 0.35, 4.5 * std::sqrt(0.13 / n));
  EXPECT_NEAR((x.select(1, 0) < 0).to(at::kDouble).mean().item<double>(), 0.3,
              4.5 * std::sqrt(0.21 / n) + 0.003);
}

TEST(Sampler, StopsBetweenChunksAndRefusesNonsense) {
  struct Impatient : Observer {
    int64_t steps = 0;
    void step(int64_t, const Metrics&) override { ++steps; }
    bool stop_requested() const override { return steps >= 30; }
  } impatient;
  const PlaneMixture model = two_modes("vp");
  SamplerOptions o;
  o.steps = 20;
  o.max_batch = 2;
  EXPECT_EQ(sample_score_model(model, o, 6, Rng(1), impatient).size(0), 2);
  Observer quiet;
  o.predictor = "runge";
  EXPECT_THROW(sample_score_model(model, o, 1, Rng(1), quiet), std::invalid_argument);
  o.predictor = "ancestral";
  EXPECT_THROW(sample_score_model(two_modes("subvp"), o, 1, Rng(1), quiet), std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior
