// Work against accuracy of the probability-flow log-density.
//   logp_work model MODEL.safetensors [value|gradient] [key=value ...]
//     Test images of data=blackhole, one fixed +-1 probe. Every solver over its sweep of
//     tolerances or steps: right-hand sides, seconds, relative error of log p (and of the gradient)
//     to a solution at rtol = atol = 1e-9, largest and median over the images.
//     noise=t0 (default) | none: the images blurred to time t0, or as they are.
//     keys: images=8 dtype=float64 solvers=dopri5,exp3m data_std=0.5 variable=log_snr threads=1
//   logp_work order
//     Error of log p and slope of the exp solvers as the steps double, on a smooth mixture,
//     float64.
//   logp_work probes MODEL.safetensors [rows=16 steps=16 noise=t0]
//     Spread of log p of one image over probe draws, plain and coloured.
//   logp_work memory MODEL.safetensors images=N steps=N [probes=1] [trace=hutchinson|exact]
//                    [adjoint=checkpoint] [budget=0] [value]
//     Peak resident memory of log p and gradient (or of the value alone) under max_memory_mib =
//     budget, what libtorch's tensors took of it, the pieces, and the bytes of the record.
//   logp_work closed
//     Isotropic Gaussians and two-component mixtures of 2 to 4096 pixels under VP, subVP and VE:
//     error against the closed form, float64, the default solver.
#include <ATen/ATen.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>

#include "scoreprior/core/runtime.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/diffusion/memory_budget.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"

