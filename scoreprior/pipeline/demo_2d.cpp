#include <ATen/ATen.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/gmm.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/demo_cases.h"
#include "scoreprior/pipeline/run_folder.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/priors/prior.h"
#include "scoreprior/report/contour_plot.h"
#include "scoreprior/report/html_page.h"
#include "scoreprior/report/svg_plot.h"
#include "scoreprior/stats/energy_distance.h"

namespace scoreprior {
namespace {

struct NumberMeasurement {
  std::vector<double> a = {-2, 1.7};
  double y = 0.3, sigma = 0.2;
  template <class F>
  void fields(F&& f) {
    f("a", a, "what is measured of x: a . x");
    f("y", y, "the number that was measured");
    f("sigma", sigma, "standard deviation of its noise");
  }
};

struct ComparisonOptions {
  int64_t sets = 20;
  int64_t prior_draws = 20000;
  template <class F>
  void fields(F&& f) {
    f("sets", sets, "independent exact sets that give the energy distance between two of them");
    f("prior_draws", prior_draws, "draws of the prior for importance resampling");
  }
};

/// A mixture of N(m_k, s_k^2 I) after y = a . x + N(0, sigma^2): again a mixture, with
///   w_k' ~ w_k N(y; a.m_k, v_k), v_k = s_k^2 |a|^2 + sigma^2,
///   m_k' = m_k + s_k^2 a (y - a.m_k) / v_k,   C_k' = s_k^2 I - s_k^4 a a^T / v_k
/// and log p(y) = log sum w_k N(y; a.m_k, v_k).
class PlanePosterior {
 public:
  PlanePosterior(const GmmOptions& law, const NumberMeasurement& m) {
    const auto n = static_cast<int64_t>(law.weights.size());
    const auto row = [](const std::vector<double>& v) { return at::tensor(v, at::kDouble); };
    const at::Tensor a = row(m.a), means = row(law.means).view({n, 2}),
                     s2 = row(law.sigmas).square();
    const at::Tensor v = s2 * a.square().sum() + m.sigma * m.sigma;
    const at::Tensor miss = m.y - at::mv(means, a);
    const at::Tensor log_w = (row(law.weights) / row(law.weights).sum()).log() -
                             0.5 * (miss.square() / v + v.log() + std::log(2 * M_PI));
    log_evidence_ = at::logsumexp(log_w, 0).item<double>();
    log_weights_ = log_w - log_evidence_;
    means_ = means + (s2 * miss / v).unsqueeze(1) * a;
    covariances_ = s2.view({n, 1, 1}) * at::eye(2, at::kDouble) -
                   (s2.square() / v).view({n, 1, 1}) * at::outer(a, a);
    factors_ = at::linalg_cholesky(covariances_);
    precisions_ = at::linalg_inv(covariances_);
    log_norms_ = -std::log(2 * M_PI) - 0.5 * at::linalg_det(covariances_).log();
  }

  int64_t modes() const { return log_weights_.size(0); }
  double weight(int64_t k) const { return std::exp(log_weights_[k].item<double>()); }
  double log_evidence() const { return log_evidence_; }

  /// x [B,2] -> [B,K] log(w_k N(x; m_k, C_k)).
  at::Tensor log_parts(const at::Tensor& x) const {
    const at::Tensor d = x.unsqueeze(1) - means_;  // [B,K,2]
    return log_weights_ + log_norms_ - 0.5 * at::einsum("bki,kij,bkj->bk", {d, precisions_, d});
  }
  at::Tensor log_prob(const at::Tensor& x) const { return at::logsumexp(log_parts(x), 1); }
  at::Tensor sample(int64_t n, const Rng& rng) const {
    const at::Tensor u = rng.split("mode").uniform({n, 1}, at::kDouble);
    const at::Tensor k = (u >= log_weights_.exp().cumsum(0)).sum(1).clamp_max(modes() - 1);
    const at::Tensor z = rng.split("value").normal({n, 2}, at::kDouble);
    return means_.index_select(0, k) + at::einsum("bij,bj->bi", {factors_.index_select(0, k), z});
  }
  /// The share of draws that belongs to each mode: the one with the largest part.
  std::vector<double> shares(const at::Tensor& x) const {
    const at::Tensor mode = log_parts(x).argmax(1);
    std::vector<double> out;
    for (int64_t k = 0; k < modes(); ++k)
      out.push_back((mode == k).to(at::kDouble).mean().item<double>());
    return out;
  }

