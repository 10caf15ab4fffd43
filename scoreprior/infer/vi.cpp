#include "scoreprior/infer/vi.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/infer/adam.h"

namespace scoreprior {
namespace {

struct VariationalOptions : BufferAdamOptions {
  int64_t steps = 10000;
  int64_t batch = 64;
  double lr = 2e-4;
  int64_t warmup = 100;
  double decay_from = 0.7;
  double lr_final = 0.01;
  double freeze_from = 0.4;
  double lambda_data = 1, lambda_prior = 1, lambda_entropy = 1;
  bool anneal = false;
  double anneal_rate = 0.002;
  double anneal_pivot = 12000;
  bool anneal_entropy = false;
  double entropy_start_order = 2;
  double entropy_decay_steps = 4000;
  int64_t start_steps = 0;
  double start_peak = 0.15, start_fwhm = 0.4, start_std = 0.03;
  int64_t n_draws = 256;
  int64_t proposals = 1;
  int64_t checkpoint_every = 500;
  double plateau_tolerance = 1;
  double plateau_relative = 0.005;

  VariationalOptions() { clip = 1; }

  template <class F>
  void fields(F&& f) {
    f("steps", steps, "optimisation steps");
    f("batch", batch, "draws per step");
    f("lr", lr, "learning rate");
    f("warmup", warmup, "steps over which the learning rate rises from 0; 0 = none");
    f("decay_from", decay_from,
      "fraction of the steps after which the learning rate falls (half cosine); 1 = never");
    f("lr_final", lr_final, "learning rate at the end, as a fraction of lr");
    f("freeze_from", freeze_from,
      "fraction of the steps after which the flow's batch statistics are fixed; 1 = never");
    f("lambda_data", lambda_data, "weight of the log-likelihood");
    f("lambda_prior", lambda_prior, "weight of the log-prior");
    f("lambda_entropy", lambda_entropy, "weight of the entropy of q");
    f("anneal", anneal, "let the data in gradually: weight 1/(1+exp(-rate (step-pivot)))");
    f("anneal_rate", anneal_rate, "rate of that sigmoid [1/steps]");
    f("anneal_pivot", anneal_pivot, "step at which it reaches one half");
    f("anneal_entropy", anneal_entropy,
      "start with a larger entropy weight: max(10^(order - step/decay), 1)");
    f("entropy_start_order", entropy_start_order, "its logarithm (base 10) at step 0");
    f("entropy_decay_steps", entropy_decay_steps, "steps per factor of 10");
    f("start_steps", start_steps,
      "steps towards a blob in the middle before prior and data count; 0 = none");
    f("start_peak", start_peak, "brightness of that blob");
    f("start_fwhm", start_fwhm, "its full width at half maximum [image sides]");
    f("start_std", start_std, "its standard deviation per pixel");
    f("n_draws", n_draws, "posterior draws at the end");
    f("proposals", proposals,
      "draws of q for each of them; more than 1: resampled in proportion to p/q");
    f("checkpoint_every", checkpoint_every, "steps between checkpoints; 0 = only when interrupted");
    f("plateau_tolerance", plateau_tolerance,
      "converged when the loss surely falls by less than this between the last two windows [nats]");
    f("plateau_relative", plateau_relative, "or by less than this fraction of it");
    BufferAdamOptions::fields(f);
  }
};

// Draws are invalid when not finite, or when some pixel lies this many robust standard deviations
// from the median of the draws: no posterior a flow was fitted to reaches there, an exploding draw
// does.
constexpr double kFarOutside = 30;
constexpr int64_t kCalibrationBatches = 16;

enum CurveIndex { kLoss, kData, kPrior, kEntropy, kNorm, kCurves };
const char* const kCurveNames[kCurves] = {"loss", "data", "prior", "entropy", "grad_norm"};

struct Plateau {
  double mean = NAN, error = NAN, fall = NAN, fall_error = NAN;
  bool reached = false, significant = false;
};

// Mean and standard error from batch means, which see the correlation between steps.
std::pair<double, double> batch_means(const double* v, int64_t n) {
  const int64_t blocks = std::min<int64_t>(20, n), size = n / blocks;
  double mean = 0, square = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    double s = 0;
    for (int64_t i = 0; i < size; ++i) s += v[b * size + i];
    mean += s / size;
    square += (s / size) * (s / size);
  }
  mean /= blocks;
  const double variance =
      std::max(square / blocks - mean * mean, 0.0) / std::max<int64_t>(blocks - 1, 1);
  return {mean, std::sqrt(variance)};
}

// Two windows, each a fifth of the curve, ending at `end`: converged when even the upper end of the
// fall between them is small. A fall lost in noise proves nothing.
Plateau find_plateau(const std::vector<double>& loss, int64_t end, double tolerance,
                     double relative) {
  Plateau p;
  std::vector<double> v;
  for (int64_t i = 0; i < end; ++i)
    if (std::isfinite(loss[i])) v.push_back(loss[i]);
  const int64_t window = static_cast<int64_t>(v.size()) / 5;
  if (window < 20) return p;
  const auto [late, late_error] = batch_means(v.data() + v.size() - window, window);
  const auto [early, early_error] = batch_means(v.data() + v.size() - 2 * window, window);
  p.mean = late;
  p.error = late_error;
  p.fall = early - late;
  p.fall_error = std::hypot(late_error, early_error);
  p.significant = p.fall > 2 * p.fall_error;
  p.reached = p.fall + 2 * p.fall_error < std::max(tolerance, relative * std::abs(p.mean));
  return p;
}

at::Tensor finite_rows(const at::Tensor& x) { return at::isfinite(x).flatten(1).all(1); }

class VariationalInference final : public Inference {
 public:
  VariationalInference(const Config& config, const InferenceContext& context)
      : o_(config.read<VariationalOptions>()), flow_(config.table("flow")), context_(context) {
    const auto positive = [&](const char* key, double value) {
      if (!(value > 0)) config.fail(key, std::string(key) + " must be positive");
    };
    const auto fraction = [&](const char* key, double value) {
      if (!(value >= 0 && value <= 1))
        config.fail(key, std::string(key) + " must be between 0 and 1");
    };
    positive("steps", o_.steps);
    positive("batch", o_.batch);
    positive("lr", o_.lr);
    positive("n_draws", o_.n_draws);
    positive("proposals", o_.proposals);
    positive("adam_eps", o_.eps);
    positive("entropy_decay_steps", o_.entropy_decay_steps);
    fraction("decay_from", o_.decay_from);
    fraction("freeze_from", o_.freeze_from);
    fraction("lr_final", o_.lr_final);
    if (o_.start_steps < 0) config.fail("start_steps", "start_steps must not be negative");
    if (!(o_.start_std > 0 && o_.start_fwhm > 0))
      config.fail("start_std", "start_std and start_fwhm must be positive");
    if (o_.warmup < 0) config.fail("warmup", "warmup must not be negative");
    if (o_.checkpoint_every < 0)
      config.fail("checkpoint_every", "checkpoint_every must not be negative");
    if (!(o_.ema >= 0 && o_.ema < 1)) config.fail("ema", "ema must be in [0, 1)");
    // Read the flow's settings now: a mistake there must not wait for the data to be loaded.
    const int64_t dim = flow_.get<int64_t>("dim", 0);
    flows().make(flow_, "realnvp", FlowContext{dim > 0 ? int64_t{0} : int64_t{2}, context.dtype});
  }

