// Answers one workload name a line with the seconds it took; see ratios.py.
//   {large,small,shipped}_{forward,vjp,train}  networks; small and shipped at batch 64, large at 16
//   {large,small,shipped}_divgrad  one Hutchinson probe: drift, divergence and the gradient of both
//                     (forward, vector-Jacobian product, derivative of the product); large at 4
//   realnvp_DIM       forward, backward, clip and Adam of a RealNVP, batch 64, 32 flow steps
//   dpi               a whole step of variational inference: RealNVP (32 steps, D = 1024), ELBO of
//   the shipped
//                     architecture, closures of a night of the EHT 2017; batch 64
//   exactdpi_{checkpoint,direct}  one step with the exact prior: RealNVP (32 steps, D = 3072), log
//   p
//                     by 2 Heun steps in time and one probe through the large network, its gradient
//                     through the steps by that adjoint, denoising likelihood; batch 4
//   roof_conv, roof_gemm   4.83 GFLOP of oneDNN's 3x3 convolution, 17.18 GFLOP of matrix product
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <complex>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/data/observe.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/diffusion/optimizer.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/infer/adam.h"
#include "scoreprior/infer/vi.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/nets/double_backward.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

using Work = std::function<void()>;

Config bench_net(const std::string& name) {
  const std::string common =
      "name = \"ncsnpp\"\nimage_size = 32\nprogressive_input = \"residual\"\ndropout = 0.0\n";
  if (name == "large")
    return io::parse_toml(common +
                          "channels = 3\nnf = 64\nnum_res_blocks = 4\nch_mult = [1, 2, 2, 2]\n"
                          "attn_resolutions = [16]\nembedding_type = \"positional\"\n");
  if (name == "small")
    return io::parse_toml(common +
                          "channels = 1\nnf = 32\nnum_res_blocks = 1\nch_mult = [1, 2, 2, 2]\n"
                          "attn_resolutions = [16]\nembedding_type = \"positional\"\n");
  SP_CHECK(name == "shipped", "bench", "unknown network ", name);  // configs/train_blackhole.toml
  return io::parse_toml(common +
                        "channels = 1\nnf = 32\nnum_res_blocks = 1\nch_mult = [1, 1, 2]\n"
                        "attn_resolutions = [8]\nembedding_type = \"smooth\"\n");
}

