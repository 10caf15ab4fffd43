#pragma once
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/nets/score_net.h"

namespace scoreprior {

/// NCSN++ for 4x4 images with random weights and attention, VP, float64. init_scale 1 makes a rough
/// score, 0.1 one as smooth as a trained one.
inline std::unique_ptr<ScoreModel> small_network(double init_scale = 1) {
  auto net = score_nets().make(
      io::parse_toml("name = \"ncsnpp\"\nimage_size = 4\nchannels = 1\nnf = 8\nnum_res_blocks = 1\n"
                     "ch_mult = [1, 1]\nattn_resolutions = [2]\ndropout = 0.0\n"
                     "embedding_type = \"smooth\"\ninit_scale = " +
                     std::to_string(init_scale) + "\n"),
      "ncsnpp");
  net->initialize(Rng(1));
  net->to(at::kDouble, at::kCPU);
  net->freeze();
  return std::make_unique<NetworkScore>(std::move(net), make_sde(io::parse_toml("type = \"vp\"\n")),
                                        at::kDouble, at::kCPU, "unit");
}

}  // namespace scoreprior
