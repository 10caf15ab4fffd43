#include "scoreprior/diffusion/log_snr.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace scoreprior {
namespace {

// One coefficient of the process at one time.
double coefficient_at(const Sde& sde, at::Tensor (Sde::*what)(const at::Tensor&) const, double t) {
  return (sde.*what)(at::full({1}, t, at::kDouble)).item<double>();
}

}  // namespace

LogSnr::LogSnr(const Sde& sde) : sde_(sde) {
  const std::string name = sde.name();
  kind_ = name == "vp"      ? Kind::kVp
          : name == "subvp" ? Kind::kSubVp
          : name == "ve"    ? Kind::kVe
                            : Kind::kLinearVe;
  if (kind_ == Kind::kVp || kind_ == Kind::kSubVp) {
    b0_ = -2 * coefficient_at(sde, &Sde::drift_coeff, 0);
    db_ = -2 * coefficient_at(sde, &Sde::drift_coeff, 1) - b0_;
  } else {
    sigma0_ = coefficient_at(sde, &Sde::std, 0);
    sigma1_ = coefficient_at(sde, &Sde::std, 1);
  }
}

double LogSnr::alpha(double t) const {
  return kind_ == Kind::kVp || kind_ == Kind::kSubVp ? std::exp(-0.5 * integral(t)) : 1.0;
}

double LogSnr::std(double t) const {
  switch (kind_) {
    case Kind::kVp:
      return std::sqrt(-std::expm1(-integral(t)));
    case Kind::kSubVp:
      return -std::expm1(-integral(t));
    case Kind::kVe:
      return sigma0_ * std::pow(sigma1_ / sigma0_, t);
    case Kind::kLinearVe:
      return sigma1_ * t;
  }
  return 0;
}

double LogSnr::lambda(double t) const { return -std::log(std(t) / alpha(t)); }

double LogSnr::integral_time(double b) const {
  return 2 * b / (b0_ + std::sqrt(b0_ * b0_ + 2 * db_ * b));
}

double LogSnr::time(double lambda) const {
  const double noise = std::exp(-lambda);
  double t = 0;
  switch (kind_) {
    case Kind::kVp:
      t = integral_time(std::log1p(noise * noise));
      break;
    case Kind::kSubVp:
      t = integral_time(2 * std::asinh(0.5 * noise));
      break;
    case Kind::kVe:
      t = std::log(noise / sigma0_) / std::log(sigma1_ / sigma0_);
      break;
    case Kind::kLinearVe:
      t = noise / sigma1_;
      break;
  }
  return std::clamp(t, 0.0, 1.0);
}

std::vector<double> LogSnr::branch_times() const {
  std::vector<double> out;
  if (kind_ != Kind::kVp && kind_ != Kind::kSubVp) return out;
  // Exponents B at which the reference leaves its expansions of 1 - e^-B and 1 - e^-2B.
  for (double b : {0.5e-3, 1e-3, 2e-3}) {
    const double t = integral_time(b);
    for (auto what : {&Sde::std, &Sde::diffusion}) {
      const double below = coefficient_at(sde_, what, t * (1 - 1e-9)),
                   above = coefficient_at(sde_, what, t * (1 + 1e-9));
      if (std::abs(above / below - 1) < 1e-6) continue;
      out.push_back(t);
      break;
    }
  }
  return out;
}

}  // namespace scoreprior
