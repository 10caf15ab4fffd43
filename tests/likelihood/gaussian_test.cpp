#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

template <class T>
ConfigNodePtr config_value(T value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = value;
  return node;
}

Config forward_table(const std::string& name) {
  Config c;
  c.set("name", config_value(name));
  if (name == "low_dft") c.set("n_freqs", config_value(int64_t{3}));
  return c;
}

LikelihoodContext context_of(const std::string& forward, Shape shape,
                             at::ScalarType dtype = at::kDouble) {
  return {std::move(shape), dtype, at::kCPU, forward_table(forward), io::read_npy};
}

std::unique_ptr<Likelihood> gaussian(
    const Observation& data, const LikelihoodContext& context,
    std::function<void(Config&)> configure = [](Config&) {}) {
  Config c;
  c.set("name", config_value(std::string("gaussian")));
  configure(c);
  return likelihoods().make(c, "", data, context);
}

TEST(Gaussian, MatchesReference) {
  for (const std::string name :
       {"deblur_16x1_n8", "deblur_16x3_n6", "denoise_16x3", "mri_16_poisson4", "mri_32_cartesian4",
        "mri_32_poisson8", "eht_matrix_8"}) {
    SP_REQUIRE_GOLDEN("operators/" + name);
    const GoldenCase g("operators/" + name);
    const int64_t n = g.config()["image_size"], channels = g.config()["num_channels"];
    const std::string kind = g.config()["kind"];
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      LikelihoodContext context = context_of("identity", {channels, n, n}, dtype);
      const auto file = [&](const char* key, const char* array) {
        context.forward.set(key, config_value(g.path(array).string()));
      };
      if (kind == "deblur") {
        context.forward.set("name", config_value(std::string("low_dft")));
        context.forward.set("n_freqs",
                            config_value(g.config()["n_freqs_per_direction"].get<int64_t>()));
      } else if (kind == "mri") {
        context.forward.set("name", config_value(std::string("mri")));
        file("mask", "mask");
      } else if (kind == "eht") {
        context.forward.set("name", config_value(std::string("complex_matrix")));
        file("matrix_real", "matrix_real"), file("matrix_imag", "matrix_imag");
      }
      const at::Tensor x = g.array("x", dtype).permute({0, 3, 1, 2}).contiguous(), y = g.array("y");
      const at::Tensor want = g.array("loglike_grad").permute({0, 3, 1, 2}).contiguous();
      for (int64_t b = 0; b < x.size(0); ++b) {
        Observation data;
        data.y = y[b];
        const bool number =
            kind != "eht" && b == 0;  // the stated level and the reference's own table must agree
        if (!number) data.sigma = g.array("sigmas");
        const auto likelihood = gaussian(data, context, [&](Config& c) {
          c.set("normalized", config_value(false));
          if (number) c.set("sigma", config_value(g.config()["noise_scale"].get<double>()));
        });
        const auto result = likelihood->value_and_score(x.narrow(0, b, 1), Rng(0));
        // float32: rounding of A x relative to sigma, 1e-7 |y|/sigma.
        const double tolerance = dtype == at::kDouble ? 1e-11 : 1e-4;
        EXPECT_LT(relative_error(result.first, g.array("loglike").narrow(0, b, 1)), tolerance)
            << name;
        EXPECT_LT(relative_error(result.second, want.narrow(0, b, 1)), tolerance) << name;
      }
    }
  }
}

