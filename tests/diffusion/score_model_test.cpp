#include "scoreprior/diffusion/score_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using testing::GoldenCase;
using testing::relative_error;

class ScoreModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              (std::string("score_model_") +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string save(const std::string& name, const at::Tensor& a) const {
    io::write_npy(folder_ / name, a);
    return "\"" + (folder_ / name).string() + "\"";
  }
  fs::path folder_;
};

std::unique_ptr<ScoreModel> analytic(const std::string& toml, at::ScalarType type = at::kDouble) {
  return make_score_model(io::parse_toml(toml), type, at::kCPU);
}

at::Tensor some_covariance(int64_t d, uint64_t seed) {
  const at::Tensor a = Rng(seed).normal({d, d}, at::kDouble);
  return at::matmul(a, a.t()) / static_cast<double>(d) + at::eye(d, at::kDouble) * 0.05;
}

TEST_F(ScoreModelTest, GaussianIsThePrecisionTimesTheOffset) {
  const int64_t d = 6;
  const at::Tensor mean = Rng(1).normal({1, 2, 3}, at::kDouble), cov = some_covariance(d, 2);
  const auto model = analytic("name = \"gaussian\"\nmean = " + save("mean.npy", mean) +
                              "\ncov = " + save("cov.npy", cov));
  EXPECT_EQ(model->event_shape(), (Shape{1, 2, 3}));
  const at::Tensor x = Rng(3).normal({4, 1, 2, 3}, at::kDouble),
                   t = at::tensor({1e-4, 0.1, 0.5, 1.0}, at::kDouble);
  const at::Tensor s = model->score(x, t);
  for (int64_t b = 0; b < 4; ++b) {
    const at::Tensor tb = t.slice(0, b, b + 1);
    const double a = model->sde().mean_coeff(tb).item<double>(),
                 n = model->sde().std(tb).item<double>();
    const at::Tensor c = cov * (a * a) + at::eye(d, at::kDouble) * (n * n);
    const at::Tensor want =
        at::linalg_solve(c, (x[b] - mean * a).reshape({d, 1})).neg().reshape({1, 2, 3});
    EXPECT_LT(relative_error(s[b], want), 1e-11);  // condition number about 1e2
  }
}

// Score = gradient of the log of the mixture's own density, and its derivative exists.
TEST_F(ScoreModelTest, MixtureIsTheGradientOfItsLogDensity) {
  const int64_t d = 3, k = 4;
  const at::Tensor means = Rng(4).normal({k, d}, at::kDouble) * 2;
  std::vector<at::Tensor> covs;
  for (int64_t i = 0; i < k; ++i) covs.push_back(some_covariance(d, 10 + i));
  const at::Tensor w = at::tensor({0.1, 0.2, 0.3, 0.4}, at::kDouble),
                   sigmas = at::tensor({0.3, 0.5, 0.7, 1.0}, at::kDouble);
  for (const bool full : {true, false}) {
    const auto model = analytic(
        "name = \"mixture\"\nweights = " + save("w.npy", w) + "\nmeans = " + save("m.npy", means) +
        "\nshape = [1, 1, 3]\n" +
        (full ? "covs = " + save("c.npy", at::stack(covs)) : "sigmas = " + save("s.npy", sigmas)));
    at::Tensor x = (Rng(5).normal({5, 1, 1, 3}, at::kDouble) * 2).requires_grad_(true);
    const at::Tensor t = at::linspace(0.01, 0.9, 5, at::kDouble);
    std::vector<at::Tensor> rows;
    for (int64_t b = 0; b < 5; ++b) {
      const at::Tensor tb = t.slice(0, b, b + 1);
      const double a = model->sde().mean_coeff(tb).item<double>(),
                   n = model->sde().std(tb).item<double>();
      std::vector<at::Tensor> terms;
      for (int64_t i = 0; i < k; ++i) {
        const at::Tensor c0 = full ? covs[i] : at::eye(d, at::kDouble) * sigmas[i].square();
        const at::Tensor c = c0 * (a * a) + at::eye(d, at::kDouble) * (n * n);
        const at::Tensor r = x[b].reshape({d, 1}) - (means[i] * a).reshape({d, 1});
        terms.push_back(w[i].log() - std::get<1>(at::linalg_slogdet(c)) * 0.5 -
                        at::matmul(r.t(), at::linalg_solve(c, r)).squeeze() * 0.5);
      }
      rows.push_back(at::logsumexp(at::stack(terms), 0));
    }
    const at::Tensor want = torch::autograd::grad({at::stack(rows).sum()}, {x})[0];
    const at::Tensor s = model->score(x, t);
    EXPECT_LT(relative_error(s, want), 1e-11);
    // Second derivative against central differences along one direction; error h^2.
    const at::Tensor v = Rng(6).normal(x.sizes(), at::kDouble);
    const at::Tensor hv = torch::autograd::grad({(s * v).sum()}, {x})[0];
    const double h = 1e-5;
    const at::Tensor fd =
        (model->score(x.detach() + v * h, t) - model->score(x.detach() - v * h, t)) / (2 * h);
    EXPECT_LT(relative_error(hv, fd), 1e-7);  // the Hessian is symmetric
  }
}

