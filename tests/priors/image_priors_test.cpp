#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/priors/prior.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using testing::GoldenCase;
using testing::relative_error;

std::unique_ptr<LogDensity> from_toml(const std::string& text, Shape shape,
                                      at::ScalarType dtype = at::kDouble) {
  PriorContext context;
  context.image_shape = std::move(shape);
  context.dtype = dtype;
  context.read_array = io::read_npy;
  return priors().make(io::parse_toml(text), "", context);
}

at::Tensor nchw(const at::Tensor& nhwc) {
  return nhwc.to(at::kDouble).permute({0, 3, 1, 2}).contiguous();
}

class TempArray {
 public:
  TempArray(const std::string& name, const at::Tensor& a)
      : path_(fs::temp_directory_path() / (name + "_" + std::to_string(getpid()) + ".npy")) {
    io::write_npy(path_, a);
  }
  ~TempArray() { fs::remove(path_); }
  std::string quoted() const { return "\"" + path_.string() + "\""; }

 private:
  fs::path path_;
};

void expect_image_priors(const std::string& name) {
  GoldenCase g(name);
  const at::Tensor x = nchw(g.array("x"));
  const Shape shape(x.sizes().begin() + 1, x.sizes().end());
  for (const std::string p : {"l1", "tv", "tsv", "center", "flux"}) {
    std::ostringstream t;
    t << "name = \"" << p << "\"\n";
    if (p == "flux") t << "target_flux = " << g.config().at("target_flux").get<double>() << "\n";
    const auto [value, score] = from_toml(t.str(), shape)->value_and_score(x, Rng(0));
    EXPECT_LT(relative_error(value, -g.array(p)), 1e-12) << p;  // manifest limit
    EXPECT_LT(relative_error(score, -nchw(g.array(p + "_grad"))), 1e-12) << p;
  }
  if (!g.has("gauss_mean")) return;
  const auto prior = from_toml("name = \"gaussian\"\nmean = \"" + g.path("gauss_mean").string() +
                                   "\"\ncov = \"" + g.path("gauss_cov").string() + "\"\n",
                               shape);
  const auto [value, score] = prior->value_and_score(x, Rng(0));
  EXPECT_LT(relative_error(value, g.array("gauss_logpdf")), 1e-9);
  EXPECT_LT(relative_error(score, nchw(g.array("gauss_grad"))), 1e-9);
}

TEST(ImagePriorsGolden, Rgb16) {
  SP_REQUIRE_GOLDEN("operators/image_priors_16x3");
  expect_image_priors("operators/image_priors_16x3");
}
TEST(ImagePriorsGolden, Grey8) {
  SP_REQUIRE_GOLDEN("operators/image_priors_8x1");
  expect_image_priors("operators/image_priors_8x1");
}

TEST(ImagePriors, HandValues) {
  const at::Tensor x = at::tensor({0.0, 1.0, 2.0, 5.0}, at::kDouble).reshape({1, 1, 2, 2});
  const Shape s{1, 2, 2};
  const auto value = [&](const std::string& t) {
    return from_toml(t, s)->log_prob(x, Rng(0)).item<double>();
  };
  EXPECT_DOUBLE_EQ(value("name=\"l1\""), -2.0);
  EXPECT_DOUBLE_EQ(value("name=\"tv\"\nweight=2.0"), -2 * ((2 + 4) / 2.0 + (1 + 3) / 2.0));
  EXPECT_DOUBLE_EQ(value("name=\"tsv\""), -((4 + 16) / 2.0 + (1 + 9) / 2.0));
  EXPECT_DOUBLE_EQ(value("name=\"flux\"\ntarget_flux=6.0"), -4.0);
  // centre of light (7/8, 6/8) against (1/2, 1/2)
  EXPECT_DOUBLE_EQ(value("name=\"center\""), -0.5 * (0.375 * 0.375 + 0.25 * 0.25));
}

TEST(ImagePriors, ScoresVanishAtKinks) {
  const at::Tensor x = at::zeros({1, 1, 4, 4}, at::kDouble);
  for (const char* name : {"l1", "tv"})
    EXPECT_EQ(from_toml(std::string("name=\"") + name + "\"", {1, 4, 4})
                  ->value_and_score(x, Rng(0))
                  .second.abs()
                  .max()
                  .item<double>(),
              0);
}

