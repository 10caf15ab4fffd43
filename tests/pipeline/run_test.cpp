#include "scoreprior/pipeline/run.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/run_folder.h"
#include "scoreprior/pipeline/simulate.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

/// Denoising of one random image under total variation.
class Run : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-run-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    io::write_npy(folder_ / "image.npy", Rng(1).uniform({1, 16, 16}, at::kDouble));
    simulate(io::parse_toml("[truth]\nfile = \"" + folder_.string() + "/image.npy\"\n" + kNoise),
             folder_ / "data", quiet_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// The page and summary.json.
  std::pair<std::string, std::string> infer(const std::string& method,
                                            const std::string& prior = "name = \"tv\"\n") {
    const Config config =
        io::parse_toml("[data]\nfile = \"" + folder_.string() + "/data/observation.npz\"\n" +
                       kNoise + "[image]\nsize = 16\n[prior]\n" + prior + "[infer]\n" + method);
    outcome_ = run(config, {folder_ / "run", ""}, quiet_);
    EXPECT_EQ(outcome_.report, folder_ / "run" / "report.html");
    return {io::read_text(folder_ / "run" / "report.html"),
            io::read_text(folder_ / "run" / "summary.json")};
  }

  static constexpr const char* kNoise = "[likelihood]\nsigma = 0.1\n";
  static constexpr const char* kTv = "[image]\nsize = 16\n[prior]\nname = \"tv\"\n";
  static constexpr const char* kDpi =
      "name = \"dpi\"\nsteps = 3\nbatch = 4\nn_draws = 8\n[infer.flow]\nname = "
      "\"gaussian_diagonal\"\n";
  static constexpr const char* kLaw =
      "name = \"gaussian\"\nmean = 0.5\nsigma = 0.2\nshape = [1, 16, 16]\n";
  fs::path folder_;
  Observer quiet_;
  RunOutcome outcome_;
};

// One image has no spread: a report without it, not an error.
TEST_F(Run, OneImageOfMapIsAResult) {
  const auto [page, summary] = infer("name = \"map\"\nsteps = 20\n");
  EXPECT_NE(summary.find("PSNR of the mean"), std::string::npos);
  EXPECT_EQ(summary.find("central 90 %"), std::string::npos);
  EXPECT_EQ(summary.find("null"), std::string::npos);
  rebuild_report(folder_ / "run", quiet_);
}

// A run can begin with another one's flow: its first loss is the other's last, to the noise of the
// draws, and far from that of a fresh flow.
TEST_F(Run, StartsFromTheFlowOfAnother) {
  const auto losses = [&](const std::string& name, const std::string& top, int64_t steps) {
    const std::string infer =
        "[infer]\nname = \"dpi\"\nsteps = " + std::to_string(steps) +
        "\nbatch = 32\nlr = 0.05\nwarmup = 0\nn_draws = 8\n[infer.flow]\nname = "
        "\"gaussian_markov\"\nradius = 1\n";
    run(io::parse_toml(top + "[data]\nfile = \"" + folder_.string() + "/data/observation.npz\"\n" +
                       kNoise + "[image]\nsize = 16\n[prior]\nname = \"tv\"\n" + infer),
        {folder_ / name, ""}, quiet_);
    return io::read_npz(folder_ / name / "history.npz").at("loss").to(at::kDouble);
  };
  const at::Tensor first = losses("first", "", 150);
  const std::string from = "start_from = \"" + (folder_ / "first").string() + "\"\n";
  const at::Tensor second = losses("second", from, 5);
  EXPECT_EQ(second.numel(), 5);
  const double start = first[0].item<double>(), end = first[-1].item<double>();
  EXPECT_LT(std::abs(second[0].item<double>() - end), 0.05 * (start - end));
  EXPECT_THROW(losses("third", "start_from = \"" + (folder_ / "none").string() + "\"\n", 5),
               MissingFileError);
}

// The page shows a choice of the draws, by their numbers among all of them.
TEST_F(Run, PageCountsAllDraws) {
  const std::string page =
      infer(
          "name = \"dpi\"\nsteps = 3\nbatch = 4\nn_draws = 31\n[infer.flow]\nname = "
          "\"gaussian_diagonal\"\n")
          .first;
  EXPECT_NE(page.find("16 of 31 valid draws"), std::string::npos);
  EXPECT_NE(page.find("Draw 1<"), std::string::npos);
  EXPECT_NE(page.find("Draw 30<"), std::string::npos);
}

