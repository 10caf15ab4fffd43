#include "scoreprior/pipeline/posterior_report.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/visibilities.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/netcdf.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/report/run_report.h"
#include "scoreprior/report/svg_plot.h"
#include "scoreprior/stats/draw_summary.h"
#include "scoreprior/stats/image_metrics.h"
#include "scoreprior/stats/ring.h"

namespace scoreprior {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr double kBrightFraction = 0.05;
constexpr int64_t kMostFitDraws = 128;  // draws shown in data fits

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  return text;
}

at::Tensor finite_draws(const at::Tensor& x) {
  return x.index_select(0, at::isfinite(x.flatten(1)).all(1).nonzero().squeeze(1));
}

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json moments(const at::Tensor& values) {
  const at::Tensor v = values.to(at::kDouble);
  return {{"mean", number(v.mean().item<double>())},
          {"sd", number(v.numel() > 1 ? v.std().item<double>() : 0.0)}};
}

// Numbers about one posterior, gathered once for summary.json and the page.
struct PosteriorNumbers {
  at::Tensor x;  // finite draws, float64 [N,C,H,W], in the units of x
  stats::PixelSummary pixels;
  ChiSquares chi2, chi2_mean;
  std::vector<stats::Ring> rings;
  std::optional<stats::Ring> truth_ring;
  std::vector<stats::DrawMetric> metrics, naive_metrics;  // the same, in the same order
  bool aligned = false;                                   // before they were measured
  double beam_uas = 0;                                    // of the blurred PSNR
  std::vector<double> levels, coverage;
  std::vector<std::pair<int, double>> covered;  // percent, share of the truth's bright pixels
};

// One over the longest baseline.
double nominal_resolution_uas(const VisibilityTable& table) {
  double longest = 0;
  for (const VisibilityRow& r : table.rows) longest = std::max(longest, std::hypot(r.u, r.v));
  return longest > 0 ? 1 / longest / kRadPerUas : 0;
}

void measure_against_truth(const Measurement& data, const ReportOptions& options,
                           PosteriorNumbers& n) {
  const at::Tensor truth = data.truth;
  stats::DrawMetricOptions o;
  o.range = truth.max().item<double>() - std::min(0.0, truth.min().item<double>());
  if (data.sky) {
    n.beam_uas = options.beam_uas;
    if (n.beam_uas == 0 && data.observation.visibilities)
      n.beam_uas = nominal_resolution_uas(*data.observation.visibilities);
    o.beam_fwhm_pixels = n.beam_uas * static_cast<double>(n.x.size(3)) / data.sky->fov_uas;
    o.align = n.aligned = !data.sky->position_known;
  }
  n.metrics = stats::draw_metrics(n.x, truth, o);
  const at::Tensor naive = data.likelihood->naive_image();
  if (naive.defined() && naive.sizes().slice(1) == truth.sizes())
    n.naive_metrics = stats::draw_metrics(naive.to(at::kCPU, at::kDouble), truth, o);
  if (n.x.size(0) < 2) return;  // one image, as of `map`, has no spread to compare
  const at::Tensor mask = stats::bright_mask(n.pixels.mean, kBrightFraction);
  for (int k = 1; k <= 19; ++k) n.levels.push_back(0.05 * k);
  n.coverage = stats::coverage(n.x, truth, n.levels, mask);
  for (const int percent : {50, 90})
    n.covered.emplace_back(percent, stats::coverage(n.x, truth, {percent / 100.0}, mask)[0]);
}

