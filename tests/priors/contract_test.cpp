// What every entry of the prior catalogue promises, on a 6x6 image.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/priors/prior.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

const Shape kImage{1, 6, 6};

// Weights of an untrained flow with every parameter moved, as a file.
std::string flow_file() {
  const auto path = std::filesystem::temp_directory_path() /
                    ("prior_contract_flow_" + std::to_string(getpid()) + ".safetensors");
  FlowContext context;
  context.dim = 36;
  context.dtype = at::kDouble;
  const auto flow = flows().make(io::parse_toml("n_flow = 3\nseqfrac = 2\nsoftplus = true\n"),
                                 "realnvp", context);
  io::Safetensors file;
  for (const auto& [name, t] : flow->named_tensors()) {
    at::Tensor value = t.clone();
    if (value.is_floating_point()) {
      value = value + 0.1 * Rng(1).split(name).normal(value.sizes(), at::kDouble);
      if (name.find("running_var") != std::string::npos) value = value.abs() + 0.5;
    }
    file.tensors[name] = value;
  }
  io::write_safetensors(path, file);
  return path.string();
}

std::string settings(const std::string& name, at::ScalarType dtype) {
  if (name == "score_elbo")
    return "n_times = 3\n[score]\nname = \"gaussian\"\nmean = 0.4\nsigma = 0.3\nshape = [1, 6, "
           "6]\n[score.sde]\ntype = \"vp\"\n";
  if (name == "flow")
    return "weights = \"" + flow_file() + "\"\n[flow]\nn_flow = 3\nseqfrac = 2\nsoftplus = true\n";
  if (name == "sum")
    return "[tv]\nweight = 3.0\n[smooth]\nname = \"tsv\"\nweight = 0.5\n[gaussian]\nmean = "
           "0.5\nsigma = 0.2\n"
           "[score_elbo]\n[score_elbo.score]\nname = \"gaussian\"\nmean = 0.4\nsigma = 0.3\nshape "
           "= [1, 6, 6]\n"
           "[score_elbo.score.sde]\ntype = \"vp\"\n";
  if (name == "score_ode")
    return std::string("solver = \"dopri8\"\n") +
           (dtype == at::kFloat ? "rtol = 1e-5\natol = 1e-5\n" : "rtol = 1e-9\natol = 1e-9\n") +
           "[score]\nname = \"gaussian\"\nmean = 0.4\nsigma = 0.3\nshape = [1, 6, 6]\n"
           "[score.sde]\ntype = \"vp\"\n";
  return "weight = 1.7\n";
}

std::unique_ptr<LogDensity> make_prior(const std::string& name, at::ScalarType dtype) {
  PriorContext context;
  context.image_shape = kImage;
  context.dtype = dtype;
  const Config config = io::parse_toml(settings(name, dtype));
  auto prior = priors().make(config, name, context);
  config.require_all_used();
  return prior;
}

at::Tensor images(int64_t batch) {
  return Rng(2).uniform({batch, 1, 6, 6}, at::kDouble) * 0.9 + 0.05;
}

class PriorContract : public ::testing::TestWithParam<std::string> {};

TEST_P(PriorContract, ShapesAndDtypes) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto prior = make_prior(GetParam(), dtype);
    EXPECT_EQ(prior->event_shape(), kImage);
    const auto [value, score] = prior->value_and_score(images(3).to(dtype), Rng(5));
    EXPECT_EQ(value.sizes(), at::IntArrayRef({3}));
    EXPECT_EQ(score.sizes(), at::IntArrayRef({3, 1, 6, 6}));
    EXPECT_EQ(value.scalar_type(), dtype);
    EXPECT_EQ(score.scalar_type(), dtype);
    EXPECT_FALSE(value.requires_grad() || score.requires_grad());
    EXPECT_THROW(prior->log_prob(at::zeros({3, 1, 5, 6}, dtype), Rng(5)), std::invalid_argument);
  }
}

