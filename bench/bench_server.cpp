// Answers one workload name a line with the seconds it took; see ratios.py, which leaves out the
// first call.
//   {large,small,shipped}_{forward,vjp,train}  networks; small and shipped at batch 64, large at 16
//   {large,small,shipped}_divgrad  one Hutchinson probe: drift, divergence and the gradient of both
//                     (forward, vector-Jacobian product, derivative of the product); large at 4
//   realnvp_DIM       forward, backward, clip and Adam of a RealNVP, batch 64, 32 flow steps
//   dpi               a whole step of variational inference: RealNVP (32 steps, D = 1024), ELBO of
//                     the shipped architecture, closures of a night of the EHT 2017; batch 64
//   exactdpi_KIND     one step with the exact prior: RealNVP (32 steps, D = 3072), log p and its
//                     gradient through the large network, denoising likelihood
//     checkpoint, direct   batch 4, 2 Heun steps in time, one probe, gradient by that adjoint
//     probes          batch 32, 16 probes, one Euler step in time, gradient by the adjoint ODE
//     best            batch 32, one probe, 16 steps of exp4m, checkpoint
//   exactimage_KIND   log p and gradient of one image through the large network, 16 probes, adjoint
//                     ODE; tells the right-hand sides on stderr
//     adaptive        dopri5 in time, rtol 1e-3, atol 1e-5
//     euler           one Euler step
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
#include "scoreprior/diffusion/probability_flow.h"
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

std::shared_ptr<Flow> bench_flow(int64_t dim, const std::string& keys) {
  const Config table = io::parse_toml("name = \"realnvp\"\nn_flow = 32\n" + keys);
  std::shared_ptr<Flow> flow = flows().make(table, "realnvp", FlowContext{dim});
  flow->initialize(Rng(1));
  return flow;
}

const char* const kPositive = "softplus = true\ninit_mean = 0.03\ninit_std = 0.02\n";

BufferAdamOptions clipped_adam() {
  BufferAdamOptions o;
  o.clip = 1;
  return o;
}

Work realnvp_work(int64_t dim) {
  const int64_t batch = 64;
  const auto flow = bench_flow(dim, kPositive);
  const auto adam = std::make_shared<BufferAdam>(flow->flat_parameters(), clipped_adam());
  const at::Tensor z = Rng(2).normal({batch, dim}), x_bar = Rng(3).normal({batch, dim}) / batch;
  const at::Tensor log_det_bar = at::full({batch}, -1.0 / batch, at::kFloat);
  return [=] {
    flow->sample(z, true);
    flow->backward(x_bar, log_det_bar);
    adam->step(flow->flat_parameters(), flow->flat_grad(), 1e-5);
  };
}

// Calls `use` with the [score] table of a model of random weights, a file that lives until then:
// only the network's shape decides the time.
template <class Use>
auto with_bench_model(const std::string& net_name, const Shape& shape, Use&& use) {
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
  auto made = use("weights = \"" + path.string() + "\"\n");
  std::filesystem::remove(path);
  return made;
}

std::shared_ptr<LogDensity> bench_prior(const std::string& net_name, const Shape& shape,
                                        const std::string& prior_name, const std::string& keys) {
  return with_bench_model(net_name, shape, [&](const std::string& score) {
    PriorContext context;
    context.image_shape = shape;
    return std::shared_ptr<LogDensity>(
        priors().make(io::parse_toml(keys + "[score]\n" + score), prior_name, context));
  });
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

// A whole step: draws of the flow, both densities and their gradients, backward, clipping, Adam.
Work inference_step(const std::shared_ptr<Flow>& flow, const std::shared_ptr<LogDensity>& prior,
                    const std::shared_ptr<LogDensity>& data, int64_t batch) {
  const auto adam = std::make_shared<BufferAdam>(flow->flat_parameters(), clipped_adam());
  const auto step = std::make_shared<int64_t>(0);
  return [=] {
    const int64_t t = (*step)++;
    const at::Tensor z = Rng(6).at(t).normal({batch, flow->dim()});
    const ElboEstimate e = elbo_step(*flow, Target{*prior, *data}, z, Rng(7).at(t), ElboWeights{});
    SP_CHECK(e.rows == batch, "bench", "only ", e.rows, " usable rows");
    adam->step(flow->flat_parameters(), flow->flat_grad(), 1e-5);
  };
}

const Shape kColourShape{3, 32, 32};

Work exact_dpi_work(const std::string& kind) {
  const auto flow = bench_flow(numel(kColourShape), "init_mean = 0.5\ninit_std = 0.2\n");
  Observation observation;
  observation.y = Rng(5).uniform(kColourShape, at::kDouble);
  LikelihoodContext context;
  context.image_shape = kColourShape;
  context.forward = io::parse_toml("name = \"identity\"\n");
  const std::shared_ptr<LogDensity> data =
      likelihoods().make(io::parse_toml("sigma = 0.2\n"), "gaussian", observation, context);
  const bool whole = kind == "probes" || kind == "best";
  const std::string keys =
      kind == "probes" ? "solver = \"euler\"\nvariable = \"time\"\nsteps = 1\nn_probes = 16\n"
                         "adjoint = \"backsolve\"\n"
      : kind == "best"
          ? "solver = \"exp4m\"\nsteps = 16\nn_probes = 1\nadjoint = \"checkpoint\"\n"
          : "solver = \"heun\"\nvariable = \"time\"\nsteps = 2\nn_probes = 1\nadjoint = \"" + kind +
                "\"\nmax_memory_mib = 1e6\n";
  return inference_step(flow, bench_prior("large", kColourShape, "score_ode", keys), data,
                        whole ? 32 : 4);
}

Work exact_image_work(const std::string& kind) {
  ProbabilityFlowOptions o;
  o.solver = kind == "euler" ? "euler" : "dopri5";
  o.steps = kind == "euler" ? 1 : 0;
  o.variable = "time";
  o.rtol = 1e-3;
  o.atol = 1e-5;
  o.n_probes = 16;
  o.adjoint = "backsolve";
  const std::shared_ptr<ScoreModel> model =
      with_bench_model("large", kColourShape, [](const std::string& score) {
        return make_score_model(io::parse_toml(score), at::kFloat, at::kCPU);
      });
  const at::Tensor x = Rng(2).uniform({1, 3, 32, 32}), probes = draw_probes(*model, o, 1, Rng(3));
  return [=] {
    const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, probes, true);
    const auto& n = f.summary.numbers;
    std::cerr << "right-hand sides " << n.at("nfe") << " of the value, " << n.at("grad_nfe")
              << " of the gradient; network rows: " << n.at("forwards") << " forward, "
              << n.at("vjps") << " products, " << n.at("second_order") << " derivatives of them"
              << std::endl;
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
  if (name == "dpi")
    return inference_step(bench_flow(1024, kPositive),
                          bench_prior("shipped", {1, 32, 32}, "score_elbo", ""), closure_data(),
                          64);
  const size_t cut = name.find('_');
  SP_CHECK(cut != std::string::npos, "bench", "unknown workload ", name);
  const std::string family = name.substr(0, cut), kind = name.substr(cut + 1);
  if (family == "realnvp") return realnvp_work(std::stoll(kind));
  if (family == "roof") return roof_work(kind);
  if (family == "exactdpi") return exact_dpi_work(kind);
  if (family == "exactimage") return exact_image_work(kind);
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
    if (!ready.count(name)) ready[name] = work_called(name);
    const auto start = std::chrono::steady_clock::now();
    ready[name]();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::cout << seconds.count() << std::endl;
  }
}
