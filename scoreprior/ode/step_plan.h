#pragma once
/// What one step of a method is to an image: numbers only, no state.

#include <functional>
#include <string>
#include <vector>

#include "scoreprior/ode/tableau.h"

namespace scoreprior::ode {

/// w(t) of y' = w(t) f(t, y).
using Weight = std::function<double(double)>;

/// int_a^b w(t) L_j(t) dt for the Lagrange polynomials L_j of `nodes`, to ~1e-15 for a w that is
/// smooth over [a,b].
std::vector<double> interpolatory_weights(const Weight& w, double a, double b,
                                          const std::vector<double>& nodes);

/// One step from t to t+h. Its sources are the f of the past (newest first, the first one at t
/// itself) and then those of the step's own stages:
///   stage s    f at t + c[s] h and y + sum_j stage[s][j] source_j
///   y(t+h) =   y + sum_j result[j] source_j
///   estimate   sum_j error[j] source_j, of a solution of order `error_order`
struct StepPlan {
  std::vector<double> c;
  std::vector<std::vector<double>> stage;
  std::vector<double> result, error;
  int error_order = 0;  ///< 0 = no estimate
  bool carry = false;   ///< the last stage is the first source of the next step
};

std::vector<const char*> exponential_names();

class Method {
 public:
  /// Throws std::invalid_argument for unknown names.
  explicit Method(const std::string& name);
  const std::string& name() const { return name_; }
  bool adaptive() const { return !tableau_ || tableau_->adaptive(); }
  /// Most values of f that a step takes from the past.
  int window() const { return window_; }
  /// Evaluations of a step; `starting`: the first one of a fixed grid.
  int stages(bool starting) const;
  /// Whether dense() is empty and the step does not end with an f at its end, which the Hermite
  /// polynomial then has to ask for.
  bool interpolates_with_ends() const;
  /// The estimate's order with a full past.
  int error_order() const;

  /// Step from past[0] over h for an image that has f at the times past (newest first, at most
  /// window() of them used); `sources` >= their number is where the stages begin in the plan.
  /// `starting`: the first step of a fixed grid.
  StepPlan plan(const std::vector<double>& past, double h, size_t sources, const Weight& w,
                bool starting) const;
  /// Coefficients of y(t + theta h) - y over the same sources, from the plan's own polynomial;
  /// empty: the cubic Hermite polynomial of both ends.
  std::vector<double> dense(const std::vector<double>& past, double h, size_t sources,
                            const Weight& w, bool starting, double theta) const;

 private:
  enum class Kind { kRungeKutta, kSingle, kMultistep };
  StepPlan single(int order, const std::vector<double>& past, double h, size_t sources,
                  const Weight& w) const;

  std::string name_;
  Kind kind_ = Kind::kRungeKutta;
  const Tableau* tableau_ = nullptr;
  int order_ = 0, window_ = 1;
};

}  // namespace scoreprior::ode
