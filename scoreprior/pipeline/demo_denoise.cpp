#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/demo_cases.h"
#include "scoreprior/pipeline/run_folder.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/pipeline/warm_start.h"
#include "scoreprior/priors/prior.h"
#include "scoreprior/report/html_page.h"
#include "scoreprior/report/image_figure.h"
#include "scoreprior/report/run_report.h"
#include "scoreprior/report/svg_plot.h"
#include "scoreprior/stats/draw_summary.h"
#include "scoreprior/stats/image_metrics.h"

namespace scoreprior {
namespace {

struct DenoiseOptions {
  double sigma = 0.2;
  int64_t check_draws = 8;
  template <class F>
  void fields(F&& f) {
    f("sigma", sigma, "standard deviation of the noise, in the image's own scale");
    f("check_draws", check_draws,
      "draws of each posterior whose exact log-density is computed at the end; 0 = none");
  }
};

struct DenoiseResult {
  std::string name, key, status;
  report::SvgPlot::Color color;
  at::Tensor x;  // [N,C,H,W] float64
  at::Tensor mean, std;
  bool settled = false;
  double seconds = 0, psnr = 0, ssim = 0, draw_psnr = 0, draw_psnr_std = 0, spread = 0,
         rms_error = 0;
  std::vector<double> coverage;  // 50, 90 %
  double bound = NAN, bound_error = NAN;
  at::Tensor loss;
  Summary inference;
};

void judge_denoised(const at::Tensor& truth, DenoiseResult& r) {
  const stats::PixelSummary pixels = stats::summarize_pixels(r.x);
  r.mean = pixels.mean;
  r.std = pixels.std;
  const at::Tensor mean = r.mean.unsqueeze(0);
  r.psnr = stats::psnr(mean, truth).item<double>();
  r.ssim = stats::ssim(mean, truth).item<double>();
  const at::Tensor each = stats::psnr(r.x, truth);
  r.draw_psnr = each.mean().item<double>();
  r.draw_psnr_std = each.std().item<double>();
  r.spread = r.std.square().mean().sqrt().item<double>();
  r.rms_error = (r.mean - truth).square().mean().sqrt().item<double>();
  r.coverage = stats::coverage(r.x, truth, {0.5, 0.9});
}

std::string share_text(double share) {
  char text[16];
  std::snprintf(text, sizeof text, "%.0f %%", 100 * share);
  return text;
}

void write_denoise_report(const std::vector<DenoiseResult>& results, const at::Tensor& truth,
                          const at::Tensor& noisy, double sigma, const std::string& what,
                          const std::string& cuts, const DemoRequest& request, const Config& config,
                          Observer& observer) {
  using report::number_text;
  const double naive = stats::psnr(noisy.unsqueeze(0), truth).item<double>();
  report::HtmlPage page(config.get<std::string>("title", "Demo"), request.command_line);
  page.section("Verdict", what);
  std::vector<report::Statement> statements = {
      {report::Level::kNeutral, "The noisy image has a PSNR of " + number_text(naive) + " dB."}};
  for (const DenoiseResult& r : results) {
    const double z = r.rms_error / r.spread;
    std::string say = r.name + ": PSNR of the mean " + number_text(r.psnr) + " dB, SSIM " +
                      number_text(r.ssim, 2) + "; spread " + number_text(r.spread) +
                      " against an rms error of " + number_text(r.rms_error) + "; " +
                      share_text(r.coverage[0]) + " of the truth in the central 50 %, " +
                      share_text(r.coverage[1]) + " in the central 90 %";
    const bool calibrated =
        std::abs(r.coverage[0] - 0.5) < 0.1 && std::abs(r.coverage[1] - 0.9) < 0.07;
    if (!calibrated)
      say += r.coverage[1] < 0.9 ? ": too sure of itself" : ": less sure than it could be";
    if (r.psnr <= naive) say += "; the mean is no better than the noisy image";
    if (!r.settled) say += "; the loss had not settled at the last step";
    statements.push_back({r.psnr <= naive || z > 2  ? report::Level::kBad
                          : calibrated && r.settled ? report::Level::kGood
                                                    : report::Level::kWarning,
                          say});
    for (const auto& warning : r.inference.warnings)
      statements.push_back({report::Level::kWarning, r.name + ": " + warning});
  }
  statements.push_back({report::Level::kNeutral, cuts});
  for (const auto& s : statements) observer.note(s.sentence);
  page.statements(statements);

  const report::ColorScale unit{report::Colormap::kGray, 0, 1};
  double top = 0;
  for (const DenoiseResult& r : results) top = std::max(top, r.std.max().item<double>());
  // Greys of a colour image's spread and error: the root mean square over channels.
  const auto over_channels = [](const at::Tensor& x) { return x.square().mean(0).sqrt(); };
  const auto figure = [&](const std::string& title, const at::Tensor& image,
                          const report::ColorScale& scale) {
    report::ImageFigure f;
    f.title = title;
    f.image = image;
    f.scale = scale;
    page.figure(report::image_svg(f));
  };
  page.section(
      "Images",
      "Standard deviations and errors are root mean squares over the colours, on one scale.");
  page.begin_grid(3, 200);
  figure("truth", truth.clamp(0, 1), unit);
  figure("noisy", noisy.clamp(0, 1), unit);
  page.end_grid();
  for (const DenoiseResult& r : results) {
    page.begin_grid(3, 200);
    const report::ColorScale spread{report::Colormap::kViridis, 0, top};
    figure(r.name + ": mean", r.mean.clamp(0, 1), unit);
    figure(r.name + ": standard deviation", over_channels(r.std), spread);
    figure(r.name + ": |mean - truth|", over_channels(r.mean - truth), spread);
    page.end_grid();
    page.paragraph("Draws under the " + r.name + ":");
    page.begin_grid(8, 80);
    for (int64_t k = 0; k < std::min<int64_t>(8, r.x.size(0)); ++k)
      figure("", r.x[k].clamp(0, 1), unit);
    page.end_grid();
    report::write_sample_grid(r.x.narrow(0, 0, std::min<int64_t>(16, r.x.size(0))).clamp(0, 1),
                              request.folder / (r.key + "_draws.png"), report::Colormap::kGray,
                              std::pair{0.0, 1.0});
  }
  std::vector<at::Tensor> strip = {truth, noisy};
  for (const DenoiseResult& r : results) strip.push_back(r.mean);
  report::write_sample_grid(at::stack(strip).clamp(0, 1), request.folder / "denoise.png",
                            report::Colormap::kGray, std::pair{0.0, 1.0});

  report::Table table;
  table.title = "Side by side";
  table.note =
      "PSNR for a range of 1. Spread: root mean square standard deviation. Bound: mean of log "
      "p(y|x) + exact "
      "log p(x) - log q(x) over some draws, a lower bound on the log-evidence under the exact "
      "prior and so "
      "comparable between the rows, with its standard error; nats.";
  table.columns = {"",          "PSNR of mean", "SSIM of mean", "PSNR of draws", "spread",
                   "rms error", "in 50 %",      "in 90 %",      "bound",         "seconds"};
  table.rows.push_back({"noisy image", number_text(naive),
                        number_text(stats::ssim(noisy.unsqueeze(0), truth).item<double>(), 2), "",
                        number_text(sigma),
                        number_text((noisy - truth).square().mean().sqrt().item<double>()), "", "",
                        "", ""});
  for (const DenoiseResult& r : results)
    table.rows.push_back(
        {r.name, number_text(r.psnr), number_text(r.ssim, 2),
         number_text(r.draw_psnr) + " ± " + number_text(r.draw_psnr_std, 2), number_text(r.spread),
         number_text(r.rms_error), share_text(r.coverage[0]), share_text(r.coverage[1]),
         std::isfinite(r.bound) ? number_text(r.bound, 5) + " ± " + number_text(r.bound_error, 2)
                                : "",
         number_text(r.seconds)});
  page.table(table);

  page.section("Optimisation");
  page.begin_grid(2, 300);
  for (const DenoiseResult& r : results) {
    report::PlotOptions o;
    o.title = r.name;
    o.x_label = "Step";
    o.y_label = "loss [nats]";
    report::SvgPlot plot(o);
    const auto y = report::to_numbers(r.loss);
    std::vector<double> x(y.size());
    for (size_t k = 0; k < x.size(); ++k) x[k] = static_cast<double>(k + 1);
    plot.line(x, y, r.color);
    page.figure(plot.svg());
  }
  page.end_grid();
  page.section("Settings");
  page.preformatted(config.to_toml());
  io::write_text(request.folder / "report.html", page.html());

  nlohmann::ordered_json j;
  j["command_line"] = request.command_line;
  j["noisy_psnr"] = naive;
  for (const DenoiseResult& r : results) {
    auto& m = j["methods"][r.key];
    m = {{"status", r.status},
         {"psnr", r.psnr},
         {"ssim", r.ssim},
         {"draw_psnr", r.draw_psnr},
         {"spread", r.spread},
         {"rms_error", r.rms_error},
         {"coverage_50", r.coverage[0]},
         {"coverage_90", r.coverage[1]},
         {"seconds", r.seconds}};
    if (std::isfinite(r.bound)) m["bound"] = r.bound;
    add_inference(r.inference, m);
  }
  io::write_text(request.folder / "summary.json", j.dump(2) + "\n");
}

}  // namespace

RunOutcome demo_denoise(const DemoRequest& request, Observer& observer) {
  const Config config = request.adjust(io::read_toml(shipped_file("configs/demo_denoise.toml")));
  config.get<std::string>("title", "Demo");
  const Session session = make_session(config.table("run"));
  const auto seed = config.get<uint64_t>("seed", 0, "seed of every random choice");
  const Rng rng(seed);
  const auto o = config.table("denoise").read<DenoiseOptions>();
  if (!(o.sigma > 0)) config.table("denoise").fail("sigma", "sigma must be positive");
  if (o.check_draws < 0)
    config.table("denoise").fail("check_draws", "check_draws must not be negative");

  struct Way {
    const char *key, *name;
    report::SvgPlot::Color color;
    std::unique_ptr<LogDensity> prior;
    std::unique_ptr<Inference> method;
  };
  Way ways[] = {{"elbo", "ELBO prior", report::SvgPlot::kOrange, {}, {}},
                {"ode", "exact prior", report::SvgPlot::kBlue, {}, {}}};
  PriorContext prior_context;
  prior_context.dtype = session.dtype;
  prior_context.device = session.device;
  prior_context.read_array = io::read_npy;
  const auto weights = config.get<std::filesystem::path>("model");
  for (Way& w : ways) {
    Config table = config.table(w.key).table("prior");
    io::apply_override(table, "score.weights=\"" + weights.string() + "\"");
    w.prior = priors().make(table, std::string("score_") + w.key, prior_context);
    w.method = inferences().make(config.table(w.key).table("infer"), "dpi",
                                 InferenceContext{session.dtype, session.device});
  }
  const Shape shape = ways[0].prior->event_shape();

  // Image `index` of the test split, which the model never saw.
  const Config truth_table = config.table("truth");
  const auto index = truth_table.get<int64_t>("index", static_cast<int64_t>(seed),
                                              "which image of the test split");
  const std::unique_ptr<Dataset> set = datasets().make(truth_table, "dead_leaves", "test");
  if (set->image_shape() != shape)
    truth_table.fail("image_size", "the model is for images " + to_string(shape) +
                                       ", the data set has " + to_string(set->image_shape()));
  if (index < 0) truth_table.fail("index", "index must not be negative");
  config.require_all_used();
  const at::Tensor truth = set->batch({index}, rng)[0].to(at::kDouble);
  const at::Tensor noisy =
      truth + o.sigma * rng.split("noise").normal(batched(1, shape), at::kDouble)[0];
  io::make_folder(request.folder);
  io::write_npy(request.folder / "truth.npy", truth);
  io::write_npy(request.folder / "noisy.npy", noisy);

  Observation observation;
  observation.y = noisy.permute({1, 2, 0}).contiguous();  // measurements are flattened (H,W,C)
  LikelihoodContext context;
  context.image_shape = shape;
  context.dtype = session.dtype;
  context.device = session.device;
  context.forward = io::parse_toml("name = \"identity\"\n");
  const auto likelihood =
      likelihoods().make(io::parse_toml("sigma = " + std::to_string(o.sigma) + "\n"), "gaussian",
                         observation, context);

  std::vector<DenoiseResult> results;
  std::unique_ptr<RunFolder> before;
  std::vector<at::Tensor> log_q;
  for (Way& w : ways) {
    const auto start = std::chrono::steady_clock::now();
    auto state = std::make_unique<RunFolder>(request.folder / w.key, config);
    const auto steps = config.table(w.key).table("infer").get<int64_t>("steps", 0);
    Draws draws;
    if (before) {
      WarmStart warm(*state, before->path(), steps);
      draws = w.method->run({*w.prior, *likelihood}, rng.split("infer"), observer, warm);
    } else {
      draws = w.method->run({*w.prior, *likelihood}, rng.split("infer"), observer, *state);
    }
    if (draws.summary.status == Status::kInterrupted) {
      observer.note("stopped; the same command goes on from the checkpoint in " +
                    state->path().string());
      return {Status::kInterrupted, {}};
    }
    DenoiseResult r;
    r.name = w.name;
    r.key = w.key;
    r.color = w.color;
    r.status = to_string(draws.summary.status);
    r.settled = draws.summary.status == Status::kConverged;
    add_diagnostics("prior", *w.prior, draws.summary);
    r.inference = draws.summary;
    r.x = draws.x.to(at::kCPU, at::kDouble);
    r.loss = draws.history.at("loss");
    r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    io::write_npy(state->file("draws.npy"), draws.x);
    judge_denoised(truth, r);
    if (const int64_t n = std::min(o.check_draws, draws.x.size(0)); n > 1) {
      at::NoGradGuard off;
      const at::Tensor x = draws.x.narrow(0, 0, n);
      const at::Tensor gap = ways[1].prior->log_prob(x, rng.split("check")) +
                             likelihood->log_prob(x, rng) -
                             draws.log_q.narrow(0, 0, n).to(x.options());
      r.bound = gap.mean().item<double>();
      r.bound_error = gap.std().item<double>() / std::sqrt(static_cast<double>(n));
    }
    results.push_back(r);
    before = std::move(state);
  }
  const auto setting = [&](const char* way, const char* table, const char* key) {
    return std::to_string(config.table(way).table(table).get<int64_t>(key, 0));
  };
  const std::string what = set->describe() + ", image " + std::to_string(index) +
                           ", in noise of sigma " + report::number_text(o.sigma) + "; prior " +
                           weights.filename().string() + ".";
  const std::string cuts =
      "Cut for the time: the exact prior starts from the flow that the ELBO prior ended with and "
      "takes " +
      setting("ode", "infer", "steps") + " steps of " + setting("ode", "infer", "batch") +
      " draws with " + setting("ode", "prior", "n_probes") +
      " probe(s); the field's papers take some 10,000 steps of 32 draws with 16 probes";
  write_denoise_report(results, truth, noisy, o.sigma, what, cuts, request, config, observer);
  observer.note("report: " + (request.folder / "report.html").string());
  return {Status::kConverged, request.folder / "report.html"};
}

}  // namespace scoreprior
