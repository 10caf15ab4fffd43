#include "scoreprior/pipeline/run.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

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
  std::pair<std::string, std::string> infer(const std::string& method) {
    const Config config =
        io::parse_toml("[data]\nfile = \"" + folder_.string() + "/data/observation.npz\"\n" +
                       kNoise + "[image]\nsize = 16\n[prior]\nname = \"tv\"\n[infer]\n" + method);
    const RunOutcome outcome = run(config, {folder_ / "run", ""}, quiet_);
    EXPECT_EQ(outcome.report, folder_ / "run" / "report.html");
    return {io::read_text(folder_ / "run" / "report.html"),
            io::read_text(folder_ / "run" / "summary.json")};
  }

  static constexpr const char* kNoise = "[likelihood]\nsigma = 0.1\n";
  fs::path folder_;
  Observer quiet_;
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

}  // namespace
}  // namespace scoreprior
