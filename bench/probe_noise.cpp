// What probes add to the noise of a DPI step's gradient under the exact prior, against what the
// random draws of q make of it anyway. See docs/logp_study.md.
//   probe_noise MODEL DATASET [key=value ...]
// Denoising of one image (sigma=0.2, image=100 of the test split): a RealNVP is fitted with the
// ELBO prior (steps=300 batch=16 lr=2e-3 n_times=1), then at `latents` draws of it the gradient in
// its parameters is taken with `probes` independent single probes each (solver=exp4m
// solver_steps=12). The mean over n probes has 1/n of a single one's variance, the mean over a
// batch of B draws 1/B of everything: the ratio tells how many probes are worth their cost.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "bench/study.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

using Settings = std::map<std::string, std::string>;

void study(const std::string& model, const std::string& data, Settings s) {
  const auto set = datasets().make(io::parse_toml(s["data"]), data, "test");
  const at::Tensor truth = set->batch({std::stoll(s["image"])}, Rng(0)).to(at::kDouble);
  const Shape shape = set->image_shape();
  const int64_t dim = numel(shape);

  Observation o;
  const double sigma = std::stod(s["sigma"]);
  o.y = truth[0] + sigma * Rng(5).split("noise").normal(truth.sizes(), at::kDouble)[0];
  LikelihoodContext context;
  context.image_shape = shape;
  context.forward = io::parse_toml("name = \"identity\"\n");
  const auto likelihood =
      likelihoods().make(io::parse_toml("sigma = " + s["sigma"] + "\n"), "gaussian", o, context);
  PriorContext prior_context;
  prior_context.image_shape = shape;
  const std::string score = "[score]\nweights = \"" + model + "\"\n";
  const auto bound = priors().make(io::parse_toml("n_times = " + s["n_times"] + "\n" + score),
                                   "score_elbo", prior_context);
  const auto exact =
      priors().make(io::parse_toml("n_probes = 1\nsolver = \"" + s["solver"] +
                                   "\"\nsteps = " + s["solver_steps"] + "\n" + score),
                    "score_ode", prior_context);

  const std::string flow_keys =
      "name = \"realnvp\"\ninit_mean = 0.5\ninit_std = 0.2\nn_flow = " + s["n_flow"] + "\n";
  KeptState store;
  PrintedNotes observer;
  inferences()
      .make(io::parse_toml("steps = " + s["steps"] + "\nbatch = " + s["batch"] +
                           "\nlr = " + s["lr"] + "\nn_draws = 16\n[flow]\n" + flow_keys),
            "dpi", InferenceContext{})
      ->run({*bound, *likelihood}, Rng(7), observer, store);
  const auto flow =
      flows().make(io::parse_toml(flow_keys), "realnvp", FlowContext{dim, at::kFloat, at::kCPU});
  const auto& state = store.end();
  flow->flat_parameters().copy_(state.at("parameters"));
  if (state.count("statistics")) flow->flat_statistics().copy_(state.at("statistics"));
  flow->freeze(true);

  const int64_t latents = std::stoll(s["latents"]), probes = std::stoll(s["probes"]);
  const at::Tensor z = Rng(8).normal({latents, dim});
  const at::Tensor x = flow->sample(z, false).x.reshape(batched(latents, shape));
  const at::Tensor data_score = likelihood->value_and_score(x, Rng(9)).second;
  // Gradient of the loss in the parameters and in the image, one row a (latent, probe).
  std::vector<at::Tensor> images;
  for (int64_t p = 0; p < probes; ++p)
    images.push_back(
        -(data_score + exact->value_and_score(x, Rng(10).at(p)).second).reshape({latents, dim}));
  // Sums for the nested analysis of variance; single gradients are too large to keep.
  double within[2] = {0, 0}, between[2] = {0, 0}, mean2[2] = {0, 0};
  std::vector<at::Tensor> latent_means[2];
  for (int64_t i = 0; i < latents; ++i) {
    at::Tensor sum[2], square[2];
    for (int64_t p = 0; p < probes; ++p) {
      flow->sample(z.slice(0, i, i + 1), true);
      flow->backward(images[p].slice(0, i, i + 1), at::full({1}, -1.0));
      const at::Tensor g[2] = {flow->flat_grad().to(at::kDouble), images[p][i].to(at::kDouble)};
      for (int k = 0; k < 2; ++k) {
        sum[k] = p == 0 ? g[k].clone() : sum[k] + g[k];
        const at::Tensor q = g[k].square().sum();
        square[k] = p == 0 ? q : square[k] + q;
      }
    }
    for (int k = 0; k < 2; ++k) {
      const double n = static_cast<double>(probes);
      within[k] += (square[k] - sum[k].square().sum() / n).item<double>() / (n - 1) /
                   static_cast<double>(latents);
      latent_means[k].push_back((sum[k] / n).to(at::kFloat));
    }
  }
  for (int k = 0; k < 2; ++k) {
    at::Tensor mean = at::zeros_like(latent_means[k][0], at::kDouble);
    for (const auto& m : latent_means[k]) mean += m / static_cast<double>(latents);
    mean2[k] = mean.square().sum().item<double>();
    for (const auto& m : latent_means[k])
      between[k] += (m - mean).square().sum().item<double>() / static_cast<double>(latents - 1);
    between[k] -= within[k] / static_cast<double>(probes);  // of the draws of q alone
  }
  const char* names[2] = {"flow parameters", "image"};
  for (int k = 0; k < 2; ++k) {
    const double sixteen = (between[k] + within[k]) / (between[k] + within[k] / 16);
    std::printf(
        "gradient in the %-16s variance of one draw of q %.4g, of one probe %.4g (%.2f %% of it); "
        "1 probe against 16: %.3f times the variance\n",
        names[k], between[k], within[k], 100 * within[k] / between[k], sixteen);
  }
  std::printf("mean gradient squared: %.4g, %.4g\n", mean2[0], mean2[1]);
}

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  set_threads(1);
  if (argc < 3) {
    std::fprintf(stderr, "usage: probe_noise MODEL DATASET [key=value ...]\n");
    return 64;
  }
  Settings s{{"sigma", "0.2"}, {"image", "100"}, {"steps", "300"},    {"batch", "16"},
             {"lr", "2e-3"},   {"n_times", "1"}, {"n_flow", "8"},     {"latents", "16"},
             {"probes", "4"},  {"data", ""},     {"solver", "exp4m"}, {"solver_steps", "12"}};
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t eq = word.find('=');
    if (eq == std::string::npos) {
      std::fprintf(stderr, "expected key=value, got %s\n", argv[i]);
      return 64;
    }
    s[word.substr(0, eq)] = word.substr(eq + 1);
  }
  study(argv[1], argv[2], s);
  return 0;
}
