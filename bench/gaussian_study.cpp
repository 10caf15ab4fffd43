// How right is a score prior where the truth is in closed form: 16x16 Gaussian random fields. See
// docs/logp_study.md.
//   gaussian_study logp [MODEL] [IMAGES] [STEPS]
//       ODE, bound and path estimator against log p; no MODEL or "exact" = the exact score
//   gaussian_study tolerance IMAGES MODEL...
//       evaluations and error against the solver's tolerance
//   gaussian_study posterior TASK MODEL SEED RUN [then RUN ...]
//       DPI of test image SEED against the closed-form posterior. TASK denoise | deblur; a RUN is
//       elbo | ode STEPS [key=value ...], the keys those of [prior] and [infer]. Each later RUN
//       begins with the flow of the first and keeps its keys of [infer].
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "bench/study.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/data/gaussian_field.h"
#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/path_estimator.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kSide = 16, kPixels = kSide * kSide;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

GaussianField field(const std::string& split) {
  GaussianFieldOptions o;
  o.image_size = kSide;
  return {o, split};
}

at::Tensor test_images(int64_t n) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < n; ++i) indices.push_back(i);
  return field("test").batch(indices, Rng(0)).to(at::kDouble);
}

// The [score] table: a trained model, or the exact law with its covariance in a file.
std::string score_toml(const std::string& model) {
  if (model != "exact") return "weights = \"" + fs::absolute(model).string() + "\"\n";
  const fs::path file = fs::temp_directory_path() / "gaussian_study_covariance.npy";
  io::write_npy(file, field("test").covariance());
  return "name = \"gaussian\"\nmean = 0.5\nshape = [1, 16, 16]\ncov = \"" + file.string() +
         "\"\nsde.type = \"vp\"\n";
}

std::unique_ptr<ScoreModel> score_model(const std::string& model) {
  return make_score_model(io::parse_toml(score_toml(model)),
                          model == "exact" ? at::kDouble : at::kFloat, at::kCPU);
}

// log N(x; alpha m, alpha^2 C + std^2) at t0: what the ODE and the paths estimate.
at::Tensor log_p_at(const Sde& sde, double t0, const at::Tensor& x) {
  const at::Tensor t = at::full({1}, t0, at::kDouble);
  const double alpha = sde.mean_coeff(t).item<double>(), std = sde.std(t).item<double>();
  const at::Tensor c =
      alpha * alpha * field("test").covariance() + std * std * at::eye(kPixels, at::kDouble);
  const at::Tensor factor = at::linalg_cholesky(c), y = x.flatten(1) - alpha * 0.5;
  const at::Tensor white = at::linalg_solve_triangular(factor, y.t(), /*upper=*/false).t();
  return -0.5 * white.square().sum(1) - factor.diagonal().log().sum() -
         0.5 * kPixels * std::log(2 * M_PI);
}

double correlation(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor u = a - a.mean(), v = b - b.mean();
  return ((u * v).sum() / (u.square().sum() * v.square().sum()).sqrt()).item<double>();
}

void print_errors(const char* name, const at::Tensor& value, const at::Tensor& truth,
                  double one_draw, double evaluations, double seconds) {
  const at::Tensor error = value.to(at::kDouble) - truth;
  const double n = static_cast<double>(error.numel());
  std::printf(
      "%-24s corr %.4f  error %8.3f +- %.3f  sd over images %.3f  sd of one draw %.3f  "
      "evaluations %.0f  %.1f s\n",
      name, correlation(value.to(at::kDouble), truth), error.mean().item<double>(),
      error.std(0).item<double>() / std::sqrt(n), error.std(0).item<double>(), one_draw,
      evaluations, seconds);
  std::fflush(stdout);
}

double rms(const at::Tensor& a) { return a.square().mean().sqrt().item<double>(); }