TEST_F(ScoreModelTest, FloatAndNumbers) {
  const std::string toml =
      "name = \"gaussian\"\nmean = 0.25\nsigma = 0.5\nshape = [1, 4, 4]\n[sde]\ntype = \"ve\"";
  const auto f32 = analytic(toml, at::kFloat), f64 = analytic(toml);
  const at::Tensor x = Rng(8).normal({3, 1, 4, 4}, at::kDouble),
                   t = at::tensor({0.001, 0.2, 0.9}, at::kDouble);
  const at::Tensor s = f32->score(x.to(at::kFloat), t.to(at::kFloat));
  EXPECT_EQ(s.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error(s, f64->score(x, t)), 1e-5);
}

TEST_F(ScoreModelTest, MistakesAreSentences) {
  EXPECT_THROW(analytic(""), ConfigError);
  EXPECT_THROW(analytic("name = \"gauss\""), ConfigError);
  EXPECT_THROW(analytic("name = \"gaussian\"\nmean = 0.5\nsigma = 1"), ConfigError);
  EXPECT_THROW(analytic("weights = \"nowhere.safetensors\""), MissingFileError);
  const std::string mean = save("mean.npy", at::zeros({4}, at::kDouble));
  EXPECT_THROW(analytic("name = \"gaussian\"\nmean = " + mean +
                        "\ncov = " + save("cov.npy", at::eye(3, at::kDouble))),
               DataError);
  EXPECT_THROW(analytic("name = \"gaussian\"\nmean = " + mean +
                        "\ncov = " + save("neg.npy", at::eye(4, at::kDouble) * -1)),
               DataError);
}

class ScoreTableGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(ScoreTableGolden, Scores) {
  const std::string name = std::string("logp/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  const GoldenCase g(name);
  const bool mixture = g.has("means");
  const auto quoted = [&](const char* a) { return "\"" + g.path(a).string() + "\"\n"; };
  std::string toml = mixture ? "name = \"mixture\"\nweights = " + quoted("weights_mix") +
                                   "means = " + quoted("means")
                             : "name = \"gaussian\"\nmean = " + quoted("mean");
  if (g.has("cov"))
    toml += "cov = " + quoted("cov");
  else if (g.has("covs"))
    toml += "covs = " + quoted("covs");
  else if (mixture)
    toml += "sigmas = " + quoted("sigmas");
  else
    toml += "sigma = " + std::to_string(g.array("sigma").item<double>()) + "\n";
  const auto& sde = g.config().at("sde");
  std::string type = sde.at("type");
  for (char& c : type) c = static_cast<char>(std::tolower(c));
  toml += "[sde]\nsmall_time_branch = true\ntype = \"" + type + "\"\n";
  for (const char* key : {"beta_min", "beta_max", "sigma_min", "sigma_max"})
    if (sde.contains(key)) toml += std::string(key) + " = " + sde.at(key).dump() + "\n";
  const auto model = analytic(toml);
  const at::Tensor x = g.array("x"), times = g.array("score_t"), want = g.array("scores");
  for (int64_t i = 0; i < times.size(0); ++i)
    EXPECT_LT(relative_error(model->score(x, times[i].expand({x.size(0)})), want[i]), 1e-9)
        << times[i].item<double>();
}

INSTANTIATE_TEST_SUITE_P(All, ScoreTableGolden,
                         ::testing::Values("gauss_fullcov_4x4_vp10", "gauss_iso_4x4_subvp",
                                           "gauss_iso_4x4_ve", "gauss_iso_4x4_vp", "gmm_2d_subvp",
                                           "gmm_2d_ve", "gmm_2d_vp", "gmm_8x8_vp"));

}  // namespace
}  // namespace scoreprior
