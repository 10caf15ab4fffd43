/** split_gibbs: posterior draws by the split Gibbs sampler with a diffusion model as denoiser
 * [Vono19] [Wu24]. The image is doubled into x (which sees the data) and z (which sees the prior),
 * tied by a coupling rho:
 *
 *   pi_rho(x, z) ~ p(y | x) exp(-|x - z|^2 / (2 rho^2)) p(z),
 *
 * and the two conditionals are drawn in turn. z | x is the prior's own denoising problem at noise
 * rho: the reverse diffusion from x draws it, with no approximation but its time steps. x | z is
 * drawn by Hamiltonian Monte Carlo with the metric G = I/rho^2 + J^T J of the data at z
 * [Girolami11] (held during the move, so that the move is exact), in which the conditional is
 * nearly a standard normal law. rho falls from rho_start to rho_end over `anneal` iterations, which
 * lets chains choose their modes while the coupling is loose, and stays there for `hold` more; the
 * marginal of z tends to the posterior as rho_end -> 0. Every draw is the end of a chain of its own
 * (or one of `keep` states), so that nothing depends on batch mates.
 *
 * `resample` makes the chains of a batch one population (annealed importance sampling with
 * resampling [Neal01] [DelMoral06]) for data with many modes. z alone follows the law
 * p(z) l(z; rho, power), l = E over x ~ N(z, rho^2) of p(y | x)^power, so the weight of a chain
 * grows from step to step by the ratio of l alone, the prior cancels:
 *
 *   d ln l = E[ln p(y | x)] d power + E[(x - z) . grad_x (power ln p(y | x))] d ln rho,
 *
 * each mean over x | z, of which the move's last x is one draw (the second by Stein's identity from
 * E|x - z|^2 / rho^2 - D, without that form's variance). When the effective number of weights falls
 * below half, and at the end of `anneal`, chains are drawn anew in proportion to their weights:
 * those in a mode that fits worse by e^-60 die out, where they would else be held for ever. A batch
 * is then one sample; several batches are independent.
 *
 * x moves in the row space of the data's linear part only; beyond it x | z is normal. A draw is
 * z + P (x - z) with P = I - G^-1 / rho^2: the data's values in the directions the data determine,
 * the prior's in the others, without the coupling's noise.
 *
 * Data that are linear in x, with noise tau in a singular direction, need no such repair where rho
 * <= tau. There x sees noise of variance tau^2 - rho^2 instead of tau^2, so that z, which sees that
 * plus rho^2, sees tau^2: its law is the posterior itself, and a draw is z. x | z is normal and
 * drawn at once. rho stops at the smallest tau: chains need some (sd/rho)^2 iterations
 * to move, and a network's error, a constant share of the noise it is asked to remove, is an error
 * of the score that grows as 1/rho.
 */
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/infer/vi.h"

