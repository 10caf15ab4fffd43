#include "scoreprior/data/gmm.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

// The key that is wrong and why, or nothing.
std::pair<const char*, const char*> gmm_option_error(const GmmOptions& o) {
  if (o.shape.size() != 3 || *std::min_element(o.shape.begin(), o.shape.end()) < 1)
    return {"shape", "shape must be three positive numbers [channels, height, width]"};
  const auto positive = [](double v) { return v > 0 && std::isfinite(v); };
  if (o.weights.empty() || !std::all_of(o.weights.begin(), o.weights.end(), positive))
    return {"weights", "weights must be positive"};
  if (o.sigmas.size() != o.weights.size() ||
      !std::all_of(o.sigmas.begin(), o.sigmas.end(), positive))
    return {"sigmas", "sigmas must be positive, one for each weight"};
  if (o.means.size() != o.weights.size() * static_cast<size_t>(numel(o.shape)))
    return {"means", "means must have one number for every component and pixel"};
  return {nullptr, nullptr};
}

}  // namespace

Gmm::Gmm(const GmmOptions& options, const std::string& split)
    : options_(options), split_(split), rng_(Rng(options.seed).split("gmm").split(split)) {
  const auto [key, why] = gmm_option_error(options);
  SP_CHECK(!key, "gmm", why);
  double sum = 0;
  for (const double w : options_.weights) sum += w;
  double below = 0;
  for (double& w : options_.weights) cumulative_.push_back(below += w /= sum);
}

std::string Gmm::describe() const {
  return detail::concat("mixture of ", options_.weights.size(), " Gaussians, ", split_, " split, ",
                        to_string(image_shape()), ", seed ", options_.seed);
}

at::Tensor Gmm::batch(const std::vector<int64_t>& indices, const Rng& /*rng*/) const {
  const int64_t n = static_cast<int64_t>(indices.size()), d = numel(options_.shape);
  const int64_t last = static_cast<int64_t>(cumulative_.size()) - 1;
  at::Tensor out = at::empty({n, d}, at::kFloat);
  float* data = out.data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) {
    SP_CHECK(indices[i] >= 0, "gmm", "expected an index >= 0, got ", indices[i]);
    const Rng rng = rng_.at(indices[i]);
    const double u = rng.split("component").uniforms(1)[0];
    const int64_t k = std::min<int64_t>(
        last, std::upper_bound(cumulative_.begin(), cumulative_.end(), u) - cumulative_.begin());
    const std::vector<double> z = rng.split("value").normals(d);
    for (int64_t j = 0; j < d; ++j)
      data[i * d + j] = static_cast<float>(options_.means[k * d + j] + options_.sigmas[k] * z[j]);
  }
  return out.view(batched(n, options_.shape));
}

at::Tensor Gmm::log_prob(const at::Tensor& x) const {
  check_batched("gmm", "x", x, options_.shape);
  const int64_t d = numel(options_.shape),
                components = static_cast<int64_t>(options_.weights.size());
  const auto row = [&](const std::vector<double>& v) {
    return at::tensor(v, at::kDouble).to(x.options());
  };
  const at::Tensor means = row(options_.means).view({1, components, d});
  const at::Tensor sigmas = row(options_.sigmas);
  const at::Tensor quadratic = (x.reshape({-1, 1, d}) - means).square().sum(2) / sigmas.square();
  return at::logsumexp(row(options_.weights).log() -
                           static_cast<double>(d) * (sigmas.log() + std::log(2 * M_PI) / 2) -
                           quadratic / 2,
                       1);
}

std::unique_ptr<Dataset> make_gmm(const Config& config, const std::string& split) {
  const auto options = config.read<GmmOptions>();
  if (const auto [key, why] = gmm_option_error(options); key) config.fail(key, why);
  return std::make_unique<Gmm>(options, split);
}

}  // namespace scoreprior
