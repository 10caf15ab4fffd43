#include "scoreprior/likelihood/station_gains_solver.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <utility>

namespace scoreprior {
namespace {

constexpr int kNewtonSteps = 80;
constexpr int kPowerSteps = 64, kUnitSteps = 10;

/// Lower Cholesky factor of the n x n matrix in `a`, in place; false where it is not positive.
bool cholesky_in_place(std::vector<double>& a, size_t n) {
  for (size_t j = 0; j < n; ++j) {
    double d = a[j * n + j];
    for (size_t k = 0; k < j; ++k) d -= a[j * n + k] * a[j * n + k];
    if (!(d > 0) || !std::isfinite(d)) return false;
    d = std::sqrt(d);
    a[j * n + j] = d;
    for (size_t i = j + 1; i < n; ++i) {
      double e = a[i * n + j];
      for (size_t k = 0; k < j; ++k) e -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = e / d;
    }
  }
  return true;
}

void cholesky_solve(const std::vector<double>& factor, size_t n, std::vector<double>& b) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < i; ++k) b[i] -= factor[i * n + k] * b[k];
    b[i] /= factor[i * n + i];
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t k = i + 1; k < n; ++k) b[i] -= factor[k * n + i] * b[k];
    b[i] /= factor[i * n + i];
  }
}

}  // namespace

struct IntervalGains::Scratch {
  std::vector<double> theta, tried;                          // [2 sites]
  std::vector<double> slope, move;                           // [n]
  std::vector<double> hessian, gauss_newton, factor, phase;  // [n,n]; [sites]
};

IntervalGains::IntervalGains(std::vector<Row> rows, std::vector<double> scale_a,
                             std::vector<double> scale_phi, std::vector<int64_t> reference,
                             bool uniform)
    : sites_(static_cast<int64_t>(scale_a.size())),
      uniform_(uniform),
      rows_(std::move(rows)),
      scale_a_(std::move(scale_a)),
      scale_phi_(std::move(scale_phi)),
      reference_(std::move(reference)),
      column_(2 * static_cast<size_t>(sites_), -1) {
  for (size_t i = 0; i < column_.size(); ++i) {
    const size_t s = i % static_cast<size_t>(sites_);
    if ((i == s ? scale_a_ : scale_phi_)[s] == 0) continue;
    column_[i] = static_cast<int64_t>(free_.size());
    free_.push_back(static_cast<int64_t>(i));
  }
}

double IntervalGains::value(const double* m_re, const double* m_im, const double* theta) const {
  double f = 0;
  for (size_t k = 0; k < rows_.size(); ++k) {
    const Row& r = rows_[k];
    const double size = std::exp(scale_a_[r.a] * theta[r.a] + scale_a_[r.b] * theta[r.b]);
    const double v = scale_phi_[r.a] * theta[sites_ + r.a] - scale_phi_[r.b] * theta[sites_ + r.b];
    const double g_re = size * std::cos(v), g_im = size * std::sin(v);
    const double e_re = g_re * m_re[k] - g_im * m_im[k] - r.re,
                 e_im = g_re * m_im[k] + g_im * m_re[k] - r.im;
    f += r.iv * (e_re * e_re + e_im * e_im) / 2;
  }
  for (const int64_t i : free_)
    if (i < sites_ || !uniform_) f += theta[i] * theta[i] / 2;
  return f;
}