namespace scoreprior {
namespace {

struct SplitGibbsOptions {
  int64_t n_draws = 128;
  int64_t batch = 64;
  double rho_start = 2;
  double rho_end = 0;
  int64_t anneal = 200;
  int64_t hold = 10;
  int64_t keep = 1;
  double steps_per_efold = 1;
  double data_start = 0;
  double data_full = 0.9;
  double init_mean = 0.03;
  int64_t trajectories = 2;
  int64_t leapfrog = 8;
  double step_size = 0.2;
  std::string metric = "auto";
  bool resample = false;
  int64_t checkpoint_every = 5;
  template <class F>
  void fields(F&& f) {
    f("n_draws", n_draws, "posterior draws");
    f("batch", batch, "chains that run together");
    f("rho_start", rho_start, "coupling at the start [pixel units]");
    f("rho_end", rho_end,
      "coupling at the end [pixel units]; 0 = 0.01, or where the data are linear in the image the "
      "largest that leaves their noise alone, at least 0.01");
    f("anneal", anneal, "iterations over which the coupling falls");
    f("hold", hold, "iterations at the final coupling");
    f("keep", keep, "draws taken from one chain, evenly over the second half of `hold`");
    f("steps_per_efold", steps_per_efold, "denoising steps per factor e of noise");
    f("data_start", data_start,
      "power of the likelihood at the start, from where it grows geometrically to 1; 0 = 1 (all of "
      "it at once) where the data are linear in the image, else 1e-6");
    f("data_full", data_full, "share of `anneal` after which the likelihood has its full power");
    f("init_mean", init_mean, "pixel level chains start from, under noise rho_start");
    f("trajectories", trajectories, "Hamiltonian trajectories per iteration");
    f("leapfrog", leapfrog, "steps of a trajectory");
    f("step_size", step_size, "first step size, in units of the metric; adapted while rho falls");
    f("metric", metric,
      "auto (the likelihood's Gauss-Newton where it has one, up to 4096 pixels) | identity");
    f("resample", resample,
      "chains of a batch are weighted and resampled while rho falls, so that poor modes die out");
    f("checkpoint_every", checkpoint_every,
      "iterations between checkpoints; 0 = only when interrupted");
  }
};

constexpr double kLastCoupling = 0.01;
constexpr double kDataStart = 1e-6;
constexpr double kTargetAcceptance = 0.75;
constexpr double kAdaptation = 0.3;
constexpr int64_t kMetricPixels = 4096;  // beyond, the data space costs too much memory

/// The directions the data can see: the row space of T, orthonormal, in double precision. Beyond it
/// x | z is N(z, rho^2) and needs no Markov chain.
struct DataSpace {
  at::Tensor basis;       // [D,R]
  at::Tensor data, rest;  // T basis of the likelihood and of the prior's rest, [K,R]
  at::Tensor curvature;   // [R] diagonal of basis^T T^T T basis when r = T x + const throughout
};

// Singular directions below this fraction of the largest are not seen.
constexpr double kSeen = 1e-6;

DataSpace data_space(const ResidualJacobian& data, const ResidualJacobian* rest, bool linear) {
  const at::Tensor t_data = data.linear_part().to(at::kCPU, at::kDouble);
  at::Tensor t = t_data, t_rest;
  if (rest) {
    t_rest = rest->linear_part().to(at::kCPU, at::kDouble);
    // Rows of either at the same scale: which directions exist does not depend on units.
    const auto unit = [](const at::Tensor& a) { return a / a.abs().max().clamp_min(1e-300); };
    t = at::cat({unit(t_data), unit(t_rest)}, 0);
  }
  DataSpace space;
  const bool tall = t.size(0) >= t.size(1);
  const auto [values, vectors] = at::linalg_eigh(tall ? at::mm(t.t(), t) : at::mm(t, t.t()));
  const double largest = values.max().item<double>();
  const at::Tensor keep = at::nonzero(values > largest * kSeen * kSeen).flatten();
  const at::Tensor v = vectors.index_select(1, keep), s2 = values.index_select(0, keep);
  space.basis = tall ? v.contiguous() : (at::mm(t.t(), v) / s2.sqrt()).contiguous();
  space.data = at::mm(t_data, space.basis);
  if (rest) space.rest = at::mm(t_rest, space.basis);
  if (linear && !rest) space.curvature = s2;
  return space;
}

/// The metric G = I/rho^2 + J^T J of the data space at the chains' z.
class CouplingMetric {
 public:
  CouplingMetric(const DataSpace& space, const ResidualJacobian& data, const ResidualJacobian* rest,
                 const at::Tensor& image, double rho, double power)
      : rho_(rho) {
    const double precision = 1 / (rho * rho);
    const auto rows = [&](const ResidualJacobian& face, const at::Tensor& t) {
      const at::Tensor slopes = face.slopes(image);
      if (!slopes.defined()) return t.unsqueeze(0);
      return at::matmul(slopes, t.to(slopes.device(), slopes.scalar_type()))
          .to(at::kCPU, at::kDouble);
    };
    j_ = rows(data, space.data) * std::sqrt(power);
    if (rest) {
      at::Tensor more = rows(*rest, space.rest);
      const int64_t batch = std::max(j_.size(0), more.size(0));
      j_ = at::cat({j_.expand({batch, -1, -1}), more.expand({batch, -1, -1})}, 1);
    }
    const at::Tensor g =
        at::bmm(j_.transpose(1, 2), j_) + at::eye(j_.size(2), j_.options()) * precision;
    inverse_ = at::cholesky_inverse(at::linalg_cholesky(g));
  }
  /// Rows of the Jacobian, the length of `m` below.
  int64_t rows() const { return j_.size(1); }
  /// N(0, G) from standard normals n [B,R] and m [B,rows].
  at::Tensor momentum(const at::Tensor& n, const at::Tensor& m) const {
    const at::Tensor data =
        j_.size(0) == 1 ? at::mm(m, j_[0]) : at::bmm(m.unsqueeze(1), j_).squeeze(1);
    return n / rho_ + data;
  }
  /// G^-1 p
  at::Tensor velocity(const at::Tensor& p) const {
    if (inverse_.size(0) == 1) return at::mm(p, inverse_[0]);
    return at::bmm(p.unsqueeze(1), inverse_).squeeze(1);
  }
  /// P d = (I - G^-1 / rho^2) d: what the data determine.
  at::Tensor informed(const at::Tensor& d) const { return d - velocity(d) / (rho_ * rho_); }

