#include "scoreprior/pipeline/run.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
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