double IntervalGains::curvature(const double* m_re, const double* m_im, Scratch& s) const {
  const size_t n = free_.size();
  std::fill(s.slope.begin(), s.slope.end(), 0);
  std::fill(s.hessian.begin(), s.hessian.end(), 0);
  std::fill(s.gauss_newton.begin(), s.gauss_newton.end(), 0);
  double f = 0;
  for (size_t k = 0; k < rows_.size(); ++k) {
    const Row& r = rows_[k];
    // d(u + i v)/d theta of the four entries that turn this row.
    const std::array<int64_t, 4> column = {column_[r.a], column_[r.b], column_[sites_ + r.a],
                                           column_[sites_ + r.b]};
    const std::array<double, 4> design = {scale_a_[r.a], scale_a_[r.b], scale_phi_[r.a],
                                          -scale_phi_[r.b]};
    const double size = std::exp(design[0] * s.theta[r.a] + design[1] * s.theta[r.b]);
    const double v = design[2] * s.theta[sites_ + r.a] + design[3] * s.theta[sites_ + r.b];
    const double g_re = size * std::cos(v), g_im = size * std::sin(v);
    const double p_re = g_re * m_re[k] - g_im * m_im[k], p_im = g_re * m_im[k] + g_im * m_re[k];
    const double e_re = p_re - r.re, e_im = p_im - r.im;
    f += r.iv * (e_re * e_re + e_im * e_im) / 2;
    const double c_re = r.iv * (e_re * p_re + e_im * p_im),
                 c_im = r.iv * (e_re * p_im - e_im * p_re);
    const double w = r.iv * (p_re * p_re + p_im * p_im);
    for (size_t i = 0; i < 4; ++i) {
      if (column[i] < 0) continue;
      const bool phase = i >= 2;
      const auto row = static_cast<size_t>(column[i]);
      s.slope[row] += design[i] * (phase ? -c_im : c_re);
      for (size_t j = 0; j < 4; ++j) {
        if (column[j] < 0) continue;
        const size_t place = row * n + static_cast<size_t>(column[j]);
        const double both = design[i] * design[j];
        if (phase != (j >= 2)) {
          s.hessian[place] -= both * c_im;
        } else {
          s.hessian[place] += both * (phase ? w - c_re : w + c_re);
          s.gauss_newton[place] += both * w;
        }
      }
    }
  }
  for (size_t i = 0; i < n; ++i) {
    const bool prior = free_[i] < sites_ || !uniform_;
    const double t = s.theta[static_cast<size_t>(free_[i])];
    if (prior) {
      f += t * t / 2;
      s.slope[i] += t;
    }
    s.hessian[i * n + i] += prior ? 1 : kPhaseRidge;
    s.gauss_newton[i * n + i] += prior ? 1 : kPhaseRidge;
  }
  return f;
}

// Phases z of unit modulus that nearly maximise Re z^H X z, X_ab = V_ab conj(m_ab)/sigma^2, by a
// generalised power iteration. A normal prior is one more node of phase 0, coupled to every site by
// 1/s_phi^2.
void IntervalGains::phase_start(const double* m_re, const double* m_im, double* phase) const {
  using Complex = std::complex<double>;
  const size_t nodes = static_cast<size_t>(sites_) + 1;
  std::vector<Complex> x(nodes * nodes), z(nodes), next(nodes);
  for (size_t k = 0; k < rows_.size(); ++k) {
    const Row& r = rows_[k];
    const Complex v(r.iv * (r.re * m_re[k] + r.im * m_im[k]),
                    r.iv * (r.im * m_re[k] - r.re * m_im[k]));
    x[static_cast<size_t>(r.a) * nodes + static_cast<size_t>(r.b)] += v;
    x[static_cast<size_t>(r.b) * nodes + static_cast<size_t>(r.a)] += std::conj(v);
  }
  for (size_t s = 0; !uniform_ && s + 1 < nodes; ++s)
    if (scale_phi_[s] > 0)
      x[s * nodes + nodes - 1] = x[(nodes - 1) * nodes + s] = 1 / (scale_phi_[s] * scale_phi_[s]);
  std::vector<double> row(nodes, 1e-300);
  for (size_t i = 0; i < nodes; ++i) {
    double sum = 0;
    for (size_t j = 0; j < nodes; ++j) sum += std::abs(x[i * nodes + j]);
    row[i] = std::max(sum, 1e-300);
    x[i * nodes + i] += row[i];  // positive semidefinite: steps never go down
  }
  for (const int64_t r : reference_) z[static_cast<size_t>(r)] = 1;
  for (int step = 0; step < kPowerSteps + kUnitSteps; ++step) {
    for (size_t i = 0; i < nodes; ++i) {
      double re = 0, im = 0;  // std::complex would look for infinities
      for (size_t j = 0; j < nodes; ++j) {
        const Complex a = x[i * nodes + j], b = z[j];
        re += a.real() * b.real() - a.imag() * b.imag();
        im += a.real() * b.imag() + a.imag() * b.real();
      }
      if (step < kPowerSteps - 1) {
        next[i] = Complex(re, im) / (2 * row[i]);
      } else {
        const double size = std::hypot(re, im);
        next[i] = size > 0 ? Complex(re, im) / size : Complex(1);
      }
    }
    std::swap(z, next);
  }
  for (size_t s = 0; s + 1 < nodes; ++s)
    phase[s] =
        scale_phi_[s] > 0
            ? std::arg(z[s] * std::conj(z[static_cast<size_t>(reference_[s])])) / scale_phi_[s]
            : 0;
}

