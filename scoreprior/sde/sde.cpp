#include "scoreprior/sde/sde.h"

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

// Below this exponent the reference replaces exp(x) - 1 by x; small_time_branch = true does the
// same.
constexpr double kBranch = 1e-3;
// The weight is monotone up to the jump at kBranch; 200 halvings of [t0,1] end on neighbouring
// doubles.
constexpr int kHalvings = 200;

struct SdeOptions {
  std::string type = "vp";
  double beta_min = 0.1, beta_max = 20.0;
  double sigma_min = 0.01, sigma_max = 50.0;
  int64_t num_scales = 1000;
  bool small_time_branch = false;
  template <class F>
  void fields(F&& f) {
    f("type", type, "vp | subvp | ve | linear_ve");
    f("beta_min", beta_min, "beta(0) of vp and subvp; beta(t) is linear");
    f("beta_max", beta_max, "beta(1) of vp and subvp");
    f("sigma_min", sigma_min, "noise at t = 0 of ve, in the image's own scale");
    f("sigma_max", sigma_max, "noise at t = 1 of ve and linear_ve");
    f("num_scales", num_scales, "steps of the discrete process");
    f("small_time_branch", small_time_branch,
      "expansions of the reference at small t (false = exact)");
  }
};

// Shared by VP and sub-VP: f = -beta x / 2, alpha = exp(-B/2) with B(t) = int_0^t beta = b0 t +
// (b1-b0) t^2/2.
class BetaSde : public Sde {
 public:
  explicit BetaSde(const SdeOptions& o) : o_(o), b0_(o.beta_min), db_(o.beta_max - o.beta_min) {}

  at::Tensor mean_coeff(const at::Tensor& t) const override {
    const at::Tensor l = integral(t) * -0.5;
    if (!o_.small_time_branch) return l.exp();
    return at::where(l.abs() <= kBranch, l + 1, l.exp());
  }
  at::Tensor drift_coeff(const at::Tensor& t) const override { return beta(t) * -0.5; }
  double prior_std() const override { return 1.0; }
  at::Tensor network_label(const at::Tensor& t) const override { return t * 999; }
  at::Tensor net_to_score(const at::Tensor& t) const override { return -std(t).reciprocal(); }
  int64_t num_scales() const override { return o_.num_scales; }

  bool has_importance() const override { return true; }
  double importance_norm(double t0) const override {
    check_t0(t0);
    return weight(integral(1.0)) - weight(integral(t0));
  }
  at::Tensor importance_time(const at::Tensor& u, double t0) const override {
    check_t0(t0);
    const at::Tensor in = u.detach().to(at::kCPU, at::kDouble).contiguous();
    at::Tensor out = at::empty_like(in);
    const double* p = in.data_ptr<double>();
    double* q = out.data_ptr<double>();
    const double start = weight(integral(t0)), z = importance_norm(t0);
    for (int64_t i = 0; i < in.numel(); ++i) q[i] = time_at(start, p[i] * z, t0);
    return out.to(u.device(), u.scalar_type());
  }

 protected:
  at::Tensor beta(const at::Tensor& t) const { return t * db_ + b0_; }
  at::Tensor integral(const at::Tensor& t) const { return (t * (db_ / 2) + b0_) * t; }
  double integral(double t) const { return (t * (db_ / 2) + b0_) * t; }

  // 1 - exp(-e) for e >= 0; the reference expands it up to e = limit.
  at::Tensor one_minus_exp(const at::Tensor& e, double limit) const {
    const at::Tensor exact = -at::expm1(-e);
    if (!o_.small_time_branch) return exact;
    return at::where(e <= limit, e, exact);
  }

  // Antiderivative of g^2/std^2 as a function of B, and its exact inverse.
  virtual double weight(double b) const = 0;
  virtual double inverse_weight(double w) const = 0;
  bool branch(double b) const { return o_.small_time_branch && b <= kBranch; }

  const SdeOptions o_;

 private:
  static void check_t0(double t0) {
    SP_CHECK(t0 > 0 && t0 < 1, "sde.importance", "expected t0 in (0,1), got ", t0);
  }
  double time_at(double start, double wanted, double t0) const {
    if (o_.small_time_branch) {  // the weight jumps at the branch: follow the reference's bisection
      double low = t0, high = 1, mid = t0;
      for (int i = 0; i < kHalvings; ++i) {
        const double next = 0.5 * (low + high);
        if (next == mid) break;
        mid = next;
        (weight(integral(mid)) - start <= wanted ? low : high) = mid;
      }
      return mid;
    }
    const double b = inverse_weight(start + wanted);
    const double t = 2 * b / (b0_ + std::sqrt(b0_ * b0_ + 2 * db_ * b));
    return std::min(std::max(t, t0), 1.0);
  }

  double b0_, db_;
};

/// dx = -beta/2 x dt + sqrt(beta) dw, std^2 = 1 - alpha^2 [Song21] eq. 11.
class VpSde final : public BetaSde {
 public:
  using BetaSde::BetaSde;
  std::string name() const override { return "vp"; }
  at::Tensor std(const at::Tensor& t) const override {
    return one_minus_exp(integral(t), 2 * kBranch).sqrt();
  }
  at::Tensor diffusion(const at::Tensor& t) const override { return beta(t).sqrt(); }

