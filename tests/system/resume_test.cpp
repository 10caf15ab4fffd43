// A run that is killed, interrupted or given other threads ends where the undisturbed one does.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "scoreprior/io/npy.h"
#include "scoreprior/io/safetensors.h"
#include "tests/system/program.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

constexpr const char* kTrain = R"(seed = 3
[data]
name = "gaussian_field"
image_size = 8
[model]
name = "ncsnpp"
nf = 8
ch_mult = [1, 2]
num_res_blocks = 1
attn_resolutions = [4]
dropout = 0.1
[training]
steps = 40
batch = 8
warmup = 5
log_every = 4
validate_every = 10
validation_images = 8
checkpoint_every = 3
sample_every = 20
samples = 2
[sampling]
steps = 3
)";

constexpr const char* kProblem = R"(seed = 5
[truth]
name = "gaussian_field"
image_size = 8
[data]
file = "observation/observation.npz"
[image]
size = 8
[likelihood]
name = "gaussian"
sigma = 0.1
[prior]
name = "tv"
weight = 20
[infer]
steps = 200
batch = 16
lr = 1e-3
warmup = 10
n_draws = 32
checkpoint_every = 10
[infer.flow]
name = "realnvp"
n_flow = 4
)";

class ResumeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fresh_folder(std::string("scoreprior_resume_") +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    write_bytes(folder_ / "train.toml", kTrain);
    write_bytes(folder_ / "problem.toml", kProblem);
  }
  void TearDown() override {
    if (!HasFailure()) fs::remove_all(folder_);
  }

  Outcome go(Words command, double signal_after = -1, int signal = SIGKILL,
             const fs::path& armed_by = {}) const {
    for (const char* w : {"--quiet", "--threads", "2"}) command.push_back(w);
    Spawn s{command, folder_, 0, signal_after, signal};
    const auto stamp = [file = folder_ / armed_by] {
      std::error_code ec;
      const auto t = fs::last_write_time(file, ec);
      return ec ? fs::file_time_type::min() : t;
    };
    if (!armed_by.empty()) s.armed = [stamp, first = stamp()] { return stamp() != first; };
    return spawn(s);
  }

  // Kills the command ten times, at any moment of the start and after a checkpoint, then lets it
  // end.
  void torment(const Words& command, const fs::path& checkpoint, double undisturbed,
               unsigned seed) {
    std::mt19937 random(seed);
    const auto uniform = [&](double high) {
      return std::uniform_real_distribution<double>(0, high)(random);
    };
    int killed = 0, started = 0;
    Outcome o;
    for (; killed < kKills && started < 3 * kKills; ++started) {
      const bool any_moment = started % 3 == 2;
      o = any_moment ? go(command, uniform(undisturbed))
                     : go(command, uniform(0.03 * undisturbed), SIGKILL, checkpoint);
      if (o.signal == SIGKILL)
        ++killed;
      else if (o.code == 0)
        break;
      ASSERT_TRUE(o.signal == SIGKILL || o.code == 0) << o.code << ": " << o.err;
    }
    std::cout << "killed " << killed << " of " << started << " times\n";
    EXPECT_GE(killed, kKills / 2) << "too few kills hit the run";
    o = go(command);
    ASSERT_EQ(o.code, 0) << o.err;
  }

  static void expect_same_tensors(const fs::path& a, const fs::path& b) {
    const auto x = io::read_safetensors(a).tensors, y = io::read_safetensors(b).tensors;
    ASSERT_EQ(x.size(), y.size());
    for (const auto& [name, t] : x)
      if (name != "counters" || t.scalar_type() == at::kLong) {  // the trainer's hold seconds
        EXPECT_TRUE(at::equal(t, y.at(name))) << b << " " << name;
      }
  }
  static std::vector<nlohmann::json> metrics(const fs::path& file) {
    std::ifstream in(file);
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(in, line);) {
      lines.push_back(nlohmann::json::parse(line));
      lines.back().erase("images_per_second");
    }
    return lines;
  }
  // Reading throws for a torn file; every array and weight file of a finished folder must be whole.
  static void expect_whole(const fs::path& folder) {
    EXPECT_TRUE(temporaries_below(folder).empty()) << *temporaries_below(folder).begin();
    for (const auto& [name, bytes] : files_below(folder)) {
      const fs::path file = folder / name;
      if (file.extension() == ".npy") io::read_npy(file);
      if (file.extension() == ".npz") io::read_npz(file);
      if (file.extension() == ".safetensors") io::read_safetensors(file);
      if (file.extension() == ".json") {
        EXPECT_TRUE(nlohmann::json::accept(bytes)) << name;
      }
    }
  }

  static constexpr int kKills = 10;
  fs::path folder_;
};