PosteriorNumbers numbers_of(const Draws& draws, const Measurement& data,
                            const ReportOptions& options) {
  PosteriorNumbers n;
  n.x = finite_draws(draws.x.to(at::kCPU, at::kDouble));
  if (n.x.size(0) < 1) throw DataError("no finite draw; nothing to report");
  n.pixels = stats::summarize_pixels(n.x);
  at::NoGradGuard off;
  const at::Tensor typed = n.x.to(draws.x.scalar_type());
  n.chi2 = data.likelihood->chi2(typed);
  n.chi2_mean = data.likelihood->chi2(n.pixels.mean.unsqueeze(0).to(draws.x.scalar_type()));
  if (data.sky) {
    const double pixel = data.sky->fov_uas / static_cast<double>(n.x.size(3));
    n.rings = stats::measure_rings(n.x, pixel);
    if (data.truth.defined()) n.truth_ring = stats::measure_ring(data.truth[0], pixel);
  }
  if (data.truth.defined()) measure_against_truth(data, options, n);
  return n;
}

// ------------------------------------------------------------------ summary.json

// "PSNR of the mean [dB]": flat keys, so that a study can read one by its name.
std::string metric_key(const stats::DrawMetric& m, const std::string& of) {
  return m.name + " of " + of + (m.unit.empty() ? "" : " [" + m.unit + "]");
}

Json metrics_json(const PosteriorNumbers& n) {
  Json j;
  for (const stats::DrawMetric& m : n.metrics) {
    j[metric_key(m, "the mean")] = number(m.of_mean);
    if (n.x.size(0) < 2) continue;
    j[metric_key(m, "draws, mean")] = number(m.draw_mean);
    j[metric_key(m, "draws, sd")] = number(m.draw_sd);
  }
  for (const auto& [percent, share] : n.covered)
    j["pixels of the truth in the central " + std::to_string(percent) + " %"] = number(share);
  for (const stats::DrawMetric& m : n.naive_metrics)
    j[metric_key(m, "the naive image")] = number(m.of_mean);
  if (n.beam_uas > 0) j["beam of the blurred PSNR [uas]"] = n.beam_uas;
  j["images moved to the truth first"] = n.aligned;
  return j;
}

Json summary_json(const PosteriorNumbers& n, const Draws& draws, const Measurement& data,
                  const RunFacts& facts) {
  Json j;
  j["title"] = facts.title;
  j["created"] = utc_now();
  j["run_id"] = facts.run_id;
  j["command_line"] = facts.command_line;
  j["seconds"] = facts.seconds;
  j["inference"]["status"] = to_string(draws.summary.status);
  j["inference"]["message"] = draws.summary.message;
  for (const auto& [k, v] : draws.summary.numbers) j["inference"]["numbers"][k] = number(v);
  j["inference"]["warnings"] = draws.summary.warnings;
  j["draws"] = draws.x.size(0);
  j["non_finite_draws"] = draws.x.size(0) - n.x.size(0);
  for (const auto& [name, v] : n.chi2) j["chi2"][name] = moments(v);
  for (const auto& [name, v] : n.chi2_mean)
    j["chi2"][name]["of_mean_image"] = number(v.item<double>());
  if (!n.metrics.empty()) j["metrics"] = metrics_json(n);
  if (!n.rings.empty())
    for (const double level : {0.68, 0.9})
      for (const auto& [name, i] : stats::ring_intervals(n.rings, level))
        j["ring"][name][level < 0.8 ? "central_68" : "central_90"] = {
            number(i.low), number(i.median), number(i.high)};
  if (n.truth_ring && n.truth_ring->found) {
    j["truth_ring"]["diameter_uas"] = n.truth_ring->diameter_uas;
    j["truth_ring"]["width_uas"] = n.truth_ring->width_uas;
  }
  if (data.sky) {
    j["sky"]["fov_uas"] = data.sky->fov_uas;
    j["sky"]["jy_per_unit"] = data.sky->jy_per_unit;
  }
  return j;
}

// ------------------------------------------------------------------ report.html

at::Tensor picked_rows(const at::Tensor& x, int64_t most) {
  if (x.size(0) <= most) return x;
  return x.index_select(0, at::linspace(0, static_cast<double>(x.size(0) - 1), most).to(at::kLong));
}