 private:
  double rho_;
  at::Tensor j_, inverse_;
};

/// Linear data: the directions whose noise 1/curvature is narrower than the coupling's rho^2. rho
/// ends at the narrowest noise itself, which must not fall on either side by rounding.
at::Tensor loose_directions(const at::Tensor& curvature, double rho) {
  return curvature * (rho * rho) > 1 + 1e-6;
}

/// Linear data: how far the mean of x | z goes from z towards the data, by direction; its variance
/// is rho^2 times the rest. In a loose direction x sees all of the noise, elsewhere what it is
/// wider than rho^2.
at::Tensor coupling_share(const at::Tensor& curvature, double rho) {
  const at::Tensor ratio = curvature * (rho * rho);
  return at::where(loose_directions(curvature, rho), ratio / (1 + ratio), ratio.clamp_max(1));
}

/// 1.4826 times the median distance from the median: a standard deviation that ignores outliers.
double robust_spread(const at::Tensor& v) {
  return 1.4826 * (v - v.median()).abs().median().item<double>();
}

/// Chains whose log-likelihood can belong to the posterior: not more than ten spreads (at least 30
/// nats) below the median of all. The others sit in a mode of the data that annealing entered too
/// fast, with a density e^-30 and less of the rest.
at::Tensor arrived_chains(const at::Tensor& log_likelihood) {
  if (log_likelihood.size(0) < 8) return at::ones_like(log_likelihood).to(at::kBool);
  const double floor =
      log_likelihood.median().item<double>() - std::max(10 * robust_spread(log_likelihood), 30.0);
  return log_likelihood >= floor;
}

/// Systematic resampling [Kitagawa96]: rows [B] drawn in proportion to exp(log_weight), each as
/// often as its share of B, rounded up or down. u in [0,1) decides the rounding.
at::Tensor systematic_rows(const at::Tensor& log_weight, double u) {
  const int64_t n = log_weight.size(0);
  const at::Tensor total = at::softmax(log_weight, 0).cumsum(0);
  const at::Tensor places = (at::arange(n, at::kDouble) + u) / static_cast<double>(n);
  return at::searchsorted(total, places * total[n - 1]).clamp_max(n - 1);
}

/// (sum w)^2 / sum w^2.
double effective_number(const at::Tensor& log_weight) {
  return 1 / at::softmax(log_weight, 0).square().sum().item<double>();
}

class SplitGibbs final : public Inference {
 public:
  SplitGibbs(const Config& config, const InferenceContext& context)
      : o_(config.read<SplitGibbsOptions>()), context_(context) {
    const auto need = [&](bool ok, const char* key, const std::string& message) {
      if (!ok) config.fail(key, std::string(key) + " " + message);
    };
    need(o_.n_draws >= 1, "n_draws", "must be positive");
    need(o_.batch >= 1, "batch", "must be positive");
    need(o_.rho_end >= 0, "rho_end", "must not be negative");
    need(o_.rho_start >= std::max(o_.rho_end, kLastCoupling), "rho_start",
         "must not be below rho_end");
    need(o_.anneal >= 1, "anneal", "must be positive");
    need(o_.hold >= 1, "hold", "must be positive");
    need(o_.keep >= 1 && o_.keep <= (o_.hold + 1) / 2, "keep",
         "must lie between 1 and half of hold");
    need(o_.data_start >= 0 && o_.data_start <= 1, "data_start", "must lie in [0, 1]");
    need(o_.data_full > 0 && o_.data_full <= 1, "data_full", "must lie in (0, 1]");
    need(o_.steps_per_efold > 0, "steps_per_efold", "must be positive");
    need(o_.trajectories >= 1, "trajectories", "must be positive");
    need(o_.leapfrog >= 1, "leapfrog", "must be positive");
    need(o_.step_size > 0, "step_size", "must be positive");
    config.one_of("metric", "auto", {"auto", "identity"});
  }

  Draws run(const Target& target, const Rng& rng, Observer& observer,
            StateStore& store) const override;

