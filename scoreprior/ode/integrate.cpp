#include "scoreprior/ode/integrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/ode/step_plan.h"

namespace scoreprior::ode {

/// One coefficient for the rows of an attempt; a single value when all have the same.
using Coefficient = std::vector<double>;

/// The evaluations of one attempt for the images that accepted it, in the order of StepPlan.
struct RecordedStep {
  at::Tensor rows;
  size_t sources = 0;  // values of f from the past
  bool carry = false;
  // Images (places in `rows`) whose first source was evaluated at the step's start.
  at::Tensor fresh;
  std::vector<double> fresh_t;
  State fresh_y;
  std::vector<std::vector<double>> t;
  std::vector<State> y;
  std::vector<std::vector<Coefficient>> stage;
  std::vector<Coefficient> result;
};

struct Record {
  int64_t batch = 0;
  size_t window = 1;
  std::vector<RecordedStep> steps;
};

namespace {

at::Tensor times_like(const std::vector<double>& t, const at::Tensor& like) {
  return at::tensor(t, at::kDouble).to(like.device(), like.scalar_type());
}

at::Tensor index_tensor(const std::vector<int64_t>& rows, const at::Tensor& like) {
  return at::tensor(rows, at::kLong).to(like.device());
}

bool all_zero(const Coefficient& c) {
  return std::all_of(c.begin(), c.end(), [](double v) { return v == 0; });
}

at::Tensor scaled(const at::Tensor& x, const Coefficient& c) {
  return c.size() == 1 ? x * c[0] : x * expand_like_batch(times_like(c, x), x);
}

// y + sum_j c_j source_j, part by part; y may be empty.
State combine(const State& y, const std::vector<Coefficient>& c,
              const std::vector<State>& sources) {
  State out(sources[0].size());
  for (size_t p = 0; p < out.size(); ++p) {
    at::Tensor sum;
    for (size_t j = 0; j < c.size(); ++j) {
      if (all_zero(c[j])) continue;
      if (!sum.defined())
        sum = scaled(sources[j][p], c[j]);
      else if (c[j].size() == 1)
        sum = at::add(sum, sources[j][p], c[j][0]);
      else
        sum = at::addcmul(sum, sources[j][p],
                          expand_like_batch(times_like(c[j], sum), sources[j][p]));
    }
    if (!sum.defined()) sum = at::zeros_like(sources[0][p]);
    out[p] = y.empty() ? sum : y[p] + sum;
  }
  return out;
}

// Root mean square over each of the first `parts` parts of error / scale, the largest part of each
// image.
at::Tensor weighted_norm(const State& error, const State& a, const State& b, size_t parts,
                         double rtol, double atol) {
  at::NoGradGuard off;
  at::Tensor worst;
  for (size_t p = 0; p < parts; ++p) {
    const at::Tensor scale = at::maximum(a[p].abs(), b[p].abs()) * rtol + atol;
    at::Tensor ratio = (error[p] / scale).square();
    ratio = (ratio.dim() > 1 ? ratio.flatten(1).mean(1) : ratio).sqrt();
    worst = worst.defined() ? at::maximum(worst, ratio) : ratio;
  }
  return worst.to(at::kCPU, at::kDouble).contiguous();
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

State put_rows(const State& y, const at::Tensor& where, const State& values) {
  State out;
  for (size_t p = 0; p < y.size(); ++p) out.push_back(y[p].index_copy(0, where, values[p]));
  return out;
}

std::vector<char> finite_rows(const State& y) {
  at::NoGradGuard off;
  at::Tensor all;
  for (const auto& part : y) {
    at::Tensor good = part.dim() > 1 ? at::isfinite(part).flatten(1).all(1) : at::isfinite(part);
    all = all.defined() ? all & good : good;
  }
  all = all.to(at::kCPU).contiguous();
  const bool* data = all.data_ptr<bool>();
  return {data, data + all.numel()};
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
  std::vector<double> past;  // times of the f it has, newest first; past[0] = t
  double last_error = 1;     // of the last accepted step
  bool after_rejection = false;
  bool stale = false;  // stands at a stop: f counts just beyond
  bool renew = false;  // f has not been evaluated where it stands
  size_t next_stop = 0;
};

double step_factor(const OdeOptions& o, double k, double error, const Row& row) {
  const double e = std::max(error, 1e-12);
  return o.safety * std::pow(e, -(o.p + o.i) / k) * std::pow(row.last_error, o.p / k);
}

// The whole integration: rows that are still on their way, in the order of the state's rows.
class Integration {
 public:
  Integration(const Rhs& f, State y, double t0, double t1, const OdeOptions& options,
              const Problem& problem);
  Solution run();

 private:
  State evaluate(const std::vector<double>& t, const State& y, const at::Tensor& rows) {
    ++calls_;
    return f_(times_like(t, y_like_), y, rows);
  }
  bool fixed() const { return !grid_.empty(); }
  double rounding() const {
    return y_like_.scalar_type() == at::kFloat ? double{std::numeric_limits<float>::epsilon()}
                                               : std::numeric_limits<double>::epsilon();
  }
  double beyond(double t) const {
    return t + 4 * rounding() * sign_ * std::max(std::abs(t), std::abs(t1_ - t0_));
  }
  // Whether an image that spent `evaluations` may not spend `more`.
  bool over_limit(int64_t evaluations, int64_t more) const {
    return o_.max_nfe > 0 && evaluations + more > o_.max_nfe;
  }
  void begin();
  bool affords_first_step();
  void starting_steps();
  void attempt();
  void write_outputs(const std::vector<uint8_t>& accept, const std::vector<double>& t,
                     const std::vector<double>& h, const State& y_new);
  void record_step(const std::vector<uint8_t>& accept, const std::vector<double>& t,
                   const std::vector<double>& h);
  void renew_heads(bool carry);
  void keep_rows(const std::vector<int64_t>& stay);
  void leave(const std::vector<int64_t>& rows);
  void summarize();
  Coefficient collect(const std::vector<StepPlan>& plans, size_t stage, size_t j) const;

  const Rhs& f_;
  const Problem& problem_;
  OdeOptions o_;
  Method method_;
  double t0_, t1_, sign_;
  std::vector<double> grid_, stops_, outputs_;
  size_t controlled_, grid_place_ = 0;
  bool interpolates_ = false;  // outputs cost an evaluation after the step
  at::Tensor y_like_;
  int64_t batch_, calls_ = 0;

  State y_, embedded_;
  std::vector<Row> active_;
  at::Tensor rows_;
  std::vector<State> history_;  // f of the past, newest first
  // of the attempt under way
  std::vector<StepPlan> plans_;
  std::vector<State> sources_, stage_y_;
  bool starting_ = false;
  // First sources evaluated at the next step's start: places among the active rows (empty = none,
  // undefined = all).
  std::vector<int64_t> fresh_;
  bool all_fresh_ = true;

  std::vector<State> arrived_, arrived_embedded_;
  std::vector<int64_t> arrived_ids_;
  std::vector<char> nfe_limit_;
  std::shared_ptr<Record> record_;
  Solution s_;
};

Integration::Integration(const Rhs& f, State y, double t0, double t1, const OdeOptions& options,
                         const Problem& problem)
    : f_(f),
      problem_(problem),
      o_(options),
      method_(options.solver),
      t0_(t0),
      t1_(t1),
      sign_(t1 >= t0 ? 1 : -1),
      grid_(problem.grid),
      stops_(problem.stops),
      outputs_(problem.outputs),
      y_(std::move(y)) {
  check_state(y_);
  y_like_ = y_[0].detach();
  batch_ = y_like_.size(0);
  controlled_ = problem.controlled == 0 ? y_.size() : problem.controlled;
  SP_CHECK(controlled_ <= y_.size(), "ode", "expected at most ", y_.size(),
           " controlled parts, got ", controlled_);
  SP_CHECK(o_.steps >= 0 && o_.max_steps > 0 && o_.max_nfe >= 0, "ode",
           "expected steps >= 0, max_steps > 0, max_nfe >= 0");
  const auto before = [this](double a, double b) { return sign_ * a < sign_ * b; };
  if (grid_.empty() && o_.steps > 0) {
    for (int64_t i = 0; i <= o_.steps; ++i)
      grid_.push_back(i == o_.steps ? t1 : t0 + (t1 - t0) * static_cast<double>(i) / o_.steps);
  }
  std::sort(stops_.begin(), stops_.end(), before);
  std::vector<double> inside;
  for (double t : stops_)
    if (before(t0, t) && before(t, t1)) inside.push_back(t);
  stops_ = std::move(inside);
  if (fixed()) {
    SP_CHECK(grid_.size() >= 2 && grid_.front() == t0 && grid_.back() == t1, "ode",
             "expected a grid from t0 to t1");
    for (size_t n = 0; n + 1 < grid_.size(); ++n)
      SP_CHECK(before(grid_[n], grid_[n + 1]) || t0 == t1, "ode",
               "expected a strictly monotone grid");
    grid_.insert(grid_.end(), stops_.begin(), stops_.end());
    std::sort(grid_.begin(), grid_.end(), before);
    grid_.erase(std::unique(grid_.begin(), grid_.end()), grid_.end());
  } else {
    SP_CHECK(method_.adaptive(), "ode",
             "expected a solver with an error estimate or steps > 0, got ", method_.name());
    SP_CHECK(o_.rtol >= 0 && o_.atol >= 0 && o_.rtol + o_.atol > 0, "ode",
             "expected positive tolerances, got rtol ", o_.rtol, ", atol ", o_.atol);
    o_.rtol = std::max(o_.rtol, 10 * std::max(problem.rounding, rounding()));
  }
  s_.t.assign(batch_, t1);
  s_.status.assign(batch_, Status::kConverged);
  s_.evaluations.assign(batch_, 0);
  s_.accepted.assign(batch_, 0);
  s_.rejected.assign(batch_, 0);
  nfe_limit_.assign(batch_, 0);
  for (double t : outputs_) {
    SP_CHECK(!before(t, t0) && !before(t1, t), "ode", "expected output times between ", t0, " and ",
             t1, ", got ", t);
    State part;
    for (const auto& p : y_) part.push_back(t == t0 ? p : at::zeros_like(p));
    s_.at.push_back(std::move(part));
  }
  interpolates_ = !outputs_.empty() && method_.interpolates_with_ends();
  if (problem.record) {
    record_ = std::make_shared<Record>();
    record_->batch = batch_;
    record_->window = static_cast<size_t>(method_.window());
  }
}

void Integration::keep_rows(const std::vector<int64_t>& stay) {
  if (stay.size() == active_.size()) return;
  const at::Tensor where = index_tensor(stay, y_like_);
  y_ = pick_rows(y_, where);
  if (!embedded_.empty()) embedded_ = pick_rows(embedded_, where);
  for (auto& f : history_) f = pick_rows(f, where);
  std::vector<Row> next;
  std::vector<int64_t> ids;
  std::vector<int64_t> place(active_.size(), -1), fresh;
  for (size_t i = 0; i < stay.size(); ++i) {
    place[stay[i]] = static_cast<int64_t>(i);
    next.push_back(std::move(active_[stay[i]]));
    ids.push_back(next.back().index);
  }
  for (int64_t r : fresh_)
    if (place[r] >= 0) fresh.push_back(place[r]);
  fresh_ = std::move(fresh);
  active_ = std::move(next);
  rows_ = index_tensor(ids, y_like_);
}

void Integration::leave(const std::vector<int64_t>& rows) {
  const at::Tensor where = index_tensor(rows, y_like_);
  arrived_.push_back(pick_rows(y_, where));
  if (!embedded_.empty()) arrived_embedded_.push_back(pick_rows(embedded_, where));
  for (int64_t r : rows) arrived_ids_.push_back(active_[r].index);
}

// f at t0; images that are not finite there leave at once.
void Integration::begin() {
  std::vector<int64_t> ids(batch_);
  for (int64_t b = 0; b < batch_; ++b) {
    active_.push_back({b, t0_, 0, {t0_}});
    ids[b] = b;
  }
  rows_ = index_tensor(ids, y_like_);
  history_.assign(1, evaluate(std::vector<double>(batch_, t0_), y_, rows_));
  for (auto& n : s_.evaluations) ++n;
  if (fixed() || method_.adaptive()) {
    at::NoGradGuard off;
    for (const auto& part : y_) embedded_.push_back(at::zeros_like(part));
  }
  const std::vector<char> good_y = finite_rows(y_), good_f = finite_rows(history_[0]);
  std::vector<int64_t> stay, bad;
  for (int64_t b = 0; b < batch_; ++b) {
    const bool good = good_y[b] && good_f[b];
    (good ? stay : bad).push_back(b);
    if (good) continue;
    s_.status[b] = Status::kDiverged;
    s_.t[b] = t0_;
  }
  if (bad.empty()) return;
  leave(bad);
  keep_rows(stay);
}

// Whether the limit of evaluations leaves a first step; otherwise every image leaves where it is.
bool Integration::affords_first_step() {
  const bool starting = fixed(), search = !fixed() && o_.first_step == 0;
  const int64_t cost = method_.stages(starting) + (search ? 1 : 0) + (interpolates_ ? 1 : 0);
  if (active_.empty() || !over_limit(s_.evaluations[active_[0].index], cost)) return true;
  std::vector<int64_t> all(active_.size());
  for (size_t r = 0; r < active_.size(); ++r) {
    all[r] = static_cast<int64_t>(r);
    const int64_t b = active_[r].index;
    s_.status[b] = Status::kMaxSteps;
    nfe_limit_[b] = 1;
    s_.t[b] = t0_;
  }
  leave(all);
  keep_rows({});
  return false;
}

// Starting step of [Hairer93, II.4]; one evaluation of f.
void Integration::starting_steps() {
  at::NoGradGuard off;
  const size_t batch = active_.size();
  const double span = std::abs(t1_ - t0_);
  if (o_.first_step > 0) {
    for (auto& row : active_) row.h = sign_ * o_.first_step;
    return;
  }
  const double w0 = problem_.weight ? std::abs(problem_.weight(t0_)) : 1.0;
  const State f0 = combine({}, {{w0}}, history_);
  const at::Tensor d0 = weighted_norm(y_, y_, y_, controlled_, o_.rtol, o_.atol);
  const at::Tensor d1 = weighted_norm(f0, y_, y_, controlled_, o_.rtol, o_.atol);
  std::vector<double> h0(batch), when(batch);
  Coefficient h(batch);
  for (size_t b = 0; b < batch; ++b) {
    const double n0 = d0.data_ptr<double>()[b], n1 = d1.data_ptr<double>()[b];
    h0[b] = n0 < 1e-5 || !(n1 > 1e-5) ? 1e-6 * span : 0.01 * n0 / n1;
    h0[b] = std::min(h0[b], span);
    when[b] = t0_ + sign_ * h0[b];
    h[b] = sign_ * h0[b] * (problem_.weight ? problem_.weight(t0_) : 1.0);
  }
  const State f1 = evaluate(when, combine(y_, {h}, history_), rows_);
  State change(y_.size());
  for (size_t p = 0; p < y_.size(); ++p) change[p] = (f1[p] - history_[0][p]) * w0;
  const at::Tensor d2 = weighted_norm(change, y_, y_, controlled_, o_.rtol, o_.atol);
  const int order = method_.window() > 1 ? 1 : method_.error_order();
  for (size_t b = 0; b < batch; ++b) {
    const double n1 = d1.data_ptr<double>()[b], n2 = d2.data_ptr<double>()[b] / h0[b];
    const double curve = std::max(n1, n2);
    const double h1 = !(curve > 1e-15) ? std::max(1e-6 * span, 1e-3 * h0[b])
                                       : std::pow(0.01 / curve, 1.0 / (order + 1));
    double& first = active_[b].h;
    first = sign_ * std::min({100 * h0[b], h1, span});
    if (!std::isfinite(first) || first == 0) first = sign_ * 1e-6 * span;
    ++s_.evaluations[active_[b].index];
  }
}

Coefficient Integration::collect(const std::vector<StepPlan>& plans, size_t stage, size_t j) const {
  Coefficient c;
  for (const auto& plan : plans) {
    const auto& from = stage < plan.stage.size()    ? plan.stage[stage]
                       : stage == plan.stage.size() ? plan.result
                                                    : plan.error;
    c.push_back(j < from.size() ? from[j] : 0.0);
  }
  if (std::all_of(c.begin(), c.end(), [&](double v) { return v == c[0]; })) c.resize(1);
  return c;
}

void Integration::record_step(const std::vector<uint8_t>& accept, const std::vector<double>& t,
                              const std::vector<double>& h) {
  at::NoGradGuard off;
  std::vector<int64_t> which, fresh_places;
  std::vector<char> is_fresh(active_.size(), all_fresh_);
  for (int64_t r : fresh_) is_fresh[r] = 1;
  std::vector<StepPlan> plans;
  RecordedStep e;
  std::vector<int64_t> fresh_active;
  for (size_t r = 0; r < accept.size(); ++r) {
    if (!accept[r]) continue;
    if (is_fresh[r]) {
      fresh_places.push_back(static_cast<int64_t>(which.size()));
      fresh_active.push_back(static_cast<int64_t>(r));
      e.fresh_t.push_back(active_[r].stale ? beyond(t[r]) : t[r]);
    }
    which.push_back(static_cast<int64_t>(r));
    plans.push_back(plans_[r]);
  }
  if (which.empty()) return;
  const bool whole = which.size() == active_.size();
  const at::Tensor where = index_tensor(which, y_like_);
  e.rows = whole ? rows_ : rows_.index_select(0, where);
  e.sources = history_.size();
  e.carry = plans[0].carry;
  if (!fresh_active.empty()) {
    e.fresh = index_tensor(fresh_places, y_like_);
    for (const auto& part : y_)
      e.fresh_y.push_back(fresh_active.size() == active_.size()
                              ? part.detach()
                              : part.detach().index_select(0, index_tensor(fresh_active, y_like_)));
  }
  const size_t stages = plans[0].stage.size();
  for (size_t s = 0; s < stages; ++s) {
    std::vector<double> when;
    for (size_t i = 0; i < which.size(); ++i)
      when.push_back(t[which[i]] + plans[i].c[s] * h[which[i]]);
    e.t.push_back(std::move(when));
    State y;
    for (const auto& part : stage_y_[s])
      y.push_back(whole ? part.detach() : part.detach().index_select(0, where));
    e.y.push_back(std::move(y));
    e.stage.emplace_back();
    for (size_t j = 0; j < e.sources + s; ++j) e.stage.back().push_back(collect(plans, s, j));
  }
  for (size_t j = 0; j < e.sources + stages; ++j) e.result.push_back(collect(plans, stages, j));
  record_->steps.push_back(std::move(e));
}

// The interpolant of the accepted rows at the output times their steps passed.
void Integration::write_outputs(const std::vector<uint8_t>& accept, const std::vector<double>& t,
                                const std::vector<double>& h, const State& y_new) {
  std::vector<State> ends;  // f at both ends for Hermite, where an output is wanted
  const auto ends_of = [&] {
    if (plans_[0].carry) return std::vector<State>{history_[0], sources_.back()};
    std::vector<int64_t> which;
    std::vector<double> when;
    for (size_t r = 0; r < accept.size(); ++r) {
      const bool passed =
          accept[r] && std::any_of(outputs_.begin(), outputs_.end(), [&](double out) {
            const double x = (out - t[r]) / h[r];
            return x > 0 && x <= 1;
          });
      if (!passed) continue;
      which.push_back(static_cast<int64_t>(r));
      when.push_back(t[r] + h[r]);
      ++s_.evaluations[active_[r].index];
    }
    const at::Tensor where = index_tensor(which, y_like_);
    const State f = evaluate(when, pick_rows(y_new, where), rows_.index_select(0, where));
    return std::vector<State>{history_[0], put_rows(history_[0], where, f)};
  };
  for (size_t k = 0; k < outputs_.size(); ++k) {
    std::vector<int64_t> which, ids;
    std::vector<double> theta;
    for (size_t r = 0; r < accept.size(); ++r) {
      const double x = (outputs_[k] - t[r]) / h[r];
      if (!accept[r] || !(x > 0) || x > 1) continue;
      which.push_back(static_cast<int64_t>(r));
      ids.push_back(active_[r].index);
      theta.push_back(x);
    }
    if (which.empty()) continue;
    const at::Tensor where = index_tensor(which, y_like_);
    std::vector<Coefficient> c(sources_.size());
    bool hermite = false;
    for (size_t i = 0; i < which.size(); ++i) {
      const Row& row = active_[which[i]];
      const auto w = method_.dense(row.past, h[which[i]], history_.size(), problem_.weight,
                                   starting_, theta[i]);
      hermite = w.empty();
      for (size_t j = 0; j < c.size(); ++j) c[j].push_back(j < w.size() ? w[j] : 0.0);
    }
    State start = pick_rows(y_, where), value;
    if (!hermite) {
      std::vector<State> picked;
      for (const auto& source : sources_) picked.push_back(pick_rows(source, where));
      value = combine(start, c, picked);
    } else {
      if (ends.empty()) ends = ends_of();
      Coefficient from, to, at_start, at_end;
      for (size_t i = 0; i < which.size(); ++i) {
        const double x = theta[i], z = 1 - x, step = h[which[i]], begin = t[which[i]];
        to.push_back(x * x * (3 - 2 * x));
        from.push_back(-to.back());
        at_start.push_back(step * x * z * z * (problem_.weight ? problem_.weight(begin) : 1.0));
        at_end.push_back(-step * x * x * z *
                         (problem_.weight ? problem_.weight(begin + step) : 1.0));
      }
      value = combine(
          start, {from, to, at_start, at_end},
          {start, pick_rows(y_new, where), pick_rows(ends[0], where), pick_rows(ends[1], where)});
    }
    s_.at[k] = put_rows(s_.at[k], index_tensor(ids, y_like_), value);
  }
}

// f where the rows that moved now stand, unless the step carried it there; just beyond a stop.
void Integration::renew_heads(bool carry) {
  std::vector<int64_t> which;
  std::vector<double> t;
  for (size_t r = 0; r < active_.size(); ++r)
    if (active_[r].renew) {
      active_[r].renew = false;
      which.push_back(static_cast<int64_t>(r));
      t.push_back(active_[r].stale ? beyond(active_[r].t) : active_[r].t);
      ++s_.evaluations[active_[r].index];
    }
  if (which.empty()) return;
  // After the exp3 start of exp4m the f of the step's start remains as the past.
  if (!carry && method_.window() > 1) history_.insert(history_.begin(), history_[0]);
  if (which.size() == active_.size()) {
    history_[0] = evaluate(t, y_, rows_);
  } else {
    const at::Tensor where = index_tensor(which, y_like_);
    const State f = evaluate(t, pick_rows(y_, where), rows_.index_select(0, where));
    history_[0] = put_rows(history_[0], where, f);
  }
  fresh_.insert(fresh_.end(), which.begin(), which.end());
}

void Integration::attempt() {
  std::vector<double> t, h, wish;
  std::vector<char> to_stop, last;
  plans_.clear();
  starting_ = fixed() && grid_place_ == 0;
  for (auto& row : active_) {
    wish.push_back(row.h);
    const bool stop = row.next_stop < stops_.size();
    const double target = fixed() ? grid_[grid_place_ + 1] : stop ? stops_[row.next_stop] : t1_;
    const double left = target - row.t;
    bool hits = fixed() || std::abs(row.h) >= std::abs(left) * (1 - 1e-10);
    if (hits) row.h = left;
    to_stop.push_back(hits && stop && target == stops_[row.next_stop]);
    last.push_back(hits && target == t1_);
    t.push_back(row.t);
    h.push_back(row.h);
    plans_.push_back(method_.plan(row.past, row.h, history_.size(), problem_.weight, starting_));
  }
  const size_t stages = plans_[0].stage.size();
  const bool carry = plans_[0].carry;
  sources_ = history_;
  stage_y_.clear();
  for (size_t s = 0; s < stages; ++s) {
    std::vector<Coefficient> c;
    for (size_t j = 0; j < sources_.size(); ++j) c.push_back(collect(plans_, s, j));
    std::vector<double> when(t.size());
    for (size_t r = 0; r < t.size(); ++r) when[r] = t[r] + plans_[r].c[s] * h[r];
    stage_y_.push_back(combine(y_, c, sources_));
    sources_.push_back(evaluate(when, stage_y_.back(), rows_));
  }
  std::vector<Coefficient> c, e;
  for (size_t j = 0; j < sources_.size(); ++j) {
    c.push_back(collect(plans_, stages, j));
    e.push_back(collect(plans_, stages + 1, j));
  }
  // A Runge-Kutta method whose last stage stands at the result has it already.
  const bool same = carry && all_zero(c.back());
  const State y_new = same ? stage_y_.back() : combine(y_, c, sources_);
  State estimate;
  at::Tensor norms;
  const bool estimates = plans_[0].error_order > 0;
  if (estimates) {
    at::NoGradGuard off;
    estimate = combine({}, e, sources_);
    if (!fixed()) norms = weighted_norm(estimate, y_, y_new, controlled_, o_.rtol, o_.atol);
  }

  const double smallest = 8 * std::numeric_limits<double>::epsilon();
  std::vector<uint8_t> accept(active_.size(), 1);
  if (!fixed())
    for (size_t r = 0; r < accept.size(); ++r) accept[r] = norms.data_ptr<double>()[r] <= 1;
  if (!outputs_.empty()) write_outputs(accept, t, h, y_new);
  if (record_) record_step(accept, t, h);

  std::vector<int64_t> stay, gone;
  for (size_t r = 0; r < active_.size(); ++r) {
    Row& row = active_[r];
    s_.evaluations[row.index] += static_cast<int64_t>(stages);
    bool done = false;
    double factor = 1;
    const double order = plans_[r].error_order + 1;
    const double norm = fixed() ? 0 : norms.data_ptr<double>()[r];
    if (accept[r]) {
      ++s_.accepted[row.index];
      row.t = last[r] ? t1_ : to_stop[r] ? stops_[row.next_stop] : row.t + row.h;
      if (fixed()) row.t = grid_[grid_place_ + 1];
      done = last[r];
      row.stale = to_stop[r];
      row.renew = to_stop[r] || !carry;
      if (to_stop[r]) {
        ++row.next_stop;
        row.past.assign(1, row.t);
      } else {
        row.past.insert(row.past.begin(), row.t);
        if (row.past.size() > static_cast<size_t>(method_.window()))
          row.past.resize(method_.window());
      }
      if (!fixed()) {
        factor = std::clamp(step_factor(o_, order, norm, row), o_.factor_min,
                            row.after_rejection ? 1.0 : o_.factor_max);
        row.last_error = std::max(norm, 1e-4);
      }
      row.after_rejection = false;
    } else {
      ++s_.rejected[row.index];
      factor = std::isfinite(norm) ? std::clamp(std::min(step_factor(o_, order, norm, row),
                                                         o_.safety * std::pow(norm, -1 / order)),
                                                o_.factor_min, 1.0)
                                   : o_.factor_min;
      row.after_rejection = true;
    }
    row.h *= factor;
    if (accept[r] && to_stop[r] && std::abs(row.h) < std::abs(wish[r])) row.h = wish[r];
    if (!done) {
      const bool stuck =
          !fixed() && std::abs(row.h) < smallest * std::max(std::abs(row.t), std::abs(t1_ - t0_));
      const bool spent =
          !fixed() && s_.accepted[row.index] + s_.rejected[row.index] >= o_.max_steps;
      // What the next attempt costs, with the f that has to be there first.
      const bool over =
          over_limit(s_.evaluations[row.index],
                     method_.stages(false) + (row.renew ? 1 : 0) + (interpolates_ ? 1 : 0));
      if (stuck || spent || over) {
        s_.status[row.index] = stuck ? Status::kDiverged : Status::kMaxSteps;
        nfe_limit_[row.index] = over && !spent && !stuck;
        s_.t[row.index] = row.t;
        done = true;
      }
    }
    (done ? gone : stay).push_back(static_cast<int64_t>(r));
  }

  const bool all = std::all_of(accept.begin(), accept.end(), [](uint8_t a) { return a; });
  at::Tensor mask;
  if (!all)
    mask = at::tensor(std::vector<int64_t>(accept.begin(), accept.end()), at::kLong)
               .to(y_like_.device())
               .to(at::kBool);
  const auto update = [&](const State& now, const State& before) {
    return all ? now : choose(mask, now, before);
  };
  y_ = update(y_new, y_);
  if (estimates) {
    at::NoGradGuard off;
    const State sum = combine(embedded_, {{1.0}}, {estimate});
    embedded_ = update(sum, embedded_);
  }
  // The past of accepted rows moves on by the carried stage.
  if (carry) {
    std::vector<State> next{update(sources_.back(), history_[0])};
    for (int j = 1; j < method_.window(); ++j) {
      const size_t from = static_cast<size_t>(j);
      if (from < history_.size())
        next.push_back(update(history_[from - 1], history_[from]));
      else if (from - 1 < history_.size())
        next.push_back(history_[from - 1]);
    }
    history_ = std::move(next);
  }
  if (fixed()) ++grid_place_;
  // Of rows that were turned back, the first source stays what it was, fresh or not.
  std::vector<int64_t> still_fresh;
  for (size_t r = 0; r < accept.size(); ++r) {
    const bool was = all_fresh_ || std::find(fresh_.begin(), fresh_.end(),
                                             static_cast<int64_t>(r)) != fresh_.end();
    if (!accept[r] && was) still_fresh.push_back(static_cast<int64_t>(r));
  }
  all_fresh_ = false;
  fresh_ = std::move(still_fresh);
  if (!gone.empty()) {
    leave(gone);
    keep_rows(stay);
  }
  if (active_.empty()) return;
  renew_heads(carry);
}

void Integration::summarize() {
  const double n = std::max<double>(1, static_cast<double>(batch_));
  double accepted = 0, rejected = 0;
  int64_t nfe = 0, unfinished = 0;
  size_t worst = 0;
  for (size_t b = 0; b < s_.status.size(); ++b) {
    accepted += static_cast<double>(s_.accepted[b]) / n;
    rejected += static_cast<double>(s_.rejected[b]) / n;
    nfe = std::max(nfe, s_.evaluations[b]);
    if (s_.status[b] == Status::kConverged) continue;
    if (unfinished++ == 0 || s_.status[b] > s_.status[worst]) worst = b;
  }
  s_.summary.numbers = {{"nfe", static_cast<double>(nfe)},
                        {"calls", static_cast<double>(calls_)},
                        {"accepted", accepted},
                        {"rejected", rejected},
                        {"failed", static_cast<double>(unfinished)}};
  if (unfinished == 0) {
    s_.summary.status = Status::kConverged;
    s_.summary.message = "ode: arrived after at most " + std::to_string(nfe) + " evaluations";
    return;
  }
  s_.summary.status = s_.status[worst];
  std::ostringstream m;
  m << (nfe_limit_[worst] ? "evaluation limit reached" : to_string(s_.status[worst]))
    << " at t = " << (problem_.said_time ? problem_.said_time(s_.t[worst]) : s_.t[worst]) << " ("
    << method_.name();
  if (fixed())
    m << ", " << grid_.size() - 1 << " steps";
  else
    m << ", rtol " << o_.rtol << ", atol " << o_.atol;
  m << ")";
  s_.failure = m.str();
  s_.summary.message =
      detail::concat("ode: ", s_.failure, " in ", unfinished, " of ", batch_, " images");
}

Solution Integration::run() {
  if (batch_ == 0 || t0_ == t1_) {
    s_.y = y_;
    s_.record = record_;
    summarize();
    return std::move(s_);
  }
  begin();
  if (affords_first_step()) {
    if (!fixed() && !active_.empty()) starting_steps();
    while (!active_.empty()) attempt();
  }

  std::vector<int64_t> back(batch_);
  for (int64_t i = 0; i < batch_; ++i) back[arrived_ids_[i]] = i;
  const auto gather = [&](const std::vector<State>& groups) {
    State out;
    for (size_t p = 0; p < groups[0].size(); ++p) {
      std::vector<at::Tensor> parts;
      for (const auto& group : groups) parts.push_back(group[p]);
      out.push_back(groups.size() == 1 && std::is_sorted(arrived_ids_.begin(), arrived_ids_.end())
                        ? parts[0]
                        : at::cat(parts).index_select(0, index_tensor(back, parts[0])));
    }
    return out;
  };
  s_.y = gather(arrived_);
  if (!arrived_embedded_.empty() && method_.adaptive()) s_.embedded = gather(arrived_embedded_);
  const std::vector<char> good = finite_rows(s_.y);
  for (int64_t b = 0; b < batch_; ++b)
    if (!good[b]) s_.status[b] = Status::kDiverged;
  s_.record = record_;
  summarize();
  return std::move(s_);
}

void accumulate(State& into, const State& what, const Coefficient& c = {1.0}) {
  into = into.empty() ? combine({}, {c}, {what}) : combine(into, {c}, {what});
}

State zeros_like(const State& y) {
  State z;
  for (const auto& part : y) z.push_back(at::zeros_like(part));
  return z;
}

}  // namespace

Solution integrate(const Rhs& f, State y, double t0, double t1, const OdeOptions& options,
                   const Problem& problem) {
  return Integration(f, std::move(y), t0, t1, options, problem).run();
}

// Notation: y_bar the cotangent of the state after the step under way, past[j] the one of the j-th
// newest f before it, both for all images.
State pull_back(const Record& record, const Pullback& pullback, State bar,
                std::vector<int64_t>* evaluations) {
  at::NoGradGuard off;
  check_state(bar);
  SP_CHECK(bar[0].size(0) == record.batch, "ode", "expected cotangents of ", record.batch,
           " images, got ", bar[0].size(0));
  if (evaluations) evaluations->assign(record.batch, 0);
  std::vector<State> past(record.window + 1);
  const auto count = [&](const at::Tensor& rows) {
    if (!evaluations) return;
    const at::Tensor r = rows.to(at::kCPU).contiguous();
    for (int64_t i = 0; i < r.numel(); ++i) ++(*evaluations)[r.data_ptr<int64_t>()[i]];
  };
  const auto pulled_back = [&](const std::vector<double>& t, const State& y, const at::Tensor& rows,
                               const State& f_bar) {
    State out = pullback(times_like(t, bar[0]), y, rows, f_bar);
    for (size_t p = 0; p < out.size(); ++p)
      if (!out[p].defined()) out[p] = at::zeros_like(y[p]);
    return out;
  };
  for (auto e = record.steps.rbegin(); e != record.steps.rend(); ++e) {
    const auto take = [&](const State& s) { return s.empty() ? s : pick_rows(s, e->rows); };
    State y_bar = take(bar);
    const size_t stages = e->y.size();
    std::vector<State> source_bar(e->sources + stages);
    for (size_t j = 0; j < e->sources; ++j)
      if (j + 1 < past.size()) source_bar[j] = take(past[j + 1]);
    if (e->carry) source_bar.back() = take(past[0]);
    for (size_t j = 0; j < source_bar.size(); ++j)
      if (!all_zero(e->result[j])) accumulate(source_bar[j], y_bar, e->result[j]);
    for (size_t s = stages; s-- > 0;) {
      const State& f_bar = source_bar[e->sources + s];
      if (f_bar.empty()) continue;
      count(e->rows);
      const State pulled = pulled_back(e->t[s], e->y[s], e->rows, f_bar);
      accumulate(y_bar, pulled);
      for (size_t j = 0; j < e->sources + s; ++j)
        if (!all_zero(e->stage[s][j])) accumulate(source_bar[j], pulled, e->stage[s][j]);
    }
    if (e->fresh.defined() && !source_bar[0].empty()) {
      const State f_bar = pick_rows(source_bar[0], e->fresh);
      const at::Tensor rows = e->rows.index_select(0, e->fresh);
      count(rows);
      const State pulled = pulled_back(e->fresh_t, e->fresh_y, rows, f_bar);
      for (size_t p = 0; p < y_bar.size(); ++p) {
        y_bar[p] = y_bar[p].index_add(0, e->fresh, pulled[p]);
        source_bar[0][p] = source_bar[0][p].index_fill(0, e->fresh, 0);
      }
    }
    bar = put_rows(bar, e->rows, y_bar);
    for (size_t j = 0; j < past.size(); ++j) {
      const bool given = j < e->sources && !source_bar[j].empty();
      if (!given && past[j].empty()) continue;
      if (past[j].empty()) past[j] = zeros_like(bar);
      past[j] = put_rows(past[j], e->rows, given ? source_bar[j] : zeros_like(y_bar));
    }
  }
  return bar;
}

int64_t record_bytes(const Record& record) {
  int64_t bytes = 0;
  const auto add = [&](const State& s) {
    for (const auto& part : s) bytes += part.numel() * static_cast<int64_t>(part.element_size());
  };
  for (const auto& e : record.steps) {
    add(e.fresh_y);
    for (const auto& y : e.y) add(y);
  }
  return bytes;
}

std::vector<std::string> solver_names() {
  std::vector<std::string> names = tableau_names();
  for (const char* name : exponential_names()) names.push_back(name);
  return names;
}

std::vector<std::string> adaptive_solver_names() {
  std::vector<std::string> names = adaptive_tableau_names();
  for (const char* name : exponential_names()) names.push_back(name);
  return names;
}

}  // namespace scoreprior::ode
