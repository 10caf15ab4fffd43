#include "scoreprior/pipeline/run.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/core/errors.h"
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

}  // namespace
}  // namespace scoreprior