void add_sky(const PosteriorNumbers& n, const Measurement& data, report::RunReport& r) {
  r.colormap = report::Colormap::kAfmhot;
  r.upscaling = report::Upscaling::kSmooth;
  r.units = "Jy/pixel";
  r.fov_uas = data.sky->fov_uas;
  r.frequency_hz = data.observation.visibilities ? data.observation.visibilities->rf_hz : 0;
  const auto gather = [&](const char* name, const char* unit, double stats::Ring::*field) {
    report::Quantity q{
        name, unit, at::full({static_cast<int64_t>(n.rings.size())}, NAN, at::kDouble), {}};
    auto* out = q.draws.data_ptr<double>();
    for (size_t k = 0; k < n.rings.size(); ++k)
      if (n.rings[k].found) out[k] = n.rings[k].*field;
    if (n.truth_ring && n.truth_ring->found) q.truth = (*n.truth_ring).*field;
    r.ring.push_back(q);
  };
  gather("diameter", "µas", &stats::Ring::diameter_uas);
  gather("width", "µas", &stats::Ring::width_uas);
  gather("asymmetry", "", &stats::Ring::asymmetry);
  gather("central brightness", "", &stats::Ring::central_brightness);
}

void add_metrics(const PosteriorNumbers& n, report::RunReport& r) {
  char beam[32];
  std::snprintf(beam, sizeof beam, "%.3g", n.beam_uas);
  for (size_t k = 0; k < n.metrics.size(); ++k) {
    const stats::DrawMetric& m = n.metrics[k];
    std::string name = m.name;
    if (m.name == "blurred PSNR") name = std::string("PSNR under a beam of ") + beam + " µas FWHM";
    report::TruthMetric row{
        name + (m.unit.empty() ? "" : " [" + m.unit + "]"), m.per_draw, m.of_mean, {}};
    if (k < n.naive_metrics.size()) row.naive_image = n.naive_metrics[k].of_mean;
    r.metrics.push_back(row);
  }
  if (r.metrics.empty()) return;
  r.metrics_note = "PSNR and SSIM take the range of the true pixels.";
  if (n.aligned)
    r.metrics_note +=
        " The data do not know where the source is: every image, the mean too, was first moved by "
        "the whole number of pixels at which it agrees best with the truth.";
  if (n.covered.empty()) return;
  report::Table t;
  t.title = "Coverage";
  t.columns = {"Central interval of draws", "True pixels inside"};
  for (const auto& [percent, share] : n.covered)
    t.rows.push_back({std::to_string(percent) + " %", report::number_text(100 * share, 3) + " %"});
  t.note = "Pixels where the mean is above 5 % of its peak";
  t.note += n.aligned ? ", images as they were drawn." : ".";
  r.tables.push_back(t);
}