 private:
  struct Chains {
    at::Tensor x, z;        // [B,D] double
    at::Tensor log_step;    // [B] double
    at::Tensor held;        // [B] double, mean log p(y|x) over the hold iterations
    at::Tensor log_weight;  // [B] double, since the last resampling
    at::Tensor ancestor;    // [B] long, the row of the batch that a chain descends from
  };
  /// What a move of x | z found out.
  struct Moved {
    at::Tensor acceptance;                 // [B] mean chance
    at::Tensor log_likelihood;             // [B] at the new x; of linear data at the old z
    at::Tensor power_slope;                // [B] d ln l / d power, or one draw of it
    at::Tensor coupling_slope;             // [B] d ln l / d ln rho, or one draw of it
    std::optional<CouplingMetric> metric;  // none: the identity
  };
  struct Potential {
    at::Tensor value, gradient, log_likelihood;
  };

  double rho_at(int64_t iteration, double rho_end) const {
    if (iteration >= o_.anneal) return rho_end;
    const double share = static_cast<double>(iteration) / static_cast<double>(o_.anneal);
    return o_.rho_start * std::pow(rho_end / o_.rho_start, share);
  }
  /// The power of the likelihood: chains that saw all of the data at once would freeze in the first
  /// mode of the non-linear data they meet. Linear data have one mode, and their power must not
  /// wait until a small rho holds the chains where the prior alone put them.
  double data_power(int64_t iteration, bool linear) const {
    const double start = o_.data_start > 0 ? o_.data_start : linear ? 1.0 : kDataStart;
    const double share = std::min(
        1.0, static_cast<double>(iteration) / (o_.data_full * static_cast<double>(o_.anneal)));
    return std::pow(start, 1 - share);
  }
  struct Problem {
    const Target& target;
    const DenoisingPrior& denoiser;
    Shape event;
    const ResidualJacobian* data;  // both null: the identity metric in all of the pixels
    const ResidualJacobian* rest;
    bool linear;  // the data, as far as they show it
    DataSpace space;
    double rho_end = 0;
  };
  Potential potential(const Problem& problem, const at::Tensor& x, const at::Tensor& z, double rho,
                      double power, const Rng& rng) const;
  /// The chains' x | z; counts what was not finite.
  Moved move(const Problem& problem, Chains& chains, double rho, double power, bool adapt,
             const Rng& rng, int64_t& nonfinite) const;
  /// The same for linear data.
  Moved linear_move(const Problem& problem, Chains& chains, double rho, double power,
                    const Rng& rng, int64_t& nonfinite) const;
  /// Weights of the chains for the step from the last rho and power to the k-th; draws the chains
  /// anew where that is due and says so.
  bool reweight(const Problem& problem, Chains& chains, Moved& moved, int64_t k,
                const Rng& rng) const;
  static at::Tensor draw_of(const Problem& problem, const Chains& chains,
                            const std::optional<CouplingMetric>& metric) {
    const at::Tensor& basis = problem.space.basis;
    if (const at::Tensor& curvature = problem.space.curvature; curvature.defined()) {
      const double rho = problem.rho_end;
      const at::Tensor informed =
          at::where(loose_directions(curvature, rho), coupling_share(curvature, rho),
                    at::zeros_like(curvature));
      return chains.z + at::mm(at::mm(chains.x - chains.z, basis) * informed, basis.t());
    }
    if (!metric) return chains.x;
    const at::Tensor d = metric->informed(at::mm(chains.x - chains.z, basis));
    return chains.z + at::mm(d, basis.t());
  }