TEST(Gaussian, GradientsConstantsAndChiSquare) {
  for (const std::string forward : {"identity", "low_dft", "mri"}) {
    const LikelihoodContext context = context_of(forward, {1, 6, 6});
    Observation data;
    const int64_t m = forward == "identity" ? 36 : forward == "mri" ? 72 : 18;
    data.y = Rng(1).normal({m}, at::kDouble);
    data.sigma = Rng(2).uniform({m}, at::kDouble) + 0.5;
    const auto likelihood = gaussian(data, context);
    const auto plain =
        gaussian(data, context, [](Config& c) { c.set("normalized", config_value(false)); });
    const at::Tensor x = Rng(3).normal({2, 1, 6, 6}, at::kDouble);
    const auto fast = likelihood->value_and_score(x, Rng(0));
    const auto automatic = likelihood->LogDensity::value_and_score(x, Rng(0));
    EXPECT_LT(relative_error(fast.first, automatic.first), 1e-13);
    EXPECT_LT(relative_error(fast.second, automatic.second), 1e-12);
    const double constant = -(data.sigma.log() + 0.5 * std::log(2 * M_PI)).sum().item<double>();
    EXPECT_LT(
        relative_error(likelihood->log_prob(x, Rng(0)), plain->log_prob(x, Rng(0)) + constant),
        1e-13);
    EXPECT_LT(
        relative_error(likelihood->chi2(x)[0].second * (-0.5 * m), plain->log_prob(x, Rng(0))),
        1e-13);
    EXPECT_EQ(likelihood->naive_image().sizes(), at::IntArrayRef({1, 1, 6, 6}));
    EXPECT_EQ(likelihood->data_fits(x)[0].model.sizes(), at::IntArrayRef({2, m}));
  }
}

TEST(Gaussian, SimulatesItsOwnNoise) {
  const LikelihoodContext context = context_of("mri", {1, 32, 32});
  Observation data;
  data.y = at::zeros({2048}, at::kDouble);
  const auto level = [](Config& c) { c.set("sigma", config_value(0.2)); };
  const auto likelihood = gaussian(data, context, level);
  const at::Tensor x = Rng(3).uniform({1, 1, 32, 32}, at::kDouble);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const Observation simulated = likelihood->simulate(x, Rng(seed));
    EXPECT_EQ(simulated.truth.sizes(), at::IntArrayRef({1, 32, 32}));
    EXPECT_NEAR(simulated.sigma[0].item<double>(), 0.2 / std::sqrt(2.0), 1e-15);
    // chi^2/M under the truth: mean 1, standard error sqrt(2/2048) = 0.031.
    EXPECT_NEAR(gaussian(simulated, context)->chi2(x)[0].second.item<double>(), 1, 4.5 * 0.031);
    EXPECT_TRUE(at::equal(simulated.y, likelihood->simulate(x, Rng(seed)).y));
  }
}

TEST(Gaussian, Errors) {
  const LikelihoodContext context = context_of("identity", {1, 4, 4});
  Observation data;
  EXPECT_THROW(gaussian(data, context), DataError);  // no y
  data.y = at::zeros({16}, at::kDouble);
  EXPECT_THROW(gaussian(data, context), ConfigError);  // no sigma
  EXPECT_THROW(gaussian(data, context, [](Config& c) { c.set("sigma", config_value(0.0)); }),
               ConfigError);
  EXPECT_THROW(gaussian(data, context, [](Config& c) { c.set("sigma", config_value(true)); }),
               ConfigError);
  data.sigma = at::ones({15}, at::kDouble);
  EXPECT_THROW(gaussian(data, context), DataError);
  data.sigma = at::zeros({16}, at::kDouble);
  EXPECT_THROW(gaussian(data, context), DataError);
  data.sigma = at::ones({16}, at::kDouble);
  EXPECT_NO_THROW(gaussian(data, context));
  data.y[3] = NAN;
  EXPECT_THROW(gaussian(data, context), DataError);
  data.y = at::zeros({17}, at::kDouble);
  EXPECT_THROW(gaussian(data, context), DataError);
}

