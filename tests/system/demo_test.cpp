// The demos as a user runs them, with settings cut to seconds.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "program.h"

namespace scoreprior {
namespace {

Outcome demo_run(const std::filesystem::path& folder, const std::string& name,
                 const std::vector<std::string>& overrides) {
  Spawn s;
  s.folder = folder;
  s.arguments = {"demo", name, "--out", "out", "--quiet", "--threads", "1"};
  s.arguments.insert(s.arguments.end(), overrides.begin(), overrides.end());
  return spawn(s);
}

TEST(Demo, PlaneComparesEveryWayWithTheExactPosterior) {
  const auto folder = fresh_folder("sp_demo_2d");
  const Outcome o =
      demo_run(folder, "2d",
               {"ode.infer.steps=5", "elbo.infer.steps=5", "ode.infer.batch=16",
                "elbo.infer.batch=16", "ode.infer.n_draws=2000", "elbo.infer.n_draws=2000",
                "ode.infer.proposals=3", "comparison.sets=4"});
  ASSERT_EQ(o.code, 0) << o.err;
  const auto j = nlohmann::json::parse(slurp(folder / "out" / "summary.json"));
  // The closed form by hand: a.m = -0.15 and 0.15, variance 0.01 x 6.89 + 0.04.
  const double v = 0.1089, up = std::exp(-0.5 * 0.45 * 0.45 / v),
               down = std::exp(-0.5 * 0.15 * 0.15 / v);
  EXPECT_NEAR(j["true_mode_weights"][0].get<double>(), up / (up + down), 1e-12);
  EXPECT_NEAR(j["log_evidence"].get<double>(),
              std::log(0.5 * (up + down) / std::sqrt(2 * M_PI * v)), 1e-12);
  // Importance resampling is exact up to its own noise, Laplace has one mode. The ratio is mostly
  // the squared error of the mode weights over its mean: five is 2.2 standard deviations.
  EXPECT_LT(j["methods"]["importance"]["ratio"].get<double>(), 5);
  EXPECT_EQ(j["methods"]["importance"]["modes_lost"], 0);
  EXPECT_NEAR(j["methods"]["importance"]["mode_weights"][0].get<double>(), up / (up + down),
              0.042);  // 4 s.d. of 2000
  EXPECT_EQ(j["methods"]["laplace"]["modes_lost"], 1);
  const std::string page = slurp(folder / "out" / "report.html");
  EXPECT_NE(page.find("a mode was lost"), std::string::npos);
  // Five steps fit nothing: the flow itself is far off, and three of its draws for each that is
  // kept bring it nearer. Both are judged in a sentence, with their own numbers.
  const auto& elbo = j["methods"]["elbo"];
  const auto& ode = j["methods"]["ode"];
  EXPECT_GT(elbo["ratio"].get<double>(), 2);
  EXPECT_LT(ode["ratio"].get<double>(), elbo["ratio"].get<double>());
  EXPECT_GT(elbo["kl"].get<double>(), 0);
  EXPECT_FALSE(ode.contains("kl"));  // resampled draws have another density than the flow's
  EXPECT_FALSE(elbo.contains("effective_proposals"));
  EXPECT_GT(ode["effective_proposals"].get<double>(), 10);
  EXPECT_LT(ode["effective_proposals"].get<double>(), 6000);
  for (const auto& [name, method] :
       {std::make_pair("DPI, ELBO prior", elbo), std::make_pair("DPI, exact prior", ode)}) {
    char weights[64];
    std::snprintf(weights, sizeof weights,
                  "mode weights %.1f %% / %.1f %% (truth %.1f %% / %.1f %%)",
                  100 * method["mode_weights"][0].get<double>(),
                  100 * method["mode_weights"][1].get<double>(), 100 * up / (up + down),
                  100 * down / (up + down));
    const size_t at = page.find(std::string(name) + ": energy distance to the exact posterior ");
    ASSERT_NE(at, std::string::npos) << name;
    const std::string said = page.substr(at, page.find('<', at) - at);
    EXPECT_NE(said.find(" times that between two exact sets ("), std::string::npos) << said;
    EXPECT_NE(said.find(weights), std::string::npos) << said << "\n" << weights;
    EXPECT_GT(method["numbers"]["prior.nfe_mean"].get<double>(), 0);
    EXPECT_TRUE(method["warnings"].empty()) << method["warnings"];
  }
  EXPECT_NE(page.find("<svg"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "posterior.png"));
  std::filesystem::remove_all(folder);
}

TEST(Demo, DenoisePutsBothPriorsSideBySide) {
  const auto folder = fresh_folder("sp_demo_denoise");
  const Outcome o = demo_run(folder, "denoise",
                             {"elbo.infer.steps=3", "ode.infer.steps=1", "elbo.infer.batch=4",
                              "ode.infer.batch=1", "ode.prior.steps=3", "elbo.infer.n_draws=16",
                              "ode.infer.n_draws=16", "denoise.check_draws=0"});
  ASSERT_EQ(o.code, 0) << o.err;
  const auto j = nlohmann::json::parse(slurp(folder / "out" / "summary.json"));
  EXPECT_NEAR(j["noisy_psnr"].get<double>(), -20 * std::log10(0.2),
              0.5);  // 3072 squared normals: 0.11 dB
  for (const char* way : {"elbo", "ode"}) {
    EXPECT_TRUE(std::isfinite(j["methods"][way]["psnr"].get<double>()));
    EXPECT_GT(j["methods"][way]["numbers"]["prior.nfe_mean"].get<double>(), 0);
    EXPECT_GE(j["methods"][way]["coverage_90"].get<double>(),
              j["methods"][way]["coverage_50"].get<double>());
  }
  EXPECT_NE(slurp(folder / "out" / "report.html").find("Cut for the time"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "denoise.png"));
  std::filesystem::remove_all(folder);
}

TEST(Demo, MistakesAreNamed) {
  const auto folder = fresh_folder("sp_demo_bad");
  const Outcome unknown = demo_run(folder, "3d", {});
  EXPECT_EQ(unknown.code, 64);
  EXPECT_NE(unknown.err.find("known: 2d, denoise, blackhole"), std::string::npos) << unknown.err;
  const Outcome typo = demo_run(folder, "2d", {"measurement.sigme=0.1"});
  EXPECT_EQ(typo.code, 78);
  EXPECT_NE(typo.err.find("sigme"), std::string::npos) << typo.err;
  const Outcome noise = demo_run(folder, "2d", {"measurement.sigma=0.0"});
  EXPECT_EQ(noise.code, 78);
  EXPECT_NE(noise.err.find("sigma must be positive"), std::string::npos) << noise.err;
  const Outcome size = demo_run(folder, "denoise", {"truth.image_size=16"});
  EXPECT_EQ(size.code, 78);
  EXPECT_NE(size.err.find("image_size"), std::string::npos) << size.err;
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace scoreprior