nlohmann::json metrics_in(const std::string& summary) {
  return nlohmann::json::parse(summary)["metrics"];
}

const char* kFewDraws =
    "[infer]\nname = \"dpi\"\nsteps = 3\nbatch = 4\nn_draws = 9\n[infer.flow]\nname = "
    "\"gaussian_diagonal\"\n";

// Every metric of the mean and over all draws; no beam and no shift where there is no sky.
TEST_F(Run, DrawsAndTheirMeanAreMeasuredAgainstTheTruth) {
  const auto [page, summary] = infer(std::string(kFewDraws).substr(8));
  const auto metrics = metrics_in(summary);
  const std::pair<const char*, const char*> names[] = {
      {"PSNR", " [dB]"}, {"SSIM", ""}, {"NXCORR", ""}, {"NRMSE", ""}};
  const at::Tensor truth = io::read_npy(folder_ / "image.npy"),
                   draws = io::read_npy(folder_ / "run" / "draws.npy").to(at::kDouble);
  for (const auto& [name, unit] : names)
    for (const char* of : {"the mean", "draws, mean", "draws, sd", "the naive image"})
      EXPECT_TRUE(metrics[std::string(name) + " of " + of + unit].is_number()) << name << of;
  const at::Tensor nrmse = (draws - truth).flatten(1).norm(2, 1) / truth.norm();
  EXPECT_NEAR(metrics["NRMSE of draws, mean"], nrmse.mean().item<double>(), 1e-9);
  EXPECT_NEAR(metrics["NRMSE of draws, sd"], nrmse.std().item<double>(), 1e-9);
  EXPECT_EQ(metrics["images moved to the truth first"], false);
  EXPECT_FALSE(metrics.contains("beam of the blurred PSNR [uas]"));
  EXPECT_NE(page.find("over all 9 valid draws, none picked"), std::string::npos);
  EXPECT_EQ(page.find("under a beam"), std::string::npos);
  Config beam =
      io::parse_toml("[data]\nfile = \"" + folder_.string() + "/data/observation.npz\"\n" + kNoise +
                     kTv + kFewDraws + "[report]\nbeam_uas = 20.0\n");
  EXPECT_THROW(run(beam, {folder_ / "other", ""}, quiet_), ConfigError);
}

// Sky images also under a stated beam; moved to the truth where only closures say where they are.
TEST_F(Run, SkyImagesAreMeasuredUnderABeam) {
  simulate(io::parse_toml("[truth]\nname = \"blackhole\"\nimage_size = 16\nfov_uas = 128.0\n"
                          "[observe]\nadvance_seconds = 3600\n"),
           folder_ / "sky", quiet_);
  const std::string base = "[data]\nfile = \"" + folder_.string() +
                           "/sky/observation.uvfits\"\ntruth = \"" + folder_.string() +
                           "/sky/truth.fits\"\n[likelihood]\nfov_uas = 128.0\n";
  const auto results = [&](const std::string& name, const std::string& more) {
    run(io::parse_toml(base + more), {folder_ / name, ""}, quiet_);
    return std::make_pair(io::read_text(folder_ / name / "report.html"),
                          metrics_in(io::read_text(folder_ / name / "summary.json")));
  };
  const auto [closures, c] = results("closures", std::string(kTv) + kFewDraws);
  for (const char* of : {"the mean", "draws, mean", "draws, sd"})
    EXPECT_TRUE(c[std::string("blurred PSNR of ") + of + " [dB]"].is_number()) << of;
  EXPECT_EQ(c["images moved to the truth first"], true);
  EXPECT_NE(closures.find("was first moved by the whole number of pixels"), std::string::npos);
  // The Event Horizon Telescope: one over 7 to 9 Glambda.
  const double beam = c["beam of the blurred PSNR [uas]"];
  EXPECT_GT(beam, 22);
  EXPECT_LT(beam, 30);

  const std::string phases = std::string("vis_weight = 1.0\n") + kTv + kFewDraws;
  const auto [page, v] = results("phases", phases + "[report]\nbeam_uas = 40.0\n");
  EXPECT_EQ(v["images moved to the truth first"], false);
  EXPECT_EQ(page.find("was first moved"), std::string::npos);
  EXPECT_EQ(v["beam of the blurred PSNR [uas]"], 40.0);
  EXPECT_NE(page.find("PSNR under a beam of 40 µas FWHM [dB]"), std::string::npos);
  // How results are looked at is no part of a run's identity.
  const auto hash = [](const std::string& text) { return config_hash(io::parse_toml(text)); };
  const std::string beam_table = "[report]\nbeam_uas = 40.0\n";
  EXPECT_EQ(hash("seed = 1\n" + phases), hash("seed = 1\n" + phases + beam_table));
  EXPECT_EQ(hash("seed = 1\n[infer]\nsteps = 2\n"),
            hash("seed = 1\n" + beam_table + "[infer]\nsteps = 2\n"));
  EXPECT_NE(hash("seed = 1\n[infer]\nsteps = 2\n"), hash("seed = 1\n[infer]\nsteps = 3\n"));
}