void study_logp(const std::string& name, int64_t n, int64_t steps) {
  const auto model = score_model(name);
  const at::Tensor truth_x = test_images(n), x = truth_x.to(model->dtype());
  const ProbabilityFlowOptions defaults;
  const at::Tensor truth = log_p_at(model->sde(), defaults.t0, truth_x),
                   at_zero = field("test").log_prob(truth_x);
  std::printf("%s, %ld images; log p at t = 0: %.3f (sd %.3f), at t0: %.3f\n", name.c_str(),
              static_cast<long>(n), at_zero.mean().item<double>(), at_zero.std(0).item<double>(),
              truth.mean().item<double>());
  for (const int64_t colours : {1, 4}) {
    ProbabilityFlowOptions o;
    o.solver = "dopri5";
    o.rtol = o.atol = 1e-5;
    o.n_probes = 8;
    o.colours = colours;
    const auto start = Clock::now();
    const ProbabilityFlow f =
        probability_flow_log_prob(*model, o, x, draw_probes(*model, o, n, Rng(1)), false);
    double nfe = 0;
    for (const int64_t e : f.evaluations) nfe += static_cast<double>(e) / static_cast<double>(n);
    print_errors(colours == 1 ? "ode, 8 probes" : "ode, 8 probes of 4 colours", f.log_prob, truth,
                 rms(f.standard_error) * std::sqrt(8.0 / static_cast<double>(colours)), nfe,
                 since(start));
  }
  {
    PathOptions o;
    o.paths = 8;
    o.steps = steps;
    const auto start = Clock::now();
    const PathEstimate e = path_log_prob(*model, o, x, Rng(2));
    const double seconds = since(start);
    print_errors("path, 8, extrapolated", e.log_prob, truth, rms(e.standard_error) * std::sqrt(8.0),
                 static_cast<double>(e.evaluations), seconds);
    print_errors("path, bound", e.bound, truth, std::nan(""), static_cast<double>(e.evaluations),
                 seconds);
    print_errors("path, importance", e.importance, truth, std::nan(""),
                 static_cast<double>(e.evaluations), seconds);
  }
  {
    const at::NoGradGuard off;
    ElboOptions o;
    o.n_times = 64;
    const auto start = Clock::now();
    std::vector<at::Tensor> values;
    for (int64_t r = 0; r < 8; ++r)
      values.push_back(elbo(*model, o, x, draw_elbo(*model, o, n, Rng(3).at(r))).value());
    const at::Tensor all = at::stack(values).to(at::kDouble);
    print_errors("elbo, 8 x 64 times", all.mean(0), at_zero, rms(all.std(0, true)) * 8, 8 * 65,
                 since(start));
  }
}

void study_tolerance(int64_t n, const std::vector<std::string>& models) {
  for (const auto& name : models) {
    const auto model = score_model(name);
    const at::Tensor x = test_images(n).to(model->dtype());
    for (const char* variable : {"time", "log_snr"}) {
      ProbabilityFlowOptions o;
      o.solver = "dopri5";
      o.variable = variable;
      const at::Tensor probes = draw_probes(*model, o, n, Rng(1));
      at::Tensor finest;
      for (const double tolerance : {1e-6, 1e-5, 1e-4, 1e-3, 1e-2}) {
        o.rtol = o.atol = tolerance;
        const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, probes, false);
        if (!finest.defined()) finest = f.log_prob;
        double nfe = 0;
        for (const int64_t e : f.evaluations)
          nfe += static_cast<double>(e) / static_cast<double>(n);
        std::printf(
            "%s  %-8s %s  tolerance %.0e  evaluations %7.1f  rms difference to 1e-6 %.4f nats\n",
            name.c_str(), variable, o.solver.c_str(), tolerance, nfe, rms(f.log_prob - finest));
        std::fflush(stdout);
      }
    }
  }
}