  Draws run(const Target& target, const Rng& rng, Observer& observer,
            StateStore& store) const override;

 private:
  struct Progress {
    int64_t step = 0, dropped = 0, skipped = 0;
    std::vector<double> curves[kCurves];
  };

  double learning_rate(int64_t step) const {
    const double warm = o_.warmup > 0 ? std::min(static_cast<double>(step) / o_.warmup, 1.0) : 1.0;
    const double start = o_.decay_from * o_.steps;
    if (o_.decay_from >= 1 || step <= start) return o_.lr * warm;
    const double t = (step - start) / std::max(o_.steps - start, 1.0);
    return o_.lr * warm * (o_.lr_final + (1 - o_.lr_final) * 0.5 * (1 + std::cos(M_PI * t)));
  }
  ElboWeights weights(int64_t step) const {
    ElboWeights w{o_.lambda_data, o_.lambda_prior, o_.lambda_entropy};
    if (o_.anneal) w.data *= sigmoid_anneal(step, o_.anneal_rate, o_.anneal_pivot);
    if (o_.anneal_entropy)
      w.entropy *= power_anneal(step, o_.entropy_start_order, o_.entropy_decay_steps);
    return w;
  }
  int64_t freeze_step() const { return static_cast<int64_t>(std::ceil(o_.freeze_from * o_.steps)); }

