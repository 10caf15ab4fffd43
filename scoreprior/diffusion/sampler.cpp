#include "scoreprior/diffusion/sampler.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <functional>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/flow_equation.h"
#include "scoreprior/ode/integrate.h"

namespace scoreprior {
namespace {

bool variance_exploding(const Sde& sde) { return sde.name() == "ve" || sde.name() == "linear_ve"; }

at::Tensor broadcast(const at::Tensor& a, const at::Tensor& x) {
  return expand_like_batch(a.to(x.scalar_type()), x);
}

// Time of step i = trunc(t (N-1)) on the discrete grid i/(N-1), i shifted by `offset`.
at::Tensor grid_index(const at::Tensor& t, int64_t steps) {
  return (t.to(at::kDouble) * static_cast<double>(steps - 1)).to(at::kLong);
}
at::Tensor grid_time(const at::Tensor& index, int64_t steps) {
  return index.to(at::kDouble) / static_cast<double>(steps - 1);
}

// beta_i = beta(i/(N-1))/N of the discrete VP chain; beta = -2 f/x.
at::Tensor discrete_beta(const Sde& sde, const at::Tensor& t, int64_t steps) {
  return sde.drift_coeff(grid_time(grid_index(t, steps), steps)) * (-2.0 / steps);
}

// sigma_i and sigma_{i-1} (0 before the first) of the discrete VE chain.
std::pair<at::Tensor, at::Tensor> discrete_sigmas(const Sde& sde, const at::Tensor& t,
                                                  int64_t steps) {
  const at::Tensor i = grid_index(t, steps);
  const at::Tensor before = sde.std(grid_time((i - 1).clamp_min(0), steps));
  return {sde.std(grid_time(i, steps)), at::where(i == 0, at::zeros_like(before), before)};
}

}  // namespace

SamplerUpdate predictor_update(const Sde& sde, const std::string& name, const at::Tensor& x,
                               const at::Tensor& t, const at::Tensor& score, const at::Tensor& z,
                               int64_t steps, bool probability_flow) {
  const double share = probability_flow ? 0.5 : 1.0, n = static_cast<double>(steps);
  at::Tensor mean, noise;  // noise: coefficient of z, [B]
  if (name == "none") return {x, x};
  if (name == "euler_maruyama") {
    const at::Tensor t64 = t.to(at::kDouble), g = sde.diffusion(t64);
    mean = x - broadcast(sde.drift_coeff(t64) / n, x) * x +
           broadcast(g.square() * (share / n), x) * score;
    noise = g / std::sqrt(n);
  } else if (name == "reverse_diffusion") {
    at::Tensor keep, g2;  // x - f_i = keep x
    if (sde.name() == "vp") {
      const at::Tensor beta = discrete_beta(sde, t, steps);
      keep = 2 - (1 - beta).sqrt();
      g2 = beta;
    } else if (variance_exploding(sde)) {
      const auto [sigma, before] = discrete_sigmas(sde, t, steps);
      keep = at::ones_like(sigma);
      g2 = sigma.square() - before.square();
    } else {
      const at::Tensor t64 = t.to(at::kDouble);
      keep = 1 - sde.drift_coeff(t64) / n;
      g2 = sde.diffusion(t64).square() / n;
    }
    mean = broadcast(keep, x) * x + broadcast(g2 * share, x) * score;
    noise = g2.sqrt();
  } else if (name == "ancestral") {
    if (sde.name() == "vp") {
      const at::Tensor beta = discrete_beta(sde, t, steps);
      mean = (x + broadcast(beta, x) * score) / broadcast((1 - beta).sqrt(), x);
      noise = beta.sqrt();
    } else {
      SP_CHECK(variance_exploding(sde), "sampler",
               "expected a VP or VE process for ancestral steps, got ", sde.name());
      const auto [sigma, before] = discrete_sigmas(sde, t, steps);
      const at::Tensor removed = sigma.square() - before.square();
      mean = x + broadcast(removed, x) * score;
      noise = (before.square() * removed).sqrt() / sigma;
    }
    return {mean + broadcast(noise, x) * z, mean};
  } else {
    SP_CHECK(false, "sampler",
             "expected a predictor none | euler_maruyama | reverse_diffusion | "
             "ancestral, got \"",
             name, "\"");
  }
  return {probability_flow ? mean : mean + broadcast(noise, x) * z, mean};
}

SamplerUpdate corrector_update(const Sde& sde, const std::string& name, const at::Tensor& x,
                               const at::Tensor& t, const at::Tensor& score, const at::Tensor& z,
                               int64_t steps, double snr, bool batch_norms) {
  if (name == "none") return {x, x};
  at::Tensor size;  // snr times the noise scale in units of the score, [B] or scalar
  if (name == "langevin") {
    at::Tensor score_norm = score.flatten(1).norm(2, 1), noise_norm = z.flatten(1).norm(2, 1);
    if (batch_norms) score_norm = score_norm.mean(0, true), noise_norm = noise_norm.mean(0, true);
    size = (noise_norm / score_norm).to(at::kDouble).expand({x.size(0)});
  } else {
    SP_CHECK(name == "ald", "sampler", "expected a corrector none | langevin | ald, got \"", name,
             "\"");
    size = sde.std(t.to(at::kDouble));
  }
  at::Tensor step = 2 * (snr * size).square();
  if (!variance_exploding(sde)) step = step * (1 - discrete_beta(sde, t, steps));
  const at::Tensor mean = x + broadcast(step, x) * score;
  return {mean + broadcast((2 * step).sqrt(), x) * z, mean};
}

at::Tensor probability_flow_sample(const ScoreModel& model, const SamplerOptions& options,
                                   const at::Tensor& z) {
  at::NoGradGuard off;
  ode::OdeOptions solver;
  solver.solver = options.solver;
  solver.rtol = options.rtol;
  solver.atol = options.atol;
  const bool exponential = options.solver.rfind("exp", 0) == 0;
  const auto equation = make_flow_equation(model.sde(), exponential ? "log_snr" : "time",
                                           options.data_std, options.t0);
  const ode::Rhs flow = [&](const at::Tensor& time, const ode::State& y, const at::Tensor&) {
    const FlowPoint p = equation->at(time);
    const at::Tensor score = model.score(y[0] * expand_like_batch(p.m, y[0]), p.t);
    return ode::State{y[0] * expand_like_batch(p.a, y[0]) + score * expand_like_batch(p.b, y[0])};
  };
  ode::Problem problem;
  problem.weight = equation->weight();
  problem.stops = equation->stops();
  ode::Solution solution = ode::integrate(flow, {z / equation->end_scale()}, equation->end(),
                                          equation->begin(), solver, problem);
  if (solution.summary.status != Status::kConverged) throw DataError(solution.summary.message);
  return solution.y[0] * equation->begin_scale();
}

namespace {

// The predictor-corrector chain of rows first .. first+n-1.
at::Tensor pc_chunk(const ScoreModel& model, const SamplerOptions& o, int64_t n, const Rng& rng,
                    const std::function<bool()>& step_done) {
  const Sde& sde = model.sde();
  const Shape shape = batched(n, model.event_shape());
  const auto noise = [&](const Rng& stream) {
    return stream.normal(shape, model.dtype()).to(model.device());
  };
  at::Tensor x = noise(rng.split("latent")) * sde.prior_std(), mean = x;
  const Rng predictor = rng.split("predictor"), corrector = rng.split("corrector");
  for (int64_t i = 0; i < o.steps; ++i) {
    const double time = 1 + (o.t0 - 1) * static_cast<double>(i) / std::max<int64_t>(o.steps - 1, 1);
    const at::Tensor t = at::full({n}, time, x.options());
    if (o.corrector != "none")
      for (int64_t k = 0; k < o.corrector_steps; ++k)
        x = corrector_update(sde, o.corrector, x, t, model.score(x, t),
                             noise(corrector.at(i * o.corrector_steps + k)), o.steps, o.snr,
                             o.batch_norms)
                .x;
    mean = x;
    if (o.predictor != "none") {
      const SamplerUpdate u = predictor_update(sde, o.predictor, x, t, model.score(x, t),
                                               noise(predictor.at(i)), o.steps, o.probability_flow);
      x = u.x;
      mean = u.mean;
    }
    if (!step_done()) return {};
  }
  return o.denoise ? mean : x;
}

}  // namespace

at::Tensor sample_score_model(const ScoreModel& model, const SamplerOptions& o, int64_t n,
                              const Rng& rng, Observer& observer) {
  SP_CHECK(n >= 0 && o.steps >= 2 && o.max_batch > 0, "sampler",
           "expected n >= 0, steps >= 2 and max_batch > 0");
  SP_CHECK(o.method == "pc" || o.method == "ode", "sampler", "expected method pc | ode, got \"",
           o.method, "\"");
  at::NoGradGuard off;
  const int64_t chunks = (n + o.max_batch - 1) / o.max_batch;
  const bool ode = o.method == "ode";
  observer.begin("sampling", ode ? chunks : chunks * o.steps);
  std::vector<at::Tensor> draws{
      at::empty(batched(0, model.event_shape()),
                at::TensorOptions().dtype(model.dtype()).device(model.device()))};
  int64_t done = 0;
  for (int64_t first = 0; first < n && !observer.stop_requested(); first += o.max_batch) {
    const int64_t count = std::min(o.max_batch, n - first);
    const Rng rows = rng.from_row(first);
    at::Tensor x;
    if (ode) {
      const at::Tensor z =
          rows.split("latent").normal(batched(count, model.event_shape()), model.dtype());
      x = probability_flow_sample(model, o, z.to(model.device()) * model.sde().prior_std());
      if (o.denoise) {  // one noise-free reverse step at t0 [Song21]
        const at::Tensor t = at::full({count}, o.t0, x.options());
        x = predictor_update(model.sde(), "reverse_diffusion", x, t, model.score(x, t), x, o.steps,
                             false)
                .mean;
      }
      observer.step(++done, {});
    } else {
      x = pc_chunk(model, o, count, rows, [&] {
        observer.step(++done, {});
        return !observer.stop_requested() || done == chunks * o.steps;
      });
      if (!x.defined()) break;
    }
    draws.push_back(x);
  }
  observer.end();
  return at::cat(draws);
}

}  // namespace scoreprior
