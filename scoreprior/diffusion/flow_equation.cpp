#include "scoreprior/diffusion/flow_equation.h"

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/log_snr.h"

namespace scoreprior {
namespace {

class TimeFlow final : public FlowEquation {
 public:
  TimeFlow(const Sde& sde, double t0) : sde_(sde), clock_(sde), t0_(t0) {}
  FlowPoint at(const at::Tensor& t) const override {
    return {t, at::ones_like(t), sde_.drift_coeff(t), sde_.diffusion(t).square() * -0.5};
  }
  double begin() const override { return t0_; }
  double end() const override { return 1; }
  double begin_scale() const override { return 1; }
  double end_scale() const override { return 1; }
  std::function<double(double)> weight() const override { return {}; }
  std::vector<double> stops() const override { return clock_.branch_times(); }
  std::vector<double> grid(int64_t steps) const override {
    std::vector<double> g;
    for (int64_t i = 0; i <= steps; ++i)
      g.push_back(i == steps ? 1.0 : t0_ + (1 - t0_) * static_cast<double>(i) / steps);
    return g;
  }

 private:
  const Sde& sde_;
  LogSnr clock_;
  double t0_;
};

class LogSnrFlow final : public FlowEquation {
 public:
  LogSnrFlow(const Sde& sde, double data_std, double t0)
      : sde_(sde),
        clock_(sde),
        c2_(data_std * data_std),
        t0_(t0),
        begin_(clock_.lambda(t0)),
        end_(clock_.lambda(1)) {}

  FlowPoint at(const at::Tensor& tau) const override {
    const at::Tensor in = tau.detach().to(at::kCPU, at::kDouble).contiguous();
    const int64_t n = in.numel();
    const at::Tensor points = at::empty({4, n}, at::kDouble);
    double* p = points.data_ptr<double>();
    for (int64_t i = 0; i < n; ++i) {
      const double lambda = in.data_ptr<double>()[i], t = std::max(clock_.time(lambda), t0_);
      const double noise = std::exp(-lambda), m = scale(lambda, t);
      p[i] = t;
      p[n + i] = m;
      p[2 * n + i] = noise / (1 + c2_);
      p[3 * n + i] = noise * m;
    }
    if (sde_.name() == "subvp") {
      // g^2 over beta (1 - alpha^4), the one that belongs to std: differs from 1 in the small-time
      // branch alone.
      const at::Tensor t = points[0];
      const at::Tensor exact = sde_.drift_coeff(t) * -2;
      for (int64_t i = 0; i < n; ++i) {
        const double alpha = clock_.alpha(p[i]);
        exact.data_ptr<double>()[i] *= clock_.std(p[i]) * (1 + alpha * alpha);
      }
      points[3].mul_(sde_.diffusion(t).square() / exact);
    }
    const at::Tensor out = points.to(tau.device(), tau.scalar_type());
    return {out[0], out[1], out[2], out[3]};
  }
  double begin() const override { return begin_; }
  double end() const override { return end_; }
  double begin_scale() const override { return scale(begin_, t0_); }
  double end_scale() const override { return scale(end_, 1); }
  std::function<double(double)> weight() const override {
    return [c2 = c2_](double lambda) {
      const double noise = std::exp(-lambda);
      return noise * (1 + c2) / (c2 + noise * noise);
    };
  }
  std::vector<double> stops() const override {
    std::vector<double> out;
    for (double t : clock_.branch_times()) out.push_back(clock_.lambda(t));
    return out;
  }
  std::vector<double> grid(int64_t steps) const override {
    std::vector<double> g;
    for (int64_t i = 0; i <= steps; ++i)
      g.push_back(i == 0       ? begin_
                  : i == steps ? end_
                               : begin_ + (end_ - begin_) * static_cast<double>(i) / steps);
    return g;
  }

 private:
  double scale(double lambda, double t) const {
    return clock_.alpha(t) * std::sqrt((c2_ + std::exp(-2 * lambda)) / (1 + c2_));
  }
  const Sde& sde_;
  LogSnr clock_;
  double c2_, t0_, begin_, end_;
};

}  // namespace

double FlowEquation::log_stretch() const { return std::log(end_scale() / begin_scale()); }

std::unique_ptr<FlowEquation> make_flow_equation(const Sde& sde, const std::string& variable,
                                                 double data_std, double t0) {
  if (variable == "time") return std::make_unique<TimeFlow>(sde, t0);
  SP_CHECK(variable == "log_snr", "flow equation", "expected variable time | log_snr, got \"",
           variable, "\"");
  return std::make_unique<LogSnrFlow>(sde, data_std, t0);
}

}  // namespace scoreprior
