#pragma once
#include <ATen/ATen.h>

#include <limits>

#include "scoreprior/core/log_density.h"
#include "scoreprior/infer/inference.h"

namespace scoreprior::testing {

/// log N(x; mean, covariance) up to a constant, for x [B,1,1,D].
class GaussianDensity final : public LogDensity {
 public:
  GaussianDensity(at::Tensor mean, at::Tensor precision) : mean_(mean), precision_(precision) {}
  Shape event_shape() const override { return {1, 1, mean_.size(0)}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor d = x.flatten(1) - mean_.to(x.scalar_type());
    return -0.5 * (d * d.matmul(precision_.to(x.scalar_type()))).sum(1);
  }

 private:
  at::Tensor mean_, precision_;
};

/// log N(y; A x, sigma^2).
class LinearLikelihood final : public LogDensity {
 public:
  LinearLikelihood(at::Tensor a, at::Tensor y, double sigma) : a_(a), y_(y), sigma_(sigma) {}
  Shape event_shape() const override { return {1, 1, a_.size(1)}; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    const at::Tensor r =
        (x.flatten(1).matmul(a_.t().to(x.scalar_type())) - y_.to(x.scalar_type())) / sigma_;
    return -0.5 * r.square().sum(1);
  }

 private:
  at::Tensor a_, y_;
  double sigma_;
};

/// A density that is NaN for a share of the rows.
class SometimesNan final : public LogDensity {
 public:
  SometimesNan(const LogDensity& inner, double share) : inner_(inner), share_(share) {}
  Shape event_shape() const override { return inner_.event_shape(); }
  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    const at::Tensor value = inner_.log_prob(x, rng);
    const at::Tensor bad = rng.split("bad").uniform({x.size(0)}) < share_;
    return at::where(bad, at::full_like(value, std::numeric_limits<double>::quiet_NaN()), value);
  }

 private:
  const LogDensity& inner_;
  double share_;
};

/// Prior N(0, I) smoothed, data y = A x + noise: posterior mean and covariance in closed form.
struct GaussianProblem {
  explicit GaussianProblem(int64_t dim, double sigma = 0.3) {
    const Rng rng(17);
    const at::Tensor a =
        rng.split("a").normal({dim / 2, dim}, at::kDouble) / std::sqrt(static_cast<double>(dim));
    const at::Tensor y = rng.split("y").normal({dim / 2}, at::kDouble);
    const at::Tensor mean0 = at::full({dim}, 0.5, at::kDouble);
    const at::Tensor i = at::arange(dim, at::kDouble);
    const at::Tensor covariance0 = (-(i.unsqueeze(0) - i.unsqueeze(1)).abs() / 2).exp() * 0.25;
    const at::Tensor precision0 = at::linalg_inv(covariance0);
    prior = std::make_unique<GaussianDensity>(mean0, precision0);
    likelihood = std::make_unique<LinearLikelihood>(a, y, sigma);
    covariance = at::linalg_inv(precision0 + a.t().matmul(a) / (sigma * sigma));
    mean = covariance.matmul(precision0.matmul(mean0) + a.t().matmul(y) / (sigma * sigma));
  }
  std::unique_ptr<LogDensity> prior, likelihood;
  at::Tensor mean, covariance;
  Target target() const { return {*prior, *likelihood}; }
};

class MemoryStore final : public StateStore {
 public:
  void save(const std::map<std::string, at::Tensor>& state) override {
    saved.clear();
    for (const auto& [name, t] : state) saved[name] = t.clone();
    ++saves;
  }
  bool load(std::map<std::string, at::Tensor>& state) const override {
    if (saved.empty()) return false;
    state = saved;
    return true;
  }
  std::map<std::string, at::Tensor> saved;
  int saves = 0;
};

/// Asks to stop after a number of steps.
class StoppingObserver final : public Observer {
 public:
  explicit StoppingObserver(int64_t after = -1) : after_(after) {}
  void step(int64_t, const Metrics&) override { ++seen_; }
  bool stop_requested() const override { return after_ >= 0 && seen_ >= after_; }

 private:
  int64_t after_, seen_ = 0;
};

}  // namespace scoreprior::testing
