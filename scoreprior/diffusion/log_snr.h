#pragma once
#include <vector>

#include "scoreprior/sde/sde.h"

namespace scoreprior {

/// The clock lambda = -ln(std/alpha) (half the log signal-to-noise ratio) of a process, in double.
/// alpha and std are those of [Song21] with d(std^2/alpha^2)/dt = g^2/alpha^2, free of the
/// small-time branch.
class LogSnr {
 public:
  explicit LogSnr(const Sde& sde);

  double alpha(double t) const;
  double std(double t) const;
  double lambda(double t) const;
  /// The inverse of lambda(t).
  double time(double lambda) const;
  /// Times in (0,1) at which the reference's small-time branch makes the process' coefficients
  /// jump; empty without the branch.
  std::vector<double> branch_times() const;

 private:
  enum class Kind { kVp, kSubVp, kVe, kLinearVe };
  double integral(double t) const { return (t * (db_ / 2) + b0_) * t; }
  double integral_time(double b) const;

  const Sde& sde_;
  Kind kind_;
  double b0_ = 0, db_ = 0;          // beta(0), beta(1) - beta(0)
  double sigma0_ = 0, sigma1_ = 0;  // std(0), std(1)
};

}  // namespace scoreprior
