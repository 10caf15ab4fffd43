#include "scoreprior/pipeline/info.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/nets/score_net.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

TEST(Info, ModelFile) {
  const fs::path file =
      fs::temp_directory_path() / ("info_" + std::to_string(::getpid()) + ".safetensors");
  ModelFile m;
  m.net = io::parse_toml(
      "name = \"ncsnpp\"\nimage_size = 8\nchannels = 1\nnf = 8\nch_mult = [1, 2]\nnum_res_blocks = "
      "1\n");
  m.sde = io::parse_toml("type = \"vp\"\nbeta_max = 20.0\n");
  m.record = io::parse_toml(
      "seed = 7\nsteps = 300\nimages_seen = 19200\nloss = 5.5\ncurve_steps = [100, 200, "
      "300]\ncurve_loss = [9.0, 6.0, 5.5]\n"
      "config = \"seed = 7\\n[data]\\nname = \\\"blackhole\\\"\\nfov_uas = 128\\n\"\n");
  const auto net = score_nets().make(m.net, "ncsnpp");
  net->initialize(Rng(1));
  int64_t parameters = 0;
  for (const auto& [name, p] : net->parameters()) parameters += p.numel();
  m.weights = net->parameters();
  for (const auto& [name, b] : net->buffers()) m.weights[name] = b;
  m.image_shape = {1, 8, 8};
  write_model_file(file, m);

  const auto j = nlohmann::json::parse(describe_file(file, true));
  EXPECT_EQ(j["kind"], "scoreprior model");
  EXPECT_EQ(j["parameters"], parameters);
  EXPECT_EQ(j["images"]["shape"].get<std::vector<int64_t>>(), (std::vector<int64_t>{1, 8, 8}));
  EXPECT_EQ(j["images"]["range"], "unit");
  EXPECT_EQ(j["images"]["fov_uas"], 128.0) << "of the configuration in the record";
  EXPECT_EQ(j["net"]["ch_mult"].get<std::vector<int64_t>>(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(j["sde"]["type"], "vp");
  EXPECT_EQ(j["record"]["images_seen"], 19200);
  EXPECT_EQ(j["record"]["curve_loss"].size(), 3u);
  const std::string text = describe_file(file, false);
  EXPECT_NE(text.find("5.5 (step 300)"), std::string::npos) << text;

  m.fov_uas = 64;  // said outright, it counts
  write_model_file(file, m);
  EXPECT_EQ(read_model_file(file).fov_uas, 64);
  io::write_safetensors(file, {{{"w", at::ones({2, 3})}}, {}});
  EXPECT_EQ(nlohmann::json::parse(describe_file(file, true))["kind"], "safetensors");
  fs::remove(file);
}

}  // namespace
}  // namespace scoreprior
