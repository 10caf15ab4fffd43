#include "scoreprior/pipeline/check.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/contract.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/likelihood/interferometry.h"
#include "scoreprior/likelihood/measurement_likelihood.h"
#include "scoreprior/pipeline/problem.h"
#include "scoreprior/pipeline/session.h"

namespace scoreprior {
namespace {

using Verdict = CheckLine::Verdict;

constexpr int64_t kTimedImages = 8;  // a gradient is timed on at most so many
// Central differences in float64. The likelihood's limit is their own error at images whose
// visibilities are near nothing; priors solve differential equations to a tolerance of their own.
constexpr double kLikelihoodLimit = 1e-4, kPriorLimit = 1e-2;

std::string brief_number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", v);
  return text;
}

std::string range_text(const at::Tensor& a) {
  return brief_number(a.min().item<double>()) + " to " + brief_number(a.max().item<double>());
}

double root_mean_square(const at::Tensor& a) {
  return std::sqrt(a.to(at::kDouble).square().mean().item<double>());
}

double median_number(const at::Tensor& a) {
  return a.to(at::kDouble).flatten().median().item<double>();
}

double peak_megabytes() {
  rusage use{};
  ::getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_maxrss) / 1024;  // kilobytes on Linux
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string duration_text(double seconds) {
  if (seconds < 1e-3) return brief_number(seconds * 1e6) + " us";
  if (seconds < 1) return brief_number(seconds * 1e3) + " ms";
  if (seconds < 120) return brief_number(seconds) + " s";
  if (seconds < 7200) return brief_number(seconds / 60) + " min";
  return brief_number(seconds / 3600) + " h";
}

class DryRun {
 public:
  explicit DryRun(const Config& config) : config_(config) {}

  CheckReport run(Observer& observer) {
    const Session session = make_session(config_.table("run"));
    rng_ = Rng(config_.get<uint64_t>("seed", 0, "seed of every random choice")).split("check");
    config_.get<std::string>("title", "Posterior inference", "title of the report");
    const auto prior = load_prior(config_, session);
    const Shape shape = prior->event_shape();
    const Measurement data = load_measurement(config_, shape, session);
    inferences().make(config_.table("infer"), "dpi",
                      InferenceContext{session.dtype, session.device});
    skip_simulation_tables(config_);
    config_.require_all_used();
    report_.settings = config_.to_toml();

    const Session exact{at::kDouble, session.device};
    const double level = plain_level(data, numel(shape));
    const at::Tensor x =
        ((rng_.split("image").uniform(batched(3, shape), at::kDouble) + 0.5) * level)
            .to(session.device);
    observer.note("looking at the data");
    look_at_data(data, shape, session, x);
    observer.note("testing the operator");
    test_operator(data, shape, session);
    observer.note("testing the likelihood");
    {
      const Measurement twin = load_measurement(config_, shape, exact);
      test_density("likelihood", *twin.likelihood, x, kLikelihoodLimit);
    }
    observer.note("testing the prior");
    test_density("prior", *load_prior(config_, exact), x, kPriorLimit);
    observer.note("timing");
    measure_cost(*prior, *data.likelihood, x.to(session.dtype));
    return std::move(report_);
  }

 private:
  void add(const char* part, std::string name, std::string measured, std::string text = "",
           Verdict verdict = Verdict::kFact) {
    report_.lines.push_back({part, std::move(name), std::move(measured), std::move(text), verdict});
  }
  void test(const char* part, std::string name, double error, double limit, std::string text = "") {
    add(part, std::move(name), brief_number(error),
        "<= " + brief_number(limit) + (text.empty() ? "" : "  " + text),
        error <= limit ? Verdict::kPassed : Verdict::kFailed);
  }

  // A pixel value of about the size that the data speak of.
  static double plain_level(const Measurement& data, int64_t pixels) {
    if (data.truth.defined() && data.truth.abs().mean().item<double>() > 0)
      return data.truth.abs().mean().item<double>();
    if (data.sky && data.observation.visibilities)
      return zero_baseline_flux(*data.observation.visibilities) /
             (data.sky->jy_per_unit * static_cast<double>(pixels));
    return 0.5;
  }

