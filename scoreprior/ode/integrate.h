#pragma once
/// Initial-value problems y' = f(t, y) for a batch of independent images, each with its own time,
/// step size and error control: an image's solution does not depend on its batch mates, and images
/// that have arrived leave the batch.

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "scoreprior/core/summary.h"
#include "scoreprior/ode/tableau.h"

namespace scoreprior::ode {

/// The parts of y, each [B, ...], e.g. an image and its log-density. Every part meets the tolerance
/// by itself.
using State = std::vector<at::Tensor>;

/// dy/dt at t [A] and y (parts [A, ...]) of the images `rows` [A] (int64 indices into the batch of
/// the initial state). t comes in the dtype and on the device of y's first part.
using Rhs = std::function<State(const at::Tensor& t, const State& y, const at::Tensor& rows)>;

struct OdeOptions {
  std::string solver = "dopri5";
  int64_t steps = 0;
  double rtol = 1e-5;
  double atol = 1e-5;
  int64_t max_steps = 10000;
  double first_step = 0;
  /// Step factor safety * e_n^{-(p+i+d)/k} e_{n-1}^{(p+2d)/k} e_{n-2}^{-d/k}, k = order of the
  /// estimate + 1 [Soderlind03]; p = d = 0 is the elementary controller, the defaults are Hairer's
  /// PI controller [Hairer93].
  double p = 0.2, i = 0.65, d = 0;
  double safety = 0.9, factor_min = 0.2, factor_max = 10;
  template <class F>
  void fields(F&& f) {
    f("solver", solver, "euler | midpoint | rk4 | heun | bosh3 | dopri5 | tsit5 | dopri8");
    f("steps", steps, "number of equal steps; 0 = steps from the error estimate");
    f("rtol", rtol, "relative tolerance");
    f("atol", atol, "absolute tolerance");
    f("max_steps", max_steps, "most steps an image may try");
    f("first_step", first_step, "size of the first step; 0 = from the problem");
  }
};

struct Solution {
  State y;  ///< at t, differentiable in the initial state by autograd if that required gradient
  std::vector<double> t;       ///< [B] time reached: the end unless the image failed
  std::vector<Status> status;  ///< [B]
  std::vector<int64_t> evaluations, accepted,
      rejected;  ///< [B] f evaluations and steps of each image
  /// Worst status and its sentence; numbers: nfe (largest number of evaluations of one image),
  /// calls (of f), accepted, rejected (means over the batch).
  Summary summary;
};

/// From t0 to t1 (either direction). options.steps > 0: equal steps, else embedded error control
/// per image with the root mean square over a part of error / (atol + rtol max(|y_n|, |y_n+1|)) <=
/// 1 for every part [Hairer93, II.4]. rtol is at least ten rounding units of the state's dtype
/// (1.2e-6 for float32): below, steps only shrink. Throws std::invalid_argument for unknown
/// solvers, adaptive steps with a method that has no estimate, bad tolerances.
Solution integrate(const Rhs& f, State y0, double t0, double t1, const OdeOptions& options);

/// One step per interval of the given times (monotone, at least two).
Solution integrate_on_grid(const Rhs& f, State y0, const std::vector<double>& times,
                           const Tableau& method);

}  // namespace scoreprior::ode