TEST(GaussianPrior, LowRankEqualsFullCovariance) {
  const int64_t d = 12;
  const at::Tensor sigma = Rng(1).uniform({d}, at::kDouble) + 0.5,
                   f = Rng(2).normal({3, d}, at::kDouble) * 30;
  const at::Tensor mean = Rng(3).normal({d}, at::kDouble);
  const at::Tensor cov = at::diag(sigma.square()) + f.t().matmul(f);
  const TempArray s("sigma", sigma), l("factors", f), m("mean", mean), c("cov", cov);
  const auto low = from_toml(
      "name=\"gaussian\"\nmean=" + m.quoted() + "\nsigma=" + s.quoted() + "\nfactors=" + l.quoted(),
      {1, 3, 4});
  const auto full =
      from_toml("name=\"gaussian\"\nmean=" + m.quoted() + "\ncov=" + c.quoted(), {1, 3, 4});
  const at::Tensor x = Rng(4).normal({5, 1, 3, 4}, at::kDouble) * 5;
  EXPECT_LT(relative_error(low->log_prob(x, Rng(0)), full->log_prob(x, Rng(0))), 1e-9);
  const auto single = from_toml(
      "name=\"gaussian\"\nmean=" + m.quoted() + "\nsigma=" + s.quoted() + "\nfactors=" + l.quoted(),
      {1, 3, 4}, at::kFloat);
  // factors 30 times sigma: a quadratic form written as a difference would lose 3 more digits
  EXPECT_LT(relative_error(single->log_prob(x.to(at::kFloat), Rng(0)), full->log_prob(x, Rng(0))),
            1e-4);
}

TEST(GaussianPrior, HasMassOne) {
  const at::Tensor cov = at::tensor({0.5, 0.3, 0.3, 0.8}, at::kDouble).reshape({2, 2});
  const TempArray c("cov2", cov);
  const auto prior = from_toml("name=\"gaussian\"\nmean=0.2\ncov=" + c.quoted(), {1, 1, 2});
  const at::Tensor axis = at::linspace(-7, 7, 281, at::kDouble);
  const auto grid = at::meshgrid({axis, axis}, "ij");
  const at::Tensor x = at::stack({grid[0].flatten(), grid[1].flatten()}, 1).reshape({-1, 1, 1, 2});
  // Trapezoid of a smooth function that has died out at the border: exact to rounding.
  EXPECT_NEAR(prior->log_prob(x, Rng(0)).exp().sum().item<double>() * 0.05 * 0.05, 1, 1e-8);
}

TEST(FlowPrior, IsTheFlowsDensity) {
  for (const std::string toml :
       {"name = \"realnvp\"\nn_flow = 2\nseqfrac = 1\n",
        "name = \"realnvp\"\nn_flow = 3\nbatch_norm = false\n",
        "name = \"realnvp\"\nsoftplus = true\n", "name = \"gaussian_diagonal\"\n"}) {
    FlowContext context;
    context.dim = 8;
    context.dtype = at::kDouble;
    const auto flow = flows().make(io::parse_toml(toml), "", context);
    io::Safetensors file;
    for (const auto& [name, t] : flow->named_tensors()) {
      at::Tensor v = t.clone();
      if (v.is_floating_point()) v = v + 0.2 * Rng(1).split(name).normal(v.sizes(), at::kDouble);
      if (name.find("running_var") != std::string::npos) v = v.abs() + 0.3;
      file.tensors[name] = v;
    }
    const fs::path path =
        fs::temp_directory_path() / ("flow_prior_" + std::to_string(getpid()) + ".safetensors");
    io::write_safetensors(path, file);
    flow->load(file.tensors, path.string());
    const auto prior = from_toml(
        "name = \"flow\"\nweights = \"" + path.string() + "\"\n[flow]\n" + toml, {1, 2, 4});
    const at::Tensor z = Rng(6).normal({7, 8}, at::kDouble);
    const Flow::Sample s = flow->sample(z, false);
    const at::Tensor log_q = base_log_prob(z) - s.log_det, x = s.x.reshape({7, 1, 2, 4});
    EXPECT_LT(relative_error(prior->log_prob(x, Rng(0)), log_q), 1e-9) << toml;
    EXPECT_LT(relative_error(prior->value_and_score(x, Rng(0)).first, log_q), 1e-9) << toml;
    fs::remove(path);
  }
}

TEST(SumPrior, AddsItsTerms) {
  const at::Tensor x = Rng(1).uniform({3, 1, 4, 4}, at::kDouble);
  const auto sum = from_toml(
      "name=\"sum\"\n[tv]\nweight=2.0\n[bright]\nname=\"flux\"\ntarget_flux=7.0\nweight=0.1\n",
      {1, 4, 4});
  const auto tv = from_toml("name=\"tv\"", {1, 4, 4}),
             flux = from_toml("name=\"flux\"\ntarget_flux=7.0", {1, 4, 4});
  EXPECT_LT(relative_error(sum->log_prob(x, Rng(0)),
                           2 * tv->log_prob(x, Rng(0)) + 0.1 * flux->log_prob(x, Rng(0))),
            1e-13);
  const auto terms = sum->terms(x, Rng(0));
  ASSERT_EQ(terms.size(), 2u);
  EXPECT_EQ(terms[0].first, "tv");
  EXPECT_EQ(terms[1].first, "bright");
}