report::RunReport build_report(const PosteriorNumbers& n, const Draws& draws,
                               const Measurement& data, const RunFacts& facts) {
  const double scale = data.sky ? data.sky->jy_per_unit : 1.0;
  report::RunReport r;
  r.title = facts.title;
  r.created = utc_now();
  for (const auto& [k, v] : data.observation.notes) r.facts.emplace_back(k, v);
  r.facts.emplace_back("run", facts.run_id);
  r.facts.emplace_back("command", facts.command_line);
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.0f s", facts.seconds);
  r.facts.emplace_back("time", seconds);
  r.inference = draws.summary;
  r.inference_known = true;
  for (const auto& warning : draws.summary.warnings)
    r.statements.push_back({report::Level::kWarning, warning + "."});
  r.draws = draws.x.size(0);
  r.invalid_draws = draws.x.size(0) - n.x.size(0);
  if (const auto it = draws.summary.numbers.find("invalid_draws");
      it != draws.summary.numbers.end())
    r.invalid_draws = std::max(r.invalid_draws, static_cast<int64_t>(it->second));
  if (data.sky) add_sky(n, data, r);

  r.images.push_back({"mean", n.pixels.mean * scale, "posterior mean", true, {}, ""});
  r.images.push_back({"std", n.pixels.std * scale, "posterior standard deviation", false, {}, ""});
  if (data.truth.defined())
    r.images.push_back({"truth", data.truth * scale, "what was observed", true, {}, ""});
  const at::Tensor naive = data.likelihood->naive_image();
  if (naive.defined())
    r.images.push_back({data.sky ? "dirty image" : "naive",
                        naive[0].to(at::kCPU, at::kDouble) * scale,
                        data.sky ? "visibilities without inference" : "the data without inference",
                        false,
                        {},
                        ""});
  r.samples = draws.x * scale;  // all, so that the page can number those it shows

  const at::Tensor fit_draws = picked_rows(n.x, kMostFitDraws).to(draws.x.scalar_type());
  at::NoGradGuard off;
  const auto truth_chi2 =
      data.truth.defined()
          ? data.likelihood->chi2(data.truth.unsqueeze(0).to(draws.x.scalar_type()))
          : ChiSquares{};
  for (size_t k = 0; k < n.chi2.size(); ++k) {
    report::ChiSquareResult c;
    c.product = n.chi2[k].first;
    c.draws = n.chi2[k].second.to(at::kCPU, at::kDouble);
    c.mean_image = n.chi2_mean[k].second.item<double>();
    if (!truth_chi2.empty()) c.truth = truth_chi2[k].second.item<double>();
    r.chi2.push_back(c);
  }
  for (const DataFit& f : data.likelihood->data_fits(fit_draws)) {
    report::FitResult out{f.product,
                          f.x_label,
                          f.y_label,
                          f.x.to(at::kDouble),
                          f.data.to(at::kDouble),
                          f.sigma.to(at::kDouble),
                          f.model.to(at::kDouble),
                          0,
                          false,
                          false};
    if (f.y_label.find("deg") != std::string::npos) out.period = 360;
    out.log_y = f.product == "amp";
    r.fits.push_back(out);
  }
  for (const auto& [name, values] : draws.history) {
    report::Curve c{name, "Step", name, {}, {{name, values.to(at::kDouble)}}, false};
    r.histories.push_back(c);
  }
  if (!n.coverage.empty()) {
    report::Coverage c;
    c.title = "Pixels of the truth inside central credible intervals (mean above 5 % of its peak)";
    c.nominal = at::tensor(n.levels, at::kDouble);
    c.empirical = at::tensor(n.coverage, at::kDouble);
    r.coverage.push_back(c);
  }
  add_metrics(n, r);
  r.settings = facts.settings;
  return r;
}

// ------------------------------------------------------------------ files

void write_images(const PosteriorNumbers& n, const Measurement& data, const fs::path& folder) {
  std::map<std::string, at::Tensor> images{{"mean", n.pixels.mean}, {"std", n.pixels.std}};
  if (data.truth.defined()) images["truth"] = data.truth;
  const at::Tensor naive = data.likelihood->naive_image();
  if (naive.defined()) images["naive"] = naive[0].to(at::kCPU, at::kDouble);
  for (const auto& [name, image] : images) {
    io::write_npy(folder / (name + ".npy"), image);
    if (!data.sky) continue;
    io::SkyImage sky;
    sky.pixels = image[0].to(at::kDouble) * data.sky->jy_per_unit;
    sky.pixel_size_rad = data.sky->fov_uas * kRadPerUas / static_cast<double>(image.size(2));
    if (data.observation.visibilities) {
      const auto& v = *data.observation.visibilities;
      sky.ra_hours = v.ra_hours;
      sky.dec_deg = v.dec_deg;
      sky.frequency_hz = v.rf_hz;
      sky.mjd = v.mjd;
      sky.source = v.source;
    }
    io::write_fits_image(folder / (name + ".fits"), sky);
  }
}