// What log p cost and how well it is known is part of the summary.
TEST_F(Run, SummaryHasThePriorsWork) {
  const auto [page, summary] =
      infer(kDpi, std::string("name = \"sum\"\n[prior.score_ode]\nn_probes = 2\n"
                              "[prior.score_ode.score]\n") +
                      kLaw + "[prior.tv]\nweight = 1.0\n");
  const auto j = nlohmann::json::parse(summary)["inference"];
  const auto number = [&](const char* name) { return j["numbers"].at(name).get<double>(); };
  EXPECT_EQ(number("prior.score_ode.images"), 3 * 4);
  EXPECT_EQ(number("prior.score_ode.failed"), 0);
  EXPECT_GT(number("prior.score_ode.nfe_mean"), 10);
  EXPECT_GE(number("prior.score_ode.nfe_max"), number("prior.score_ode.nfe_mean"));
  // Two probes, so two products a right-hand side, on the way back too.
  EXPECT_NEAR(number("prior.score_ode.vjps_mean"), 2 * number("prior.score_ode.nfe_mean"), 1e-9);
  EXPECT_GT(number("prior.score_ode.solver_error_mean"), 0);
  EXPECT_GE(number("prior.score_ode.standard_error_max"), 0);
  EXPECT_TRUE(j["warnings"].empty()) << j["warnings"];
  EXPECT_NE(page.find("prior.score_ode.nfe_mean"), std::string::npos);
}

// No density at all: the run has diverged, and the sentence says what stopped log p.
TEST_F(Run, SaysWhatStoppedThePrior) {
  const auto [page, summary] =
      infer(kDpi, std::string("name = \"score_ode\"\nmax_steps = 1\n[prior.score]\n") + kLaw);
  EXPECT_EQ(outcome_.status, Status::kDiverged);
  for (const std::string& text : {page, summary, outcome_.message})
    EXPECT_NE(text.find("log p had no value in 12 of 12 evaluations: step limit reached at t = "),
              std::string::npos)
        << outcome_.message;
  EXPECT_NE(outcome_.message.find("no usable density"), std::string::npos) << outcome_.message;
  // Asked again, the finished folder says the same.
  const std::string message = outcome_.message;
  infer(kDpi, std::string("name = \"score_ode\"\nmax_steps = 1\n[prior.score]\n") + kLaw);
  EXPECT_EQ(outcome_.status, Status::kDiverged);
  EXPECT_EQ(outcome_.message, message);
}

TEST_F(Run, WarnsOfGradientsThatDisagree) {
  const auto [page, summary] =
      infer(kDpi, std::string("name = \"score_ode\"\nsteps = 2\ncheck_gradient = true\n"
                              "gradient_tolerance = 1e-9\n[prior.score]\n") +
                      kLaw);
  const auto j = nlohmann::json::parse(summary)["inference"];
  ASSERT_EQ(j["warnings"].size(), 1u);
  EXPECT_NE(j["warnings"][0].get<std::string>().find("prior: two gradients differed by up to"),
            std::string::npos);
  EXPECT_GT(j["numbers"]["prior.gradient_difference_max"].get<double>(), 1e-9);
  EXPECT_NE(page.find("two gradients differed by up to"), std::string::npos);
  // A report that is built again keeps it.
  rebuild_report(folder_ / "run", quiet_);
  EXPECT_NE(io::read_text(folder_ / "run" / "report.html").find("two gradients differed by up to"),
            std::string::npos);
}

}  // namespace
}  // namespace scoreprior
