#include "scoreprior/diffusion/dsm_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "scoreprior/diffusion/optimizer.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

std::string toml_of(const nlohmann::json& j) {
  std::string out;
  for (const auto& [key, value] : j.items()) out += key + " = " + value.dump() + "\n";
  return out;
}

// The network of a reference case, in float64, with its weights.
std::unique_ptr<NetworkScore> golden_model(const GoldenCase& g) {
  nlohmann::json net = g.config().at("model");
  for (const char* key : {"sigma_min", "sigma_max", "beta_min", "beta_max", "num_scales"})
    net.erase(key);
  net["image_size"] = g.config().at("data").at("image_size");
  net["channels"] = g.config().at("data").at("num_channels");
  net["centered"] = g.config().at("data").at("centered");
  nlohmann::json sde = g.config().at("sde");
  std::string type = sde.at("type");
  for (char& c : type) c = static_cast<char>(std::tolower(c));
  sde["type"] = type;
  sde["num_scales"] = sde.at("N");
  sde["small_time_branch"] = true;
  for (const char* key : {"N", "T", "linear"}) sde.erase(key);
  auto n = score_nets().make(io::parse_toml(toml_of(net)), "ncsnpp");
  n->load(g.weights(), g.weights_path().string());
  n->to(at::kDouble, at::kCPU);
  return std::make_unique<NetworkScore>(std::move(n), make_sde(io::parse_toml(toml_of(sde))),
                                        at::kDouble, at::kCPU, "unit");
}

class DsmGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(DsmGolden, LossAndGradients) {
  const std::string name = std::string("losses/") + GetParam();
  SP_REQUIRE_GOLDEN(name);
  const GoldenCase g(name);
  const auto model = golden_model(g);
  FlatAdam adam(model->net().parameters());
  model->net().parameters_changed();
  const at::Tensor x = g.array("x", at::kDouble), t = g.array("t", at::kDouble),
                   z = g.array("z", at::kDouble);
  for (const bool weighted : {false, true})
    for (const bool mean : {false, true}) {
      DsmOptions o;
      o.likelihood_weighting = weighted;
      o.reduce_mean = mean;
      const std::string tag =
          std::string("lw") + (weighted ? "1" : "0") + "_rm" + (mean ? "1" : "0");
      adam.zero_grad();
      const at::Tensor loss = dsm_loss(*model, o, x, t, z);
      EXPECT_LT(relative_error(loss, g.array("per_sample_" + tag)), 1e-9) << tag;
      EXPECT_NEAR(loss.mean().item<double>() / g.scalar("loss_" + tag), 1, 1e-9) << tag;
      loss.mean().backward();
      double norm = 0;
      for (const auto& [key, p] : model->net().parameters())
        norm += p.grad().square().sum().item<double>();
      norm = std::sqrt(norm);
      const double want = g.scalar("grad_norm_" + tag);
      EXPECT_NEAR(norm / want, 1, 1e-9) << tag;
      if (weighted || mean) continue;
      for (const auto& [key, grad] : g.weights("grads_lw0_rm0")) {
        const double worst =
            (model->net().parameters().at(key).grad() - grad).abs().max().item<double>();
        EXPECT_LT(worst, 1e-9 * want) << key;  // relative to the global norm, as the manifest says
      }
    }
}

INSTANTIATE_TEST_SUITE_P(All, DsmGolden, ::testing::Values("dsm_vp", "dsm_subvp", "dsm_ve"));

TEST(DsmLoss, GoldenDiscreteLosses) {
  SP_REQUIRE_GOLDEN("losses/legacy_discrete_losses");
  const GoldenCase g("losses/legacy_discrete_losses");
  const at::Tensor out = g.array("net_out"), z = g.array("noise"), sigma = g.array("smld_sigmas");
  EXPECT_LT(relative_error(ddpm_loss(out, z, false), g.array("ddpm_loss_sum")), 1e-14);
  EXPECT_LT(relative_error(ddpm_loss(out, z, true), g.array("ddpm_loss_mean")), 1e-14);
  EXPECT_LT(relative_error(smld_loss(out, z, sigma, false), g.array("smld_loss_sum")), 1e-13);
  EXPECT_LT(relative_error(smld_loss(out, z, sigma, true), g.array("smld_loss_mean")), 1e-13);
}

// Each time has the stated law, whichever way the batch was drawn and cut into parts.
TEST(DsmLoss, TimesFollowTheirLaw) {
  const auto sde = make_sde(Config());
  DsmOptions o;
  o.t_min = 1e-3;
  for (const bool stratified : {false, true})
    for (const bool importance : {false, true}) {
      o.stratified_time = stratified;
      o.importance_weighting = importance;
      const Rng rng(17);
      at::Tensor whole = dsm_times(*sde, o, rng, 64, 0, 64);
      const at::Tensor parts =
          at::cat({dsm_times(*sde, o, rng, 64, 0, 24), dsm_times(*sde, o, rng, 64, 24, 40)});
      EXPECT_TRUE(at::equal(whole, parts));
      std::vector<at::Tensor> many;
      for (int64_t k = 0; k < 400; ++k) many.push_back(dsm_times(*sde, o, rng.at(k), 64, 0, 64));
      const at::Tensor t = at::cat(many);
      EXPECT_GE(t.min().item<double>(), o.t_min);
      EXPECT_LE(t.max().item<double>(), 1.0);
      // Fraction below the law's own median: 25600 draws, 5 standard errors of independent draws.
      const double median =
          importance ? sde->importance_time(at::full({1}, 0.5, at::kDouble), o.t_min).item<double>()
                     : 0.5 * (1 + o.t_min);
      EXPECT_NEAR((t < median).to(at::kDouble).mean().item<double>(), 0.5,
                  5 * 0.5 / std::sqrt(25600.0));
    }
}

}  // namespace
}  // namespace scoreprior