  std::map<std::string, at::Tensor> state(Flow& flow, BufferAdam& adam, const Progress& p) const;
  bool restore(StateStore& store, Flow& flow, BufferAdam& adam, Progress& p) const;
  void draw(Flow& flow, const Target& target, const Rng& rng, const Shape& event,
            Draws& draws) const;
  void resample(const Target& target, const Rng& rng, Draws& draws) const;

  VariationalOptions o_;
  Config flow_;
  InferenceContext context_;
};

std::map<std::string, at::Tensor> VariationalInference::state(Flow& flow, BufferAdam& adam,
                                                              const Progress& p) const {
  std::map<std::string, at::Tensor> s;
  s["parameters"] = flow.flat_parameters().clone();
  if (flow.flat_statistics().defined()) s["statistics"] = flow.flat_statistics().clone();
  s["adam_m"] = adam.first().clone();
  s["adam_v"] = adam.second().clone();
  if (adam.average().defined()) s["average"] = adam.average().clone();
  s["counters"] = at::tensor(std::vector<int64_t>{p.step, p.dropped, p.skipped, adam.steps(),
                                                  adam.averaged_steps(), o_.steps},
                             at::kLong);
  for (int c = 0; c < kCurves; ++c)
    s[std::string("curve_") + kCurveNames[c]] = at::tensor(p.curves[c], at::kDouble);
  return s;
}

bool VariationalInference::restore(StateStore& store, Flow& flow, BufferAdam& adam,
                                   Progress& p) const {
  std::map<std::string, at::Tensor> s;
  if (!store.load(s)) return false;
  const auto take = [&s](const std::string& name, at::Tensor into) {
    const auto it = s.find(name);
    if (it == s.end()) throw DataError("checkpoint: no tensor \"" + name + "\"");
    if (it->second.sizes() != into.sizes() || it->second.scalar_type() != into.scalar_type())
      throw DataError("checkpoint: \"" + name + "\" belongs to another flow");
    into.copy_(it->second);
  };
  take("parameters", flow.flat_parameters());
  if (flow.flat_statistics().defined()) take("statistics", flow.flat_statistics());
  take("adam_m", adam.first());
  take("adam_v", adam.second());
  if (adam.average().defined()) take("average", adam.average());
  at::Tensor counters = at::zeros({6}, at::kLong);
  take("counters", counters);
  const int64_t* n = counters.data_ptr<int64_t>();
  if (n[5] != o_.steps)
    throw DataError("checkpoint: made for " + std::to_string(n[5]) + " steps, now " +
                    std::to_string(o_.steps) + " are asked for; the schedules differ");
  p.step = n[0];
  p.dropped = n[1];
  p.skipped = n[2];
  adam.set_steps(n[3], n[4]);
  for (int c = 0; c < kCurves; ++c) {
    at::Tensor curve = at::zeros({p.step}, at::kDouble);
    take(std::string("curve_") + kCurveNames[c], curve);
    p.curves[c].assign(curve.data_ptr<double>(), curve.data_ptr<double>() + p.step);
  }
  return true;
}

// N(blob in the middle of the image, std^2): where a search should begin whose data do not fix the
// position. Closures are the same for a shifted image, and far from the middle a local optimum
// traps the whole of q.
class StartDensity final : public LogDensity {
 public:
  StartDensity(const VariationalOptions& o, Shape event, const at::TensorOptions& type)
      : event_(std::move(event)), precision_(1 / (o.start_std * o.start_std)) {
    const int64_t h = event_[event_.size() - 2], w = event_.back();
    const at::Tensor y = (at::arange(h, type) - (h - 1) / 2.0) / (o.start_fwhm * h);
    const at::Tensor x = (at::arange(w, type) - (w - 1) / 2.0) / (o.start_fwhm * w);
    mean_ = o.start_peak * at::exp(-4 * M_LN2 * (y.square().unsqueeze(1) + x.square()));
  }
  Shape event_shape() const override { return event_; }
  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    return sum_event((x - mean_).square()) * (-0.5 * precision_);
  }

