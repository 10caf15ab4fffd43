#include "scoreprior/diffusion/probability_flow.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/divergence.h"
#include "scoreprior/diffusion/flow_equation.h"
#include "scoreprior/diffusion/memory_budget.h"
#include "scoreprior/nets/double_backward.h"
#include "scoreprior/ode/integrate.h"
#include "scoreprior/ode/tableau.h"

namespace scoreprior {
namespace {

// Tolerance ratio of the second solution; with fixed steps it takes half of them.
constexpr double kLooser = 10;

// The augmented flow in its variable: state (u, log-density [B], forms of the probes [B,n]).
// v = dx/dt in u is a u + b score, its divergence D a + b m trace. State and times are float64
// whatever the score's dtype: sums of many steps, and phases of the time embedding, lose nothing.
class AugmentedFlow {
 public:
  AugmentedFlow(const FlowEquation& equation, const ScoreDivergence& divergence, int64_t pixels,
                at::ScalarType dtype)
      : equation_(equation),
        divergence_(divergence),
        pixels_(static_cast<double>(pixels)),
        dtype_(dtype) {}

  ode::State value(const at::Tensor& time, const ode::State& y, const at::Tensor& rows,
                   bool graph) const {
    const FlowPoint p = equation_.at(time);
    const ScoreDivergence::Value v =
        divergence_.value((y[0] * expand_like_batch(p.m, y[0])).to(dtype_), p.t, rows, graph);
    const at::Tensor bm = p.b * p.m;
    return {y[0] * expand_like_batch(p.a, y[0]) + v.score * expand_like_batch(p.b, y[0]),
            p.a * pixels_ + bm * v.trace, (v.forms * bm.unsqueeze(1)).detach()};
  }

  // Cotangents (f_bar, div_bar) to that of u; `rate` (optional) receives du.
  at::Tensor pull(const at::Tensor& time, const at::Tensor& u, const at::Tensor& rows,
                  const at::Tensor& f_bar, const at::Tensor& div_bar, at::Tensor* rate) const {
    const FlowPoint p = equation_.at(time);
    const at::Tensor a = expand_like_batch(p.a, u), b = expand_like_batch(p.b, u),
                     m = expand_like_batch(p.m, u);
    at::Tensor score;
    const at::Tensor g = divergence_.pullback(
        (u * m).to(dtype_), p.t, rows, (f_bar * b).to(dtype_),
        div_bar.defined() ? (div_bar * p.b * p.m).to(dtype_) : div_bar, &score);
    if (rate) *rate = u * a + score * b;
    return f_bar * a + g * m;
  }

