#include "scoreprior/pipeline/train.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/nets/score_net.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr double kSpread = 0.35;

// Gaussian images around 0.5; image `index` is a function of (split, index). `poison` in the table:
// NaN every so many. `sleep_ms`: how long a batch takes.
class GaussianImages final : public Dataset {
 public:
  GaussianImages(const Config& c, const std::string& split)
      : rng_(Rng(11).split(split)),
        size_(c.get<int64_t>("size", 0)),
        poison_(c.get<int64_t>("poison", 0)),
        sleep_ms_(c.get<int64_t>("sleep_ms", 0)) {}
  Shape image_shape() const override { return {1, 8, 8}; }
  int64_t size() const override { return size_; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng&) const override {
    std::this_thread::sleep_for(std::chrono::milliseconds(sleep_ms_));
    std::vector<at::Tensor> rows;
    for (const int64_t i : indices) {
      at::Tensor x = rng_.from_row(i).normal({1, 1, 8, 8}) * kSpread + 0.5;
      if (poison_ > 0 && i % poison_ == poison_ - 1) x.fill_(NAN);
      rows.push_back(x);
    }
    return at::cat(rows);
  }
  std::string describe() const override { return "Gaussian test images"; }

 private:
  Rng rng_;
  int64_t size_, poison_, sleep_ms_;
};

// The exact score of N(0.5, e^v I) under VP(0.1, 20), v learned: net = std (x - alpha/2) / (alpha^2
// e^v + std^2).
class GaussianNet final : public ScoreNet {
 public:
  explicit GaussianNet(const Config& c) : v_(at::zeros({1}).requires_grad_(true)) {
    c.get<int64_t>("image_size", 8);
    c.get<int64_t>("channels", 1);
    c.get<bool>("centered", false);
  }
  Shape image_shape() const override { return {1, 8, 8}; }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& label, const Rng*) const override {
    const at::Tensor t = label / 999, b = t * 0.1 + t * t * 9.95;
    const at::Tensor alpha = expand_like_batch((b * -0.5).exp(), x),
                     var = expand_like_batch(-at::expm1(-b), x);
    return var.sqrt() * (x - alpha * 0.5) / (alpha.square() * v_.exp() + var);
  }
  std::map<std::string, at::Tensor> parameters() const override { return {{"log_variance", v_}}; }
  std::map<std::string, at::Tensor> buffers() const override { return {}; }
  void initialize(const Rng&) override {
    at::NoGradGuard no_grad;
    v_.zero_();
  }
  void to(at::ScalarType dtype, at::Device device) override {
    at::NoGradGuard no_grad;
    v_.set_data(v_.detach().to(device, dtype));
  }
  void freeze() override { v_.set_requires_grad(false); }
  void use_bfloat16_convolutions() override {}  // it has none

 private:
  at::Tensor v_;
};

// Stops the training after `stop` steps.
class StopAt final : public Observer {
 public:
  explicit StopAt(int64_t stop) : stop_(stop) {}
  void step(int64_t done, const Metrics&) override { done_ = done; }
  bool stop_requested() const override { return stop_ > 0 && done_ + 1 >= stop_; }
  void note(const std::string& sentence) override { notes += sentence + "\n"; }
  std::string notes;

 private:
  int64_t stop_, done_ = 0;
};

constexpr const char* kConvolutional = R"(
seed = 5
[data]
name = "gaussian_images"
size = 50
[model]
name = "ncsnpp"
nf = 8
ch_mult = [1, 2]
num_res_blocks = 1
attn_resolutions = [4]
dropout = 0.1
[training]
steps = 30
batch = 8
lr = 0.002
warmup = 5
log_every = 7
validate_every = 10
validation_images = 16
checkpoint_every = 6
sample_every = 0
)";

constexpr const char* kGaussian = R"(
[data]
name = "gaussian_images"
[model]
name = "gaussian_net"
[training]
steps = 300
batch = 64
lr = 0.05
warmup = 10
schedule = "cosine"
validate_every = 300
validation_images = 4096
sample_every = 0
)";

class TrainTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    mutable_datasets().add("gaussian_images", "test",
                           [](const Config& c, const std::string& split) {
                             return std::make_unique<GaussianImages>(c, split);
                           });
    mutable_score_nets().add("gaussian_net", "test",
                             [](const Config& c) { return std::make_unique<GaussianNet>(c); });
    set_threads(1);
  }
  void SetUp() override {
    folder_ =
        fs::temp_directory_path() /
        (std::string("train_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static Config config(const std::string& text, const std::vector<std::string>& overrides = {}) {
    Config c = io::parse_toml(text);
    io::apply_overrides(c, overrides);
    return c;
  }
  static Summary run(const Config& c, const fs::path& folder, int64_t stop = 0) {
    StopAt observer(stop);
    return train(c, folder, observer);
  }
  static void expect_same_state(const fs::path& a, const fs::path& b) {
    for (const char* file : {"checkpoint.safetensors", "model.safetensors"}) {
      const auto x = io::read_safetensors(a / file).tensors,
                 y = io::read_safetensors(b / file).tensors;
      ASSERT_EQ(x.size(), y.size());
      for (const auto& [name, t] : x)
        if (name != "counters") {
          EXPECT_TRUE(at::equal(t, y.at(name))) << file << " " << name;
        }
    }
  }
  // metrics.jsonl without the speeds.
  static std::vector<nlohmann::json> metrics(const fs::path& folder) {
    std::ifstream in(folder / "metrics.jsonl");
    std::vector<nlohmann::json> out;
    for (std::string line; std::getline(in, line);) {
      out.push_back(nlohmann::json::parse(line));
      out.back().erase("images_per_second");
    }
    return out;
  }
  fs::path folder_;
};

TEST_F(TrainTest, ResumesBitForBit) {
  const Summary whole = run(config(kConvolutional), folder_ / "whole");
  ASSERT_EQ(whole.status, Status::kConverged);
  EXPECT_EQ(whole.numbers.at("steps"), 30);
  EXPECT_EQ(whole.numbers.at("images"), 240);
  EXPECT_EQ(whole.numbers.at("skipped_steps"), 0);
  for (const int64_t stop : {3, 11, 17, 29}) {
    const Summary part = run(config(kConvolutional), folder_ / "parts", stop);
    EXPECT_EQ(part.status, Status::kInterrupted);
    EXPECT_EQ(part.numbers.at("steps"), stop);
  }
  EXPECT_EQ(run(config(kConvolutional), folder_ / "parts").status, Status::kConverged);
  expect_same_state(folder_ / "whole", folder_ / "parts");
  EXPECT_EQ(metrics(folder_ / "whole"), metrics(folder_ / "parts"));
}

// A kill leaves an older checkpoint, and lines of metrics of steps that will be done again.
TEST_F(TrainTest, ResumesAfterAKillBetweenCheckpoints) {
  run(config(kConvolutional), folder_ / "whole");
  run(config(kConvolutional), folder_ / "killed", 12);
  const fs::path checkpoint = folder_ / "killed" / "checkpoint.safetensors";
  fs::copy_file(checkpoint, folder_ / "old");
  run(config(kConvolutional), folder_ / "killed", 17);
  fs::copy_file(folder_ / "old", checkpoint, fs::copy_options::overwrite_existing);
  std::ofstream(folder_ / "killed" / "metrics.jsonl", std::ios::app) << "{\"step\": 17, \"lo";
  run(config(kConvolutional), folder_ / "killed");
  expect_same_state(folder_ / "whole", folder_ / "killed");
  EXPECT_EQ(metrics(folder_ / "whole"), metrics(folder_ / "killed"));
}

// A killed training leaves grids of steps it will do again: they are not of the state it goes on
// from.
TEST_F(TrainTest, PageShowsCurvesAndTheGridsOfStepsDone) {
  const auto page = [&] {
    std::ifstream in(folder_ / "report.html");
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::vector<std::string> often = {"training.sample_every=5", "training.samples=4",
                                          "sampling.steps=3", "training.validate_every=5"};
  run(config(kConvolutional, often), folder_, 16);
  const std::string before = page();
  EXPECT_NE(before.find("Stopped at step 16 of 30"), std::string::npos);
  for (const char* shown :
       {"Training loss", "Validation loss", "Step 5<", "Step 10<", "Step 15<", "dropout = 0.1"})
    EXPECT_NE(before.find(shown), std::string::npos) << shown;
  fs::copy_file(folder_ / "samples" / "step_0000015.npy", folder_ / "samples" / "step_0000025.npy");
  run(config(kConvolutional, often), folder_, 18);
  EXPECT_EQ(page().find("Step 25<"), std::string::npos);
  run(config(kConvolutional, often), folder_);
  const std::string after = page();
  EXPECT_NE(after.find("Trained for 30 steps."), std::string::npos);
  EXPECT_NE(after.find("Step 5<"), std::string::npos);
  EXPECT_NE(after.find("Step 30<"), std::string::npos);
}

TEST_F(TrainTest, RefusesOtherSettings) {
  run(config(kConvolutional), folder_, 4);
  try {
    run(config(kConvolutional, {"training.lr=0.003"}), folder_);
    FAIL() << "other settings were accepted";
  } catch (const CannotCreateError& e) {
    EXPECT_NE(std::string(e.what()).find("lr = 0.002 there"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("lr = 0.003 here"), std::string::npos) << e.what();
  }
  // Bookkeeping and the number of steps may change.
  const Summary s =
      run(config(kConvolutional, {"training.steps=6", "training.log_every=2"}), folder_);
  EXPECT_EQ(s.status, Status::kConverged);
  EXPECT_EQ(s.numbers.at("steps"), 6);
  EXPECT_EQ(run(config(kConvolutional, {"training.steps=6"}), folder_).numbers.at("steps"), 6);
  std::ofstream(folder_ / "checkpoint.safetensors") << "torn";
  EXPECT_THROW(run(config(kConvolutional), folder_), DataError);
}

TEST_F(TrainTest, AccumulatedPartsAreTheWholeBatch) {
  const std::vector<std::string> common = {"run.dtype=float64", "training.steps=5",
                                           "training.warmup=0"};
  auto parts = common;
  parts.push_back("training.accumulate=4");
  run(config(kConvolutional, common), folder_ / "one");
  run(config(kConvolutional, parts), folder_ / "four");
  const at::Tensor a =
      io::read_safetensors(folder_ / "one" / "checkpoint.safetensors").tensors.at("weights");
  const at::Tensor b =
      io::read_safetensors(folder_ / "four" / "checkpoint.safetensors").tensors.at("weights");
  // Adam divides by sqrt(v): the rounding of near-zero gradients (the key bias of attention) is
  // magnified to lr.
  const at::Tensor d = (a - b).abs();
  EXPECT_LT(d.median().item<double>(), 1e-12);
  EXPECT_LT((d > 1e-8).to(at::kDouble).mean().item<double>(), 0.01);
}

// A step of this network takes a few milliseconds, its images 50: most of the time is waiting.
TEST_F(TrainTest, WaitingForImagesIsCounted) {
  const std::vector<std::string> common = {"training.steps=12", "training.batch=8",
                                           "training.validation_images=8"};
  auto slow = common;
  slow.push_back("data.sleep_ms=50");
  const double quick =
                   run(config(kGaussian, common), folder_ / "quick").numbers.at("data_wait_share"),
               waiting =
                   run(config(kGaussian, slow), folder_ / "slow").numbers.at("data_wait_share");
  EXPECT_GE(quick, 0);
  EXPECT_GT(waiting, 0.5);
  EXPECT_LT(waiting, 1);
  EXPECT_GT(waiting, quick);
}

TEST_F(TrainTest, GaussianReachesItsClosedFormMinimum) {
  const Summary s = run(config(kGaussian), folder_);
  ASSERT_EQ(s.status, Status::kConverged);
  // D/2 E_t[alpha^2 s^2 / (alpha^2 s^2 + std^2)], t uniform on [1e-5,1].
  double minimum = 0;
  const int64_t cells = 200000;
  for (int64_t i = 0; i < cells; ++i) {
    const double t = 1e-5 + (1 - 1e-5) * (i + 0.5) / cells, b = 0.1 * t + 9.95 * t * t;
    const double signal = std::exp(-b) * kSpread * kSpread;
    minimum += 32 * signal / (signal - std::expm1(-b)) / cells;
  }
  // Per image the loss is a scaled chi^2_64 of relative standard deviation sqrt(2/64); 4096 images
  // and 5 standard errors. The remaining error of the learned variance adds to second order only.
  EXPECT_NEAR(s.numbers.at("validation_loss"), minimum, 5 * minimum * 0.25 / 64);
  const auto model = make_score_model(
      io::parse_toml("weights = \"" + (folder_ / "model.safetensors").string() + "\""), at::kFloat,
      at::kCPU);
  const auto* network = dynamic_cast<const NetworkScore*>(model.get());
  ASSERT_NE(network, nullptr);
  EXPECT_NEAR(std::exp(0.5 * network->net().parameters().at("log_variance").item<double>()),
              kSpread, 0.01);
}

TEST_F(TrainTest, SkipsNonFiniteStepsAndGivesUp) {
  // One image in 640 is NaN: one step in ten with batches of 64.
  const Summary some =
      run(config(kGaussian, {"data.poison=640", "training.steps=60"}), folder_ / "some");
  EXPECT_EQ(some.status, Status::kConverged);
  EXPECT_EQ(some.numbers.at("skipped_steps"), 6);
  EXPECT_TRUE(std::isfinite(some.numbers.at("loss")));
  const Summary all =
      run(config(kGaussian, {"data.poison=1", "training.validate_every=0"}), folder_ / "all");
  EXPECT_EQ(all.status, Status::kDiverged);
  EXPECT_EQ(all.numbers.at("steps"), 20);
  EXPECT_NE(all.message.find("non-finite"), std::string::npos);
}

TEST_F(TrainTest, MistakesComeBeforeAnyCompute) {
  EXPECT_THROW(run(config(kConvolutional, {"training.lrr=1"}), folder_), ConfigError);
  EXPECT_THROW(run(config(kConvolutional, {"model.image_size=16"}), folder_), ConfigError);
  EXPECT_THROW(run(config(kConvolutional, {"model.centered=true"}), folder_), ConfigError);
  EXPECT_THROW(run(config(kConvolutional, {"training.accumulate=3"}), folder_), ConfigError);
  EXPECT_THROW(
      run(config(kConvolutional, {"sde.type=ve", "training.importance_weighting=true"}), folder_),
      ConfigError);
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(TrainTest, ImportanceSampledTimesKeepTheMinimum) {
  const Summary s =
      run(config(kGaussian, {"training.importance_weighting=true", "training.pool=512"}), folder_);
  ASSERT_EQ(s.status, Status::kConverged);
  const auto w = io::read_safetensors(folder_ / "model.safetensors").tensors.at("log_variance");
  // 512 images of 64 pixels: the variance's own standard error is 0.8 %, five of them and the
  // training's noise.
  EXPECT_NEAR(std::exp(0.5 * w.item<double>()), kSpread, 0.02 * kSpread + 0.005);
}

}  // namespace
}  // namespace scoreprior