// Phases as above; amplitudes 0, or by weighted least squares of ln|V/m| where that fits better.
void IntervalGains::start(const double* m_re, const double* m_im, Scratch& s) const {
  std::fill(s.theta.begin(), s.theta.end(), 0);
  phase_start(m_re, m_im, s.theta.data() + sites_);
  size_t n = 0;  // free amplitudes stand first
  while (n < free_.size() && free_[n] < sites_) ++n;
  s.factor.assign(n * n, 0);
  s.move.assign(n, 0);
  for (size_t i = 0; i < n; ++i) s.factor[i * n + i] = 1;
  for (size_t k = 0; k < rows_.size(); ++k) {
    const Row& r = rows_[k];
    const double power = r.re * r.re + r.im * r.im, weight = r.iv * power;
    const double model = m_re[k] * m_re[k] + m_im[k] * m_im[k];
    const double ratio = std::clamp(
        0.5 * (std::log(std::max(power, 1e-300)) - std::log(std::max(model, 1e-300))), -3.0, 3.0);
    for (const int64_t i : {r.a, r.b}) {
      if (column_[i] < 0) continue;
      s.move[column_[i]] += scale_a_[i] * weight * ratio;
      for (const int64_t j : {r.a, r.b})
        if (column_[j] >= 0)
          s.factor[static_cast<size_t>(column_[i]) * n + static_cast<size_t>(column_[j])] +=
              scale_a_[i] * scale_a_[j] * weight;
    }
  }
  if (!cholesky_in_place(s.factor, n)) return;
  cholesky_solve(s.factor, n, s.move);
  s.tried = s.theta;
  for (size_t i = 0; i < n; ++i) s.tried[static_cast<size_t>(free_[i])] = s.move[i];
  if (value(m_re, m_im, s.tried.data()) < value(m_re, m_im, s.theta.data()))
    std::swap(s.theta, s.tried);
}

double IntervalGains::minimise(const double* m_re, const double* m_im, double* theta) const {
  const size_t n = free_.size();
  Scratch s;
  s.theta.resize(2 * static_cast<size_t>(sites_));
  s.slope.resize(n);
  s.hessian.resize(n * n);
  s.gauss_newton.resize(n * n);
  start(m_re, m_im, s);
  double damping = 0, decrement = 0;
  for (int step = 0; step <= kNewtonSteps; ++step) {
    const double f = curvature(m_re, m_im, s);
    // Newton where the Hessian is positive definite, Gauss-Newton elsewhere.
    for (const std::vector<double>* matrix : {&s.hessian, &s.gauss_newton}) {
      s.factor = *matrix;
      for (size_t i = 0; i < n; ++i) s.factor[i * n + i] += damping * s.gauss_newton[i * n + i];
      if (cholesky_in_place(s.factor, n)) break;
      s.factor.clear();
    }
    if (s.factor.size() != n * n) break;  // not finite
    s.move = s.slope;
    cholesky_solve(s.factor, n, s.move);
    decrement = 0;
    for (size_t i = 0; i < n; ++i) decrement += s.slope[i] * s.move[i];
    const double rounding = 1e-14 * (1 + f);
    s.tried = s.theta;
    for (size_t i = 0; i < n; ++i) s.tried[static_cast<size_t>(free_[i])] -= s.move[i];
    const bool accept = value(m_re, m_im, s.tried.data()) <= f + 10 * rounding;
    if (accept) std::swap(s.theta, s.tried);
    if (decrement <= rounding) break;  // that step of a quadratically convergent search was free
    damping = !accept ? std::max(damping * 10, 1e-3) : damping > 1e-4 ? damping * 0.1 : 0;
  }
  std::copy(s.theta.begin(), s.theta.end(), theta);
  return decrement;
}

}  // namespace scoreprior