 protected:
  // ln(e^B - 1)
  double weight(double b) const override { return b + std::log(branch(b) ? b : -std::expm1(-b)); }
  double inverse_weight(double w) const override {
    return w > 0 ? w + std::log1p(std::exp(-w)) : std::log1p(std::exp(w));
  }

 private:
  using BetaSde::integral;
};

/// The same drift with g^2 = beta (1 - alpha^4), std = 1 - alpha^2 [Song21] eq. 12.
class SubVpSde final : public BetaSde {
 public:
  using BetaSde::BetaSde;
  std::string name() const override { return "subvp"; }
  at::Tensor std(const at::Tensor& t) const override {
    return one_minus_exp(integral(t), 2 * kBranch);
  }
  at::Tensor diffusion(const at::Tensor& t) const override {
    return (beta(t) * one_minus_exp(integral(t) * 2, kBranch)).sqrt();
  }

 protected:
  // 2 ln(e^B - 1) - B = 2 ln(2 sinh(B/2))
  double weight(double b) const override {
    if (branch(b)) return 2 * std::log(b) - b;
    return b + 2 * std::log(-std::expm1(-b));
  }
  double inverse_weight(double w) const override { return 2 * std::asinh(0.5 * std::exp(0.5 * w)); }

 private:
  using BetaSde::integral;
};

// f = 0, alpha = 1: the image keeps its scale and noise is added.
class AddedNoiseSde : public Sde {
 public:
  explicit AddedNoiseSde(const SdeOptions& o) : o_(o) {}
  at::Tensor mean_coeff(const at::Tensor& t) const override { return at::ones_like(t); }
  at::Tensor drift_coeff(const at::Tensor& t) const override { return at::zeros_like(t); }
  double prior_std() const override { return o_.sigma_max; }
  at::Tensor network_label(const at::Tensor& t) const override { return std(t); }
  at::Tensor net_to_score(const at::Tensor& t) const override { return at::ones_like(t); }
  int64_t num_scales() const override { return o_.num_scales; }
  bool has_importance() const override { return false; }
  double importance_norm(double) const override { return no_importance(); }
  at::Tensor importance_time(const at::Tensor& u, double) const override {
    no_importance();
    return u;
  }

 protected:
  const SdeOptions o_;

 private:
  double no_importance() const {
    SP_CHECK(false, "sde.importance", "importance-sampled times exist for vp and subvp, not for ",
             name());
    return 0;
  }
};

/// std = sigma_min (sigma_max/sigma_min)^t, g = std sqrt(2 ln(sigma_max/sigma_min)) [Song21] eq. 9.
class VeSde final : public AddedNoiseSde {
 public:
  using AddedNoiseSde::AddedNoiseSde;
  std::string name() const override { return "ve"; }
  at::Tensor std(const at::Tensor& t) const override { return (t * ratio()).exp() * o_.sigma_min; }
  at::Tensor diffusion(const at::Tensor& t) const override {
    return std(t) * std::sqrt(2 * ratio());
  }

 private:
  double ratio() const { return std::log(o_.sigma_max / o_.sigma_min); }
};

/// std = sigma_max t, g = sigma_max sqrt(2 t).
class LinearVeSde final : public AddedNoiseSde {
 public:
  using AddedNoiseSde::AddedNoiseSde;
  std::string name() const override { return "linear_ve"; }
  at::Tensor std(const at::Tensor& t) const override { return t * o_.sigma_max; }
  at::Tensor diffusion(const at::Tensor& t) const override { return (t * 2).sqrt() * o_.sigma_max; }
};

}  // namespace

at::Tensor Sde::drift(const at::Tensor& x, const at::Tensor& t) const {
  return x * expand_like_batch(drift_coeff(t), x);
}

at::Tensor Sde::reverse_drift(const at::Tensor& x, const at::Tensor& t,
                              const at::Tensor& score) const {
  return drift(x, t) - score * expand_like_batch(diffusion(t).square(), x);
}

at::Tensor Sde::probability_flow_drift(const at::Tensor& x, const at::Tensor& t,
                                       const at::Tensor& score) const {
  return drift(x, t) - score * expand_like_batch(diffusion(t).square() * 0.5, x);
}

at::Tensor Sde::prior_log_prob(const at::Tensor& z) const {
  const double d = static_cast<double>(z.numel()) / static_cast<double>(z.size(0));
  const double s = prior_std();
  return sum_event(z.square()) * (-0.5 / (s * s)) - 0.5 * d * std::log(2 * M_PI * s * s);
}

std::unique_ptr<Sde> make_sde(const Config& config) {
  config.one_of("type", "vp", {"vp", "subvp", "ve", "linear_ve"});
  const auto o = config.read<SdeOptions>();
  if (!(o.beta_min > 0)) config.fail("beta_min", "expected a positive rate");
  if (!(o.beta_max >= o.beta_min)) config.fail("beta_max", "expected at least beta_min");
  if (!(o.sigma_min > 0)) config.fail("sigma_min", "expected a positive standard deviation");
  if (!(o.sigma_max > o.sigma_min)) config.fail("sigma_max", "expected more than sigma_min");
  if (o.num_scales < 2) config.fail("num_scales", "expected at least 2");
  if (o.type == "vp") return std::make_unique<VpSde>(o);
  if (o.type == "subvp") return std::make_unique<SubVpSde>(o);
  if (o.type == "ve") return std::make_unique<VeSde>(o);
  return std::make_unique<LinearVeSde>(o);
}

}  // namespace scoreprior