 private:
  const FlowEquation& equation_;
  const ScoreDivergence& divergence_;
  double pixels_;
  at::ScalarType dtype_;
};

void check_words(const ProbabilityFlowOptions& o) {
  const auto word = [](const char* what, const std::string& got,
                       std::initializer_list<const char*> known) {
    std::string list;
    for (const char* k : known) {
      if (got == k) return;
      list += (list.empty() ? "" : " | ") + std::string(k);
    }
    SP_CHECK(false, "probability flow", "expected ", what, " ", list, ", got \"", got, "\"");
  };
  word("trace", o.trace, {"exact", "hutchinson"});
  word("probe_law", o.probe_law, {"rademacher", "gaussian"});
  word("variable", o.variable, {"log_snr", "time"});
  word("adjoint", o.adjoint, {"checkpoint", "direct", "backsolve"});
  word("solver_error", o.solver_error, {"embedded", "second", "none"});
  SP_CHECK(o.t0 > 0 && o.t0 < 1, "probability flow", "expected t0 between 0 and 1, got ", o.t0);
  SP_CHECK(o.data_std >= 0, "probability flow", "expected data_std >= 0, got ", o.data_std);
  SP_CHECK(o.colours > 0, "probability flow", "expected colours > 0, got ", o.colours);
  SP_CHECK(o.max_batch > 0, "probability flow", "expected max_batch > 0, got ", o.max_batch);
  SP_CHECK(o.max_memory_mib >= 0, "probability flow", "expected max_memory_mib >= 0, got ",
           o.max_memory_mib);
  SP_CHECK(o.variable == "log_snr" || o.solver.rfind("exp", 0) != 0, "probability flow",
           "expected variable log_snr for the solver ", o.solver);
}

// NaN for images whose solver did not arrive.
at::Tensor mark_failed(const at::Tensor& values, const std::vector<Status>& status) {
  std::vector<double> factor;
  for (const Status s : status) factor.push_back(s == Status::kConverged ? 1.0 : std::nan(""));
  return values *
         expand_like_batch(
             at::tensor(factor, at::kDouble).to(values.device(), values.scalar_type()), values);
}

ode::OdeOptions solver_options(const ProbabilityFlowOptions& o) {
  ode::OdeOptions s;
  s.solver = o.solver;
  s.rtol = o.rtol;
  s.atol = o.atol;
  s.max_steps = o.max_steps;
  s.max_nfe = o.max_nfe;
  return s;
}

// Probes and their weights in the sum that makes the trace.
struct ProbeSet {
  at::Tensor probes;
  std::vector<double> weights;
  int64_t sets = 0;  // independent estimates of the trace; 0 = exact
};

struct FlowRun {
  ProbabilityFlow flow;
  std::vector<int64_t> grad_evaluations;
};

void add_to(std::vector<int64_t>& sum, const std::vector<int64_t>& more) {
  for (size_t b = 0; b < more.size(); ++b) sum[b] += more[b];
}

// The images of one chunk.
class FlowSolver {
 public:
  FlowSolver(const ScoreModel& model, const ProbabilityFlowOptions& o, const at::Tensor& x,
             const at::Tensor& probes)
      : model_(model),
        o_(o),
        x_(x.detach()),
        pixels_(x.numel() / std::max<int64_t>(x.size(0), 1)),
        equation_(make_flow_equation(model.sde(), o.variable, o.data_std, o.t0)) {
    if (o.trace == "exact") {
      Shape basis{pixels_, 1};
      basis.insert(basis.end(), x.sizes().begin() + 1, x.sizes().end());
      set_.probes = at::eye(pixels_, x.options()).reshape(basis);
      set_.weights.assign(pixels_, 1.0);
      return;
    }
    SP_CHECK(probes.defined() && probes.dim() == x.dim() + 1 && probes.size(0) > 0 &&
                 (probes.size(1) == 1 || probes.size(1) == x.size(0)) &&
                 probes.sizes().slice(2) == x.sizes().slice(1),
             "probability flow", "expected probes [n,B,event...] for x ", x.sizes());
    const at::Tensor all = probes.to(x.device(), x.scalar_type());
    SP_CHECK(all.size(0) % o.colours == 0, "probability flow", "expected probes in sets of ",
             o.colours, " colours, got ", all.size(0));
    set_.probes = all;
    set_.sets = all.size(0) / o.colours;
    set_.weights.assign(all.size(0), 1.0 / static_cast<double>(set_.sets));
  }

