#include "scoreprior/diffusion/probability_flow.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <memory>

#include "scoreprior/core/errors.h"
#include "scoreprior/nets/double_backward.h"
#include "scoreprior/ode/integrate.h"

namespace scoreprior {
namespace {

// Right-hand sides. Network rows are (probe, image) pairs: one forward and one vector-Jacobian
// product serve a whole group of probes.
class FlowField {
 public:
  FlowField(const ScoreModel& model, const ProbabilityFlowOptions& o, const at::Tensor& x,
            at::Tensor probes)
      : model_(model),
        max_batch_(o.max_batch),
        pixels_(x.numel() / std::max<int64_t>(x.size(0), 1)) {
    if (o.trace == "exact") {
      Shape basis{pixels_, 1};
      basis.insert(basis.end(), x.sizes().begin() + 1, x.sizes().end());
      probes_ = at::eye(pixels_, x.options()).reshape(basis);
      share_ = 1;
    } else {
      SP_CHECK(probes.defined() && probes.dim() == x.dim() + 1 && probes.size(0) > 0 &&
                   (probes.size(1) == 1 || probes.size(1) == x.size(0)) &&
                   probes.sizes().slice(2) == x.sizes().slice(1),
               "probability flow", "expected probes [n,B,event...] for x ", x.sizes());
      probes_ = probes.to(x.device(), x.scalar_type());
      share_ = 1.0 / static_cast<double>(probes_.size(0));
    }
  }

  // (v, div v); with graph, differentiable in y[0].
  ode::State value(const at::Tensor& t, const at::Tensor& x, const at::Tensor& rows,
                   bool graph) const {
    const int64_t n = probes_.size(0), images = x.size(0);
    const int64_t group = std::max<int64_t>(1, max_batch_ / std::max<int64_t>(images, 1));
    at::Tensor score, div;
    for (int64_t p = 0; p < n; p += group) {
      at::AutoGradMode on(true);
      const int64_t count = std::min(group, n - p);
      const at::Tensor e = group_probes(p, count, rows, images);
      at::Tensor in = graph ? repeat(x, count) : repeat(x.detach(), count).requires_grad_(true);
      const at::Tensor s = model_.score(in, t.repeat({count}));
      const at::Tensor pull = torch::autograd::grad({s}, {in}, {e}, c10::nullopt, graph)[0];
      const at::Tensor part = sum_event(pull * e).reshape({count, images}).sum(0) * share_;
      div = div.defined() ? div + part : part;
      if (p == 0) score = s.slice(0, 0, images);
    }
    if (!graph) {
      score = score.detach();
      div = div.detach();
    }
    const at::Tensor half = model_.sde().diffusion(t).square() * -0.5;
    return {model_.sde().drift(x, t) + expand_like_batch(half, x) * score,
            model_.sde().drift_coeff(t) * static_cast<double>(pixels_) + half * div};
  }

  // (v, -grad_x (a . v + div v))
  ode::State adjoint(const at::Tensor& t, const at::Tensor& x, const at::Tensor& a,
                     const at::Tensor& rows) const {
    const int64_t n = probes_.size(0), images = x.size(0);
    const int64_t group = std::max<int64_t>(1, max_batch_ / std::max<int64_t>(images, 1));
    at::Tensor score, back;
    for (int64_t p = 0; p < n; p += group) {
      at::AutoGradMode on(true);
      const int64_t count = std::min(group, n - p);
      const at::Tensor e = group_probes(p, count, rows, images);
      const at::Tensor in = repeat(x.detach(), count).requires_grad_(true);
      const at::Tensor s = model_.score(in, t.repeat({count}));
      const at::Tensor pull = torch::autograd::grad({s}, {in}, {e}, c10::nullopt, true)[0];
      at::Tensor total = (pull * e).sum() * share_;
      if (p == 0) {
        score = s.slice(0, 0, images).detach();
        total = total + (s.slice(0, 0, images) * a).sum();
      }
      // A score linear in x has a constant divergence: nothing to differentiate beyond the first group.
      if (!total.requires_grad()) continue;
      const at::Tensor g =
          torch::autograd::grad({total}, {in}, {}, c10::nullopt, false, /*allow_unused=*/true)[0];
      if (!g.defined()) continue;
      const at::Tensor part = g.reshape(split_shape(count, x)).sum(0);
      back = back.defined() ? back + part : part;
    }
    const Sde& sde = model_.sde();
    const at::Tensor half = expand_like_batch(sde.diffusion(t).square() * -0.5, x);
    const at::Tensor c = expand_like_batch(sde.drift_coeff(t), x);
    return {c * x + half * score, -(c * a + half * back)};
  }

 private:
  static Shape split_shape(int64_t count, const at::Tensor& x) {
    Shape s{count};
    s.insert(s.end(), x.sizes().begin(), x.sizes().end());
    return s;
  }
  static at::Tensor repeat(const at::Tensor& x, int64_t count) {
    return count == 1 ? x.clone() : x.unsqueeze(0).expand(split_shape(count, x)).flatten(0, 1);
  }
  at::Tensor group_probes(int64_t first, int64_t count, const at::Tensor& rows,
                          int64_t images) const {
    at::Tensor e = probes_.slice(0, first, first + count);
    if (e.size(1) != 1) return e.index_select(1, rows).flatten(0, 1);
    Shape s = e.sizes().vec();
    s[1] = images;
    return e.expand(s).flatten(0, 1);
  }