 private:
  double log_evidence_ = 0;
  at::Tensor log_weights_, means_, covariances_, factors_, precisions_, log_norms_;
};

// One way to the posterior, and how near it came.
struct PlaneResult {
  std::string name, key, remark;
  report::SvgPlot::Color color;
  at::Tensor x;  // [N,2] float64
  double seconds = 0;
  double energy = NAN, ratio = NAN;
  double divergence = NAN, divergence_error = NAN;  // KL(q | p), where the draws are q's
  double effective = NAN;                           // draws of q that its p/q weights are worth
  std::vector<double> shares;
  std::vector<int64_t> lost;
  at::Tensor loss;
  Summary inference;
};

void judge(const PlanePosterior& truth, const std::vector<at::Tensor>& exact_sets, double between,
           const at::Tensor& log_q, PlaneResult& r) {
  double sum = 0;
  for (const at::Tensor& set : exact_sets) sum += stats::energy_distance(r.x, set, false);
  r.energy = sum / static_cast<double>(exact_sets.size());
  r.ratio = r.energy / between;
  r.shares = truth.shares(r.x);
  for (int64_t k = 0; k < truth.modes(); ++k)
    if (r.shares[k] < 0.2 * truth.weight(k)) r.lost.push_back(k);
  if (log_q.defined()) {
    const at::Tensor gap = log_q.to(at::kDouble) - truth.log_prob(r.x);
    r.divergence = gap.mean().item<double>();
    r.divergence_error = gap.std().item<double>() / std::sqrt(static_cast<double>(gap.numel()));
  }
}

// Newton's method on log p from several draws of the prior, with Hessians from differences of the
// score; the best end and its curvature are Laplace's approximation.
PlaneResult laplace(const Target& target, const at::Tensor& starts, int64_t n, const Rng& rng) {
  PlaneResult r;
  const auto type = at::kDouble;
  const double h = 3e-3;
  at::Tensor x = starts.to(type).reshape({-1, 2});
  const int64_t s = x.size(0);
  const at::Tensor offsets =
      at::tensor({0., 0., h, 0., -h, 0., 0., h, 0., -h}, type).view({5, 1, 2});
  at::Tensor value, gradient, hessian;
  const auto look = [&] {
    const at::Tensor points =
        (x.unsqueeze(0) + offsets).reshape({5 * s, 2, 1, 1}).to(starts.scalar_type());
    const auto [lp, gp] = target.prior.value_and_score(points, rng.split("prior"));
    const auto [ll, gl] = target.likelihood.value_and_score(points, rng.split("likelihood"));
    const at::Tensor g = (gp + gl).reshape({5, s, 2}).to(type);
    value = (lp + ll).reshape({5, s}).to(type)[0];
    gradient = g[0];
    hessian = at::stack({(g[1] - g[2]) / (2 * h), (g[3] - g[4]) / (2 * h)}, 2);
    hessian = (hessian + hessian.transpose(1, 2)) / 2;
  };
  look();
  for (int step = 0; step < 20; ++step) {
    const auto [curvature, axes] = at::linalg_eigh(hessian);
    const at::Tensor along =
        at::einsum("bij,bi->bj", {axes, gradient}) / curvature.abs().clamp_min(1);
    at::Tensor move = at::einsum("bij,bj->bi", {axes, along});
    move = move * (0.2 / move.norm(2, {1}, true).clamp_min(0.2));
    x = x + move;
    look();
  }
  const int64_t best = at::where(at::isfinite(value), value, at::full_like(value, -INFINITY))
                           .argmax()
                           .item<int64_t>();
  const at::Tensor covariance = at::linalg_inv(-hessian[best]);
  const at::Tensor factor = at::linalg_cholesky(covariance);
  const at::Tensor z = rng.split("draws").normal({n, 2}, type);
  r.x = x[best] + at::mm(z, factor.t());
  return r;
}

std::string percent(double share) {
  char text[16];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

std::string share_list(const std::vector<double>& shares) {
  std::string out;
  for (const double s : shares) out += (out.empty() ? "" : " / ") + percent(s);
  return out;
}

// A density on the grid of the plots, row 0 at low x2.
at::Tensor on_grid(const PlanePosterior& truth, double low, double high, int64_t n) {
  const at::Tensor axis =
      low + (at::arange(n, at::kDouble) + 0.5) * ((high - low) / static_cast<double>(n));
  const at::Tensor x = at::stack({axis.expand({n, n}), axis.unsqueeze(1).expand({n, n})}, 2);
  return truth.log_prob(x.reshape({-1, 2})).exp().reshape({n, n});
}

std::vector<double> column(const at::Tensor& x, int64_t c, int64_t most) {
  return report::to_numbers(x.narrow(0, 0, std::min(most, x.size(0))).select(1, c));
}

report::Statement verdict_on(const PlaneResult& r, const PlanePosterior& truth, double between) {
  using report::number_text;
  std::vector<double> true_shares;
  for (int64_t k = 0; k < truth.modes(); ++k) true_shares.push_back(truth.weight(k));
  std::string say = r.name + ": energy distance to the exact posterior " + number_text(r.energy) +
                    ", " + number_text(r.ratio) + " times that between two exact sets (" +
                    number_text(between) + "); mode weights " + share_list(r.shares) + " (truth " +
                    share_list(true_shares) + ")";
  if (!r.lost.empty()) {
    for (const int64_t k : r.lost)
      say += "; a mode was lost: number " + std::to_string(k + 1) + ", which holds " +
             percent(truth.weight(k));
    return {report::Level::kBad, say};
  }
  double worst = 0;
  for (int64_t k = 0; k < truth.modes(); ++k)
    worst = std::max(worst, std::abs(r.shares[k] - truth.weight(k)));
  const bool good = r.ratio <= 2 && worst <= 0.03;
  return {good ? report::Level::kGood : report::Level::kWarning, say};
}

void write_plane_report(const std::vector<PlaneResult>& results, const PlanePosterior& truth,
                        const at::Tensor& exact, double between, const DemoRequest& request,
                        const Config& config, Observer& observer) {
  using report::number_text;
  const double reach = 0.9;
  const at::Tensor density = on_grid(truth, -reach, reach, 240);
  const std::vector<double> masses = {0.5, 0.9, 0.99};
  const auto panel = [&](const std::string& title, const at::Tensor& x,
                         report::SvgPlot::Color color) {
    report::ContourOptions o;
    o.title = title;
    o.x_label = "x1";
    o.y_label = "x2";
    o.x_range = o.y_range = {-reach, reach};
    o.description = title + ": draws over the 50, 90 and 99 % regions of the exact posterior";
    report::ContourPlot plot(o);
    plot.regions(density, masses, report::SvgPlot::kBlack);
    plot.points(column(x, 0, 2000), column(x, 1, 2000), color);
    return plot;
  };
  std::vector<report::ContourPlot> panels = {panel("exact draws", exact, report::SvgPlot::kGray)};
  for (const PlaneResult& r : results) panels.push_back(panel(r.name, r.x, r.color));

  // The panels side by side, without text.
  constexpr int64_t kSide = 360, kGap = 8;
  const auto count = static_cast<int64_t>(panels.size());
  io::Raster strip{count * kSide + (count - 1) * kGap, kSide, 3, {}};
  strip.data.assign(static_cast<size_t>(strip.width * strip.height * 3), 255);
  for (int64_t k = 0; k < count; ++k) {
    const io::Raster one = panels[static_cast<size_t>(k)].raster(kSide);
    for (int64_t y = 0; y < kSide; ++y)
      std::copy_n(one.data.begin() + y * kSide * 3, kSide * 3,
                  strip.data.begin() + (y * strip.width + k * (kSide + kGap)) * 3);
  }
  io::write_png(request.folder / "posterior.png", strip);

  report::HtmlPage page(config.get<std::string>("title", "Demo"), request.command_line);
  page.section(
      "Verdict",
      "DPI fits a normalising flow to the posterior; the posterior of this problem is known in "
      "closed form, a mixture of two Gaussians, and judges it.");
  std::vector<report::Statement> statements;
  for (const PlaneResult& r : results) {
    statements.push_back(verdict_on(r, truth, between));
    for (const auto& warning : r.inference.warnings)
      statements.push_back({report::Level::kWarning, r.name + ": " + warning});
  }
  for (const auto& s : statements) observer.note(s.sentence);
  page.statements(statements);
  page.section("Posteriors",
               "Outlines: the regions that hold 50, 90 and 99 % of the exact posterior. Dots: up "
               "to 2000 draws.");
  page.begin_grid(3, 260);
  for (const auto& p : panels) page.figure(p.svg());
  page.end_grid();

  report::Table table;
  table.title = "Distance to the exact posterior";
  table.note =
      "Energy distances with the zero distances of draws to themselves, so that two sets of one "
      "law have a "
      "positive one; " +
      number_text(between) + " between two exact sets of " + std::to_string(exact.size(0)) +
      " draws. KL(q | p) in nats, from the flow's own density, where its draws were not resampled.";
  table.columns = {"method",       "energy distance", "ratio", "KL(q | p)",
                   "mode weights", "seconds",         ""};
  for (const PlaneResult& r : results)
    table.rows.push_back({r.name, number_text(r.energy), number_text(r.ratio),
                          std::isfinite(r.divergence) ? number_text(r.divergence) + " ± " +
                                                            number_text(r.divergence_error, 1)
                                                      : "",
                          share_list(r.shares), number_text(r.seconds), r.remark});
  std::vector<double> true_shares;
  for (int64_t k = 0; k < truth.modes(); ++k) true_shares.push_back(truth.weight(k));
  table.rows.push_back(
      {"exact posterior", number_text(between), "1", "0", share_list(true_shares), "", ""});
  page.table(table);

  page.section(
      "Optimisation",
      "Loss of DPI: minus the evidence lower bound, with the weights of the end. Dashed: its "
      "least value, minus the log-evidence log p(y).");
  report::PlotOptions o;
  o.title = "Loss";
  o.x_label = "Step";
  o.y_label = "nats";
  report::SvgPlot curve(o);
  for (const PlaneResult& r : results) {
    if (!r.loss.defined()) continue;
    const auto y = report::to_numbers(r.loss);
    std::vector<double> x(y.size());
    for (size_t k = 0; k < x.size(); ++k) x[k] = static_cast<double>(k + 1);
    curve.line(x, y, r.color, r.name);
  }
  curve.horizontal(-truth.log_evidence(), report::SvgPlot::kBlack, "-log p(y)");
  page.figure(curve.svg());
  page.section("Settings");
  page.preformatted(config.to_toml());
  io::write_text(request.folder / "report.html", page.html());

  nlohmann::ordered_json j;
  j["command_line"] = request.command_line;
  j["draws"] = exact.size(0);
  j["energy_between_exact_sets"] = between;
  j["log_evidence"] = truth.log_evidence();
  j["true_mode_weights"] = true_shares;
  for (const PlaneResult& r : results) {
    auto& m = j["methods"][r.key];
    m["energy"] = r.energy;
    m["ratio"] = r.ratio;
    m["mode_weights"] = r.shares;
    m["modes_lost"] = r.lost.size();
    m["seconds"] = r.seconds;
    if (std::isfinite(r.divergence)) m["kl"] = r.divergence;
    if (std::isfinite(r.effective)) m["effective_proposals"] = r.effective;
    add_inference(r.inference, m);
  }
  io::write_text(request.folder / "summary.json", j.dump(2) + "\n");
}

}  // namespace

RunOutcome demo_2d(const DemoRequest& request, Observer& observer) {
  const Config config = request.adjust(io::read_toml(shipped_file("configs/demo_2d.toml")));
  config.get<std::string>("title", "Demo");
  const Session session = make_session(config.table("run"));
  const Rng rng(config.get<uint64_t>("seed", 0, "seed of every random choice"));
  const Config mixture = config.table("mixture"), measurement = config.table("measurement");
  auto law = mixture.read<GmmOptions>();
  const auto number = measurement.read<NumberMeasurement>();
  const auto comparison = config.table("comparison").read<ComparisonOptions>();
  if (law.shape != Shape{2, 1, 1})
    mixture.fail("shape", "this demo needs two numbers, shape = [2, 1, 1]");
  if (number.a.size() != 2) measurement.fail("a", "a must be two numbers");
  if (!(number.sigma > 0)) measurement.fail("sigma", "sigma must be positive");
  if (comparison.sets < 2) config.table("comparison").fail("sets", "sets must be at least 2");
  if (comparison.prior_draws < 1)
    config.table("comparison").fail("prior_draws", "prior_draws must be at least 1");
  const std::unique_ptr<Dataset> prior_law = datasets().make(mixture, "gmm", "test");
  const PlanePosterior truth(law, number);

  // The score models read the mixture from files, which stay beside the report.
  io::make_folder(request.folder);
  const auto modes = static_cast<int64_t>(law.weights.size());
  const std::filesystem::path folder = std::filesystem::absolute(request.folder);
  const std::pair<const char*, at::Tensor> files[] = {
      {"means", at::tensor(law.means, at::kDouble).view({modes, 2, 1, 1})},
      {"weights", at::tensor(law.weights, at::kDouble)},
      {"sigmas", at::tensor(law.sigmas, at::kDouble)}};
  for (const auto& [name, values] : files)
    io::write_npy(folder / (std::string(name) + ".npy"), values);

  Observation observation;
  observation.y = at::tensor({number.y}, at::kDouble);
  LikelihoodContext context;
  context.image_shape = law.shape;
  context.dtype = session.dtype;
  context.device = session.device;
  context.forward = io::parse_toml("name = \"matrix\"\nmatrix = \"a\"\n");
  const at::Tensor row = at::tensor(number.a, at::kDouble).view({1, 2});
  context.read_array = [&](const std::filesystem::path&) { return row; };
  const std::unique_ptr<Likelihood> likelihood = likelihoods().make(
      io::parse_toml("normalized = false\nsigma = " + std::to_string(number.sigma) + "\n"),
      "gaussian", observation, context);

  struct Way {
    const char *key, *name;
    report::SvgPlot::Color color;
    std::unique_ptr<LogDensity> prior;
    std::unique_ptr<Inference> method;
  };
  Way ways[] = {{"elbo", "DPI, ELBO prior", report::SvgPlot::kOrange, {}, {}},
                {"ode", "DPI, exact prior", report::SvgPlot::kBlue, {}, {}}};
  PriorContext prior_context;
  prior_context.image_shape = law.shape;
  prior_context.dtype = session.dtype;
  prior_context.device = session.device;
  prior_context.read_array = io::read_npy;
  for (Way& w : ways) {
    Config table = config.table(w.key).table("prior");
    for (const auto& [name, values] : files)
      io::apply_override(table, "score." + std::string(name) + "=\"" +
                                    (folder / (std::string(name) + ".npy")).string() + "\"");
    io::apply_override(table, "score.name=mixture");
    w.prior = priors().make(table, std::string("score_") + w.key, prior_context);
    w.method = inferences().make(config.table(w.key).table("infer"), "dpi",
                                 InferenceContext{session.dtype, session.device});
  }
  config.require_all_used();

  const auto clock = [] { return std::chrono::steady_clock::now(); };
  const auto since = [&](auto start) {
    return std::chrono::duration<double>(clock() - start).count();
  };
  std::vector<PlaneResult> results;
  std::vector<at::Tensor> log_q;
  for (Way& w : ways) {
    const auto start = clock();
    auto state = std::make_unique<RunFolder>(request.folder / w.key, config);
    Draws draws =
        w.method->run({*w.prior, *likelihood}, rng.split("infer").split(w.key), observer, *state);
    if (draws.summary.status == Status::kInterrupted) {
      observer.note("stopped; the same command goes on from the checkpoint in " +
                    state->path().string());
      return {Status::kInterrupted, {}};
    }
    PlaneResult r;
    r.name = w.name;
    r.key = w.key;
    r.color = w.color;
    r.x = draws.x.reshape({-1, 2}).to(at::kCPU, at::kDouble);
    r.seconds = since(start);
    add_diagnostics("prior", *w.prior, draws.summary);
    r.inference = draws.summary;
    r.remark = to_string(draws.summary.status);
    const auto worth = draws.summary.numbers.find("effective_proposals");
    if (worth != draws.summary.numbers.end()) {
      r.effective = worth->second;
      r.remark += ", resampled from " + report::number_text(r.effective) + " effective draws";
    }
    r.loss = draws.history.at("loss");
    io::write_npy(state->file("draws.npy"), draws.x);
    // After resampling the draws are p's, and their log q - log p says nothing of q's own.
    log_q.push_back(std::isnan(r.effective) ? draws.log_q : at::Tensor());
    results.push_back(r);
  }

  const int64_t n = results[0].x.size(0);
  {
    const auto start = clock();
    std::vector<int64_t> indices(static_cast<size_t>(comparison.prior_draws));
    for (size_t k = 0; k < indices.size(); ++k) indices[k] = static_cast<int64_t>(k);
    const at::Tensor x = prior_law->batch(indices, rng).to(session.dtype);
    const at::Tensor w = at::softmax(likelihood->log_prob(x, rng).to(at::kDouble), 0);
    const at::Tensor u = rng.split("resample").uniform({n, 1}, at::kDouble).squeeze(1).contiguous();
    const at::Tensor pick = at::searchsorted(w.cumsum(0), u).clamp_max(x.size(0) - 1);
    PlaneResult r;
    r.name = "importance resampling";
    r.key = "importance";
    r.color = report::SvgPlot::kGreen;
    r.x = x.reshape({-1, 2}).to(at::kDouble).index_select(0, pick);
    r.seconds = since(start);
    r.remark = report::number_text(1 / w.square().sum().item<double>()) + " effective draws of " +
               std::to_string(comparison.prior_draws);
    results.push_back(r);
    log_q.emplace_back();
  }
  {
    const auto start = clock();
    const at::Tensor starts = prior_law->batch({0, 1, 2, 3, 4, 5, 6, 7}, rng).to(session.dtype);
    PlaneResult r = laplace({*ways[1].prior, *likelihood}, starts, n, rng.split("laplace"));
    r.name = "Laplace at the most probable x";
    r.key = "laplace";
    r.color = report::SvgPlot::kPurple;
    r.seconds = since(start);
    r.remark = "one mode by construction";
    results.push_back(r);
    log_q.emplace_back();
  }

  std::vector<at::Tensor> sets;
  double between = 0;
  for (int64_t k = 0; k < comparison.sets; ++k) {
    sets.push_back(truth.sample(n, rng.split("exact").at(k)));
    if (k > 0)
      between += stats::energy_distance(sets[k], sets[k - 1], false) /
                 static_cast<double>(comparison.sets - 1);
  }
  for (size_t k = 0; k < results.size(); ++k) judge(truth, sets, between, log_q[k], results[k]);
  write_plane_report(results, truth, sets[0], between, request, config, observer);
  observer.note("report: " + (request.folder / "report.html").string());
  return {Status::kConverged, request.folder / "report.html"};
}

}  // namespace scoreprior