 private:
  Shape event_;
  double precision_;
  at::Tensor mean_;  // [H,W]
};

Draws VariationalInference::run(const Target& target, const Rng& rng, Observer& observer,
                                StateStore& store) const {
  const auto begin_time = std::chrono::steady_clock::now();
  const Shape event = target_event_shape(target);
  const int64_t dim = numel(event);
  std::unique_ptr<Flow> flow =
      flows().make(flow_, "realnvp", FlowContext{dim, context_.dtype, at::kCPU, event});
  flow->initialize(rng.split("init"));
  BufferAdam adam(flow->flat_parameters(), o_);
  Progress p;
  restore(store, *flow, adam, p);

  const Rng latents = rng.split("latents"), densities = rng.split("densities");
  const int64_t freeze_at = freeze_step();
  Draws draws;
  Summary& summary = draws.summary;
  summary.status = Status::kMaxSteps;
  int64_t bad_in_a_row = 0;
  flow->freeze(p.step > freeze_at);
  std::unique_ptr<StartDensity> start;
  if (p.step < o_.start_steps)
    start = std::make_unique<StartDensity>(
        o_, event, at::TensorOptions().dtype(context_.dtype).device(context_.device));
  observer.begin("variational inference", o_.steps);
  while (p.step < o_.steps) {
    const int64_t t = p.step;
    if (t == freeze_at) {
      // Statistics over many batches instead of a lagging average of small ones; from here on the
      // density that is trained is the density that is drawn from.
      flow->calibrate(
          rng.split("calibrate").normal({kCalibrationBatches * o_.batch, dim}, context_.dtype));
      flow->freeze(true);
      adam.restart_average();
    }
    const at::Tensor before =
        flow->flat_statistics().defined() ? flow->flat_statistics().clone() : at::Tensor();
    const bool starting = start && t < o_.start_steps;
    ElboWeights w = weights(t);
    if (starting) w.data = 0;
    const Target now{starting ? static_cast<const LogDensity&>(*start) : target.prior,
                     target.likelihood};
    const ElboEstimate e =
        elbo_step(*flow, now, latents.at(t).normal({o_.batch, dim}, context_.dtype),
                  densities.at(t), w, context_.device);
    double norm = NAN;
    if (e.rows > 0) norm = adam.step(flow->flat_parameters(), flow->flat_grad(), learning_rate(t));
    const bool usable = e.rows > 0 && std::isfinite(norm);
    if (!usable && before.defined()) flow->flat_statistics().copy_(before);
    bad_in_a_row = usable ? 0 : bad_in_a_row + 1;
    p.dropped += e.dropped;
    p.skipped += usable ? 0 : 1;
    const double row[kCurves] = {e.loss, e.data, e.prior, e.entropy, norm};
    for (int c = 0; c < kCurves; ++c) p.curves[c].push_back(row[c]);
    ++p.step;
    observer.step(p.step, {{"loss", e.loss},
                           {"data", e.data},
                           {"prior", e.prior},
                           {"entropy", e.entropy},
                           {"grad_norm", norm},
                           {"lr", learning_rate(t)}});
    const bool stop = observer.stop_requested() && p.step < o_.steps;
    if (stop || p.step == o_.steps ||
        (o_.checkpoint_every > 0 && p.step % o_.checkpoint_every == 0))
      store.save(state(*flow, adam, p));
    if (stop) {
      summary.status = Status::kInterrupted;
      break;
    }
    if (bad_in_a_row >= 100) {
      summary.status = Status::kDiverged;
      break;
    }
  }
  observer.end();

  for (int c = 0; c < kCurves; ++c)
    draws.history[kCurveNames[c]] = at::tensor(p.curves[c], at::kDouble);

  // The plateau is judged at the full learning rate: a falling one flattens any curve. Weights as
  // they end.
  std::vector<double> loss(p.step);
  for (int64_t t = 0; t < p.step; ++t)
    loss[t] = o_.lambda_data * p.curves[kData][t] + o_.lambda_prior * p.curves[kPrior][t] +
              o_.lambda_entropy * p.curves[kEntropy][t];
  const int64_t full_rate =
      o_.decay_from >= 0.3 ? static_cast<int64_t>(o_.decay_from * o_.steps) : o_.steps;
  const Plateau plateau =
      find_plateau(loss, std::min(full_rate, p.step), o_.plateau_tolerance, o_.plateau_relative);
  if (summary.status == Status::kMaxSteps && plateau.reached) summary.status = Status::kConverged;
  if (summary.status == Status::kMaxSteps && p.step > 0 && p.skipped == p.step)
    summary.status = Status::kDiverged;

  if (o_.ema > 0) flow->flat_parameters().copy_(adam.averaged(flow->flat_parameters()));
  if (p.step <= freeze_at)
    flow->calibrate(
        rng.split("calibrate").normal({kCalibrationBatches * o_.batch, dim}, context_.dtype));
  draw(*flow, target, rng.split("draws"), event, draws);

  auto& numbers = summary.numbers;
  numbers["steps"] = static_cast<double>(p.step);
  numbers["nonfinite_densities"] = static_cast<double>(p.dropped);
  numbers["skipped_steps"] = static_cast<double>(p.skipped);
  numbers["density_evaluations"] = static_cast<double>(p.step * o_.batch);
  numbers["plateau_loss"] = plateau.mean;
  numbers["plateau_loss_error"] = plateau.error;
  numbers["plateau_fall"] = plateau.fall;
  numbers["plateau_fall_error"] = plateau.fall_error;
  const int64_t tail = std::min<int64_t>(p.step, std::max<int64_t>(o_.steps / 20, 20));
  std::vector<double> last;
  for (int64_t t = p.step - tail; t < p.step; ++t)
    if (std::isfinite(loss[t])) last.push_back(-loss[t]);
  if (last.size() >= 2) {
    const auto [elbo, error] = batch_means(last.data(), static_cast<int64_t>(last.size()));
    numbers["elbo"] = elbo;
    numbers["elbo_error"] = error;
  }
  numbers["seconds"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_time).count();

  const double invalid = numbers["invalid_draws"];
  std::string& m = summary.message;
  switch (summary.status) {
    case Status::kConverged:
      m = detail::concat("loss level at ", plateau.mean, " +- ", plateau.error, " nats (fell by ",
                         plateau.fall, " +- ", plateau.fall_error,
                         " between the last two windows)");
      break;
    case Status::kInterrupted:
      m = detail::concat("stopped after ", p.step, " of ", o_.steps, " steps; run again to go on");
      break;
    case Status::kDiverged:
      m = p.skipped == p.step
              ? detail::concat("no usable density or gradient in any of ", p.step, " steps")
              : detail::concat("no usable density or gradient for 100 steps in a row, at step ",
                               p.step);
      break;
    default:
      if (!std::isfinite(plateau.fall))
        m = detail::concat("too few steps (", p.step, ") to judge convergence");
      else if (plateau.significant)
        m = detail::concat("loss still falling: ", plateau.fall, " +- ", plateau.fall_error,
                           " nats between the last two windows; more steps are needed");
      else
        m = detail::concat("the loss is too noisy to tell a plateau: it fell by ", plateau.fall,
                           " +- ", plateau.fall_error, " nats between the last two windows");
  }
  if (p.dropped > 0)
    m += detail::concat("; ", p.dropped, " draws of ", p.step * o_.batch,
                        " had non-finite densities and were left out");
  if (invalid > 0)
    m += detail::concat("; ", invalid, " invalid draws were replaced (",
                        100 * numbers["invalid_fraction"], " %)");
  observer.note(m);
  return draws;
}