// Root mean square over pixels of (mean - exact mean) / exact sd, and what is left of it without
// the error's mean over the pixels; mean of sd / exact sd; relative error of the covariance in the
// Frobenius norm.
void print_posterior(const char* name, const at::Tensor& draws, const at::Tensor& mean,
                     const at::Tensor& cov) {
  const at::Tensor x = draws.to(at::kDouble).flatten(1), sd = cov.diagonal().sqrt();
  const at::Tensor m = x.mean(0), y = x - m, off = (m - mean) / sd;
  const at::Tensor c = at::matmul(y.t(), y) / static_cast<double>(x.size(0) - 1);
  std::printf(
      "%-22s mean error %.4f sd (%+.4f on average, %.4f about it)   sd ratio %.4f   covariance "
      "error %.4f\n",
      name, rms(off), off.mean().item<double>(), rms(off - off.mean()),
      (c.diagonal().sqrt() / sd).mean().item<double>(),
      ((c - cov).norm() / cov.norm()).item<double>());
  std::fflush(stdout);
}

struct PosteriorRun {
  std::string prior;  // elbo | ode
  int64_t steps = 0;
  std::vector<std::string> keys;
};

// RUN [then RUN ...]; false where one lacks its prior or steps.
bool read_runs(const std::vector<std::string>& words, std::vector<PosteriorRun>& runs) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (i + 1 >= words.size() || (words[i] != "elbo" && words[i] != "ode")) return false;
    PosteriorRun run{words[i], std::stoll(words[i + 1]), {}};
    if (!runs.empty())
      for (const auto& key : runs[0].keys)
        if (key.rfind("infer.", 0) == 0) run.keys.push_back(key);
    for (i += 2; i < words.size() && words[i] != "then"; ++i) run.keys.push_back(words[i]);
    runs.push_back(run);
  }
  return !runs.empty();
}

Config posterior_config(const std::string& task, const std::string& model,
                        const PosteriorRun& run) {
  Config config = io::parse_toml(
      std::string(task == "deblur"
                      ? "[forward]\nname = \"low_dft\"\nn_freqs = 6\n[likelihood]\nsigma = 0.5\n"
                      : "[forward]\nname = \"identity\"\n[likelihood]\nsigma = 0.1\n") +
      "[prior]\nname = \"score_" + run.prior + "\"\n" +
      (run.prior == "ode" ? "" : "n_times = 4\n") + "[prior.score]\n" + score_toml(model) +
      "[infer]\nsteps = " + std::to_string(run.steps) +
      "\nbatch = 64\nlr = 1e-3\nn_draws = 4096\n[infer.flow]\nname = \"realnvp\"\n"
      "init_mean = 0.5\ninit_std = 0.15\n");
  io::apply_overrides(config, run.keys);
  return config;
}

// Network rows that value and gradient of log p take, a draw.
void print_work(const Config& prior, const std::string& model, const at::Tensor& draws) {
  const auto score = score_model(model);
  const auto options = prior.read<ProbabilityFlowOptions>();
  const at::Tensor x = draws.slice(0, 0, 16).to(score->dtype());
  const ProbabilityFlow f = probability_flow_log_prob(
      *score, options, x, draw_probes(*score, options, x.size(0), Rng(9)), true);
  const auto& n = f.summary.numbers;
  std::printf(
      "  a draw: %.0f right-hand sides of the value, %.0f of the gradient; %.0f forward rows, %.0f "
      "products, %.0f derivatives of products\n",
      n.at("nfe"), n.at("grad_nfe"), n.at("forwards"), n.at("vjps"), n.at("second_order"));
}