Work network_work(const std::string& net_name, const std::string& kind) {
  const bool large = net_name == "large";
  const Config config = bench_net(net_name);
  std::shared_ptr<ScoreNet> net = score_nets().make(config, "ncsnpp");
  net->initialize(Rng(1));
  const int64_t batch = kind == "divgrad" ? (large ? 4 : 16) : large ? 16 : 64;
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
  if (kind == "divgrad") {
    net->freeze();
    const at::Tensor e = Rng(5).rademacher(x.sizes(), at::kFloat);
    return [=] {
      const DoubleBackwardScope twice;
      const at::Tensor leaf = x.detach().requires_grad_(true);
      const at::Tensor s = net->forward(leaf, t);
      const at::Tensor pull = torch::autograd::grad({s}, {leaf}, {e}, true, true)[0];
      torch::autograd::grad({(pull * e).sum() + (s * v).sum()}, {leaf});
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

std::shared_ptr<Flow> bench_flow(int64_t dim) {
  Config table =
      io::parse_toml("n_flow = 32\nsoftplus = true\ninit_mean = 0.03\ninit_std = 0.02\n");
  std::shared_ptr<Flow> flow = flows().make(table, "realnvp", FlowContext{dim});
  flow->initialize(Rng(1));
  return flow;
}

BufferAdamOptions clipped_adam() {
  BufferAdamOptions o;
  o.clip = 1;
  return o;
}

Work realnvp_work(int64_t dim) {
  const int64_t batch = 64;
  const auto flow = bench_flow(dim);
  const auto adam = std::make_shared<BufferAdam>(flow->flat_parameters(), clipped_adam());
  const at::Tensor z = Rng(2).normal({batch, dim}), x_bar = Rng(3).normal({batch, dim}) / batch;
  const at::Tensor log_det_bar = at::full({batch}, -1.0 / batch, at::kFloat);
  return [=] {
    flow->sample(z, true);
    flow->backward(x_bar, log_det_bar);
    adam->step(flow->flat_parameters(), flow->flat_grad(), 1e-5);
  };
}

// A score model as a file of random weights: only its shape decides the time.
std::shared_ptr<LogDensity> bench_prior(const std::string& net_name, const Shape& shape,
                                        const std::string& prior_name, const std::string& keys) {
  ModelFile m;
  m.net = bench_net(net_name);
  const auto net = score_nets().make(m.net, "ncsnpp");
  net->initialize(Rng(4));
  m.weights = net->parameters();
  for (const auto& [name, b] : net->buffers()) m.weights[name] = b;
  m.sde = io::parse_toml("type = \"vp\"\n");
  m.image_shape = shape;
  const auto path = std::filesystem::temp_directory_path() /
                    ("bench_" + std::to_string(::getpid()) + ".safetensors");
  write_model_file(path, m);
  PriorContext context;
  context.image_shape = m.image_shape;
  const Config table = io::parse_toml(keys + "[score]\nweights = \"" + path.string() + "\"\n");
  std::shared_ptr<LogDensity> prior = priors().make(table, prior_name, context);
  std::filesystem::remove(path);
  return prior;
}

std::shared_ptr<LogDensity> closure_data() {
  ObserveOptions o;
  o.stop_hours = 8;
  // An off-centre Gaussian of 40 uas.
  const auto model = [](const VisibilityTable& t) {
    std::vector<std::complex<double>> v;
    for (const auto& r : t.rows)
      v.push_back(0.6 * std::exp(-1.3e-19 * (r.u * r.u + r.v * r.v)) *
                  std::polar(1.0, 1e-10 * (r.u + 2 * r.v)));
    return v;
  };
  Observation observation;
  observation.visibilities = observe(o, model, Rng(5));
  LikelihoodContext context;
  context.image_shape = {1, 32, 32};
  const Config table = io::parse_toml("fov_uas = 128\ntotal_flux = 0.6\npixel_sum = 30.72\n");
  return likelihoods().make(table, "interferometry", observation, context);
}

Work dpi_work() {
  const int64_t batch = 64, dim = 1024;
  const auto flow = bench_flow(dim);
  const auto adam = std::make_shared<BufferAdam>(flow->flat_parameters(), clipped_adam());
  const auto prior = bench_prior("shipped", {1, 32, 32}, "score_elbo", ""), data = closure_data();
  const auto step = std::make_shared<int64_t>(0);
  return [=] {
    const int64_t t = (*step)++;
    const at::Tensor z = Rng(6).at(t).normal({batch, dim});
    const ElboEstimate e = elbo_step(*flow, Target{*prior, *data}, z, Rng(7).at(t), ElboWeights{});
    SP_CHECK(e.rows == batch, "bench", "only ", e.rows, " usable rows");
    adam->step(flow->flat_parameters(), flow->flat_grad(), 1e-5);
  };
}

Work exact_dpi_work(const std::string& adjoint) {
  const int64_t batch = 4, dim = 3 * 32 * 32;
  const Config flow_table =
      io::parse_toml("name = \"realnvp\"\nn_flow = 32\ninit_mean = 0.5\ninit_std = 0.2\n");
  std::shared_ptr<Flow> flow = flows().make(flow_table, "realnvp", FlowContext{dim});
  flow->initialize(Rng(1));
  const auto adam = std::make_shared<BufferAdam>(flow->flat_parameters(), clipped_adam());
  const auto prior =
      bench_prior("large", {3, 32, 32}, "score_ode",
                  "solver = \"heun\"\nvariable = \"time\"\nsteps = 2\nn_probes = 1\nadjoint = \"" +
                      adjoint + "\"\nmax_memory_mib = 1e6\n");
  Observation observation;
  observation.y = Rng(5).uniform({3, 32, 32}, at::kDouble);
  LikelihoodContext context;
  context.image_shape = {3, 32, 32};
  context.forward = io::parse_toml("name = \"identity\"\n");
  const std::shared_ptr<LogDensity> data =
      likelihoods().make(io::parse_toml("sigma = 0.2\n"), "gaussian", observation, context);
  const auto step = std::make_shared<int64_t>(0);
  return [=] {
    const int64_t t = (*step)++;
    const at::Tensor z = Rng(6).at(t).normal({batch, dim});
    const ElboEstimate e = elbo_step(*flow, Target{*prior, *data}, z, Rng(7).at(t), ElboWeights{});
    SP_CHECK(e.rows == batch, "bench", "only ", e.rows, " usable rows");
    adam->step(flow->flat_parameters(), flow->flat_grad(), 1e-5);
  };
}

// What oneDNN and the BLAS reach at best: shares of the practical roof refer to these.
Work roof_work(const std::string& kind) {
  if (kind == "gemm") {
    const at::Tensor a = Rng(8).normal({2048, 2048}), b = Rng(9).normal({2048, 2048}),
                     c = at::empty({2048, 2048});
    return [=] {
      at::Tensor into = c;
      at::mm_out(into, a, b);
    };
  }
  SP_CHECK(kind == "conv", "bench", "unknown roof ", kind);
  const at::Tensor x = Rng(8).normal({16, 128, 32, 32}).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor w = Rng(9).normal({128, 128, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast);
  return [=] {
    at::NoGradGuard off;
    at::conv2d(x, w, {}, 1, 1);
  };
}

Work work_called(const std::string& name) {
  if (name == "dpi") return dpi_work();
  const size_t cut = name.find('_');
  SP_CHECK(cut != std::string::npos, "bench", "unknown workload ", name);
  const std::string family = name.substr(0, cut), kind = name.substr(cut + 1);
  if (family == "realnvp") return realnvp_work(std::stoll(kind));
  if (family == "roof") return roof_work(kind);
  if (family == "exactdpi") return exact_dpi_work(kind);
  return network_work(family, kind);
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
      ready[name] = work_called(name);
      ready[name]();
    }
    const auto start = std::chrono::steady_clock::now();
    ready[name]();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::cout << seconds.count() << std::endl;
  }
}
