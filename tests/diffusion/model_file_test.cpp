#include "scoreprior/diffusion/model_file.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTinyNet =
    "name = \"ncsnpp\"\nimage_size = 8\nchannels = 1\nnf = 8\nch_mult = [1, 2]\nnum_res_blocks = "
    "1\n"
    "attn_resolutions = [4]\ninit_scale = 1.0\n";

class ModelFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              (std::string("model_file_") +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
    net_ = io::parse_toml(kTinyNet);
    const auto net = score_nets().make(net_, "ncsnpp");
    net->initialize(Rng(3));
    net->to(at::kFloat, at::kCPU);
    x_ = Rng(4).normal({2, 1, 8, 8});
    t_ = at::tensor({0.1f, 0.8f});
    {
      at::NoGradGuard no_grad;
      model_.weights = net->parameters();
      for (auto& [name, w] : model_.weights) w = w.detach().clone();
      for (const auto& [name, b] : net->buffers()) model_.weights[name] = b;
    }
    model_.net = net_;
    model_.sde = io::parse_toml("type = \"subvp\"\nbeta_max = 10.0\n");
    model_.record = io::parse_toml("steps = 7\nnote = \"a \\\"quoted\\\" word\"\n");
    model_.image_shape = {1, 8, 8};
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::unique_ptr<ScoreModel> load(const std::string& more = "") const {
    return make_score_model(io::parse_toml("weights = \"" + path().string() + "\"\n" + more),
                            at::kFloat, at::kCPU);
  }
  std::string message(const std::string& more = "") const {
    try {
      load(more);
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  }
  fs::path path() const { return folder_ / "model.safetensors"; }

  fs::path folder_;
  Config net_;
  ModelFile model_;
  at::Tensor x_, t_;
};

TEST_F(ModelFileTest, DescribesItself) {
  write_model_file(path(), model_);
  const ModelFile read = read_model_file(path());
  EXPECT_TRUE(read.described);
  EXPECT_EQ(read.image_shape, model_.image_shape);
  EXPECT_EQ(read.record.get<int64_t>("steps"), 7);
  EXPECT_EQ(read.record.get<std::string>("note"), "a \"quoted\" word");
  const auto model = load();
  EXPECT_EQ(model->sde().name(), "subvp");
  EXPECT_EQ(model->range(), "unit");
  EXPECT_EQ(model->event_shape(), model_.image_shape);
  at::NoGradGuard no_grad;
  const auto net = score_nets().make(io::parse_toml(kTinyNet), "ncsnpp");
  net->initialize(Rng(3));
  net->to(at::kFloat, at::kCPU);
  const at::Tensor want =
      net->forward(x_, t_ * 999) * expand_like_batch(model->sde().net_to_score(t_), x_);
  EXPECT_LT(testing::relative_error(model->score(x_, t_), want),
            1e-5);  // frozen networks may pack their weights
  // The configuration's own tables win over the file's.
  EXPECT_EQ(load("[sde]\ntype = \"vp\"\n")->sde().name(), "vp");
}

TEST_F(ModelFileTest, TruncationIsOneDataError) {
  write_model_file(path(), model_);
  const std::string bytes = io::read_text(path());
  for (const double share : {0.0, 0.0001, 0.01, 0.3, 0.999}) {
    std::ofstream(path(), std::ios::binary)
        .write(bytes.data(), static_cast<int64_t>(bytes.size() * share));
    EXPECT_THROW(load(), DataError) << share;
  }
}

TEST_F(ModelFileTest, WrongImagesAreOneSentence) {
  model_.image_shape = {3, 8, 8};
  write_model_file(path(), model_);
  EXPECT_NE(message().find("[3,8,8]"), std::string::npos) << message();
  model_.image_shape = {1, 8, 8};
  model_.range = "centered";
  write_model_file(path(), model_);
  EXPECT_NE(message().find("centered"), std::string::npos) << message();
  model_.range = "unit";
  write_model_file(path(), model_);
  std::string three = kTinyNet;
  three.replace(three.find("channels = 1"), 12, "channels = 3");
  EXPECT_FALSE(
      message("[net]\n" + three).empty());  // weights of one channel for a network of three
  model_.weights.erase(model_.weights.begin());
  write_model_file(path(), model_);
  EXPECT_NE(message().find("missing"), std::string::npos) << message();
}

TEST_F(ModelFileTest, UnknownSettingsInsideTheFileAreRefused) {
  model_.net = io::parse_toml(std::string(kTinyNet) + "number_of_wings = 2\n");
  write_model_file(path(), model_);
  EXPECT_NE(message().find("number_of_wings"), std::string::npos) << message();
}

TEST_F(ModelFileTest, WeightsAloneNeedAnArchitecture) {
  io::write_safetensors(path(), {model_.weights, {}});
  EXPECT_THROW(load(), ConfigError);
  EXPECT_EQ(load("[net]\n" + std::string(kTinyNet))->sde().name(), "vp");
}

}  // namespace
}  // namespace scoreprior
