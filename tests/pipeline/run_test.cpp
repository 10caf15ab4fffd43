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

// One image has no spread: a report without it, not an error.
TEST(Run, OneImageOfMapIsAResult) {
  const fs::path folder = fs::temp_directory_path() / ("sp-run-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  io::write_npy(folder / "image.npy", Rng(1).uniform({1, 16, 16}, at::kDouble));
  const std::string at = folder.string();
  Observer quiet;
  const std::string likelihood = "[likelihood]\nsigma = 0.1\n";
  simulate(io::parse_toml("[truth]\nfile = \"" + at + "/image.npy\"\n" + likelihood),
           folder / "data", quiet);
  const Config config =
      io::parse_toml("[data]\nfile = \"" + at + "/data/observation.npz\"\n" + likelihood +
                     "[image]\nsize = 16\n[prior]\nname = \"tv\"\n"
                     "[infer]\nname = \"map\"\nsteps = 20\n");
  run(config, {folder / "run", ""}, quiet);
  EXPECT_TRUE(fs::exists(folder / "run" / "report.html"));
  const std::string summary = io::read_text(folder / "run" / "summary.json");
  EXPECT_NE(summary.find("PSNR of the mean"), std::string::npos);
  EXPECT_EQ(summary.find("central 90 %"), std::string::npos);
  EXPECT_EQ(summary.find("null"), std::string::npos);
  rebuild_report(folder / "run", quiet);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace scoreprior
