#include "scoreprior/diffusion/denoising_draw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

at::Tensor noise_ratio(const Sde& sde, const at::Tensor& t) {
  return sde.std(t) / sde.mean_coeff(t);
}

// t in [t0,1] with std/alpha = ratio, by bisection: the ratio grows with t for every process.
at::Tensor time_of_ratio(const Sde& sde, const at::Tensor& ratio, double t0) {
  at::Tensor low = at::full_like(ratio, t0), high = at::ones_like(ratio);
  for (int i = 0; i < 60; ++i) {
    const at::Tensor middle = (low + high) / 2;
    const at::Tensor below = noise_ratio(sde, middle) < ratio;
    low = at::where(below, middle, low);
    high = at::where(below, high, middle);
  }
  return (low + high) / 2;
}

// Size of the finite difference, relative to the noise.
constexpr double kNudge = 0.1;
// c^2 of a prior of one eigenvalue v is 1 + r^2 / v, without bound as the noise r grows.
constexpr double kMostStretch = 1e6;

/// Noise of covariance about J = dD/du from standard normals n: c J n, where c matches the trace,
/// |c J n|^2 = n . J n. Exact where the eigenvalues of J are 0 and one other value.
at::Tensor clean_spread(const std::function<at::Tensor(const at::Tensor&)>& jacobian_product,
                        const at::Tensor& n) {
  const at::Tensor j = jacobian_product(n);
  const auto dot = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * b).flatten(1).sum(1);
  };
  const at::Tensor c2 = (dot(n, j) / dot(j, j).clamp_min(1e-30)).clamp(1, kMostStretch);
  std::vector<int64_t> shape(n.dim(), 1);
  shape[0] = n.size(0);
  return j * c2.sqrt().view(shape);
}

}  // namespace

at::Tensor draw_denoised(const ScoreModel& model, const at::Tensor& noisy, double sigma, double t0,
                         double steps_per_efold, const Rng& rng) {
  SP_CHECK(sigma > 0 && steps_per_efold > 0, "draw_denoised",
           "expected sigma > 0 and steps_per_efold > 0, got ", sigma, " and ", steps_per_efold);
  at::NoGradGuard no_grad;
  const Sde& sde = model.sde();
  const double smallest = noise_ratio(sde, at::full({1}, t0, at::kDouble)).item<double>();
  const double largest = noise_ratio(sde, at::ones({1}, at::kDouble)).item<double>();
  const double start = std::min(std::max(sigma, smallest), largest);
  const double efolds = std::log(start / smallest);
  const auto intervals =
      efolds <= 0 ? int64_t{0}
                  : std::max<int64_t>(1, static_cast<int64_t>(std::ceil(efolds * steps_per_efold)));
  std::vector<double> ratios(intervals + 1);
  for (int64_t k = 0; k <= intervals; ++k)
    ratios[k] = k == 0 ? start : start * std::exp(-efolds * static_cast<double>(k) / intervals);
  const at::Tensor times = time_of_ratio(sde, at::tensor(ratios, at::kDouble), t0);
  const at::Tensor alphas = sde.mean_coeff(times), stds = sde.std(times);

  const int64_t batch = noisy.size(0);
  at::Tensor u = noisy.detach().to(model.device(), model.dtype());
  for (int64_t k = 0;; ++k) {
    const double alpha = alphas[k].item<double>(), std = stds[k].item<double>();
    const at::Tensor t = at::full({batch}, times[k].item<double>(),
                                  at::TensorOptions().dtype(model.dtype()).device(model.device()));
    const auto clean_of = [&](const at::Tensor& x) {
      return at::add(x, model.score(x * alpha, t), std * std / alpha);
    };
    const Rng here = rng.at(k);
    const auto normal = [&](const char* name) {
      return here.split(name).normal(u.sizes(), model.dtype()).to(model.device());
    };
    const at::Tensor clean = clean_of(u);
    const double nudge = kNudge * std / alpha;
    const at::Tensor spread =
        clean_spread([&](const at::Tensor& e) { return (clean_of(u + e * nudge) - clean) / nudge; },
                     normal("spread"));
    const double ratio = std / alpha;
    if (k == intervals) return clean + spread * ratio;
    const double keep = std::pow(ratios[k + 1] / ratio, 2);
    u = clean + (u - clean) * keep + spread * (ratio * (1 - keep)) +
        normal("noise") * (ratios[k + 1] * std::sqrt(1 - keep));
  }
}

}  // namespace scoreprior