  void look_at_data(const Measurement& data, const Shape& shape, const Session& session,
                    const at::Tensor& x) {
    const auto show = [&](const at::Tensor& a) { return a.to(session.dtype); };
    add("data", "image", to_string(shape), "pixels tried: " + range_text(x));
    for (const DataFit& f : data.likelihood->data_fits(show(x))) {
      if (f.product.find(' ') != std::string::npos) continue;  // a part of another, for plots
      const double size = root_mean_square(f.data), snr = median_number(f.data.abs() / f.sigma);
      const double model = root_mean_square(f.model) / std::max(size, 1e-300);
      add("data", f.product, std::to_string(f.data.numel()) + " numbers", range_text(f.data));
      add("data", f.product + ": sigma", brief_number(median_number(f.sigma)), range_text(f.sigma));
      add("data", f.product + ": data/sigma", brief_number(snr),
          "median; below 1 the data say little, above 1e4 sigma may be too small",
          snr > 0.3 && snr < 1e4 ? Verdict::kPassed : Verdict::kLook);
      add("data", f.product + ": model/data", brief_number(model),
          "rms, for a plain image; 1 is one scale",
          model > 1e-2 && model < 1e2 ? Verdict::kPassed : Verdict::kLook);
    }
    for (const auto& [name, value] : data.likelihood->chi2(show(x)))
      add("data", name, brief_number(value.mean().item<double>()), "of a plain image");
    if (!data.truth.defined()) return;
    const at::Tensor truth = show(data.truth.unsqueeze(0).to(session.device));
    for (const auto& [name, value] : data.likelihood->chi2(truth)) {
      const double v = value.item<double>();
      add("data", name + " of the truth", brief_number(v), "1 when sigma is the noise",
          v > 0.5 && v < 2 ? Verdict::kPassed : Verdict::kLook);
    }
  }

  void contract(const ForwardModel& model, at::ScalarType dtype, at::Device device) {
    const std::string in = dtype == at::kDouble ? ", float64" : ", float32";
    for (const ContractFinding& f : check_contract(model, dtype, device, rng_.split("contract")))
      test("operator", f.name + in, f.error, f.limit, f.text);
  }

  void test_operator(const Measurement& data, const Shape& shape, const Session& session) {
    std::vector<at::ScalarType> dtypes = {at::kDouble};
    if (session.dtype != at::kDouble) dtypes.push_back(session.dtype);
    for (const auto dtype : dtypes) {
      if (const auto* radio =
              dynamic_cast<const InterferometryLikelihood*>(data.likelihood.get())) {
        std::vector<double> u, v;
        for (const VisibilityRow& r : radio->table().rows) u.push_back(r.u), v.push_back(r.v);
        const Pulse pulse =
            pulse_from(config_.table("likelihood").get<std::string>("pulse", "triangle"));
        const VisibilityTransform transform(u, v, radio->grid(), pulse,
                                            ForwardContext{dtype, session.device});
        if (dtype == dtypes[0])
          add("operator", "visibilities", to_string(transform.output_shape()),
              std::string("linear; ") + transform.method(kTimedImages));
        contract(transform, dtype, session.device);
      } else if (dynamic_cast<const MeasurementLikelihood*>(data.likelihood.get()) ||
                 config_.is_table("forward")) {
        const auto model =
            forward_models().make(config_.table("forward"), "identity",
                                  ForwardContext{dtype, session.device, io::read_npy, shape});
        if (dtype == dtypes[0])
          add("operator", config_.table("forward").get<std::string>("name", "identity"),
              to_string(model->output_shape()), model->linear() ? "linear" : "not linear");
        contract(*model, dtype, session.device);
      }
    }
  }