void VariationalInference::draw(Flow& flow, const Target& target, const Rng& rng,
                                const Shape& event, Draws& draws) const {
  const int64_t dim = numel(event), n = o_.n_draws * o_.proposals;
  std::vector<at::Tensor> xs, log_qs;
  at::Tensor median, spread;
  int64_t have = 0, seen = 0, invalid = 0;
  for (int round = 0; round < 4 && have < n; ++round) {
    const int64_t ask = round == 0 ? n : 2 * (n - have) + 8;
    const at::Tensor z = rng.from_row(seen).normal({ask, dim}, context_.dtype);
    const Flow::Sample s = flow.sample(z, false);
    const at::Tensor log_q = base_log_prob(z) - s.log_det;
    at::Tensor valid = finite_rows(s.x).logical_and(at::isfinite(log_q));
    if (!median.defined() && valid.sum().item<int64_t>() >= 2) {
      const at::Tensor good = s.x.index({valid});
      median = std::get<0>(good.median(0));
      // 1.4826 median |x - median| estimates a standard deviation.
      spread = std::get<0>((good - median).abs().median(0)) * 1.4826;
    }
    if (median.defined() && n >= 16)
      valid = valid.logical_and(((s.x - median).abs() <= kFarOutside * spread + 1e-12).all(1));
    const at::Tensor order = at::nonzero(valid).flatten();
    const int64_t use = std::min(order.size(0), n - have);
    // Draws beyond those needed are not looked at.
    const int64_t inspected = use > 0 && use == n - have ? order[use - 1].item<int64_t>() + 1 : ask;
    invalid += inspected - use;
    xs.push_back(s.x.index_select(0, order.narrow(0, 0, use)));
    log_qs.push_back(log_q.index_select(0, order.narrow(0, 0, use)));
    have += use;
    seen += inspected;
  }
  draws.x = at::cat(xs).view(batched(have, event));
  draws.log_q = at::cat(log_qs);
  auto& numbers = draws.summary.numbers;
  numbers["invalid_draws"] = static_cast<double>(invalid);
  numbers["invalid_fraction"] =
      seen > 0 ? static_cast<double>(invalid) / static_cast<double>(seen) : 0;
  if (o_.proposals > 1 && have > 0) resample(target, rng.split("resample"), draws);
  numbers["draws"] = static_cast<double>(draws.x.size(0));
}

