#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "scoreprior/sde/sde.h"

namespace scoreprior {

/// At one value of the variable, for each image: the time t, x = m u, and du = w (a u + b score);
/// all [A] in the variable's dtype.
struct FlowPoint {
  at::Tensor t, m, a, b;
};

/// The probability-flow ODE as du/dtau = w(tau) [a u + b score(m u, t)], from tau = begin() (t0) to
/// end() (t = 1); variables as in probability_flow.h.
class FlowEquation {
 public:
  virtual ~FlowEquation() = default;
  virtual FlowPoint at(const at::Tensor& tau) const = 0;
  virtual double begin() const = 0;
  virtual double end() const = 0;
  virtual double begin_scale() const = 0;  ///< m at begin()
  virtual double end_scale() const = 0;    ///< m at end()
  /// ln of the factor by which x/u grows from begin to end: what D times it adds to the integral of
  /// du's divergence is the log-volume of x.
  double log_stretch() const;
  /// w; empty = 1.
  virtual std::function<double(double)> weight() const = 0;
  /// Where coefficients jump (small-time branch).
  virtual std::vector<double> stops() const = 0;
  /// begin(), ..., end() in `steps` steps.
  virtual std::vector<double> grid(int64_t steps) const = 0;
};

/// variable = time | log_snr.
std::unique_ptr<FlowEquation> make_flow_equation(const Sde& sde, const std::string& variable,
                                                 double data_std, double t0);

}  // namespace scoreprior
