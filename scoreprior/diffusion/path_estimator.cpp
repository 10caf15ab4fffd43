#include "scoreprior/diffusion/path_estimator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

// ln(std^2 / alpha^2), increasing in t for every process here.
at::Tensor noise_level(const Sde& sde, const at::Tensor& t) {
  return 2 * (sde.std(t) / sde.mean_coeff(t)).log();
}

// Everything about the steps of a path that no image changes, float64 on the CPU.
struct PathSteps {
  at::Tensor t, alpha;              // [N] at the later ends
  at::Tensor r, sigma2, least_rho;  // [N] x_k = r x_{k-1} + sigma z
  double alpha0 = 1;
};

PathSteps steps_between(const Sde& sde, const at::Tensor& times) {
  const int64_t n = times.size(0) - 1;
  const at::Tensor alpha = sde.mean_coeff(times), std = sde.std(times);
  const at::Tensor level = noise_level(sde, times);
  PathSteps s;
  s.t = times.slice(0, 1);
  s.alpha = alpha.slice(0, 1);
  s.alpha0 = alpha[0].item<double>();
  s.r = s.alpha / alpha.slice(0, 0, n);
  // std_k^2 - r^2 std_{k-1}^2 without its cancellation
  const at::Tensor kept = (level.slice(0, 0, n) - level.slice(0, 1)).exp();
  s.sigma2 = std.slice(0, 1).square() * (1 - kept);
  s.least_rho = kept;
  return s;
}

// sum_k [ D ln r - D/2 ln rho + |z|^2/2 - |z + sigma s|^2/(2 rho) ] for z and s [N,D].
double reverse_over_forward(const PathSteps& k, const at::Tensor& z, const at::Tensor& score) {
  const double pixels = static_cast<double>(z.size(1));
  const at::Tensor sigma = k.sigma2.sqrt().unsqueeze(1);
  const at::Tensor rho = at::minimum(
      at::maximum(1 - k.sigma2 * score.square().mean(1), k.least_rho), at::ones_like(k.least_rho));
  const at::Tensor terms = (k.r.log() - 0.5 * rho.log()) * pixels +
                           0.5 * (z.square().sum(1) - (z + sigma * score).square().sum(1) / rho);
  return terms.sum().item<double>();
}

// z of the steps that join steps 2j and 2j+1: x_{2j+2} = r_b (r_a x + sigma_a z_a) + sigma_b z_b.
at::Tensor joined_noise(const PathSteps& fine, const PathSteps& coarse, const at::Tensor& z) {
  const auto first = [](const at::Tensor& a) { return a.slice(0, 0, a.size(0), 2); };
  const auto second = [](const at::Tensor& a) { return a.slice(0, 1, a.size(0), 2); };
  const at::Tensor sigma = fine.sigma2.sqrt(), whole = coarse.sigma2.sqrt();
  return (second(fine.r) * first(sigma) / whole).unsqueeze(1) * first(z) +
         (second(sigma) / whole).unsqueeze(1) * second(z);
}

}  // namespace

void check_options(const Config& config, const PathOptions& o) {
  if (!(o.t0 > 0 && o.t0 < 1)) config.fail("t0", "t0 must lie between 0 and 1");
  if (o.steps < 1) config.fail("steps", "steps must be at least 1");
  if (o.extrapolate && o.steps % 2)
    config.fail("steps", "steps must be even to extrapolate; or set extrapolate = false");
  if (o.paths < 1) config.fail("paths", "paths must be at least 1");
  if (o.max_batch < 1) config.fail("max_batch", "max_batch must be at least 1");
}