  FlowRun run(bool with_grad) {
    ScoreDivergence divergence(model_, set_.probes, set_.weights, o_.max_batch);
    FlowRun out;
    ProbabilityFlow& flow = out.flow;
    ode::Solution s;
    if (with_grad && o_.adjoint == "direct") {
      s = direct(divergence, flow);
    } else {
      const bool checkpoint = with_grad && (o_.adjoint == "checkpoint" || o_.check_gradient);
      s = solve(divergence, o_, checkpoint, false, x_);
      value(s, flow);
      if (with_grad && o_.adjoint == "checkpoint") flow.grad = checkpointed(divergence, s, out);
      if (with_grad && o_.adjoint == "backsolve") flow.grad = backsolve(divergence, s, out);
    }
    flow.status = s.status;
    flow.evaluations = s.evaluations;
    add_to(flow.evaluations, out.grad_evaluations);
    errors(divergence, s, flow);
    add_to(flow.evaluations, flow.second_evaluations);
    if (with_grad && o_.check_gradient) compare_gradients(divergence, s, flow);
    flow.summary.numbers["forwards"] = static_cast<double>(divergence.work().forwards);
    flow.summary.numbers["vjps"] = static_cast<double>(divergence.work().vjps);
    flow.summary.numbers["second_order"] = static_cast<double>(divergence.work().second_order);
    for (const auto& [name, error] :
         {std::make_pair("standard_error", flow.standard_error),
          std::make_pair("solver_error", flow.solver_error),
          std::make_pair("gradient_difference", flow.gradient_difference)}) {
      if (!error.defined()) continue;
      const at::Tensor known = error.masked_select(at::isfinite(error));
      if (known.numel() > 0) flow.summary.numbers[name] = known.max().item<double>();
    }
    for (at::Tensor* t :
         {&flow.log_prob, &flow.latent, &flow.grad, &flow.standard_error, &flow.solver_error})
      if (t->defined()) *t = t->to(x_.scalar_type());
    check_finite(s, flow);
    return out;
  }

 private:
  ode::Problem problem(const ProbabilityFlowOptions& o, bool backward) const {
    ode::Problem p;
    p.weight = equation_->weight();
    p.rounding = x_.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                 : double{std::numeric_limits<float>::epsilon()};
    p.stops = equation_->stops();
    p.said_time = [this](double tau) {
      return equation_->at(at::full({1}, tau, at::kDouble)).t.item<double>();
    };
    if (o.steps > 0) {
      p.grid = equation_->grid(o.steps);
      if (backward) std::reverse(p.grid.begin(), p.grid.end());
    }
    return p;
  }

  ode::State start(const at::Tensor& x, int64_t probes) const {
    const at::TensorOptions wide = x.options().dtype(at::kDouble);
    const FlowPoint p = equation_->at(at::full({x.size(0)}, equation_->begin(), wide));
    return {x.to(wide) / expand_like_batch(p.m, x), at::zeros({x.size(0)}, wide),
            at::zeros({x.size(0), probes}, wide)};
  }

  ode::Solution solve(const ScoreDivergence& divergence, const ProbabilityFlowOptions& o,
                      bool record, bool graph, const at::Tensor& x) const {
    const AugmentedFlow field(*equation_, divergence, pixels_, x_.scalar_type());
    ode::Problem p = problem(o, false);
    p.controlled = 2;
    p.record = record;
    const ode::Rhs f = [&](const at::Tensor& t, const ode::State& y, const at::Tensor& rows) {
      return field.value(t, y, rows, graph && y[0].requires_grad() && at::GradMode::is_enabled());
    };
    return ode::integrate(f, start(x, divergence.probes()), equation_->begin(), equation_->end(),
                          solver_options(o), p);
  }

  at::Tensor latent(const ode::State& y) const { return y[0] * equation_->end_scale(); }
  at::Tensor log_density(const ode::State& y) const {
    return model_.sde().prior_log_prob(latent(y)) + y[1] +
           static_cast<double>(pixels_) * equation_->log_stretch();
  }
  // d log prior / du at the end.
  at::Tensor end_cotangent(const at::Tensor& u) const {
    const double ratio = equation_->end_scale() / model_.sde().prior_std();
    return u * (-ratio * ratio);
  }
  at::Tensor to_x(const at::Tensor& u_bar) const { return u_bar / equation_->begin_scale(); }