  SplitGibbsOptions o_;
  InferenceContext context_;
};

SplitGibbs::Potential SplitGibbs::potential(const Problem& problem, const at::Tensor& x,
                                            const at::Tensor& z, double rho, double power,
                                            const Rng& rng) const {
  const at::Tensor image =
      x.to(context_.dtype).view(batched(x.size(0), problem.event)).to(context_.device);
  const auto [ll, gl] = problem.target.likelihood.value_and_score(image, rng.split("likelihood"));
  Potential out;
  const at::Tensor d = x - z;
  const double precision = 1 / (rho * rho);
  out.log_likelihood = ll.to(at::kCPU, at::kDouble);
  out.value = d.square().sum(1) * (precision / 2) - out.log_likelihood * power;
  out.gradient = d * precision - gl.flatten(1).to(at::kCPU, at::kDouble) * power;
  if (const LogDensity* rest = problem.denoiser.rest()) {
    const auto [lr, gr] = rest->value_and_score(image, rng.split("rest"));
    out.value = out.value - lr.to(at::kCPU, at::kDouble);
    out.gradient = out.gradient - gr.flatten(1).to(at::kCPU, at::kDouble);
  }
  return out;
}

SplitGibbs::Moved SplitGibbs::linear_move(const Problem& problem, Chains& chains, double rho,
                                          double power, const Rng& rng, int64_t& nonfinite) const {
  const int64_t batch = chains.z.size(0);
  const at::Tensor& basis = problem.space.basis;
  const at::Tensor curvature = problem.space.curvature * power;
  const at::Tensor share = coupling_share(curvature, rho);
  const Potential here = potential(problem, chains.z, chains.z, rho, power, rng);
  const at::Tensor slope = at::mm(here.gradient, basis);
  const at::Tensor free =
      chains.z + rng.split("free").normal({batch, chains.z.size(1)}, at::kDouble) * rho;
  const at::Tensor n = rng.split("momentum").normal({batch, basis.size(1)}, at::kDouble);
  const at::Tensor seen =
      at::mm(chains.z, basis) - slope * (share / curvature) + n * (rho * (1 - share).sqrt());
  const at::Tensor x = free + at::mm(seen - at::mm(free, basis), basis.t());
  const at::Tensor finite = at::isfinite(x).all(1);
  nonfinite += batch - finite.sum().item<int64_t>();
  chains.x = at::where(finite.unsqueeze(1), x, chains.x);
  // -2 ln l = sum over directions of misfit^2 / v, v = 1 / curvature, or that + rho^2 where rho is
  // the wider.
  const at::Tensor misfit2 = slope.square() / curvature;
  const at::Tensor loose = loose_directions(curvature, rho).to(at::kDouble);
  Moved moved;
  moved.acceptance = finite.to(at::kDouble);
  moved.log_likelihood = here.log_likelihood;
  moved.power_slope = (misfit2 * (1 - loose * share).square()).sum(1) * (-0.5 / power);
  moved.coupling_slope = (misfit2 * loose * share * (1 - share)).sum(1);
  return moved;
}

SplitGibbs::Moved SplitGibbs::move(const Problem& problem, Chains& chains, double rho, double power,
                                   bool adapt, const Rng& rng, int64_t& nonfinite) const {
  if (problem.space.curvature.defined())
    return linear_move(problem, chains, rho, power, rng, nonfinite);
  Moved moved;
  std::optional<CouplingMetric>& metric = moved.metric;
  const auto finish = [&](const Potential& at_x, const at::Tensor& acceptance) {
    moved.acceptance = acceptance;
    moved.log_likelihood = moved.power_slope = at_x.log_likelihood;
    // gradient = (x - z)/rho^2 - power grad ln p(y|x) (- that of the prior's rest)
    const at::Tensor d = chains.x - chains.z;
    moved.coupling_slope = (d * (d / (rho * rho) - at_x.gradient)).sum(1);
  };
  const int64_t batch = chains.x.size(0), dim = chains.x.size(1);
  const at::Tensor& basis = problem.space.basis;
  if (problem.data) {
    const at::Tensor image =
        chains.z.to(context_.dtype).view(batched(batch, problem.event)).to(context_.device);
    metric.emplace(problem.space, *problem.data, problem.rest, image, rho, power);
    // Where the data see nothing, x | z is normal.
    const at::Tensor free = chains.z + rng.split("free").normal({batch, dim}, at::kDouble) * rho;
    chains.x = free + at::mm(at::mm(chains.x - free, basis), basis.t());
  }
  const auto to_space = [&](const at::Tensor& a) { return metric ? at::mm(a, basis) : a; };
  const auto to_pixels = [&](const at::Tensor& a) { return metric ? at::mm(a, basis.t()) : a; };
  const auto velocity = [&](const at::Tensor& p) {
    return metric ? metric->velocity(p) : p * (rho * rho);
  };
  const int64_t coordinates = metric ? basis.size(1) : dim;

  at::Tensor mean = at::zeros({batch}, at::kDouble);
  Potential here = potential(problem, chains.x, chains.z, rho, power, rng);
  for (int64_t j = 0; j < o_.trajectories; ++j) {
    const Rng now = rng.at(j);
    const at::Tensor step =
        (chains.log_step.exp() * (0.8 + 0.4 * now.split("jitter").uniform({batch}, at::kDouble)))
            .unsqueeze(1);
    const at::Tensor n = now.split("momentum").normal({batch, coordinates}, at::kDouble);
    at::Tensor p =
        metric ? metric->momentum(n, now.split("data").normal({batch, metric->rows()}, at::kDouble))
               : n / rho;
    const at::Tensor before = here.value + (p * velocity(p)).sum(1) / 2;
    at::Tensor x = chains.x;
    Potential there = here;
    p = p - step / 2 * to_space(there.gradient);
    for (int64_t l = 0; l < o_.leapfrog; ++l) {
      x = x + to_pixels(step * velocity(p));
      there = potential(problem, x, chains.z, rho, power, now);
      p = p - (l + 1 < o_.leapfrog ? step : step / 2) * to_space(there.gradient);
    }
    const at::Tensor after = there.value + (p * velocity(p)).sum(1) / 2;
    const at::Tensor finite = at::isfinite(after).logical_and(at::isfinite(there.gradient).all(1));
    nonfinite += batch - finite.sum().item<int64_t>();
    const at::Tensor chance =
        at::where(finite, (before - after).exp().clamp_max(1), at::zeros({}, at::kDouble));
    const at::Tensor accept = now.split("accept").uniform({batch}, at::kDouble) < chance;
    const at::Tensor row = accept.unsqueeze(1);
    chains.x = at::where(row, x, chains.x);
    here.value = at::where(accept, there.value, here.value);
    here.gradient = at::where(row, there.gradient, here.gradient);
    here.log_likelihood = at::where(accept, there.log_likelihood, here.log_likelihood);
    if (adapt)
      chains.log_step =
          (chains.log_step + kAdaptation * (chance - kTargetAcceptance)).clamp(-8, 0.5);
    mean += chance / static_cast<double>(o_.trajectories);
  }
  finish(here, mean);
  return moved;
}

bool SplitGibbs::reweight(const Problem& problem, Chains& chains, Moved& moved, int64_t k,
                          const Rng& rng) const {
  if (!o_.resample || k < 1 || k > o_.anneal) return false;  // rho and power end at k = anneal
  const int64_t n = chains.log_weight.size(0);
  const at::Tensor gain =
      moved.power_slope * (data_power(k, problem.linear) - data_power(k - 1, problem.linear)) +
      moved.coupling_slope * std::log(rho_at(k, problem.rho_end) / rho_at(k - 1, problem.rho_end));
  at::Tensor weight = chains.log_weight + gain;
  weight = at::where(at::isfinite(weight), weight, at::full_like(weight, -INFINITY));
  const double largest = weight.max().item<double>();
  chains.log_weight = std::isfinite(largest) ? weight - largest : at::zeros_like(weight);
  if (k < o_.anneal && effective_number(chains.log_weight) >= 0.5 * static_cast<double>(n))
    return false;
  const at::Tensor rows =
      systematic_rows(chains.log_weight, rng.uniform({1}, at::kDouble).item<double>());
  for (at::Tensor* a :
       {&chains.x, &chains.z, &chains.log_step, &chains.ancestor, &moved.log_likelihood})
    *a = a->index_select(0, rows);
  chains.log_weight = at::zeros_like(chains.log_weight);
  return true;
}

Draws SplitGibbs::run(const Target& target, const Rng& rng, Observer& observer,
                      StateStore& store) const {
  const auto begin_time = std::chrono::steady_clock::now();
  const Shape event = target_event_shape(target);
  const int64_t dim = numel(event);
  const auto* denoiser = dynamic_cast<const DenoisingPrior*>(&target.prior);
  if (!denoiser)
    throw UsageError(
        "infer split_gibbs needs a prior with a diffusion model (score_elbo or score_ode)");
  const auto* rest = dynamic_cast<const ResidualJacobian*>(denoiser->rest());
  const auto* data = dynamic_cast<const ResidualJacobian*>(&target.likelihood);
  const bool linear =
      data &&
      !data->slopes(at::zeros(batched(1, event), context_.dtype).to(context_.device)).defined();
  if (o_.metric == "identity" || dim > kMetricPixels || (denoiser->rest() && !rest)) data = nullptr;
  Problem problem{target, *denoiser, event, data, rest, linear, {}};
  if (data) problem.space = data_space(*data, rest, linear);
  problem.rho_end = o_.rho_end > 0 ? o_.rho_end : kLastCoupling;
  if (o_.rho_end == 0 && problem.space.curvature.defined())
    problem.rho_end = std::clamp(1 / std::sqrt(problem.space.curvature.max().item<double>()),
                                 kLastCoupling, o_.rho_start);
  const int64_t chains_total = (o_.n_draws + o_.keep - 1) / o_.keep;
  const int64_t iterations = o_.anneal + o_.hold;
  const int64_t batches = (chains_total + o_.batch - 1) / o_.batch;

  at::Tensor finished = at::zeros({0, dim}, at::kDouble);  // draws of chains that ended
  at::Tensor kept = at::zeros({0, dim}, at::kDouble);      // draws of the running chains
  at::Tensor held = at::zeros({0}, at::kDouble);           // log p(y|x) of chains that ended
  at::Tensor curve = at::zeros({0, 4}, at::kDouble);  // log p(y|x) median, spread; acceptance; rho
  Chains chains;
  int64_t first_batch = 0, first_iteration = 0, nonfinite = 0, resamplings = 0, lineages = 0;
  std::map<std::string, at::Tensor> saved;
  if (store.load(saved)) {
    for (const char* name : {"finished", "kept", "ended", "x", "z", "log_step", "held",
                             "log_weight", "ancestor", "curve", "counters"})
      if (!saved.count(name))
        throw DataError(std::string("checkpoint: no tensor \"") + name + "\"");
    const at::Tensor counters = saved["counters"];
    const int64_t* n = counters.data_ptr<int64_t>();
    if (counters.numel() != 5 || saved["x"].dim() != 2 || saved["x"].size(1) != dim)
      throw DataError("checkpoint: it belongs to another problem");
    first_batch = n[0], first_iteration = n[1], nonfinite = n[2], resamplings = n[3],
    lineages = n[4];
    finished = saved["finished"], kept = saved["kept"], curve = saved["curve"];
    held = saved["ended"];
    chains = {saved["x"],    saved["z"],          saved["log_step"],
              saved["held"], saved["log_weight"], saved["ancestor"]};
  }

  Draws draws;
  draws.summary.status = Status::kMaxSteps;
  observer.begin("posterior draws", batches * iterations, "iterations");
  bool stopped = false;
  for (int64_t b = first_batch; b < batches && !stopped; ++b) {
    const int64_t first_row = b * o_.batch;
    const int64_t count = std::min(o_.batch, chains_total - first_row);
    const Rng here = rng.from_row(first_row);
    int64_t k = b == first_batch ? first_iteration : 0;
    const auto denoise = [&](const at::Tensor& x, double rho, const Rng& stream) {
      const at::Tensor noisy = x.to(context_.dtype).view(batched(count, event)).to(context_.device);
      return denoiser->draw_given_noisy(noisy, rho, o_.steps_per_efold, stream)
          .flatten(1)
          .to(at::kCPU, at::kDouble);
    };
    if (k == 0) {
      // A draw of the prior, as far as noise of rho_start hides where it came from.
      const at::Tensor noise = here.split("start").normal({count, dim}, at::kDouble);
      chains.z = denoise(noise * o_.rho_start + o_.init_mean, o_.rho_start, here.split("first"));
      chains.x = chains.z;
      chains.log_step = at::full({count}, std::log(o_.step_size), at::kDouble);
      chains.held = at::zeros({count}, at::kDouble);
      chains.log_weight = at::zeros({count}, at::kDouble);
      chains.ancestor = at::arange(count, at::kLong);
      kept = at::zeros({0, dim}, at::kDouble);
    }
    for (; k < iterations; ++k) {
      const double rho = rho_at(k, problem.rho_end), power = data_power(k, linear);
      const Rng now = here.at(k);
      // x first: its law follows rho at once, and z | x then finds the noise it expects. The other
      // order would leave in z a part of the larger noise of the step before.
      Moved moved = move(problem, chains, rho, power, k < o_.anneal, now.split("move"), nonfinite);
      resamplings += reweight(problem, chains, moved, k, now.split("resample")) ? 1 : 0;
      const at::Tensor& log_likelihood = moved.log_likelihood;
      const double acceptance = moved.acceptance.mean().item<double>();
      chains.z = denoise(chains.x, rho, now.split("denoise"));
      if (k >= o_.anneal) chains.held = chains.held + log_likelihood / static_cast<double>(o_.hold);
      // Draws from the end backwards, evenly over the second half of hold.
      const int64_t left = iterations - 1 - k,
                    spacing = std::max<int64_t>(1, o_.hold / 2 / o_.keep);
      if (left % spacing == 0 && left / spacing < o_.keep)
        kept = at::cat({kept, draw_of(problem, chains, moved.metric)}, 0);
      const double middle = log_likelihood.median().item<double>();
      curve = at::cat({curve, at::tensor(std::vector<double>{middle, robust_spread(log_likelihood),
                                                             acceptance, rho},
                                         at::kDouble)
                                  .view({1, 4})});
      observer.step(b * iterations + k + 1,
                    {{"log p(y|x)", middle}, {"acceptance", acceptance}, {"rho", rho}});
      stopped = observer.stop_requested();
      const bool last = k + 1 == iterations;
      if (last) {
        // Chain by chain, so that the order of draws does not depend on the batch size.
        finished =
            at::cat({finished, kept.view({-1, count, dim}).transpose(0, 1).reshape({-1, dim})});
        held = at::cat({held, chains.held});
        lineages += std::get<0>(at::_unique(chains.ancestor)).size(0);
      }
      if (stopped || (o_.checkpoint_every > 0 && (k + 1) % o_.checkpoint_every == 0) || last)
        store.save({{"finished", finished},
                    {"kept", last ? at::zeros({0, dim}, at::kDouble) : kept},
                    {"x", chains.x.clone()},
                    {"z", chains.z.clone()},
                    {"log_step", chains.log_step.clone()},
                    {"held", chains.held.clone()},
                    {"log_weight", chains.log_weight.clone()},
                    {"ancestor", chains.ancestor.clone()},
                    {"ended", held},
                    {"curve", curve},
                    {"counters", at::tensor(std::vector<int64_t>{last ? b + 1 : b, last ? 0 : k + 1,
                                                                 nonfinite, resamplings, lineages},
                                            at::kLong)}});
      if (stopped) break;
    }
  }
  observer.end();

  Summary& s = draws.summary;
  const at::Tensor arrived = arrived_chains(held);
  const int64_t stuck = held.size(0) - arrived.sum().item<int64_t>();
  finished = finished.index({arrived.repeat_interleave(o_.keep)});
  const int64_t n = std::min(finished.size(0), o_.n_draws);
  draws.x = finished.slice(0, 0, n).to(context_.dtype).view(batched(n, event));
  draws.history["log_likelihood"] = curve.select(1, 0).clone();
  draws.history["acceptance"] = curve.select(1, 2).clone();
  draws.history["rho"] = curve.select(1, 3).clone();
  s.numbers["chains"] = static_cast<double>(chains_total);
  s.numbers["iterations"] = static_cast<double>(iterations);
  s.numbers["stuck_chains"] = static_cast<double>(stuck);
  if (o_.resample) {
    s.numbers["resamplings"] = static_cast<double>(resamplings);
    s.numbers["lineages"] = static_cast<double>(lineages);
  }
  s.numbers["nonfinite_densities"] = static_cast<double>(nonfinite);
  s.numbers["seconds"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_time).count();
  if (stopped && held.size(0) < chains_total) {
    s.status = Status::kInterrupted;
    s.message = "stopped; run again to go on";
    return draws;
  }
  const at::Tensor valid = at::isfinite(draws.x).flatten(1).all(1);
  s.numbers["invalid_draws"] = static_cast<double>(n - valid.sum().item<int64_t>());
  // Settled: over the hold the median log-likelihood moves by less than a quarter of its spread
  // over chains.
  const int64_t half = o_.hold / 2;
  const at::Tensor medians =
      curve.select(1, 0).view({batches, iterations}).slice(1, o_.anneal).mean(0);
  const at::Tensor early = medians.slice(0, 0, o_.hold - half),
                   late = medians.slice(0, o_.hold - half);
  const at::Tensor hold_acceptance =
      curve.select(1, 2).view({batches, iterations}).slice(1, o_.anneal);
  s.numbers["acceptance"] = hold_acceptance.mean().item<double>();
  const double drift = half > 0 ? (late.mean() - early.mean()).item<double>() : INFINITY;
  const double spread = curve.select(1, 1)
                            .view({batches, iterations})
                            .select(1, iterations - 1)
                            .mean()
                            .item<double>();
  s.numbers["drift"] = drift;
  s.numbers["log_likelihood_spread"] = spread;
  const bool settled = std::abs(drift) <= std::max(0.25 * spread, 1.0);
  s.status = settled ? Status::kConverged : Status::kMaxSteps;
  s.message =
      detail::concat(settled ? "settled: " : "still moving: ", "log p(y|x) changed by ", drift,
                     " nats between the halves of the hold, its spread over chains is ", spread);
  if (stuck > 0)
    s.message += detail::concat("; ", stuck, " of ", chains_total,
                                " chains froze far from the data and are left out");
  if (o_.resample)
    s.message += detail::concat("; resampled ", resamplings, " times, ", lineages, " of ",
                                chains_total, " first chains have descendants");
  observer.note(s.message);
  return draws;
}

}  // namespace

std::unique_ptr<Inference> make_split_gibbs(const Config& config, const InferenceContext& context) {
  return std::make_unique<SplitGibbs>(config, context);
}

}  // namespace scoreprior