// A list has one level for each channel of y, whatever else divides the number of entries.
TEST(Gaussian, LevelsPerChannel) {
  const auto table = [](const char* toml) { return io::parse_toml(toml, "noise.toml"); };
  const auto make = [&](const std::string& forward, const Shape& shape, const char* toml) {
    LikelihoodContext context{shape, at::kDouble, at::kCPU, io::parse_toml(forward), io::read_npy};
    Observation data;
    const auto model =
        forward_models().make(context.forward, "", {at::kDouble, at::kCPU, io::read_npy, shape});
    data.y = at::zeros({numel(model->output_shape())}, at::kDouble);
    return likelihoods().make(table(toml), "gaussian", data, context);
  };
  const auto words = [&](const std::string& forward, const Shape& shape, const char* toml) {
    try {
      make(forward, shape, toml);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const char* two = "\nsigma = [0.1, 0.5]\n";
  const std::string radon = "name = \"radon\"\nangles = 4\n";
  const std::string grey = words(radon, {1, 6, 6}, two);
  EXPECT_NE(grey.find("noise.toml:2"), std::string::npos) << grey;
  EXPECT_NE(grey.find("2 levels, the measurement has 1 channel"), std::string::npos) << grey;
  EXPECT_EQ(words(radon, {2, 6, 6}, two), "");
  for (const std::string forward :
       {"name = \"identity\"", "name = \"inpainting\"\nmask = \"random\"",
        "name = \"low_dft\"\nn_freqs = 3", "name = \"mri\"", "name = \"phase_retrieval\""}) {
    EXPECT_NE(words(forward, {1, 8, 8}, two), "") << forward;
    EXPECT_EQ(words(forward, {2, 8, 8}, two), "") << forward;
  }
  // Coils are the channels of multicoil_mri.
  EXPECT_EQ(words("name = \"multicoil_mri\"\ncoils = 2", {1, 8, 8}, two), "");
  EXPECT_NE(words("name = \"multicoil_mri\"\ncoils = 3", {1, 8, 8}, two), "");
  EXPECT_NE(words("name = \"identity\"", {1, 8, 8}, "sigma = []\n"), "");

  const auto likelihood = make(radon, {2, 6, 6}, two);
  const at::Tensor sigma =
      likelihood->simulate(at::zeros({1, 2, 6, 6}, at::kDouble), Rng(1)).sigma.view({-1, 2});
  EXPECT_TRUE(at::allclose(sigma.select(1, 0), at::full({sigma.size(0)}, 0.1, at::kDouble)));
  EXPECT_TRUE(at::allclose(sigma.select(1, 1), at::full({sigma.size(0)}, 0.5, at::kDouble)));
}

TEST(Likelihoods, UnknownNamesGetASuggestion) {
  Config c;
  c.set("name", config_value(std::string("interferometri")));
  try {
    likelihoods().make(c, "", {}, context_of("identity", {1, 4, 4}));
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("did you mean \"interferometry\""), std::string::npos);
  }
}

// Linear models are seen through T = -A / sigma, exactly.
TEST(Gaussian, LinearPart) {
  const LikelihoodContext context = context_of("low_dft", {1, 8, 8});
  Observation data;
  data.y = at::zeros({2 * 36}, at::kDouble);
  const auto forward =
      forward_models().make(context.forward, "", {at::kDouble, at::kCPU, {}, {1, 8, 8}});
  const int64_t entries = numel(forward->output_shape());
  data.y = Rng(1).normal({entries}, at::kDouble);
  data.sigma = Rng(2).uniform({entries}, at::kDouble) + 0.5;
  const auto likelihood = gaussian(data, context);
  const auto* face = dynamic_cast<const ResidualJacobian*>(likelihood.get());
  ASSERT_NE(face, nullptr);
  const at::Tensor x = Rng(3).normal({3, 1, 8, 8}, at::kDouble);
  EXPECT_FALSE(face->slopes(x).defined());
  const at::Tensor residuals = x.flatten(1).matmul(face->linear_part().t()) + data.y / data.sigma;
  EXPECT_LT(relative_error(residuals, likelihood->residuals(x)), 1e-13);
}

}  // namespace
}  // namespace scoreprior
