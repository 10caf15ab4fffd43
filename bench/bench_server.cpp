// Answers one workload name a line with the seconds it took; see ratios.py.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <map>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/diffusion/optimizer.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/nets/score_net.h"

namespace scoreprior {
namespace {

using Work = std::function<void()>;

Work network_work(const std::string& net_name, const std::string& kind) {
  const bool large = net_name == "large";
  const Config config = io::parse_toml(
      std::string("name = \"ncsnpp\"\nimage_size = 32\nch_mult = [1, 2, 2, 2]\nattn_resolutions = [16]\n") +
      "embedding_type = \"positional\"\nprogressive_input = \"residual\"\ndropout = 0.0\n" +
      (large ? "channels = 3\nnf = 64\nnum_res_blocks = 4\n" : "channels = 1\nnf = 32\nnum_res_blocks = 1\n"));
  std::shared_ptr<ScoreNet> net = score_nets().make(config, "ncsnpp");
  net->initialize(Rng(1));
  const int64_t batch = large ? 16 : 64;
  const at::Tensor x = Rng(2).uniform({batch, large ? 3 : 1, 32, 32});
  const at::Tensor t = Rng(3).uniform({batch}) * 999;
  const at::Tensor v = Rng(4).normal(x.sizes());
  if (kind == "forward") {
    net->freeze();
    return [=] {
      at::NoGradGuard off;
      net->forward(x, t);
    };
  }
  if (kind == "vjp") {
    net->freeze();
    return [=] {
      const at::Tensor leaf = x.detach().requires_grad_(true);
      torch::autograd::grad({(net->forward(leaf, t) * v).sum()}, {leaf});
    };
  }
  SP_CHECK(kind == "train", "bench", "unknown workload ", kind);
  const AdamOptions options;
  auto adam = std::make_shared<FlatAdam>(net->parameters());
  return [=] {
    adam->zero_grad();
    (net->forward(x, t) - v).square().mean().backward();
    adam->step(options, options.lr);
    net->parameters_changed();
  };
}

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  set_threads(argc > 2 ? std::stoi(argv[2]) : 0);
  std::map<std::string, Work> ready;
  std::string name;
  while (std::getline(std::cin, name)) {
    if (!ready.count(name)) {
      const size_t cut = name.find('_');
      ready[name] = network_work(name.substr(0, cut), name.substr(cut + 1));
      ready[name]();
    }
    const auto start = std::chrono::steady_clock::now();
    ready[name]();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::cout << seconds.count() << std::endl;
  }
}