void write_draws_nc(const PosteriorNumbers& n, const Draws& draws, const Measurement& data,
                    const RunFacts& facts, const fs::path& path) {
  io::InferenceData nc;
  nc.attributes = {{"inference_library", "scoreprior"}, {"run_id", facts.run_id}};
  nc.groups["posterior"].variables["x"] = {
      n.x.to(at::kFloat).unsqueeze(0), {"chain", "draw", "channel", "row", "column"}, {}};
  auto& sample_stats = nc.groups["sample_stats"].variables;
  if (draws.log_q.defined() && draws.log_q.size(0) == n.x.size(0))
    sample_stats["log_q"] = {draws.log_q.to(at::kDouble).unsqueeze(0), {"chain", "draw"}, {}};
  for (const auto& [name, v] : n.chi2)
    sample_stats[name] = {v.to(at::kCPU, at::kDouble).unsqueeze(0), {"chain", "draw"}, {}};
  at::NoGradGuard off;
  const at::Tensor loglik = data.likelihood->log_prob(n.x.to(draws.x.scalar_type()), Rng(0));
  nc.groups["log_likelihood"].variables["y"] = {
      loglik.to(at::kCPU, at::kDouble).unsqueeze(0), {"chain", "draw"}, {}};
  if (data.observation.y.defined() && !data.observation.y.is_complex())
    nc.groups["observed_data"].variables["y"] = {
        data.observation.y.flatten().to(at::kDouble), {"datum"}, {}};
  if (data.observation.visibilities) {
    const auto& rows = data.observation.visibilities->rows;
    const auto m = static_cast<int64_t>(rows.size());
    at::Tensor table = at::empty({5, m}, at::kDouble);
    for (int64_t k = 0; k < m; ++k) {
      const auto& row = rows[static_cast<size_t>(k)];
      const double values[] = {row.u, row.v, row.vis.real(), row.vis.imag(), row.sigma};
      for (int64_t c = 0; c < 5; ++c) table[c][k] = values[c];
    }
    const char* names[] = {"u", "v", "vis_real", "vis_imag", "sigma"};
    for (int64_t c = 0; c < 5; ++c)
      nc.groups["observed_data"].variables[names[c]] = {table[c].contiguous(), {"visibility"}, {}};
  }
  io::write_netcdf(path, nc);
}

}  // namespace

void write_posterior(const Draws& draws, const Measurement& data, const RunFacts& facts,
                     const fs::path& folder, Observer& observer) {
  const PosteriorNumbers n = numbers_of(draws, data, facts.report);
  write_images(n, data, folder);
  write_draws_nc(n, draws, data, facts, folder / "draws.nc");
  const report::RunReport page = build_report(n, draws, data, facts);
  report::write_report(page, folder);
  io::write_text(folder / "summary.json", summary_json(n, draws, data, facts).dump(2) + "\n");
  for (const auto& s : report::verdict(page)) observer.note(s.sentence);
}

ReportOptions read_report_options(const Config& config, bool sky) {
  const Config table = config.table("report");
  const auto options = table.read<ReportOptions>();
  if (!(options.beam_uas >= 0) || !std::isfinite(options.beam_uas))
    table.fail("beam_uas", "beam_uas must be a width in micro-arcseconds, or 0");
  if (options.beam_uas > 0 && !sky)
    table.fail("beam_uas", "beam_uas is for images of the sky, which these data do not show");
  return options;
}

RunFacts read_facts(const fs::path& folder, Summary& inference) {
  const auto j = Json::parse(io::read_text(folder / "summary.json"), nullptr, false);
  if (!j.is_object()) throw DataError((folder / "summary.json").string() + ": damaged");
  RunFacts facts;
  facts.command_line = j.value("command_line", "");
  facts.run_id = j.value("run_id", "");
  facts.seconds = j.value("seconds", 0.0);
  const auto& i = j["inference"];
  inference.message = i.value("message", "");
  for (const Status s :
       {Status::kConverged, Status::kMaxSteps, Status::kInterrupted, Status::kDiverged})
    if (i.value("status", "") == to_string(s)) inference.status = s;
  if (i.contains("numbers"))
    for (const auto& [k, v] : i["numbers"].items())
      if (v.is_number()) inference.numbers[k] = v.get<double>();
  inference.warnings = i.value("warnings", std::vector<std::string>{});
  return facts;
}

}  // namespace scoreprior