TEST_F(ResumeTest, TrainingSurvivesKills) {
  const Outcome whole = go({"train", "train.toml", "--out", "whole"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  torment({"train", "train.toml", "--out", "killed"}, "killed/checkpoint.safetensors",
          whole.seconds, 11);
  const fs::path a = folder_ / "whole", b = folder_ / "killed";
  expect_whole(b);
  expect_same_tensors(a / "model.safetensors", b / "model.safetensors");
  expect_same_tensors(a / "checkpoint.safetensors", b / "checkpoint.safetensors");
  EXPECT_EQ(metrics(a / "metrics.jsonl"), metrics(b / "metrics.jsonl"));
  EXPECT_EQ(slurp(a / "samples" / "step_0000040.npy"), slurp(b / "samples" / "step_0000040.npy"));
}

TEST_F(ResumeTest, InferenceSurvivesKills) {
  ASSERT_EQ(go({"simulate", "problem.toml", "--out", "observation", "infer.steps=1"}).code, 0);
  const std::string problem = std::string(kProblem);
  write_bytes(folder_ / "problem.toml",
              problem.substr(0, problem.find("[truth]")) + problem.substr(problem.find("[data]")));
  const Outcome whole = go({"run", "problem.toml", "--out", "whole"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  torment({"run", "problem.toml", "--out", "killed"}, "killed/state.safetensors", whole.seconds,
          12);
  const fs::path a = folder_ / "whole", b = folder_ / "killed";
  expect_whole(b);
  EXPECT_EQ(slurp(a / "draws.npy"), slurp(b / "draws.npy"));
  EXPECT_EQ(slurp(a / "history.npz"), slurp(b / "history.npz"));
  EXPECT_EQ(slurp(a / "mean.npy"), slurp(b / "mean.npy"));
  expect_same_tensors(a / "state.safetensors", b / "state.safetensors");

  // Ctrl-C ends the step that runs, saves and says so by its exit code. A run may be over before
  // the signal comes.
  Outcome o;
  fs::path c;
  for (int attempt = 0; attempt < 5 && o.code != 75; ++attempt) {
    c = folder_ / ("interrupted" + std::to_string(attempt));
    o = go({"run", "problem.toml", "--out", c.string()}, 0, SIGINT, c / "state.safetensors");
  }
  ASSERT_EQ(o.code, 75) << o.err;
  EXPECT_FALSE(fs::exists(c / "summary.json"));
  ASSERT_EQ(go({"run", "problem.toml", "--out", c.string()}).code, 0);
  EXPECT_EQ(slurp(a / "draws.npy"), slurp(c / "draws.npy"));

  // Another number of threads sums in another order: 1e-7 relative per operation, which 30 steps of
  // Adam, whose first steps are sign-like, let grow to below 1e-3 of the draws' spread.
  const Words few = {"run", "problem.toml", "infer.steps=30", "--out"};
  Words one = few, two = few;
  one.push_back("one");
  one.push_back("--threads");
  one.push_back("1");
  two.push_back("two");
  ASSERT_EQ(spawn({[&] {
                     one.push_back("--quiet");
                     return one;
                   }(),
                   folder_})
                .code,
            0);
  ASSERT_EQ(go(two).code, 0);
  const at::Tensor x = io::read_npy(folder_ / "one" / "draws.npy").to(at::kDouble);
  const at::Tensor y = io::read_npy(folder_ / "two" / "draws.npy").to(at::kDouble);
  const double difference = (x - y).abs().max().item<double>() / x.std().item<double>();
  std::cout << "threads 1 and 2 differ by " << difference << " of the spread\n";
  EXPECT_LT(difference, 1e-3);
}

// Sums in another order are other roundings: 1e-7 each, 1e-4 at most in a loss after ten steps of
// Adam.
TEST_F(ResumeTest, TrainingWithOtherThreads) {
  Words one = {"train",  "train.toml", "training.steps=10", "training.log_every=1",
               "--out",  "one",        "--threads",         "1",
               "--quiet"};
  ASSERT_EQ(spawn({one, folder_}).code, 0);
  ASSERT_EQ(
      go({"train", "train.toml", "training.steps=10", "training.log_every=1", "--out", "two"}).code,
      0);
  const auto a = metrics(folder_ / "one" / "metrics.jsonl"),
             b = metrics(folder_ / "two" / "metrics.jsonl");
  ASSERT_EQ(a.size(), b.size());
  double difference = 0;
  for (size_t k = 0; k < a.size(); ++k)
    for (const char* key : {"loss", "validation_loss"})
      if (a[k].contains(key)) {
        const double x = a[k][key], y = b[k][key];
        difference = std::max(difference, std::abs(x - y) / std::abs(x));
      }
  std::cout << "losses of threads 1 and 2 differ by " << difference << "\n";
  EXPECT_LT(difference, 1e-4);
}

TEST_F(ResumeTest, TrainingStopsOnInterrupt) {
  Outcome o;
  for (int attempt = 0; attempt < 5 && o.code != 75; ++attempt) {
    fs::remove_all(folder_ / "interrupted");
    o = go({"train", "train.toml", "--out", "interrupted"}, 0, SIGINT,
           "interrupted/checkpoint.safetensors");
  }
  ASSERT_EQ(o.code, 75) << o.err;
  EXPECT_EQ(go({"train", "train.toml", "--out", "interrupted"}).code, 0);
  EXPECT_TRUE(fs::exists(folder_ / "interrupted" / "samples" / "step_0000040.npy"));
  expect_whole(folder_ / "interrupted");
}

}  // namespace
}  // namespace scoreprior