  // In float64, along a direction half gradient and half noise: no chance cancellation.
  void test_density(const char* part, const LogDensity& density, const at::Tensor& x,
                    double limit) {
    const Rng rng = rng_.split(part);
    const at::Tensor one = x.narrow(0, 0, 1);
    const auto [value, gradient] = density.value_and_score(one, rng);
    const double v = value.item<double>(), size = gradient.norm().item<double>();
    add(part, "log p", brief_number(v), "nats, of a plain image",
        std::isfinite(v) ? Verdict::kPassed : Verdict::kFailed);
    add(part, "gradient norm", brief_number(size), "nats per unit of x",
        std::isfinite(size) ? Verdict::kPassed : Verdict::kFailed);
    if (!std::isfinite(v) || !std::isfinite(size)) return;
    at::NoGradGuard no_grad;
    const at::Tensor noise =
        rng_.split("direction").normal(one.sizes(), at::kDouble).to(x.device());
    const at::Tensor direction =
        (gradient / std::max(size, 1e-300) + noise / noise.norm()) * (one.norm() / std::sqrt(2.0));
    const double slope = (gradient * direction).sum().item<double>();
    const double whole = std::max(size * direction.norm().item<double>(), 1e-300);
    double best = INFINITY;
    for (const double h : {1e-4, 1e-3, 1e-5, 1e-2, 1e-6}) {
      const double difference =
          (density.log_prob(one + h * direction, rng) - density.log_prob(one - h * direction, rng))
              .item<double>() /
          (2 * h);
      const double error = std::abs(difference - slope) / whole;
      best = std::isfinite(error) ? std::min(best, error) : best;
      if (best <= limit * 1e-2) break;
    }
    test(part, "gradient, float64", best, limit, "against central differences, over |gradient|");
    const at::Tensor together = density.log_prob(x, rng);
    const double alone = density.log_prob(x.narrow(0, 2, 1), rng.from_row(2)).item<double>();
    const double stacked = together[2].item<double>();
    test(part, "batch", std::abs(stacked - alone) / std::max(std::abs(alone), 1.0),
         part == std::string("prior") ? 1e-3 : 1e-9, "log p in a stack against alone");
  }

  void measure_cost(const LogDensity& prior, const LogDensity& likelihood, const at::Tensor& x) {
    const Config infer = config_.table("infer");
    const int64_t batch =
        infer.is_number("batch") ? std::max<int64_t>(1, infer.get<int64_t>("batch")) : 1;
    const int64_t timed = std::min(batch, kTimedImages);
    const at::Tensor images =
        x.narrow(0, 0, 1).expand(batched(timed, prior.event_shape())).contiguous();
    const double before = peak_megabytes();
    double total = 0;
    const auto time = [&](const char* name, const LogDensity& density) {
      const auto work = [&] { density.value_and_score(images, rng_); };
      double seconds = seconds_of(work);
      if (seconds < 2)
        seconds = std::min(seconds, seconds_of(work));  // the first one also allocates
      add("cost", std::string(name) + " gradient", duration_text(seconds),
          std::to_string(timed) + (timed == 1 ? " image" : " images"));
      total += seconds * static_cast<double>(batch) / static_cast<double>(timed);
    };
    time("likelihood", likelihood);
    time("prior", prior);
    const double grown = peak_megabytes() - before;
    add("cost", "1000 gradients of both", duration_text(1000 * total),
        "at the batch of " + std::to_string(batch) + " of [infer]");
    if (infer.is_number("steps")) {
      const auto steps = infer.get<int64_t>("steps");
      add("cost", "forecast of the run", duration_text(static_cast<double>(steps) * total),
          std::to_string(steps) + " steps of one gradient each");
    }
    const double memory = before + grown * static_cast<double>(batch) / static_cast<double>(timed);
    add("cost", "memory", brief_number(memory) + " MB",
        "at that batch, without what the method keeps");
  }

  Config config_;
  Rng rng_{0};
  CheckReport report_;
};

}  // namespace

bool CheckReport::passed() const {
  return std::none_of(lines.begin(), lines.end(),
                      [](const CheckLine& l) { return l.verdict == Verdict::kFailed; });
}

CheckReport check(const Config& config, Observer& observer) { return DryRun(config).run(observer); }

std::string check_text(const CheckReport& report) {
  const auto padded = [](std::string s, size_t width) {
    s.resize(std::max(width, s.size() + 2), ' ');
    return s;
  };
  const char* words[] = {"", "ok", "look", "FAILED"};
  std::string out = report.settings + "\n";
  std::string part;
  int64_t tests = 0, failed = 0, look = 0;
  for (const CheckLine& l : report.lines) {
    if (l.part != part) out += part.empty() ? "" : "\n";
    out += padded(l.part == part ? "" : l.part, 12) +
           padded(words[static_cast<int>(l.verdict)], 8) + padded(l.name, 30) +
           padded(l.measured, 14) + l.text + "\n";
    part = l.part;
    tests += l.verdict != Verdict::kFact;
    failed += l.verdict == Verdict::kFailed;
    look += l.verdict == Verdict::kLook;
  }
  out += "\n" + std::to_string(tests) + " tests: " + std::to_string(tests - failed - look) +
         " passed, " + std::to_string(look) + " to look at, " + std::to_string(failed) +
         " failed\n";
  return out;
}

}  // namespace scoreprior
