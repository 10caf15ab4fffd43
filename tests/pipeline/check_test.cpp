#include "scoreprior/pipeline/check.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/simulate.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class Check : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-check-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // The text with @ for the folder.
  Config config(std::string text) const {
    for (size_t at; (at = text.find('@')) != std::string::npos;)
      text.replace(at, 1, folder_.string());
    return io::parse_toml(text);
  }
  CheckReport checked(const std::string& text) { return check(config(text), quiet_); }
  static const CheckLine* line(const CheckReport& report, const std::string& name) {
    for (const CheckLine& l : report.lines)
      if (l.name == name) return &l;
    return nullptr;
  }

  fs::path folder_;
  Observer quiet_;
};

const char* kTraining =
    "[data]\nname = \"phantom\"\nimage_size = 8\n[model]\nname = \"ncsnpp\"\nnf = 8\nch_mult = "
    "[1]\n"
    "num_res_blocks = 1\nattn_resolutions = []\n[training]\nsteps = 100\nbatch = 4\n"
    "validation_images = 4\n";

TEST_F(Check, SplitGibbsIsForecast) {
  io::write_npy(folder_ / "image.npy", Rng(1).uniform({1, 8, 8}, at::kDouble));
  const std::string noise = "[likelihood]\nsigma = 0.1\n";
  simulate(config("[truth]\nfile = \"@/image.npy\"\n" + noise), folder_ / "data", quiet_);
  const std::string data = "[data]\nfile = \"@/data/observation.npz\"\n" + noise;
  const CheckReport report = checked(
      data +
      "[prior]\nname = \"score_elbo\"\n[prior.score]\nname = \"gaussian\"\nmean = 0.5\nsigma = "
      "0.3\n"
      "shape = [1, 8, 8]\n[infer]\nname = \"split_gibbs\"\nn_draws = 20\nbatch = 16\nkeep = 2\n"
      "anneal = 30\nhold = 10\nrho_start = 1.0\n");
  EXPECT_TRUE(report.passed()) << check_text(report);
  const CheckLine* run = line(report, "forecast of the run");
  ASSERT_NE(run, nullptr) << check_text(report);
  EXPECT_EQ(run->text, "10 chains of 40 iterations");
  ASSERT_NE(line(report, "iteration"), nullptr);
  EXPECT_EQ(line(report, "memory")->text, "10 chains together");
  EXPECT_EQ(line(report, "1000 gradients of both"), nullptr);  // it takes none of the prior
  EXPECT_NE(report.settings.find("n_draws = 20"), std::string::npos);
}

TEST_F(Check, TrainingConfigurations) {
  const CheckReport report = checked(kTraining);
  EXPECT_TRUE(report.passed()) << check_text(report);
  for (const char* name : {"images", "pixels", "parameters", "loss", "gradient norm", "step",
                           "forecast of the training", "memory"})
    EXPECT_NE(line(report, name), nullptr) << name << "\n" << check_text(report);
  EXPECT_EQ(line(report, "images")->measured, "[1,8,8]");
  EXPECT_NE(report.settings.find("nf = 8"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_FALSE(fs::exists("checkpoint.safetensors"));
  EXPECT_THROW(checked(kTraining + std::string("stepz = 3\n")), ConfigError);
  EXPECT_THROW(checked(kTraining + std::string("[sampling]\nsteps = \"many\"\n")), ConfigError);
}

TEST_F(Check, TrainingDataOutOfRangeStandOut) {
  at::Tensor images = Rng(2).uniform({12, 1, 8, 8});
  images[3][0][2][2] = NAN;
  io::write_npy(folder_ / "images.npy", images);
  io::write_npy(folder_ / "bright.npy", 200 * Rng(2).uniform({12, 1, 8, 8}));
  const std::string model = std::string(kTraining).substr(std::string(kTraining).find("[model]"));
  const auto data = [&](const char* file) {
    return std::string("[data]\nname = \"array_stack\"\npath = \"@/") + file + "\"\n" + model;
  };
  EXPECT_THROW(checked(data("images.npy")), DataError);
  const CheckReport bright = checked(data("bright.npy"));
  EXPECT_EQ(line(bright, "pixels")->verdict, CheckLine::Verdict::kLook) << check_text(bright);
}

}  // namespace
}  // namespace scoreprior