TEST_P(PriorContract, ScoreIsAutogradIsFiniteDifference) {
  const auto prior = make_prior(GetParam(), at::kDouble);
  const Rng rng(5);
  const at::Tensor x = images(3);
  const auto [value, score] = prior->value_and_score(x, rng);
  const at::Tensor leaf = x.clone().requires_grad_(true);
  const at::Tensor direct = prior->log_prob(leaf, rng);
  EXPECT_LT(testing::relative_error(value, direct), 1e-12);
  if (direct.requires_grad()) {
    const at::Tensor autograd = torch::autograd::grad({direct.sum()}, {leaf})[0];
    EXPECT_LT(testing::relative_error(score, autograd), 1e-10);
  }
  at::NoGradGuard off;
  // Central differences with h = 1e-5: truncation h^2, rounding 1e-16 |log p| / h.
  const double h = 1e-5;
  for (int64_t k = 0; k < 4; ++k) {
    const at::Tensor v = Rng(9).at(k).normal(x.sizes(), at::kDouble);
    const at::Tensor fd =
        (prior->log_prob(x + h * v, rng) - prior->log_prob(x - h * v, rng)) / (2 * h);
    EXPECT_LT(testing::relative_error((score * v).flatten(1).sum(1), fd), 1e-6);
  }
}

TEST_P(PriorContract, RowsOfABatchAreIndependent) {
  const auto prior = make_prior(GetParam(), at::kDouble);
  const at::Tensor x = images(4);
  const auto [value, score] = prior->value_and_score(x, Rng(5));
  for (int64_t b = 0; b < 4; ++b) {
    const auto [one, s] = prior->value_and_score(x.slice(0, b, b + 1), Rng(5).from_row(b));
    EXPECT_LT(testing::relative_error(one, value.slice(0, b, b + 1)), 1e-11) << b;
    EXPECT_LT(testing::relative_error(s, score.slice(0, b, b + 1)), 1e-11) << b;
  }
}

TEST_P(PriorContract, Float32FollowsFloat64) {
  const at::Tensor x = images(3);
  const auto [v64, s64] = make_prior(GetParam(), at::kDouble)->value_and_score(x, Rng(5));
  const auto [v32, s32] =
      make_prior(GetParam(), at::kFloat)->value_and_score(x.to(at::kFloat), Rng(5));
  EXPECT_LT(testing::relative_error(v32, v64), 2e-3);  // ELBO and ODE sums; penalties are at 1e-6
  EXPECT_LT(testing::relative_error(s32, s64), 2e-3);
}

TEST_P(PriorContract, TermsAddUp) {
  const auto prior = make_prior(GetParam(), at::kDouble);
  at::Tensor total;
  for (const auto& [name, value] : prior->terms(images(3), Rng(5))) {
    EXPECT_FALSE(name.empty());
    total = total.defined() ? total + value : value;
  }
  EXPECT_LT(testing::relative_error(total, prior->log_prob(images(3), Rng(5))), 1e-12);
}

// A prior that draws given a noisy image draws the law whose density it has: for N(m, v) that is
// N((m s^2 + v y)/(v + s^2), v s^2/(v + s^2)), whichever way log p is computed.
TEST_P(PriorContract, DenoisingDrawsAreOfTheSameLaw) {
  const auto prior = make_prior(GetParam(), at::kDouble);
  const auto* denoiser = dynamic_cast<const DenoisingPrior*>(prior.get());
  ASSERT_EQ(denoiser != nullptr, GetParam().rfind("score_", 0) == 0 || GetParam() == "sum");
  if (!denoiser) return;
  EXPECT_EQ(denoiser->rest() != nullptr, GetParam() == "sum");
  const double m = 0.4, v = 0.09, y = 0.9, s2 = 0.04;
  const int64_t n = 500;  // images of 36 independent pixels
  const at::Tensor x =
      denoiser->draw_given_noisy(at::full({n, 1, 6, 6}, y, at::kDouble), std::sqrt(s2), 20, Rng(8));
  const double mean = (m * s2 + v * y) / (v + s2), variance = v * s2 / (v + s2), count = n * 36.0;
  // Five standard errors; the time steps of 1/20 are of second order in the mean.
  EXPECT_NEAR(x.mean().item<double>(), mean, 5 * std::sqrt(variance / count));
  EXPECT_NEAR(x.var().item<double>() / variance, 1, 5 * std::sqrt(2 / count) + 1.0 / 20);
}

TEST(ScorePriors, DrawsNeedWeightOne) {
  for (const std::string name : {"score_elbo", "score_ode"}) {
    PriorContext context;
    context.dtype = at::kDouble;
    const auto prior = priors().make(io::parse_toml("weight = 2.0\n" + settings(name, at::kDouble)),
                                     name, context);
    EXPECT_THROW(
        dynamic_cast<const DenoisingPrior&>(*prior).draw_given_noisy(images(2), 0.1, 1, Rng(0)),
        UsageError)
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Catalogue, PriorContract, ::testing::ValuesIn(priors().names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace scoreprior
