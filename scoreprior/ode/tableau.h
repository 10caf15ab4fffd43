#pragma once
#include <string>
#include <vector>

namespace scoreprior::ode {

/// Coefficients of an explicit Runge-Kutta method
///   k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j),   y(t+h) = y + h sum_i b_i k_i,
/// with the embedded error estimate h sum_i e_i k_i (e = b minus the weights of the lower order).
struct Tableau {
  std::string name;
  int order = 0;        ///< of y(t+h)
  int error_order = 0;  ///< of the embedded solution; 0 = no estimate, fixed steps only
  std::vector<double> c, b, e;
  std::vector<std::vector<double>> a;  ///< row i holds a_i0 ... a_i,i-1
  /// The last stage stands at (t+h, y(t+h)), so it is the first stage of the next step.
  bool first_same_as_last = false;

  int stages() const { return static_cast<int>(c.size()); }
  bool adaptive() const { return error_order > 0; }
};

/// euler, midpoint, rk4 (fixed steps only); heun 2(1), bosh3 3(2) [Bogacki89], dopri5 5(4)
/// [Dormand80], tsit5 5(4) [Tsitouras11], dopri8 8(7) [Prince81]. Throws std::invalid_argument for
/// other names.
const Tableau& tableau(const std::string& name);
std::vector<std::string> tableau_names();
/// Those with an error estimate.
std::vector<std::string> adaptive_tableau_names();

/// b_i(theta) of the continuous extension y(t + theta h) = y + h sum_i b_i(theta) k_i of order 4 of
/// dopri5 [Hairer93, II.6] and tsit5 [Tsitouras11]; empty for the other methods.
std::vector<double> dense_weights(const Tableau& method, double theta);

}  // namespace scoreprior::ode