at::Tensor path_times(const Sde& sde, double t0, int64_t steps) {
  SP_CHECK(t0 > 0 && t0 < 1 && steps > 0, "path", "expected t0 in (0,1) and steps > 0");
  const at::Tensor ends = at::tensor({t0, 1.0}, at::kDouble);
  const at::Tensor level = noise_level(sde, ends);
  const at::Tensor wanted =
      level[0] + (level[1] - level[0]) * at::arange(steps + 1, at::kDouble) / double(steps);
  at::Tensor low = at::full({steps + 1}, t0, at::kDouble),
             high = at::ones({steps + 1}, at::kDouble);
  for (int i = 0; i < 60; ++i) {  // bisection down to neighbouring doubles
    const at::Tensor mid = 0.5 * (low + high);
    const at::Tensor below = noise_level(sde, mid) < wanted;
    low = at::where(below, mid, low);
    high = at::where(below, high, mid);
  }
  at::Tensor t = high;
  t[0] = t0;
  t[steps] = 1.0;
  return t;
}

PathEstimate path_log_prob(const ScoreModel& model, const PathOptions& o, const at::Tensor& x,
                           const Rng& rng) {
  check_batched("path", "x", x, model.event_shape());
  SP_CHECK(o.paths > 0 && o.max_batch > 0, "path", "expected paths > 0 and max_batch > 0");
  SP_CHECK(!o.extrapolate || o.steps % 2 == 0, "path", "expected even steps, got ", o.steps);
  const at::NoGradGuard off;
  const int64_t batch = x.size(0), n = o.steps, pixels = numel(model.event_shape());
  const bool halves = n % 2 == 0;
  const at::Tensor times = path_times(model.sde(), o.t0, n);
  const PathSteps fine = steps_between(model.sde(), times);
  const PathSteps coarse =
      halves ? steps_between(model.sde(), times.slice(0, 0, n + 1, 2)) : PathSteps{};
  const at::Tensor t = fine.t.to(model.device(), model.dtype());
  const at::Tensor spread = (fine.sigma2.sqrt() / fine.alpha).unsqueeze(1);
  const Rng noise = rng.split("path.noise");

  at::Tensor log_w = at::empty({batch, o.paths}, at::kDouble);
  at::Tensor log_w_half = at::full({batch, o.paths}, std::nan(""), at::kDouble);
  for (int64_t b = 0; b < batch; ++b) {
    const at::Tensor start = x[b].to(at::kCPU, at::kDouble).reshape({1, pixels}) / fine.alpha0;
    for (int64_t p = 0; p < o.paths; ++p) {
      const at::Tensor z = noise.at(p).from_row(b).normal({1, n, pixels}, at::kDouble)[0];
      const at::Tensor path = fine.alpha.unsqueeze(1) * (start + (spread * z).cumsum(0));
      const at::Tensor rows =
          path.to(model.device(), model.dtype()).reshape(batched(n, model.event_shape()));
      std::vector<at::Tensor> scores;
      for (int64_t k = 0; k < n; k += o.max_batch)
        scores.push_back(model.score(rows.slice(0, k, std::min(n, k + o.max_batch)),
                                     t.slice(0, k, std::min(n, k + o.max_batch))));
      const at::Tensor score = at::cat(scores).to(at::kCPU, at::kDouble).reshape({n, pixels});
      const double prior = model.sde().prior_log_prob(path.slice(0, n - 1)).item<double>();
      log_w[b][p] = prior + reverse_over_forward(fine, z, score);
      if (halves)
        log_w_half[b][p] = prior + reverse_over_forward(coarse, joined_noise(fine, coarse, z),
                                                        score.slice(0, 1, n, 2));
    }
  }

  const at::Tensor values = o.extrapolate ? 2 * log_w - log_w_half : log_w;
  PathEstimate out;
  out.log_prob = values.mean(1);
  out.standard_error = values.std(1, /*unbiased=*/true) / std::sqrt(static_cast<double>(o.paths));
  out.step_error = (log_w - log_w_half).mean(1);
  out.bound = log_w.mean(1);
  out.importance = log_w.logsumexp(1) - std::log(static_cast<double>(o.paths));
  out.evaluations = o.paths * n;
  return out;
}

}  // namespace scoreprior