  void value(const ode::Solution& s, ProbabilityFlow& flow) const {
    flow.log_prob = mark_failed(log_density(s.y).detach(), s.status);
    flow.latent = mark_failed(latent(s.y).detach(), s.status);
    flow.summary = s.summary;
    const int64_t n = set_.sets;
    if (o_.trace == "exact") {
      flow.standard_error = mark_failed(at::zeros_like(flow.log_prob), s.status);
    } else if (n < 2) {
      flow.standard_error = at::full_like(flow.log_prob, std::nan(""));
    } else {
      const at::Tensor forms = s.y[2].detach().reshape({-1, n, o_.colours}).sum(2);
      flow.standard_error = mark_failed(
          forms.std(1, /*unbiased=*/true) / std::sqrt(static_cast<double>(n)), s.status);
    }
  }

  void errors(const ScoreDivergence& divergence, const ode::Solution& s,
              ProbabilityFlow& flow) const {
    flow.solver_error = at::full_like(flow.log_prob, std::nan(""));
    if (o_.solver_error == "embedded" && !s.embedded.empty()) {
      const at::Tensor end = end_cotangent(s.y[0].detach());
      flow.solver_error =
          mark_failed((s.embedded[1] + sum_event(end * s.embedded[0])).abs(), s.status);
    } else if (o_.solver_error == "second" && o_.steps != 1) {  // there is no half of one step
      ProbabilityFlowOptions loose = o_;
      loose.rtol *= kLooser;
      loose.atol *= kLooser;
      loose.steps = o_.steps / 2;
      const at::NoGradGuard off;
      const ode::Solution other = solve(divergence, loose, false, false, x_);
      flow.solver_error = mark_failed((flow.log_prob - log_density(other.y)).abs(), other.status);
      flow.second_evaluations = other.evaluations;
      flow.summary.numbers["second_nfe"] = other.summary.numbers.at("nfe");
    }
  }

  // The gradient the other way. An image counts that has both.
  void compare_gradients(const ScoreDivergence& divergence, const ode::Solution& s,
                         ProbabilityFlow& flow) const {
    FlowRun other;
    const at::Tensor second = o_.adjoint == "backsolve" ? checkpointed(divergence, s, other)
                                                        : backsolve(divergence, s, other);
    add_to(flow.evaluations, other.grad_evaluations);
    const auto norm = [](const at::Tensor& g) { return g.flatten(1).norm(2, 1); };
    const at::Tensor apart = norm(flow.grad - second), size = norm(flow.grad);
    flow.gradient_difference = at::where(apart == 0, apart, apart / size);
    flow.summary.numbers["gradient_unchecked"] =
        at::isfinite(size).logical_and(at::isfinite(apart).logical_not()).sum().item<double>();
  }

  // A solver may arrive at a number that the dtype, or the prior at t = 1, takes for infinite.
  static void check_finite(const ode::Solution& s, ProbabilityFlow& flow) {
    flow.failure = s.failure;
    const at::Tensor good = at::isfinite(flow.log_prob).to(at::kCPU, at::kLong).contiguous();
    if (flow.grad.defined()) {
      const at::Tensor lost =
          at::isfinite(flow.log_prob)
              .logical_and(at::isfinite(flow.grad).flatten(1).all(1).logical_not());
      flow.summary.numbers["grad_failed"] = lost.sum().item<double>();
    }
    int64_t failed = 0;
    for (int64_t b = 0; b < good.numel(); ++b) {
      if (good.data_ptr<int64_t>()[b]) continue;
      ++failed;
      if (flow.status[b] == Status::kConverged) flow.status[b] = Status::kDiverged;
    }
    if (failed == 0) return;
    flow.summary.numbers["failed"] = static_cast<double>(failed);
    if (flow.failure.empty()) flow.failure = "log p is not finite";
    if (flow.summary.status == Status::kConverged) flow.summary.status = Status::kDiverged;
    for (at::Tensor* t :
         {&flow.log_prob, &flow.latent, &flow.grad, &flow.standard_error, &flow.solver_error})
      if (t->defined()) *t = mark_failed(*t, flow.status);
  }