/// Sampling-importance-resampling [Rubin88]: the draws kept follow p up to the noise of the
/// weights, so that modes q holds with wrong weights come out right. Systematic resampling, whose
/// counts differ from their expectation by less than one.
void VariationalInference::resample(const Target& target, const Rng& rng, Draws& draws) const {
  const int64_t have = draws.x.size(0), n = std::min(o_.n_draws, have);
  const int64_t rows = 4 * o_.batch;  // values alone take less memory than a step's gradients
  std::vector<at::Tensor> log_p;
  for (int64_t begin = 0; begin < have; begin += rows) {
    const int64_t end = std::min(begin + rows, have);
    const at::Tensor x = draws.x.slice(0, begin, end).to(context_.device);
    const Rng rows = rng.from_row(begin);
    log_p.push_back((target.likelihood.log_prob(x, rows.split("likelihood")) * o_.lambda_data +
                     target.prior.log_prob(x, rows.split("prior")) * o_.lambda_prior)
                        .to(at::kCPU, at::kDouble));
  }
  at::Tensor log_w = at::cat(log_p) - draws.log_q.to(at::kCPU, at::kDouble);
  log_w = at::where(at::isfinite(log_w), log_w, at::full_like(log_w, -INFINITY));
  const at::Tensor w = at::softmax(log_w, 0);
  auto& numbers = draws.summary.numbers;
  numbers["effective_proposals"] = 1 / w.square().sum().item<double>();
  if (!at::isfinite(w).all().item<bool>()) return;  // no density anywhere: q stands as it is
  const double shift = rng.split("shift").uniforms(1)[0];
  const at::Tensor u = (at::arange(n, at::kDouble) + shift) / static_cast<double>(n);
  const at::Tensor pick = at::searchsorted(w.cumsum(0), u).clamp_max(have - 1);
  draws.x = draws.x.index_select(0, pick);
  draws.log_q = draws.log_q.index_select(0, pick);
}

}  // namespace