  const ScoreModel& model_;
  int64_t max_batch_, pixels_;
  at::Tensor probes_;
  double share_;
};

void check_words(const ProbabilityFlowOptions& o) {
  SP_CHECK(o.trace == "exact" || o.trace == "hutchinson", "probability flow",
           "expected trace exact | hutchinson, got \"", o.trace, "\"");
  SP_CHECK(o.adjoint == "backsolve" || o.adjoint == "direct", "probability flow",
           "expected adjoint backsolve | direct, got \"", o.adjoint, "\"");
  SP_CHECK(o.max_batch > 0, "probability flow", "expected max_batch > 0");
}

// NaN for images whose solver did not arrive.
at::Tensor mark_failed(const at::Tensor& values, const std::vector<Status>& status) {
  std::vector<double> factor;
  for (const Status s : status) factor.push_back(s == Status::kConverged ? 1.0 : std::nan(""));
  return values *
         expand_like_batch(
             at::tensor(factor, at::kDouble).to(values.device(), values.scalar_type()), values);
}

}  // namespace

void check_options(const Config& config, const ProbabilityFlowOptions& o) {
  if (!(o.t0 > 0 && o.t0 < 1)) config.fail("t0", "t0 must lie between 0 and 1");
  config.one_of("trace", o.trace, {"exact", "hutchinson"});
  config.one_of("adjoint", o.adjoint, {"backsolve", "direct"});
  config.one_of("solver", o.solver,
                o.steps > 0 ? ode::tableau_names() : ode::adaptive_tableau_names());
  if (!(o.rtol >= 0 && o.atol >= 0 && o.rtol + o.atol > 0))
    config.fail("rtol", "tolerances must be positive");
  if (o.n_probes < 1) config.fail("n_probes", "n_probes must be at least 1");
  if (o.max_steps < 1) config.fail("max_steps", "max_steps must be at least 1");
  if (o.max_batch < 1) config.fail("max_batch", "max_batch must be at least 1");
}

at::Tensor draw_probes(const ScoreModel& model, const ProbabilityFlowOptions& o, int64_t batch,
                       const Rng& rng) {
  if (o.trace == "exact") return {};
  SP_CHECK(o.n_probes > 0, "probability flow", "expected n_probes > 0, got ", o.n_probes);
  Shape shape = batched(batch, model.event_shape());
  shape.insert(shape.begin() + 1, o.n_probes);
  return rng.split("flow.probes")
      .rademacher(shape, model.dtype())
      .transpose(0, 1)
      .contiguous()
      .to(model.device());
}

ProbabilityFlow probability_flow_log_prob(const ScoreModel& model, const ProbabilityFlowOptions& o,
                                          const at::Tensor& x_in, const at::Tensor& probes,
                                          bool with_grad) {
  check_words(o);
  check_batched("probability flow", "x", x_in, model.event_shape());
  ode::OdeOptions solver;
  solver.solver = o.solver;
  solver.rtol = o.rtol;
  solver.atol = o.atol;
  solver.steps = o.steps;
  solver.max_steps = o.max_steps;

  const bool direct = with_grad && o.adjoint == "direct";
  std::unique_ptr<DoubleBackwardScope> twice;
  if (with_grad) twice = std::make_unique<DoubleBackwardScope>();
  at::AutoGradMode mode(direct);
  const at::Tensor x = direct ? x_in.detach().clone().requires_grad_(true) : x_in.detach();
  const FlowField field(model, o, x, probes);

  const ode::Rhs forward = [&](const at::Tensor& t, const ode::State& y, const at::Tensor& rows) {
    return field.value(t, y[0], rows, direct && y[0].requires_grad() && at::GradMode::is_enabled());
  };
  ode::Solution s =
      ode::integrate(forward, {x, at::zeros({x.size(0)}, x.options())}, o.t0, 1.0, solver);
  const at::Tensor total = model.sde().prior_log_prob(s.y[0]) + s.y[1];
  ProbabilityFlow out;
  out.log_prob = mark_failed(total.detach(), s.status);
  out.latent = mark_failed(s.y[0].detach(), s.status);
  out.evaluations = s.evaluations;
  out.summary = s.summary;
  if (!with_grad) return out;

  if (direct) {
    out.grad = mark_failed(torch::autograd::grad({total.sum()}, {x})[0], s.status);
    return out;
  }
  const double precision = 1 / (model.sde().prior_std() * model.sde().prior_std());
  const ode::Rhs backward = [&](const at::Tensor& t, const ode::State& y, const at::Tensor& rows) {
    return field.adjoint(t, y[0], y[1], rows);
  };
  const ode::Solution b =
      ode::integrate(backward, {s.y[0], s.y[0] * -precision}, 1.0, o.t0, solver);
  out.grad = mark_failed(mark_failed(b.y[1], b.status), s.status);
  for (size_t i = 0; i < out.evaluations.size(); ++i) out.evaluations[i] += b.evaluations[i];
  if (b.summary.status != Status::kConverged && out.summary.status == Status::kConverged) {
    out.summary = b.summary;
    out.summary.message += " on the way back";
  }
  out.summary.numbers["adjoint_nfe"] = b.summary.numbers.at("nfe");
  return out;
}

}  // namespace scoreprior