  at::Tensor checkpointed(const ScoreDivergence& divergence, const ode::Solution& s,
                          FlowRun& out) const {
    const AugmentedFlow field(*equation_, divergence, pixels_, x_.scalar_type());
    const ode::Pullback pullback = [&](const at::Tensor& t, const ode::State& y,
                                       const at::Tensor& rows, const ode::State& bar) {
      return ode::State{field.pull(t, y[0], rows, bar[0], bar[1], nullptr), at::Tensor(),
                        at::Tensor()};
    };
    const at::Tensor u = s.y[0].detach();
    const ode::State bar = ode::pull_back(
        *s.record, pullback, {end_cotangent(u), at::ones_like(s.y[1]), at::zeros_like(s.y[2])},
        &out.grad_evaluations);
    out.flow.summary.numbers["record_bytes"] = static_cast<double>(ode::record_bytes(*s.record));
    return mark_failed(to_x(bar[0]), s.status);
  }

  at::Tensor backsolve(const ScoreDivergence& divergence, const ode::Solution& s,
                       FlowRun& out) const {
    const at::NoGradGuard off;
    const AugmentedFlow field(*equation_, divergence, pixels_, x_.scalar_type());
    const ode::Rhs backward = [&](const at::Tensor& t, const ode::State& y,
                                  const at::Tensor& rows) {
      at::Tensor rate;
      const at::Tensor pulled =
          field.pull(t, y[0], rows, y[1], at::ones({rows.numel()}, y[0].options()), &rate);
      ode::State out{rate, -pulled};
      if (!o_.seminorm) out.push_back(field.value(t, y, rows, false)[1]);
      return out;
    };
    const at::Tensor u = s.y[0].detach();
    ode::State y{u, end_cotangent(u)};
    if (!o_.seminorm) y.push_back(s.y[1].detach());
    const ode::Solution b = ode::integrate(backward, y, equation_->end(), equation_->begin(),
                                           solver_options(o_), problem(o_, true));
    out.grad_evaluations = b.evaluations;
    if (b.summary.status != Status::kConverged && out.flow.summary.status == Status::kConverged) {
      out.flow.summary.status = b.summary.status;
      out.flow.summary.message = b.summary.message + " on the way back";
    }
    return mark_failed(mark_failed(to_x(b.y[1]), b.status), s.status);
  }

  ode::Solution direct(const ScoreDivergence& divergence, ProbabilityFlow& flow) const {
    const at::AutoGradMode on(true);
    const DoubleBackwardScope twice;
    const at::Tensor x = x_.clone().requires_grad_(true);
    ode::Solution s = solve(divergence, o_, false, true, x);
    const at::Tensor total = log_density(s.y);
    value(s, flow);
    flow.grad = mark_failed(torch::autograd::grad({total.sum()}, {x})[0], s.status);
    for (auto& part : s.y) part = part.detach();
    return s;
  }

