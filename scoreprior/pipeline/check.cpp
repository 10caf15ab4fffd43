#include "scoreprior/pipeline/check.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/memory_budget.h"
#include "scoreprior/forward/contract.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/likelihood/interferometry.h"
#include "scoreprior/likelihood/measurement_likelihood.h"
#include "scoreprior/pipeline/forecast.h"
#include "scoreprior/pipeline/posterior_report.h"
#include "scoreprior/pipeline/problem.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/pipeline/train.h"

namespace scoreprior {
namespace {

using Verdict = CheckLine::Verdict;

constexpr int64_t kTimedImages = 8;  // a gradient is timed on at most so many
// What malloc loses between the blocks of libtorch's tensors (docs/logp_study.md).
constexpr double kResident = 1.7;
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

double resident_megabytes() {
  std::ifstream in("/proc/self/statm");
  double pages = 0, resident = 0;
  in >> pages >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1e6;
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

// Notes when the steps of a stage end.
class StepClock final : public Observer {
 public:
  void step(int64_t, const Metrics&) override {
    const auto now = std::chrono::steady_clock::now();
    seconds_.push_back(std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  std::vector<double> seconds_;
};

class NoStore final : public StateStore {
 public:
  void save(const std::map<std::string, at::Tensor>&) override {}
  bool load(std::map<std::string, at::Tensor>&) const override { return false; }
};

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
    read_report_options(config_, data.sky.has_value());
    first_flow(config_);
    skip_simulation_tables(config_);
    config_.require_all_used();
    report_.settings = config_.to_toml();
    // Before the copies in float64, which a run does not make.
    loaded_megabytes_ = resident_megabytes();

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
    measure_cost(*prior, *data.likelihood, x.to(session.dtype), session);
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
                                  ForwardContext{dtype, session.device, data.read_array, shape});
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

  void measure_cost(const LogDensity& prior, const LogDensity& likelihood, const at::Tensor& x,
                    const Session& session) {
    const Config infer = config_.table("infer");
    const bool split_gibbs = infer.get<std::string>("name", "dpi") == "split_gibbs";
    const int64_t batch =
        infer.is_number("batch") ? std::max<int64_t>(1, infer.get<int64_t>("batch")) : 1;
    const int64_t timed = std::min(batch, kTimedImages);
    const double growth = static_cast<double>(batch) / static_cast<double>(timed);
    const at::Tensor images =
        x.narrow(0, 0, 1).expand(batched(timed, prior.event_shape())).contiguous();
    double total = 0;  // seconds at the whole batch
    const auto gradient = [&](const char* name, const LogDensity& density) {
      const auto work = [&] { density.value_and_score(images, rng_); };
      double seconds = seconds_of(work);
      const double bytes = peak_allocation(work);  // the first call also allocates what stays
      if (seconds < 2) seconds = std::min(seconds, seconds_of(work));
      add("cost", std::string(name) + " gradient", duration_text(seconds),
          std::to_string(timed) + (timed == 1 ? " image" : " images"));
      total += seconds * growth;
      return bytes;
    };
    const double likelihood_bytes = gradient("likelihood", likelihood) * growth;
    const double prior_bytes = prior_memory(gradient("prior", prior), timed, batch, session);
    if (split_gibbs) return forecast_split_gibbs(prior, likelihood, session);
    add("cost", "1000 gradients of both", duration_text(1000 * total),
        "at the batch of " + std::to_string(batch) + " of [infer]");
    if (infer.is_number("steps")) {
      const auto steps = infer.get<int64_t>("steps");
      add("cost", "forecast of the run", duration_text(static_cast<double>(steps) * total),
          std::to_string(steps) + " steps of one gradient each");
    }
    // One after the other, so that the larger one counts.
    add_memory(std::max(likelihood_bytes, prior_bytes),
               "at that batch, without what the method keeps");
  }

  void add_memory(double bytes, std::string text) {
    add("cost", "memory", brief_number(loaded_megabytes_ + kResident * bytes / 1e6) + " MB",
        std::move(text));
  }

  // The table of a score prior, which limits the rows of its network calls, anywhere below [prior].
  static std::optional<Config> table_of_calls(const Config& table) {
    if (table.is_number("max_batch")) return table;
    for (const auto& key : table.keys())
      if (table.is_table(key))
        if (auto found = table_of_calls(table.table(key))) return found;
    return std::nullopt;
  }

  // Bytes of the prior's gradient at `batch` from those at `timed` images. A score prior cuts a
  // batch into calls of at most max_batch rows, and into what the memory it may take holds.
  double prior_memory(double bytes, int64_t timed, int64_t batch, const Session& session) const {
    const auto calls = table_of_calls(config_.table("prior"));
    if (!calls) return bytes * static_cast<double>(batch) / static_cast<double>(timed);
    const auto number = [&](const char* key) {
      return calls->is_number(key) ? calls->get<int64_t>(key) : int64_t{1};
    };
    const int64_t rows = std::max(number("n_times"), number("n_probes"));
    const int64_t most = number("max_batch");
    const double at_batch = bytes * static_cast<double>(images_in_memory(batch, rows, most)) /
                            static_cast<double>(images_in_memory(timed, rows, most));
    if (!session.device.is_cpu() || !calls->is_number("max_memory_mib")) return at_batch;
    return std::min(at_batch, memory_budget(calls->get<double>("max_memory_mib")) / kResident);
  }

  // Three iterations of a few chains: at the first coupling, at the middle one and at the last.
  void forecast_split_gibbs(const LogDensity& prior, const LogDensity& likelihood,
                            const Session& session) {
    const Config infer = config_.table("infer");
    const SplitGibbsPlan plan{infer.get<int64_t>("n_draws"), infer.get<int64_t>("keep"),
                              infer.get<int64_t>("anneal"), infer.get<int64_t>("hold")};
    const auto batch = infer.get<int64_t>("batch");
    const int64_t chains = (plan.n_draws + plan.keep - 1) / plan.keep,
                  together = std::min(batch, chains);
    SplitGibbsCost cost;
    cost.chains = std::min(together, kTimedImages);
    const Config brief = io::parse_toml(config_.to_toml()).table("infer");
    const auto put = [&](const char* key, int64_t value) {
      const auto node = std::make_shared<ConfigNode>();
      node->value = value;
      Config(brief).set(key, node);
    };
    put("n_draws", cost.chains), put("batch", cost.chains), put("keep", 1);
    put("anneal", 2), put("hold", 1), put("checkpoint_every", 0);
    const auto method =
        inferences().make(brief, "split_gibbs", InferenceContext{session.dtype, session.device});
    NoStore nowhere;
    std::vector<double> seconds;
    const auto trial = [&] {
      StepClock clock;
      method->run({prior, likelihood}, rng_.split("trial"), clock, nowhere);
      SP_CHECK(clock.seconds().size() == 3, "check", "expected 3 iterations of split_gibbs, got ",
               clock.seconds().size());
      for (size_t k = 0; k < 3; ++k)
        if (seconds.size() == k)
          seconds.push_back(clock.seconds()[k]);
        else
          seconds[k] = std::min(seconds[k], clock.seconds()[k]);
    };
    const double bytes = peak_allocation(trial);
    for (int more = 0; more < 2 && seconds[1] + seconds[2] < 2; ++more) trial();
    cost.middle = seconds[1], cost.last = seconds[2];
    // The first one also finds the chains' start and the directions the data can see.
    cost.setup = std::max(0.0, seconds[0] - 2 * (2 * cost.middle - cost.last));
    add("cost", "iteration", duration_text(cost.middle),
        std::to_string(cost.chains) + " chains, halfway down the couplings; the last takes " +
            duration_text(cost.last));
    add("cost", "forecast of the run", duration_text(split_gibbs_seconds(plan, cost)),
        std::to_string(chains) + " chains of " + std::to_string(plan.anneal + plan.hold) +
            " iterations");
    add_memory(bytes * static_cast<double>(together) / static_cast<double>(cost.chains),
               std::to_string(together) + " chains together");
  }

  Config config_;
  Rng rng_{0};
  CheckReport report_;
  double loaded_megabytes_ = 0;
};

// The same for a training.
CheckReport check_training(const Config& config, Observer& observer) {
  CheckReport report;
  const auto add = [&](const char* part, const char* name, std::string measured,
                       std::string text = "", Verdict verdict = Verdict::kFact) {
    report.lines.push_back({part, name, std::move(measured), std::move(text), verdict});
  };
  observer.note("the first steps");
  const double before = resident_megabytes();
  const TrainingTrial t = try_training(config, observer);
  report.settings = config.to_toml();
  const auto images = [](int64_t n) { return n > 0 ? std::to_string(n) : "made as needed"; };
  add("data", "images", to_string(t.image_shape), t.data);
  add("data", "training", images(t.training_images));
  add("data", "held out", images(t.validation_images));
  const double low = t.range == "centered" ? -1 : 0, slack = 0.05;
  const bool finite = std::isfinite(t.lowest) && std::isfinite(t.highest);
  add("data", "pixels", brief_number(t.lowest) + " to " + brief_number(t.highest),
      "expected between " + brief_number(low) + " and 1",
      !finite                                           ? Verdict::kFailed
      : t.lowest < low - slack || t.highest > 1 + slack ? Verdict::kLook
      : t.highest - t.lowest < slack                    ? Verdict::kLook
                                                        : Verdict::kPassed);
  add("network", "parameters", std::to_string(t.parameters), t.process);
  add("network", "loss", brief_number(t.loss), "of the first step, mean over the batch",
      std::isfinite(t.loss) ? Verdict::kPassed : Verdict::kFailed);
  add("network", "gradient norm", brief_number(t.grad_norm), "of that loss",
      std::isfinite(t.grad_norm) && t.grad_norm > 0 ? Verdict::kPassed : Verdict::kFailed);
  add("cost", "reading a batch", duration_text(t.read_seconds),
      std::to_string(t.options.batch) + " images, while the network computes");
  add("cost", "step", duration_text(t.step_seconds),
      brief_number(static_cast<double>(t.options.batch) / t.step_seconds) + " images/s");
  const int64_t validated = t.validation_images > 0
                                ? std::min(t.validation_images, t.options.validation_images)
                                : t.options.validation_images;
  const int64_t calls = sampler_calls(t.sampler);
  add("cost", "forecast of the training",
      duration_text(training_seconds(t.options, std::max(t.step_seconds, t.read_seconds),
                                     t.forward_seconds, validated, calls)),
      std::to_string(t.options.steps) + " steps and validations" +
          (calls > 0 || t.options.sample_every == 0 ? ", sample grids"
                                                    : "; sample grids not counted"));
  // Weights, their gradients, moments and average.
  const double kept = 5 * 4 * static_cast<double>(t.parameters);
  add("cost", "memory", brief_number(before + (kept + kResident * t.step_bytes) / 1e6) + " MB",
      "without data kept in memory");
  return report;
}

}  // namespace

bool CheckReport::passed() const {
  return std::none_of(lines.begin(), lines.end(),
                      [](const CheckLine& l) { return l.verdict == Verdict::kFailed; });
}

CheckReport check(const Config& config, Observer& observer) {
  const bool training = config.is_table("training") || config.is_table("model");
  if (training && !config.is_table("prior")) return check_training(config, observer);
  return DryRun(config).run(observer);
}

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