TEST(Priors, MistakesAreConfigErrors) {
  EXPECT_THROW(from_toml("name=\"tvv\"", {1, 4, 4}), ConfigError);
  EXPECT_THROW(from_toml("name=\"tv\"\nweight=-1.0", {1, 4, 4}), ConfigError);
  EXPECT_THROW(from_toml("name=\"tv\"", {}), ConfigError);
  EXPECT_THROW(from_toml("name=\"gaussian\"\nsigma=0.0", {1, 4, 4}), ConfigError);
  EXPECT_THROW(from_toml("name=\"sum\"", {1, 4, 4}), ConfigError);
  EXPECT_THROW(from_toml("name=\"flow\"", {1, 4, 4}), ConfigError);
  EXPECT_THROW(from_toml("name=\"gaussian\"\ncov=\"absent.npy\"", {1, 4, 4}), MissingFileError);
  const TempArray indefinite("bad_cov", -at::eye(16, at::kDouble));
  EXPECT_THROW(from_toml("name=\"gaussian\"\ncov=" + indefinite.quoted(), {1, 4, 4}), DataError);
}

// Where the residuals vanish, Gauss-Newton is the Hessian: J^T J d against central differences of
// the score.
TEST(ImagePriors, JacobiansOfFluxCenterAndTheirSum) {
  const at::Tensor half = Rng(1).uniform({1, 1, 6, 6}, at::kDouble) + 0.2;
  const at::Tensor centred = half + half.flip({2, 3});
  const at::Tensor x = centred * (20 / centred.sum());  // centroid in the middle, flux 20
  const at::Tensor d = Rng(2).normal({1, 1, 6, 6}, at::kDouble);
  for (const char* text :
       {"name = \"flux\"\ntarget_flux = 20.0\nweight = 0.3", "name = \"center\"\nweight = 0.7",
        "name = \"sum\"\n[score_elbo.score]\nname = \"gaussian\"\nmean = 0.4\nsigma = 0.3\n"
        "shape = [1, 6, 6]\n[score_elbo.score.sde]\ntype = \"vp\"\n"
        "[flux]\ntarget_flux = 20.0\nweight = 0.3\n[center]\nweight = 0.7\n"}) {
    const auto prior = from_toml(text, {1, 6, 6});
    const LogDensity* density = prior.get();
    if (const auto* denoising = dynamic_cast<const DenoisingPrior*>(density))
      density = denoising->rest();
    ASSERT_NE(density, nullptr);
    const auto* face = dynamic_cast<const ResidualJacobian*>(density);
    ASSERT_NE(face, nullptr) << text;
    const at::Tensor t = face->linear_part(), slopes = face->slopes(x);
    const at::Tensor j = slopes.defined() ? slopes[0].matmul(t) : t;
    const at::Tensor want = j.t().matmul(j.matmul(d.flatten()));
    const double e = 1e-5;
    const at::Tensor got = (density->value_and_score(x - d * e, Rng(0)).second -
                            density->value_and_score(x + d * e, Rng(0)).second)
                               .flatten() /
                           (2 * e);
    EXPECT_LT(relative_error(got, want), 1e-7) << text;  // e^2 and rounding over e
  }
  // A part without a Jacobian closes the whole.
  const auto prior = from_toml(
      "name = \"sum\"\n[score_elbo.score]\nname = \"gaussian\"\nmean = 0.4\nsigma = 0.3\n"
      "shape = [1, 6, 6]\n[score_elbo.score.sde]\ntype = \"vp\"\n[tv]\nweight = 1.0\n",
      {1, 6, 6});
  const auto& denoising = dynamic_cast<const DenoisingPrior&>(*prior);
  ASSERT_NE(denoising.rest(), nullptr);
  EXPECT_EQ(dynamic_cast<const ResidualJacobian*>(denoising.rest()), nullptr);
  EXPECT_NEAR(
      denoising.rest()->log_prob(x, Rng(0)).item<double>(),
      from_toml("name = \"tv\"\nweight = 1.0", {1, 6, 6})->log_prob(x, Rng(0)).item<double>(),
      1e-12);
}

}  // namespace
}  // namespace scoreprior