  const ScoreModel& model_;
  const ProbabilityFlowOptions& o_;
  at::Tensor x_;
  int64_t pixels_;
  std::unique_ptr<FlowEquation> equation_;
  ProbeSet set_;
};

// Results of chunks one after the other.
void append(ProbabilityFlow& all, const ProbabilityFlow& part, double images, double total) {
  const auto join = [](at::Tensor& a, const at::Tensor& b) {
    if (b.defined()) a = a.defined() ? at::cat({a, b}) : b;
  };
  const bool first = !all.log_prob.defined();
  join(all.log_prob, part.log_prob);
  join(all.latent, part.latent);
  join(all.grad, part.grad);
  join(all.standard_error, part.standard_error);
  join(all.solver_error, part.solver_error);
  join(all.gradient_difference, part.gradient_difference);
  const auto extend = [](auto& a, const auto& b) { a.insert(a.end(), b.begin(), b.end()); };
  extend(all.evaluations, part.evaluations);
  extend(all.second_evaluations, part.second_evaluations);
  extend(all.status, part.status);
  if (first ||
      (part.summary.status != Status::kConverged &&
       (all.summary.status == Status::kConverged || part.summary.status > all.summary.status))) {
    all.summary.status = part.summary.status;
    all.summary.message = part.summary.message;
    all.failure = part.failure;
  }
  for (const auto& [name, value] : part.summary.numbers) {
    double& sum = all.summary.numbers[name];
    if (name == "forwards" || name == "vjps" || name == "second_order")
      sum += value / total;
    else if (name == "accepted" || name == "rejected")
      sum += value * images / total;
    else if (name == "calls" || name == "failed" || name == "grad_failed" ||
             name == "gradient_unchecked")
      sum += value;
    else
      sum = std::max(sum, value);
  }
}

// Right-hand sides of an image's value, for the memory of what is kept from each. Steps from
// tolerances: an allowance.
int64_t expected_evaluations(const ProbabilityFlowOptions& o) {
  constexpr int64_t kAllowance = 300;
  if (o.steps == 0) return o.max_nfe > 0 ? std::min(o.max_nfe, kAllowance) : kAllowance;
  const auto names = ode::tableau_names();
  const bool runge_kutta = std::find(names.begin(), names.end(), o.solver) != names.end();
  const int64_t stages = runge_kutta          ? ode::tableau(o.solver).stages()
                         : o.solver == "exp2" ? 2
                         : o.solver == "exp3" ? 3
                                              : 1;
  return o.steps * stages + 4;  // multistep methods start with more, some end with one more
}

// Bytes of one network row at its peak, measured on the first image with one probe.
double row_bytes(const ScoreModel& model, const ProbabilityFlowOptions& o, const at::Tensor& x,
                 bool with_grad) {
  std::atomic<double>& known =
      with_grad ? model.row_bytes().second_order : model.row_bytes().product;
  if (known == 0) {
    const at::Tensor image = x.slice(0, 0, 1).detach(), ones = at::ones_like(image);
    const at::Tensor t = at::full({1}, 0.5 * (o.t0 + 1), image.options());
    const at::Tensor rows = at::zeros({1}, at::TensorOptions().dtype(at::kLong).device(x.device()));
    const ScoreDivergence one(model, ones.unsqueeze(0), {1.0}, 1);
    known =
        std::max(1.0, resident_bytes([&] {
                   if (with_grad)
                     one.pullback(image, t, rows, ones, at::ones({1}, image.options()), nullptr);
                   else
                     one.value(image, t, rows, false);
                 }));
  }
  return known;
}

// The memory law of docs/logp.md.
Pieces pieces_for(const ScoreModel& model, const ProbabilityFlowOptions& o, const at::Tensor& x,
                  const at::Tensor& probes, bool with_grad) {
  const int64_t batch = x.size(0);
  // What is free on an accelerator is not asked for: there its own refusal splits a batch.
  if (batch == 0 || (o.max_memory_mib == 0 && !x.device().is_cpu()))
    return {std::max<int64_t>(1, std::min(batch, o.max_batch)), o.max_batch, false};
  const double pixels = static_cast<double>(x.numel()) / static_cast<double>(batch);
  const bool exact = o.trace == "exact";
  const double n = exact ? pixels : static_cast<double>(probes.size(0));
  const double item = static_cast<double>(x.element_size());
  const double state = (pixels + 1 + n) * double{sizeof(double)};  // whatever the network's dtype
  const double evaluations = static_cast<double>(expected_evaluations(o));
  const double row = row_bytes(model, o, x, with_grad) + pixels * item;  // and its probe
  double kept = 10 * state;                                              // the solver's own
  if (with_grad && (o.adjoint == "checkpoint" || o.check_gradient)) kept += evaluations * state;
  if (with_grad && o.adjoint == "direct") kept += evaluations * n * row;
  Pieces p = fit_into(memory_budget(o.max_memory_mib), exact ? n * pixels * item : 0.0, kept, row,
                      batch, o.max_batch);
  const double wanted =
      std::min(static_cast<double>(o.max_batch), n * static_cast<double>(p.images));
  p.limited = p.limited || static_cast<double>(p.rows) < wanted;
  return p;
}

bool out_of_memory(const std::exception& e) {
  const std::string what = e.what();
  return dynamic_cast<const std::bad_alloc*>(&e) ||
         what.find("out of memory") != std::string::npos ||
         what.find("can't allocate memory") != std::string::npos;
}

}  // namespace

void check_options(const Config& config, const ProbabilityFlowOptions& o) {
  check_value_options(config, o);
  config.one_of("adjoint", o.adjoint, {"checkpoint", "direct", "backsolve"});
  if (!(o.gradient_tolerance > 0))
    config.fail("gradient_tolerance", "gradient_tolerance must be positive");
}

void check_value_options(const Config& config, const ProbabilityFlowOptions& o) {
  if (!(o.t0 > 0 && o.t0 < 1)) config.fail("t0", "t0 must lie between 0 and 1");
  config.one_of("trace", o.trace, {"exact", "hutchinson"});
  config.one_of("probe_law", o.probe_law, {"rademacher", "gaussian"});
  config.one_of("variable", o.variable, {"log_snr", "time"});
  config.one_of("solver_error", o.solver_error, {"embedded", "second", "none"});
  const auto solvers = ode::adaptive_solver_names();
  config.one_of("solver", o.solver, ode::solver_names());
  if (o.steps == 0 && std::find(solvers.begin(), solvers.end(), o.solver) == solvers.end()) {
    std::string others;
    for (const auto& name : solvers) others += (others.empty() ? "" : " | ") + name;
    config.fail("solver", "the solver " + o.solver +
                              " has no error estimate: it needs steps > 0; without, one of " +
                              others);
  }
  if (o.variable == "time" && o.solver.rfind("exp", 0) == 0)
    config.fail("variable", "the exp solvers need variable = \"log_snr\"");
  if (!(o.data_std >= 0)) config.fail("data_std", "data_std must not be negative");
  if (!(o.rtol >= 0 && o.atol >= 0 && o.rtol + o.atol > 0))
    config.fail("rtol", "tolerances must be positive");
  if (o.n_probes < 1) config.fail("n_probes", "n_probes must be at least 1");
  if (o.colours < 1 || o.n_probes % o.colours != 0)
    config.fail("colours", "colours must be at least 1 and divide n_probes");
  if (o.steps < 0) config.fail("steps", "steps must not be negative");
  if (o.max_steps < 1) config.fail("max_steps", "max_steps must be at least 1");
  if (o.max_nfe < 0) config.fail("max_nfe", "max_nfe must not be negative");
  if (o.max_batch < 1) config.fail("max_batch", "max_batch must be at least 1");
  if (!(o.max_memory_mib >= 0))
    config.fail("max_memory_mib", "max_memory_mib must not be negative");
}

at::Tensor draw_probes(const ScoreModel& model, const ProbabilityFlowOptions& o, int64_t batch,
                       const Rng& rng) {
  if (o.trace == "exact") return {};
  SP_CHECK(o.n_probes > 0, "probability flow", "expected n_probes > 0, got ", o.n_probes);
  SP_CHECK(o.colours > 0 && o.n_probes % o.colours == 0, "probability flow",
           "expected colours that divide n_probes, got ", o.colours, " and ", o.n_probes);
  Shape shape = batched(batch, model.event_shape());
  shape.insert(shape.begin() + 1, o.n_probes);
  const Rng stream = rng.split("flow.probes");
  const at::Tensor probes = o.probe_law == "gaussian" ? stream.normal(shape, model.dtype())
                                                      : stream.rademacher(shape, model.dtype());
  if (o.colours == 1) return probes.transpose(0, 1).contiguous().to(model.device());
  Shape sets = shape;
  sets[1] = o.n_probes / o.colours;
  sets.insert(sets.begin() + 2, o.colours);
  return (probes.reshape(sets) * colour_masks(model.event_shape(), o.colours))
      .reshape(shape)
      .transpose(0, 1)
      .contiguous()
      .to(model.device());
}

ProbabilityFlow probability_flow_log_prob(const ScoreModel& model,
                                          const ProbabilityFlowOptions& options,
                                          const at::Tensor& x, const at::Tensor& probes,
                                          bool with_grad) {
  check_words(options);
  check_batched("probability flow", "x", x, model.event_shape());
  const at::NoGradGuard off;
  const int64_t batch = x.size(0);
  SP_CHECK(options.trace == "exact" || (probes.defined() && probes.dim() == x.dim() + 1),
           "probability flow", "expected probes [n,B,event...] for x ", x.sizes());
  ProbabilityFlow all;
  Pieces piece = pieces_for(model, options, x, probes, with_grad);
  ProbabilityFlowOptions o = options;
  o.max_batch = piece.rows;
  int64_t chunk = piece.images, pieces = 0;
  for (int64_t first = 0; first < batch || (batch == 0 && !all.log_prob.defined());) {
    const int64_t count = std::min(chunk, batch - first);
    const at::Tensor e = probes.defined() && probes.dim() > 1 && probes.size(1) != 1
                             ? probes.slice(1, first, first + count)
                             : probes;
    FlowRun run;
    try {
      run = FlowSolver(model, o, x.slice(0, first, first + count), e).run(with_grad);
    } catch (const std::exception& error) {
      if (count <= 1 || !out_of_memory(error)) throw;
      chunk = (count + 1) / 2;
      piece.limited = true;
      continue;
    }
    ++pieces;
    run.flow.summary.numbers["grad_nfe"] =
        run.grad_evaluations.empty()
            ? 0.0
            : static_cast<double>(
                  *std::max_element(run.grad_evaluations.begin(), run.grad_evaluations.end()));
    append(all, run.flow, static_cast<double>(count),
           static_cast<double>(std::max<int64_t>(batch, 1)));
    first += std::max<int64_t>(count, 1);
  }
  all.summary.numbers["pieces"] = static_cast<double>(pieces);
  all.summary.numbers["piece_images"] = static_cast<double>(chunk);
  all.summary.numbers["piece_rows"] = static_cast<double>(piece.rows);
  if (!all.failure.empty())
    all.summary.message = detail::concat(all.failure, " in ", all.summary.numbers.at("failed"),
                                         " of ", batch, " images");
  if (piece.limited)
    all.summary.message += detail::concat(
        "; computed in ", pieces, pieces == 1 ? " piece" : " pieces", " of up to ", chunk,
        chunk == 1 ? " image" : " images", " to fit into the memory (max_memory_mib)");
  const auto& numbers = all.summary.numbers;
  const auto apart = numbers.find("gradient_difference"), lost = numbers.find("gradient_unchecked"),
             without = numbers.find("grad_failed");
  if (without != numbers.end() && without->second > 0)
    all.summary.warnings.push_back(detail::concat("the gradient did not arrive in ",
                                                  without->second, " of ", batch, " images"));
  if (apart != numbers.end() && !(apart->second <= o.gradient_tolerance))
    all.summary.warnings.push_back(detail::concat("two gradients differ by ", apart->second,
                                                  " (gradient_tolerance ", o.gradient_tolerance,
                                                  "): tighten rtol and atol or take more steps"));
  if (lost != numbers.end() && lost->second > 0)
    all.summary.warnings.push_back(detail::concat("the second gradient did not arrive in ",
                                                  lost->second, " of ", batch, " images"));
  return all;
}

at::Tensor bits_per_dim(const at::Tensor& log_prob, const Shape& event) {
  return log_prob * (-1.0 / (static_cast<double>(numel(event)) * std::log(2.0)));
}

}  // namespace scoreprior
