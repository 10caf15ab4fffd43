#include "scoreprior/ode/integrate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"

namespace scoreprior::ode {
namespace {

at::Tensor times_like(const std::vector<double>& t, const at::Tensor& like) {
  return at::tensor(t, at::kDouble).to(like.device(), like.scalar_type());
}

at::Tensor index_tensor(const std::vector<int64_t>& rows, const at::Tensor& like) {
  return at::tensor(rows, at::kLong).to(like.device());
}

// y + h sum_j w_j k_j, part by part.
State advance(const State& y, const at::Tensor& h, const std::vector<double>& weights,
              const std::vector<State>& k) {
  State out(y.size());
  for (size_t p = 0; p < y.size(); ++p) {
    at::Tensor sum;
    for (size_t j = 0; j < weights.size(); ++j)
      if (weights[j] != 0)
        sum = sum.defined() ? at::add(sum, k[j][p], weights[j]) : k[j][p] * weights[j];
    out[p] = sum.defined() ? y[p] + expand_like_batch(h, y[p]) * sum : y[p];
  }
  return out;
}

// Root mean square over each part of error / scale, the largest part of each image.
at::Tensor weighted_norm(const State& error, const State& a, const State& b, double rtol,
                         double atol) {
  at::NoGradGuard off;
  at::Tensor worst;
  for (size_t p = 0; p < error.size(); ++p) {
    const at::Tensor scale = at::maximum(a[p].abs(), b[p].abs()) * rtol + atol;
    at::Tensor ratio = (error[p] / scale).square();
    ratio = (ratio.dim() > 1 ? ratio.flatten(1).mean(1) : ratio).sqrt();
    worst = worst.defined() ? at::maximum(worst, ratio) : ratio;
  }
  return worst.to(at::kCPU, at::kDouble).contiguous();
}

// The stages after k[0]; the last argument becomes y_new for methods whose last stage is the next
// first.
State take_step(const Rhs& f, const Tableau& m, const State& y, const std::vector<double>& t,
                const std::vector<double>& h, const at::Tensor& rows, std::vector<State>& k) {
  const at::Tensor step = times_like(h, y[0]);
  State stage;
  std::vector<double> when(t.size());
  for (int i = 1; i < m.stages(); ++i) {
    stage = advance(y, step, m.a[i], k);
    for (size_t r = 0; r < t.size(); ++r) when[r] = t[r] + m.c[i] * h[r];
    k.push_back(f(times_like(when, y[0]), stage, rows));
  }
  return m.first_same_as_last ? stage : advance(y, step, m.b, k);
}

State pick_rows(const State& y, const at::Tensor& where) {
  State out;
  for (const auto& part : y) out.push_back(part.index_select(0, where));
  return out;
}

State choose(const at::Tensor& accept, const State& a, const State& b) {
  State out;
  for (size_t p = 0; p < a.size(); ++p)
    out.push_back(at::where(expand_like_batch(accept, a[p]), a[p], b[p]));
  return out;
}

bool finite(const State& y, std::vector<char>& ok) {
  at::NoGradGuard off;
  at::Tensor all;
  for (const auto& part : y) {
    at::Tensor good = part.dim() > 1 ? at::isfinite(part).flatten(1).all(1) : at::isfinite(part);
    all = all.defined() ? all & good : good;
  }
  all = all.to(at::kCPU).contiguous();
  const bool* data = all.data_ptr<bool>();
  ok.assign(data, data + all.numel());
  return std::all_of(ok.begin(), ok.end(), [](char c) { return c; });
}

void check_state(const State& y) {
  SP_CHECK(!y.empty() && y[0].dim() > 0, "ode", "expected a state of parts [B, ...]");
  for (const auto& part : y)
    SP_CHECK(part.dim() > 0 && part.size(0) == y[0].size(0), "ode",
             "expected parts of one batch size, got ", part.sizes(), " beside ", y[0].sizes());
}

// One image on its way.
struct Row {
  int64_t index;
  double t, h;
  double error1 = 1, error2 = 1;  // of the last two accepted steps
  bool after_rejection = false;
};

double step_factor(const OdeOptions& o, double k, double error, const Row& row) {
  const double e = std::max(error, 1e-12);
  return o.safety * std::pow(e, -(o.p + o.i + o.d) / k) *
         std::pow(row.error1, (o.p + 2 * o.d) / k) * std::pow(row.error2, -o.d / k);
}

// Starting step of [Hairer93, II.4]; one evaluation of f.
std::vector<double> starting_steps(const Rhs& f, const Tableau& m, const OdeOptions& o,
                                   const State& y, const State& f0, const at::Tensor& rows,
                                   double t0, double t1) {
  const int64_t batch = y[0].size(0);
  const double span = std::abs(t1 - t0), sign = t1 > t0 ? 1 : -1;
  const at::Tensor d0 = weighted_norm(y, y, y, o.rtol, o.atol);
  const at::Tensor d1 = weighted_norm(f0, y, y, o.rtol, o.atol);
  std::vector<double> h0(batch), when(batch), h(batch);
  for (int64_t b = 0; b < batch; ++b) {
    const double n0 = d0.data_ptr<double>()[b], n1 = d1.data_ptr<double>()[b];
    h0[b] = n0 < 1e-5 || !(n1 > 1e-5) ? 1e-6 * span : 0.01 * n0 / n1;
    h0[b] = std::min(h0[b], span);
    when[b] = t0 + sign * h0[b];
    h[b] = sign * h0[b];
  }
  const State probe = advance(y, times_like(h, y[0]), {1.0}, {f0});
  const State f1 = f(times_like(when, y[0]), probe, rows);
  State change(f0.size());
  for (size_t p = 0; p < f0.size(); ++p) change[p] = f1[p] - f0[p];
  const at::Tensor d2 = weighted_norm(change, y, y, o.rtol, o.atol);
  for (int64_t b = 0; b < batch; ++b) {
    const double n1 = d1.data_ptr<double>()[b], n2 = d2.data_ptr<double>()[b] / h0[b];
    const double curve = std::max(n1, n2);
    const double h1 = !(curve > 1e-15) ? std::max(1e-6 * span, 1e-3 * h0[b])
                                       : std::pow(0.01 / curve, 1.0 / (m.error_order + 1));
    h[b] = sign * std::min({100 * h0[b], h1, span});
    if (!std::isfinite(h[b]) || h[b] == 0) h[b] = sign * 1e-6 * span;
  }
  return h;
}

void summarize(Solution& s, int64_t calls, const std::string& how) {
  const double n = std::max<double>(1, static_cast<double>(s.status.size()));
  double accepted = 0, rejected = 0;
  int64_t nfe = 0, unfinished = 0;
  size_t worst = 0;
  for (size_t b = 0; b < s.status.size(); ++b) {
    accepted += static_cast<double>(s.accepted[b]) / n;
    rejected += static_cast<double>(s.rejected[b]) / n;
    nfe = std::max(nfe, s.evaluations[b]);
    if (s.status[b] == Status::kConverged) continue;
    if (unfinished++ == 0 || s.status[b] > s.status[worst]) worst = b;
  }
  s.summary.numbers = {{"nfe", static_cast<double>(nfe)},
                       {"calls", static_cast<double>(calls)},
                       {"accepted", accepted},
                       {"rejected", rejected}};
  if (unfinished == 0) {
    s.summary.status = Status::kConverged;
    s.summary.message = "ode: arrived after at most " + std::to_string(nfe) + " evaluations";
    return;
  }
  s.summary.status = s.status[worst];
  std::ostringstream m;
  m << "ode: " << to_string(s.status[worst]) << " at t = " << s.t[worst] << " (" << how << ") in "
    << unfinished << " of " << s.status.size() << " images";
  s.summary.message = m.str();
}

}  // namespace

Solution integrate_on_grid(const Rhs& f, State y, const std::vector<double>& times,
                           const Tableau& method) {
  check_state(y);
  SP_CHECK(times.size() >= 2, "ode", "expected at least two times, got ", times.size());
  const int64_t batch = y[0].size(0);
  std::vector<int64_t> all(batch);
  for (int64_t b = 0; b < batch; ++b) all[b] = b;
  const at::Tensor rows = index_tensor(all, y[0]);
  std::vector<State> k;
  int64_t calls = 0;
  for (size_t n = 0; n + 1 < times.size(); ++n) {
    const std::vector<double> t(batch, times[n]), h(batch, times[n + 1] - times[n]);
    if (!(method.first_same_as_last && n > 0)) {
      k.assign(1, f(times_like(t, y[0]), y, rows));
      ++calls;
    }
    y = take_step(f, method, y, t, h, rows, k);
    calls += method.stages() - 1;
    k.erase(k.begin(), k.end() - 1);
  }
  Solution s;
  std::vector<char> ok;
  finite(y, ok);
  s.y = std::move(y);
  s.t.assign(batch, times.back());
  s.status.assign(batch, Status::kConverged);
  for (int64_t b = 0; b < batch; ++b)
    if (!ok[b]) s.status[b] = Status::kDiverged;
  s.evaluations.assign(batch, calls);
  s.accepted.assign(batch, static_cast<int64_t>(times.size()) - 1);
  s.rejected.assign(batch, 0);
  summarize(s, calls, std::to_string(times.size() - 1) + " " + method.name + " steps");
  return s;
}

Solution integrate(const Rhs& f, State y, double t0, double t1, const OdeOptions& options) {
  check_state(y);
  OdeOptions o = options;
  const Tableau& m = tableau(o.solver);
  if (o.steps > 0) {
    std::vector<double> grid(o.steps + 1);
    for (int64_t i = 0; i <= o.steps; ++i)
      grid[i] = i == o.steps ? t1 : t0 + (t1 - t0) * static_cast<double>(i) / o.steps;
    return integrate_on_grid(f, std::move(y), grid, m);
  }
  SP_CHECK(m.adaptive(), "ode", "expected a solver with an error estimate or steps > 0, got ",
           m.name);
  SP_CHECK(o.rtol >= 0 && o.atol >= 0 && o.rtol + o.atol > 0, "ode",
           "expected positive tolerances, got rtol ", o.rtol, ", atol ", o.atol);
  o.rtol = std::max(
      o.rtol, 10 * (y[0].scalar_type() == at::kFloat ? double{std::numeric_limits<float>::epsilon()}
                                                     : std::numeric_limits<double>::epsilon()));

  const int64_t batch = y[0].size(0);
  Solution s;
  s.t.assign(batch, t1);
  s.status.assign(batch, Status::kConverged);
  s.evaluations.assign(batch, 0);
  s.accepted.assign(batch, 0);
  s.rejected.assign(batch, 0);
  if (batch == 0 || t0 == t1) {
    s.y = std::move(y);
    summarize(s, 0, "");
    return s;
  }

  int64_t calls = 0;
  std::vector<Row> active(batch);
  std::vector<int64_t> ids(batch);
  for (int64_t b = 0; b < batch; ++b) {
    active[b] = {b, t0, o.first_step > 0 ? std::copysign(o.first_step, t1 - t0) : 0};
    ids[b] = b;
  }
  at::Tensor rows = index_tensor(ids, y[0]);
  std::vector<State> k(1, f(times_like(std::vector<double>(batch, t0), y[0]), y, rows));
  ++calls;
  for (auto& n : s.evaluations) ++n;
  if (o.first_step <= 0) {
    at::NoGradGuard off;
    const auto h = starting_steps(f, m, o, y, k[0], rows, t0, t1);
    for (int64_t b = 0; b < batch; ++b) active[b].h = h[b], ++s.evaluations[b];
    ++calls;
  }

  const double order = m.error_order + 1;
  const double smallest = 8 * std::numeric_limits<double>::epsilon();
  std::vector<State> arrived;  // states of images that left the batch
  std::vector<int64_t> arrived_ids;
  while (!active.empty()) {
    std::vector<double> t, h;
    std::vector<char> last;
    for (auto& row : active) {
      const double left = t1 - row.t;
      last.push_back(std::abs(row.h) >= std::abs(left) * (1 - 1e-10));
      if (last.back()) row.h = left;
      t.push_back(row.t);
      h.push_back(row.h);
    }
    State y_new = take_step(f, m, y, t, h, rows, k);
    calls += m.stages() - 1;
    State estimate(y.size());
    {
      at::NoGradGuard off;
      State zero;
      for (const auto& part : y) zero.push_back(at::zeros_like(part));
      estimate = advance(zero, times_like(h, y[0]), m.e, k);
    }
    const at::Tensor norms = weighted_norm(estimate, y, y_new, o.rtol, o.atol);
    const double* norm = norms.data_ptr<double>();

    std::vector<uint8_t> accept(active.size());
    std::vector<int64_t> stay, leave;
    bool any_accepted = false;
    for (size_t r = 0; r < active.size(); ++r) {
      Row& row = active[r];
      s.evaluations[row.index] += m.stages() - 1;
      const bool good = norm[r] <= 1;  // false for NaN
      accept[r] = good;
      double factor = std::isfinite(norm[r]) ? step_factor(o, order, norm[r], row) : o.factor_min;
      bool done = false;
      if (good) {
        any_accepted = true;
        ++s.accepted[row.index];
        row.t = last[r] ? t1 : row.t + row.h;
        done = last[r];
        factor = std::clamp(factor, o.factor_min, row.after_rejection ? 1.0 : o.factor_max);
        row.error2 = row.error1;
        row.error1 = std::max(norm[r], 1e-4);
        row.after_rejection = false;
      } else {
        ++s.rejected[row.index];
        factor = std::clamp(std::min(factor, o.safety * std::pow(norm[r], -1 / order)),
                            o.factor_min, 1.0);
        if (!std::isfinite(norm[r])) factor = o.factor_min;
        row.after_rejection = true;
      }
      row.h *= factor;
      if (!done) {
        const bool stuck =
            std::abs(row.h) < smallest * std::max(std::abs(row.t), std::abs(t1 - t0));
        const bool spent = s.accepted[row.index] + s.rejected[row.index] >= o.max_steps;
        if (stuck || spent) {
          s.status[row.index] = stuck ? Status::kDiverged : Status::kMaxSteps;
          s.t[row.index] = row.t;
          done = true;
        }
      }
      (done ? leave : stay).push_back(static_cast<int64_t>(r));
    }

    const at::Tensor mask =
        at::tensor(std::vector<int64_t>(accept.begin(), accept.end()), at::kLong)
            .to(y[0].device())
            .to(at::kBool);
    y = choose(mask, y_new, y);
    State k0 = m.first_same_as_last ? choose(mask, k.back(), k.front()) : k.front();
    if (!leave.empty()) {
      arrived.push_back(pick_rows(y, index_tensor(leave, y[0])));
      for (int64_t r : leave) arrived_ids.push_back(active[r].index);
      const at::Tensor where = index_tensor(stay, y[0]);
      y = pick_rows(y, where);
      k0 = pick_rows(k0, where);
      std::vector<Row> next;
      ids.clear();
      for (int64_t r : stay) next.push_back(active[r]), ids.push_back(active[r].index);
      active = std::move(next);
      rows = index_tensor(ids, y[0]);
    }
    if (!m.first_same_as_last && any_accepted && !active.empty()) {
      t.clear();
      for (const auto& row : active) t.push_back(row.t), ++s.evaluations[row.index];
      k0 = f(times_like(t, y[0]), y, rows);
      ++calls;
    }
    k.assign(1, std::move(k0));
  }

  std::vector<int64_t> back(batch);
  for (int64_t i = 0; i < batch; ++i) back[arrived_ids[i]] = i;
  for (size_t p = 0; p < arrived[0].size(); ++p) {
    std::vector<at::Tensor> parts;
    for (auto& group : arrived) parts.push_back(group[p]);
    s.y.push_back(at::cat(parts).index_select(0, index_tensor(back, parts[0])));
  }
  std::ostringstream how;
  how << m.name << ", rtol " << o.rtol << ", atol " << o.atol;
  summarize(s, calls, how.str());
  return s;
}

}  // namespace scoreprior::ode