namespace {

using namespace scoreprior;
using Settings = std::map<std::string, std::string>;

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Errors {
  double largest, median;
};
Errors relative(const at::Tensor& got, const at::Tensor& truth) {
  const at::Tensor d = got.dim() == 1
                           ? ((got - truth) / truth).abs()
                           : (got - truth).flatten(1).norm(2, 1) / truth.flatten(1).norm(2, 1);
  return {d.max().item<double>(), d.median().item<double>()};
}

at::Tensor test_images(const std::string& data, int64_t n, at::ScalarType dtype) {
  std::vector<int64_t> indices;
  for (int64_t k = 0; k < n; ++k) indices.push_back(k);
  return datasets().make(Config(), data, "test")->batch(indices, Rng(0)).to(dtype);
}

// Images at time t0, what the density is one of; equal images get equal noise.
at::Tensor noised(const ScoreModel& model, double t0, const at::Tensor& x) {
  const at::Tensor t = at::full({1}, t0, x.options());
  const at::Tensor equal = (x - x.slice(0, 0, 1)).abs().sum() == 0;
  const at::Tensor noise = Rng(2).normal(x.sizes(), x.scalar_type());
  return x * model.sde().mean_coeff(t) +
         model.sde().std(t) * (equal.item<bool>() ? noise.slice(0, 0, 1) : noise);
}

int model_work(const std::string& path, bool gradient, Settings s) {
  const auto dtype = s["dtype"] == "float32" ? at::kFloat : at::kDouble;
  const auto model =
      make_score_model(io::parse_toml("weights = \"" + path + "\"\n"), dtype, at::kCPU);
  const int64_t n = std::stoll(s["images"]);
  at::Tensor x = test_images(s["data"], n, dtype);
  ProbabilityFlowOptions base;
  base.data_std = std::stod(s["data_std"]);
  base.variable = s["variable"];
  base.max_batch = 64;
  if (s["noise"] == "t0") x = noised(*model, base.t0, x);
  const at::Tensor probes = draw_probes(*model, base, n, Rng(1));

  const auto truth_model =
      make_score_model(io::parse_toml("weights = \"" + path + "\"\n"),
                       s["reference_dtype"] == "float32" ? at::kFloat : at::kDouble, at::kCPU);
  ProbabilityFlowOptions tight = base;
  tight.solver = "dopri8";
  tight.variable = "log_snr";
  tight.data_std = 0.5;
  tight.rtol = tight.atol = std::stod(s["reference"]);
  const ProbabilityFlow truth = probability_flow_log_prob(
      *truth_model, tight, x.to(truth_model->dtype()), probes.to(truth_model->dtype()), gradient);
  std::cout << "reference: " << truth.summary.message << "; log p "
            << truth.log_prob.min().item<double>() << " ... " << truth.log_prob.max().item<double>()
            << " nats, pixels' rms " << x.square().mean().sqrt().item<double>() << "\n"
            << "solver   setting        rhs   calls  seconds   log p: max   median    "
            << (gradient ? "gradient: max   median    " : "") << "estimate/error (median)"
            << std::endl;
  const auto row = [&](const std::string& name, const ProbabilityFlowOptions& o,
                       const std::string& setting) {
    const auto start = std::chrono::steady_clock::now();
    const ProbabilityFlow f = probability_flow_log_prob(*model, o, x, probes, gradient);
    const double seconds = seconds_since(start);
    double rhs = 0;
    for (int64_t e : f.evaluations) rhs += static_cast<double>(e) / static_cast<double>(n);
    const Errors e = relative(f.log_prob.to(at::kDouble), truth.log_prob.to(at::kDouble));
    const double ratio = (f.solver_error.to(at::kDouble) /
                          (f.log_prob.to(at::kDouble) - truth.log_prob.to(at::kDouble)).abs())
                             .median()
                             .item<double>();
    std::cout << std::left << std::setw(9) << name << std::setw(13) << setting << std::right
              << std::fixed << std::setprecision(1) << std::setw(6) << rhs << std::setw(8)
              << std::setprecision(0) << f.summary.numbers.at("calls") << std::setw(9)
              << std::setprecision(2) << seconds << std::scientific << std::setprecision(1)
              << std::setw(13) << e.largest << std::setw(9) << e.median;
    if (gradient) {
      const Errors g = relative(f.grad.to(at::kDouble), truth.grad.to(at::kDouble));
      std::cout << std::setw(16) << g.largest << std::setw(9) << g.median;
    }
    std::cout << std::setw(12) << ratio << "  " << to_string(f.summary.status) << std::endl;
  };
  ProbabilityFlowOptions reference = base;  // the setting of [Feng23]'s code
  reference.solver = "dopri5";
  reference.variable = "time";
  reference.rtol = 1e-3;
  reference.atol = 1e-5;
  reference.adjoint = "backsolve";
  row("dopri5/t", reference, "1e-3,1e-5");
  for (const auto& name : split(s["solvers"])) {
    ProbabilityFlowOptions o = base;
    o.solver = name;
    const bool fixed_only = name == "euler" || name == "midpoint" || name == "rk4";
    for (const auto& steps : split(s["steps"])) {
      o.steps = std::stoll(steps);
      row(name, o, "N=" + steps);
    }
    o.steps = 0;
    if (!fixed_only)
      for (const auto& tol : split(s["tolerances"])) {
        o.rtol = std::stod(tol);
        o.atol = o.rtol * std::stod(s["atol_ratio"]);
        row(name, o, tol);
      }
  }
  return 0;
}

// log density of the mixture of N(m_k, sigma_k^2 I) with equal weights, diffused to time t0.
at::Tensor mixture_log_prob(const Sde& sde, double t0, const at::Tensor& x, const at::Tensor& means,
                            const at::Tensor& sigmas) {
  const at::Tensor t = at::full({1}, t0, at::kDouble);
  const at::Tensor v = (sde.mean_coeff(t) * sigmas).square() + sde.std(t).square();  // [K]
  const double d = static_cast<double>(x.size(1));
  const at::Tensor distance = (x.unsqueeze(1) - sde.mean_coeff(t) * means).square().sum(2);
  return at::logsumexp(distance * (-0.5 / v) - 0.5 * d * (2 * M_PI * v).log() -
                           std::log(static_cast<double>(means.size(0))),
                       {1});
}

std::unique_ptr<ScoreModel> mixture_model(const std::string& type, const at::Tensor& means,
                                          const at::Tensor& sigmas) {
  const auto dir = std::filesystem::temp_directory_path() / "logp_work";
  std::filesystem::create_directories(dir);
  io::write_npy(dir / "means.npy", means);
  io::write_npy(dir / "sigmas.npy", sigmas);
  io::write_npy(dir / "weights.npy", at::ones({means.size(0)}, at::kDouble));
  auto model = make_score_model(
      io::parse_toml("name = \"mixture\"\nmeans = \"" + (dir / "means.npy").string() +
                     "\"\nsigmas = \"" + (dir / "sigmas.npy").string() + "\"\nweights = \"" +
                     (dir / "weights.npy").string() + "\"\n[sde]\ntype = \"" + type + "\"\n"),
      at::kDouble, at::kCPU);
  std::filesystem::remove_all(dir);
  return model;
}

int orders() {
  std::cout << "error of log p at N = 25, 50, ..., 1600 steps and slopes between them\n";
  const at::Tensor means = 0.2 * Rng(7).normal({2, 6}, at::kDouble);
  const at::Tensor sigmas = at::tensor({0.5, 1.0 / 3}, at::kDouble);
  const at::Tensor x = means[0] + 0.4 * Rng(3).normal({2, 6}, at::kDouble);
  for (const char* type : {"vp", "subvp", "ve"}) {
    const auto model = mixture_model(type, means, sigmas);
    ProbabilityFlowOptions o;
    o.trace = "exact";
    o.solver = "dopri8";
    o.rtol = o.atol = 1e-12;
    const at::Tensor exact = probability_flow_log_prob(*model, o, x, {}, false).log_prob;
    for (const char* solver : {"exp2", "exp3", "exp2m", "exp3m", "exp4m"}) {
      o.solver = solver;
      std::cout << std::left << std::setw(6) << type << std::setw(6) << solver << std::right;
      std::ostringstream slopes;
      double last = 0;
      for (o.steps = 25; o.steps <= 1600; o.steps *= 2) {
        const double error = (probability_flow_log_prob(*model, o, x, {}, false).log_prob - exact)
                                 .abs()
                                 .max()
                                 .item<double>();
        std::cout << std::scientific << std::setprecision(1) << std::setw(9) << error;
        if (last > 0)
          slopes << std::fixed << std::setprecision(2) << "  " << std::log2(last / error);
        last = error;
      }
      o.steps = 0;
      std::cout << "  " << slopes.str() << std::endl;
    }
  }
  return 0;
}

int probe_spread(const std::string& path, Settings s) {
  const auto model =
      make_score_model(io::parse_toml("weights = \"" + path + "\"\n"), at::kFloat, at::kCPU);
  const int64_t rows = std::stoll(s["rows"]);
  at::Tensor x = test_images(s["data"], 1, at::kFloat);
  x = x.expand({rows, x.size(1), x.size(2), x.size(3)});
  ProbabilityFlowOptions o;
  o.solver = "exp3m";
  o.data_std = std::stod(s["data_std"]);
  o.steps = std::stoll(split(s["steps"])[0]);
  if (s["noise"] == "t0") x = noised(*model, o.t0, x);
  std::cout << "probes colours  mean    spread  s.e. (rms)\n";
  for (const int64_t n : {1, 4, 8, 16})
    for (const int64_t colours : {1, 4, 8, 16}) {
      if (colours > n) continue;
      o.n_probes = n;
      o.colours = colours;
      const ProbabilityFlow f =
          probability_flow_log_prob(*model, o, x, draw_probes(*model, o, rows, Rng(11)), false);
      std::cout << std::fixed << std::setprecision(2) << std::setw(4) << n << std::setw(6)
                << colours << std::setw(12) << f.log_prob.mean().item<double>() << std::setw(9)
                << f.log_prob.std().item<double>() << std::setw(9)
                << f.standard_error.square().mean().sqrt().item<double>() << std::endl;
    }
  return 0;
}

int memory(const std::string& path, bool gradient, Settings s) {
  const auto model =
      make_score_model(io::parse_toml("weights = \"" + path + "\"\n"), at::kFloat, at::kCPU);
  const int64_t n = std::stoll(s["images"]);
  const at::Tensor x = test_images(s["data"], n, at::kFloat);
  ProbabilityFlowOptions o;
  o.solver = "exp3m";
  o.steps = std::stoll(split(s["steps"])[0]);
  o.n_probes = std::stoll(s["probes"]);
  o.trace = s["trace"];
  o.adjoint = s["adjoint"];
  o.max_memory_mib = std::stod(s["budget"]);
  const auto peak = [] {
    rusage u{};
    getrusage(RUSAGE_SELF, &u);
    return static_cast<double>(u.ru_maxrss) / 1024;
  };
  const double before = peak();
  ProbabilityFlow f;
  const auto start = std::chrono::steady_clock::now();
  const double tensors = peak_allocation([&] {
    f = probability_flow_log_prob(*model, o, x, draw_probes(*model, o, n, Rng(1)), gradient);
  });
  const auto& numbers = f.summary.numbers;
  std::cout << "images " << n << ", steps " << o.steps << ", probes " << o.n_probes << ", "
            << o.trace << ", " << (gradient ? o.adjoint : "value") << ", budget "
            << o.max_memory_mib << " MiB: peak RSS " << std::fixed << std::setprecision(0) << before
            << " -> " << peak() << " MiB, tensors " << tensors / (1 << 20) << " MiB, pieces "
            << numbers.at("pieces") << " of " << numbers.at("piece_images") << " images, "
            << numbers.at("piece_rows") << " rows a call, record " << std::setprecision(2)
            << (numbers.count("record_bytes") ? numbers.at("record_bytes") / (1 << 20) : 0.0)
            << " MiB, mean log p " << f.log_prob.mean().item<double>() << ", "
            << seconds_since(start) << " s" << std::endl;
  return 0;
}

/// Three probes whose mean is the exact trace all along the flow of a mixture of isotropic
/// components. Its score's Jacobian is a multiple of I but in the span S of x and the two means,
/// which the flow never leaves: sqrt(3) q_i + r, with q_i an orthonormal basis of S and |r|^2 = D -
/// 3 orthogonal to it. [3,B,D]
at::Tensor span_probes(const at::Tensor& x, const at::Tensor& means) {
  const int64_t batch = x.size(0), d = x.size(1);
  const at::Tensor rest = Rng(5).normal({batch, d}, at::kDouble);
  const at::Tensor spanned =
      at::stack({x, means[0].expand_as(x), means[1].expand_as(x), rest}, 2);  // [B,D,4]
  const at::Tensor q = std::get<0>(at::linalg_qr(spanned)).permute({2, 0, 1});
  return q.slice(0, 0, 3) * std::sqrt(3.0) + q[3] * std::sqrt(static_cast<double>(d - 3));
}

int closed_form() {
  const std::vector<double> tolerances{1e-2, 1e-3, 1e-4, 1e-6, 1e-8};
  std::cout << "largest error of log p over 4 points, relative to their mean |log p|, at rtol = "
               "atol = 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, and right-hand sides\n";
  for (const int64_t k : {1, 2})
    for (const int64_t d : {2, 64, 1024, 4096}) {
      const at::Tensor means = 0.4 * Rng(7).normal({k, d}, at::kDouble);
      const at::Tensor sigmas = at::tensor({0.3, 0.2}, at::kDouble).slice(0, 0, k);
      for (const char* type : {"vp", "subvp", "ve"}) {
        const auto model = mixture_model(type, means, sigmas);
        const at::Tensor x = means[0] + 0.35 * Rng(3).normal({4, d}, at::kDouble);
        ProbabilityFlowOptions o;
        // Beyond 64 pixels the trace is exact by probes: one of +-1 for an isotropic Gaussian.
        o.trace = d > 64 ? "hutchinson" : "exact";
        const at::Tensor probes = k == 2 && d > 64 ? span_probes(x, means) : at::Tensor();
        const at::Tensor diffused = mixture_log_prob(model->sde(), o.t0, x, means, sigmas);
        std::cout << (k == 1 ? "gaussian " : "mixture  ") << std::setw(5) << d << " "
                  << std::setw(6) << type;
        std::ostringstream work;
        for (double tol : tolerances) {
          o.rtol = o.atol = tol;
          const ProbabilityFlow f = probability_flow_log_prob(
              *model, o, x, probes.defined() ? probes : draw_probes(*model, o, 4, Rng(1)), false);
          // The flow of the law ends in the diffused law, whose place the prior takes.
          const at::Tensor truth = diffused + model->sde().prior_log_prob(f.latent) -
                                   mixture_log_prob(model->sde(), 1, f.latent, means, sigmas);
          const double error = (f.log_prob - truth).abs().max().item<double>();
          std::cout << std::scientific << std::setw(9) << std::setprecision(1)
                    << error / truth.abs().mean().item<double>();
          work << " " << static_cast<int64_t>(f.summary.numbers.at("nfe"));
        }
        std::cout << "  " << work.str() << std::endl;
      }
    }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  const std::string mode = argc > 1 ? argv[1] : "";
  Settings s{{"images", "8"},
             {"dtype", "float64"},
             {"data_std", "0.5"},
             {"variable", "log_snr"},
             {"threads", "1"},
             {"reference", "1e-9"},
             {"reference_dtype", "float64"},
             {"steps", "8,12,16,24,32,48,64"},
             {"tolerances", "1e-1,1e-2,1e-3,1e-4,1e-5"},
             {"atol_ratio", "1"},
             {"data", "blackhole"},
             {"noise", "t0"},
             {"rows", "16"},
             {"probes", "1"},
             {"trace", "hutchinson"},
             {"adjoint", "checkpoint"},
             {"budget", "0"},
             {"solvers", "dopri5,tsit5,dopri8,exp2,exp3,exp2m,exp3m,exp4m"}};
  bool gradient = false, value = false;
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t eq = word.find('=');
    if (eq == std::string::npos)
      gradient = word == "gradient", value = word == "value";
    else
      s[word.substr(0, eq)] = word.substr(eq + 1);
  }
  set_threads(std::stoi(s["threads"]));
  if (mode == "model" && argc > 2) return model_work(argv[2], gradient, s);
  if (mode == "probes" && argc > 2) return probe_spread(argv[2], s);
  if (mode == "memory" && argc > 2) return memory(argv[2], !value, s);
  if (mode == "order") return orders();
  if (mode == "closed") return closed_form();
  std::cerr << "usage: logp_work model|probes|memory MODEL.safetensors [value|gradient] "
               "[key=value ...] | logp_work order|closed\n";
  return 64;
}
