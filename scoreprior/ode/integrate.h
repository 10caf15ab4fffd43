#pragma once
/// Initial-value problems y' = w(t) f(t, y) for a batch of independent images, each with its own
/// time, step size and error control: an image's solution does not depend on its batch mates, and
/// images that have arrived leave the batch.

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "scoreprior/core/summary.h"
#include "scoreprior/ode/tableau.h"

namespace scoreprior::ode {

/// The parts of y, each [B, ...], e.g. an image and its log-density. Every part meets the tolerance
/// by itself.
using State = std::vector<at::Tensor>;

/// f at t [A] and y (parts [A, ...]) of the images `rows` [A] (int64 indices into the batch of the
/// initial state). t comes in the dtype and on the device of y's first part.
using Rhs = std::function<State(const at::Tensor& t, const State& y, const at::Tensor& rows)>;

/// (df/dy)^T bar at (t, y), a State like y; `bar` has the parts of f.
using Pullback = std::function<State(const at::Tensor& t, const State& y, const at::Tensor& rows,
                                     const State& bar)>;

struct OdeOptions {
  std::string solver = "dopri5";
  int64_t steps = 0;  ///< number of equal steps; 0 = steps from the error estimate
  double rtol = 1e-5, atol = 1e-5;
  int64_t max_steps = 10000;  ///< most steps an image may try
  int64_t max_nfe = 0;        ///< most evaluations for an image, never exceeded; 0 = no limit
  double first_step = 0;      ///< size of the first step; 0 = from the problem
  /// Step factor safety * e_n^{-(p+i)/k} e_{n-1}^{p/k}, k = order of the estimate + 1: Hairer's PI
  /// controller [Hairer93]; p = 0 is the elementary one.
  double p = 0.2, i = 0.65;
  double safety = 0.9, factor_min = 0.2, factor_max = 10;
};

struct Record;  // what a solution needs for pull_back

/// What a problem knows beyond f; all of it may be left out.
struct Problem {
  /// Known scalar factor w(t) of f. The exp methods integrate it exactly, so that their error is
  /// the one of interpolating f alone; Runge-Kutta methods sample it with f. Default 1.
  std::function<double(double)> weight;
  /// Times of all steps, from t0 to t1: fixed steps (options.steps is then ignored).
  std::vector<double> grid;
  /// Times where f jumps: steps end there exactly and the next begins with an f evaluated just
  /// beyond, so that no step straddles the jump.
  std::vector<double> stops;
  /// Times at which the solution is wanted, between t0 and t1; see Solution::at.
  std::vector<double> outputs;
  /// Number of leading parts that the error control sees; 0 = all. The others come along: they
  /// must not feed back into the controlled ones.
  size_t controlled = 0;
  /// Rounding unit of f, where it is coarser than the state's dtype (0 = that of the state).
  double rounding = 0;
  /// Keep what pull_back needs: the state at every evaluation of an accepted step.
  bool record = false;
  /// What messages call the time t, where the caller's own clock is another one; empty = t.
  std::function<double(double)> said_time;
};

struct Solution {
  State y;  ///< at t, differentiable in the initial state by autograd if that required gradient
  std::vector<double> t;       ///< [B] time reached: the end unless the image failed
  std::vector<Status> status;  ///< [B]
  std::vector<int64_t> evaluations, accepted,
      rejected;  ///< [B] f evaluations and steps of each image
  /// Signed sum over the accepted steps of the embedded difference (the step's result minus its
  /// lower-order companion), part by part; empty for methods without one. For a part that f does
  /// not see (a quadrature) this is the difference of the two quadratures along the same path.
  State embedded;
  /// One State per time of Problem::outputs. Interpolants: dopri5 and tsit5 of order 4
  /// [Hairer93, Tsitouras11], exp methods the weighted integral of their own polynomial (the
  /// method's order; exp3 2), the others the cubic Hermite polynomial (order 3, or the
  /// method's own order if lower; costs one more f after a step that holds an output time).
  std::vector<State> at;
  std::shared_ptr<const Record> record;
  /// Worst status and its sentence; numbers: nfe (largest number of evaluations of one image),
  /// calls (of f), accepted, rejected (means over the batch), failed (images that did not arrive).
  Summary summary;
  std::string failure;  ///< of the worst image, without their number; empty when all arrived
};

/// From t0 to t1 (either direction). A grid or options.steps > 0: fixed steps, else embedded error
/// control per image with the root mean square over a part of error / (atol + rtol max(|y_n|,
/// |y_n+1|)) <= 1 for every part [Hairer93, II.4]. rtol is at least ten rounding units of
/// f (1.2e-6 for float32): below, steps only shrink.
///
/// Exp methods (exponential integrators for y' = w f; with w = 1 ordinary ones) replace f over a
/// step by a polynomial in t and integrate w times it exactly:
///   exp2, exp3         single-step of order 2 and 3, 2 and 3 evaluations [Lu22]
///   exp2m exp3m exp4m  multistep of order 2, 3, 4, one evaluation a step: predictor of one order
///                      less from the past, then the corrector with the new f, which is not
///                      evaluated again [Hairer93, III.1], [Zhao23]. The order of the first steps
///                      grows from 2; exp4m starts a fixed grid with an exp3 step.
/// Statuses: kMaxSteps (step or evaluation limit), kDiverged (not finite, or steps of rounding
/// size). Throws std::invalid_argument for unknown solvers, adaptive steps with a method that has
/// no estimate, bad tolerances, limits or times.
Solution integrate(const Rhs& f, State y0, double t0, double t1, const OdeOptions& options,
                   const Problem& problem = {});

/// Reverse mode through the recorded steps: the gradient in y0 of sum(bar . y), to rounding the one
/// of autograd through integrate (step sizes are constants). Goes through the evaluations backwards
/// one at a time, so that memory is that of the record plus one pullback:
///   record = evaluations x batch x state.
/// Each recorded evaluation costs one call of `pullback`. `evaluations` (optional) receives their
/// number per image.
State pull_back(const Record& record, const Pullback& pullback, State bar,
                std::vector<int64_t>* evaluations = nullptr);

/// Bytes of states held by a record.
int64_t record_bytes(const Record& record);

/// Names of all methods; of those with an error estimate.
std::vector<std::string> solver_names();
std::vector<std::string> adaptive_solver_names();

}  // namespace scoreprior::ode