void study_posterior(const std::string& task, const std::string& model, int64_t seed,
                     const std::vector<PosteriorRun>& runs) {
  std::vector<Config> configs;
  for (const auto& run : runs) configs.push_back(posterior_config(task, model, run));

  // The closed form, in float64.
  const GaussianField law = field("test");
  ForwardContext forward_context{at::kDouble, at::kCPU};
  forward_context.image_shape = {1, kSide, kSide};
  const auto a = forward_models().make(configs[0].table("forward"), "identity", forward_context);
  const at::Tensor truth = test_images(seed + 1).slice(0, seed);
  const double sigma = configs[0].table("likelihood").get<double>("sigma") * a->noise_scale();
  const Rng rng(5 + 100 * static_cast<uint64_t>(seed));
  Observation o;
  const at::Tensor clean = a->apply(truth);
  o.y = clean[0] + sigma * rng.split("noise").normal(clean.sizes(), at::kDouble)[0];
  o.sigma = at::full({}, sigma, at::kDouble);
  const at::Tensor columns =
      a->apply(at::eye(kPixels, at::kDouble).reshape({kPixels, 1, kSide, kSide}))
          .flatten(1);  // A^T
  const at::Tensor precision =
      at::linalg_inv(law.covariance()) + at::matmul(columns, columns.t()) / (sigma * sigma);
  const at::Tensor cov = at::linalg_inv(precision);
  const at::Tensor residual =
      o.y.flatten() - at::matmul(columns.t(), at::full({kPixels}, 0.5, at::kDouble));
  const at::Tensor mean = 0.5 + at::matmul(cov, at::matmul(columns, residual)) / (sigma * sigma);
  const at::Tensor factor = at::linalg_cholesky(cov);

  PrintedNotes observer;
  KeptState store;
  std::map<std::string, at::Tensor> first;
  int64_t n_draws = 0;
  for (const Config& config : configs) {
    LikelihoodContext context;
    context.image_shape = {1, kSide, kSide};
    context.forward = config.table("forward");
    const auto likelihood = likelihoods().make(config.table("likelihood"), "gaussian", o, context);
    PriorContext prior_context;
    prior_context.image_shape = context.image_shape;
    prior_context.read_array = io::read_npy;
    const auto prior = priors().make(config.table("prior"), "score_elbo", prior_context);
    const auto method = inferences().make(config.table("infer"), "dpi", InferenceContext{});
    if (!first.empty()) store.start_from(first, config.table("infer").get<int64_t>("steps"));
    const auto start = Clock::now();
    const std::clock_t cpu = std::clock();
    const Draws draws = method->run({*prior, *likelihood},
                                    Rng(7 + 100 * static_cast<uint64_t>(seed)), observer, store);
    if (first.empty()) first = store.end();
    const auto name = config.table("prior").get<std::string>("name");
    std::printf(
        "%s, %s, %s score, image %ld, %ld steps of %ld, %.0f s (%.1f s of one core); posterior sd "
        "%.4f of prior sd 0.15\n",
        task.c_str(), name.c_str(), model.c_str(), static_cast<long>(seed),
        static_cast<long>(config.table("infer").get<int64_t>("steps")),
        static_cast<long>(config.table("infer").get<int64_t>("batch")), since(start),
        static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC,
        cov.diagonal().sqrt().mean().item<double>());
    print_posterior("DPI", draws.x, mean, cov);
    if (name == "score_ode") print_work(config.table("prior"), model, draws.x);
    n_draws = draws.x.size(0);
  }
  // Monte-Carlo error: what three sets of as many exact draws have.
  for (uint64_t set = 11; set < 14; ++set)
    print_posterior("as many exact draws",
                    mean + at::matmul(Rng(set).normal({n_draws, kPixels}, at::kDouble), factor.t()),
                    mean, cov);
}

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  set_threads(1);
  const std::vector<std::string> args(argv + 1, argv + argc);
  const auto argument = [&](size_t i, const char* fallback) {
    return i < args.size() ? args[i] : std::string(fallback);
  };
  const std::string what = argument(0, "");
  if (what == "logp") {
    study_logp(argument(1, "exact"), std::stoll(argument(2, "64")), std::stoll(argument(3, "256")));
  } else if (what == "tolerance" && args.size() > 2) {
    study_tolerance(std::stoll(args[1]), {args.begin() + 2, args.end()});
  } else if (std::vector<PosteriorRun> runs; what == "posterior" && args.size() > 5 &&
                                             read_runs({args.begin() + 4, args.end()}, runs)) {
    study_posterior(args[1], args[2], std::stoll(args[3]), runs);
  } else {
    std::fprintf(stderr,
                 "usage: gaussian_study logp | tolerance | posterior ... (see the first lines of "
                 "its source)\n");
    return 64;
  }
  return 0;
}