Shape target_event_shape(const Target& target) {
  const Shape prior = target.prior.event_shape(), likelihood = target.likelihood.event_shape();
  if (prior.empty()) return likelihood;
  SP_CHECK(likelihood.empty() || likelihood == prior, "target", "the prior is over ",
           to_string(prior), ", the likelihood over ", to_string(likelihood));
  return prior;
}

double sigmoid_anneal(int64_t step, double rate, double pivot) {
  return 1 / (1 + std::exp(-rate * (static_cast<double>(step) - pivot)));
}

double power_anneal(int64_t step, double start_order, double decay_steps) {
  return std::max(std::pow(10.0, start_order - static_cast<double>(step) / decay_steps), 1.0);
}

ElboEstimate elbo_step(Flow& flow, const Target& target, const at::Tensor& z, const Rng& rng,
                       const ElboWeights& weights, at::Device device) {
  const Shape event = target_event_shape(target);
  const int64_t batch = z.size(0);
  const Flow::Sample s = flow.sample(z, true);
  const at::Tensor log_q = base_log_prob(z) - s.log_det;
  at::Tensor good = finite_rows(s.x).logical_and(at::isfinite(log_q));
  at::Tensor x = s.x;
  if (!good.all().item<bool>()) x = at::where(good.unsqueeze(1), x, at::zeros({}, x.options()));
  x = x.view(batched(batch, event)).to(device);

  const auto [log_prior, prior_score] = target.prior.value_and_score(x, rng.split("prior"));
  const auto [log_like, like_score] = target.likelihood.value_and_score(x, rng.split("likelihood"));
  const auto home = [&](const at::Tensor& t) { return t.to(z.options()).reshape({batch, -1}); };
  const at::Tensor lp = home(log_prior).flatten(), ll = home(log_like).flatten();
  const at::Tensor gp = home(prior_score), gl = home(like_score);
  good = good.logical_and(at::isfinite(lp)).logical_and(at::isfinite(ll));
  good = good.logical_and(finite_rows(gp)).logical_and(finite_rows(gl));

  ElboEstimate e;
  e.rows = good.sum().item<int64_t>();
  e.dropped = batch - e.rows;
  if (e.rows == 0) {
    e.loss = e.data = e.prior = e.entropy = std::numeric_limits<double>::quiet_NaN();
    return e;
  }
  const double n = static_cast<double>(e.rows);
  at::Tensor x_bar = gl * (-weights.data / n) + gp * (-weights.prior / n);
  at::Tensor log_det_bar = at::full({batch}, -weights.entropy / n, z.options());
  const at::Tensor zero = at::zeros({}, z.options());
  if (e.dropped > 0) {
    x_bar = at::where(good.unsqueeze(1), x_bar, zero);
    log_det_bar = at::where(good, log_det_bar, zero);
  }
  const auto mean = [&](const at::Tensor& v) {
    return at::where(good, v, zero).to(at::kDouble).sum().item<double>() / n;
  };
  e.data = -mean(ll);
  e.prior = -mean(lp);
  e.entropy = mean(log_q);
  e.loss = weights.data * e.data + weights.prior * e.prior + weights.entropy * e.entropy;
  flow.backward(x_bar, log_det_bar);
  return e;
}

/// DPI [Sun21, Feng23]: a flow fitted to the posterior by stochastic gradients of the evidence
/// lower bound.
std::unique_ptr<Inference> make_dpi(const Config& config, const InferenceContext& context) {
  return std::make_unique<VariationalInference>(config, context);
}

}  // namespace scoreprior
