#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "scoreprior/nets/score_net.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

ConfigNodePtr node_of(const nlohmann::json& j) {
  auto n = std::make_shared<ConfigNode>();
  if (j.is_boolean())
    n->value = j.get<bool>();
  else if (j.is_number_integer())
    n->value = j.get<int64_t>();
  else if (j.is_number())
    n->value = j.get<double>();
  else if (j.is_string())
    n->value = j.get<std::string>();
  else if (j.is_array()) {
    ConfigArray a;
    for (const auto& e : j) a.push_back(node_of(e));
    n->value = a;
  }
  return n;
}

Config net_config(const nlohmann::json& c) {
  Config config;
  for (const auto& [k, v] : c.at("model").items())
    if (k != "sigma_min" && k != "sigma_max" && k != "beta_min" && k != "beta_max" &&
        k != "num_scales")
      config.set(k, node_of(v));
  config.set("image_size", node_of(c.at("data").at("image_size")));
  config.set("channels", node_of(c.at("data").at("num_channels")));
  config.set("centered", node_of(c.at("data").at("centered")));
  return config;
}

// std(t) of the wrapper, with the small-time branches the reference arrays were made with.
at::Tensor wrapper_factor(const nlohmann::json& sde, const at::Tensor& t) {
  const std::string type = sde.at("type");
  if (type == "VE") return at::ones_like(t);
  const double b0 = sde.at("beta_min"), b1 = sde.at("beta_max");
  const at::Tensor l = -(b1 - b0) * t * t / 4 - b0 * t / 2;
  const at::Tensor small = l.abs() <= 1e-3;
  if (type == "VP") return -1 / at::where(small, at::sqrt(-2 * l), at::sqrt(1 - at::exp(2 * l)));
  return -1 / at::where(small, -2 * l, 1 - at::exp(2 * l));
}

void check_case(const std::string& name, at::ScalarType dtype) {
  const GoldenCase g("score_net/" + name);
  const Config config = net_config(g.config());
  auto net = score_nets().make(config, "ncsnpp");
  config.require_all_used();
  net->to(dtype, at::kCPU);
  net->load(g.weights(), name);
  net->freeze();
  const double tol = dtype == at::kDouble
                         ? 1e-9  // the manifest's float64 limit
                         : g.manifest().at("tolerance").at("float32").get<double>();
  int compared = 0;
  for (const auto& [key, sde] : g.config().items()) {
    if (key.size() < 4 || key.substr(key.size() - 4) != "_sde") continue;
    const std::string p = key.substr(0, key.size() - 4);
    if (!g.has(p + "_net_out")) continue;
    const at::Tensor x = g.array("x", dtype).requires_grad_(true);
    const at::Tensor v = g.array("v", dtype);
    const at::Tensor out = net->forward(x, g.array(p + "_label", dtype));
    const at::Tensor factor = wrapper_factor(sde, g.array("t", at::kDouble)).to(dtype);
    const at::Tensor score = out * factor.view({-1, 1, 1, 1});
    const at::Tensor grad = torch::autograd::grad({(score * v).sum()}, {x})[0];
    EXPECT_LE(relative_error(out, g.array(p + "_net_out")), tol) << p;
    EXPECT_LE(relative_error(score, g.array(p + "_score")), tol) << p;
    EXPECT_LE(relative_error(grad, g.array(p + "_grad")), tol) << p;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

class ScoreNetGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(ScoreNetGolden, Float64) {
  SP_REQUIRE_GOLDEN(std::string("score_net/") + GetParam());
  check_case(GetParam(), at::kDouble);
}
TEST_P(ScoreNetGolden, Float32) {
  SP_REQUIRE_GOLDEN(std::string("score_net/") + GetParam());
  check_case(GetParam(), at::kFloat);
}
INSTANTIATE_TEST_SUITE_P(All, ScoreNetGolden,
                         ::testing::Values("ncsnpp_biggan_residual_32x1", "ncsnpp_biggan_none_32x3",
                                           "ncsnpp_ve_fourier_32x1", "ncsnpp_vp_fourier_16x1",
                                           "ncsnpp_ddpmblock_fir_16x1",
                                           "ncsnpp_ddpmblock_nofir_16x3",
                                           "ncsnpp_progressive_residual_cat_16x1",
                                           "ncsnpp_unconditional_8x1", "ddpm_8x1", "ddpm_16x3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace scoreprior
