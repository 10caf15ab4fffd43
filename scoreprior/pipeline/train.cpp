#include "scoreprior/pipeline/train.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <omp.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <thread>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/diffusion/dsm_loss.h"
#include "scoreprior/diffusion/memory_budget.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/diffusion/optimizer.h"
#include "scoreprior/diffusion/sampler.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/report/metrics_log.h"
#include "scoreprior/report/run_report.h"
#include "scoreprior/report/tensorboard.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

ConfigNodePtr record_node(decltype(ConfigNode::value) value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = std::move(value);
  return node;
}

// Which images a step sees, and reading them ahead of it.

class TrainingImages {
 public:
  TrainingImages(const Dataset& data, const TrainingOptions& options, const Rng& rng)
      : data_(data), batch_(options.batch), rng_(rng) {
    count_ = data.size() > 0 ? data.size() : options.pool;
    pooled_ = data.size() == 0 && options.pool > 0;
    if (pooled_) pool_.resize(count_);
  }

  /// Images of one step, [batch,C,H,W] float32. Called from one thread.
  at::Tensor at_step(int64_t step) {
    std::vector<int64_t> indices(batch_);
    for (int64_t j = 0; j < batch_; ++j) indices[j] = index(step * batch_ + j);
    if (!pooled_) return data_.batch(indices, rng_.split("augment").at(step));
    std::vector<int64_t> missing;
    for (const int64_t i : indices)
      if (!pool_[i].defined()) missing.push_back(i);
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    if (!missing.empty()) {
      const at::Tensor made = data_.batch(missing, rng_.split("augment"));
      for (size_t k = 0; k < missing.size(); ++k) pool_[missing[k]] = made[static_cast<int64_t>(k)];
    }
    std::vector<at::Tensor> rows;
    for (const int64_t i : indices) rows.push_back(pool_[i]);
    return at::stack(rows);
  }

 private:
  // A new shuffle every epoch; without end, image after image.
  int64_t index(int64_t position) {
    if (count_ == 0) return position;
    const int64_t epoch = position / count_;
    if (epoch != epoch_) {
      order_ = rng_.split("order").at(epoch).permutation(count_);
      epoch_ = epoch;
    }
    return order_[position % count_];
  }

  const Dataset& data_;
  int64_t batch_, count_ = 0, epoch_ = -1;
  bool pooled_ = false;
  Rng rng_;
  std::vector<int64_t> order_;
  std::vector<at::Tensor> pool_;
};

struct TrainingBatch {
  at::Tensor images, noise;
};

TrainingBatch batch_of_step(TrainingImages& images, const Rng& rng, at::ScalarType dtype,
                            int64_t step) {
  TrainingBatch b;
  b.images = images.at_step(step).to(dtype);
  b.noise = rng.split("noise").at(step).normal(b.images.sizes(), dtype);
  return b;
}

// Draws images and noise a few steps ahead on one thread of its own.
class Prefetcher {
 public:
  Prefetcher(TrainingImages& images, const Rng& rng, at::ScalarType dtype, int64_t first,
             int64_t last)
      : worker_([=, &images] { produce(images, rng, dtype, first, last); }) {}
  ~Prefetcher() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  /// The batch of the next step; rethrows what reading it threw.
  TrainingBatch next() {
    const auto start = Clock::now();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || error_; });
    waited_ += seconds_since(start);
    if (ready_.empty()) std::rethrow_exception(error_);
    TrainingBatch b = std::move(ready_.front());
    ready_.pop_front();
    changed_.notify_all();
    return b;
  }
  double seconds_waited() const { return waited_; }

 private:
  static constexpr size_t kAhead = 4;

  void produce(TrainingImages& images, const Rng& rng, at::ScalarType dtype, int64_t first,
               int64_t last) {
    at::get_num_threads();   // libtorch's own lazy initialisation first, else it undoes the next
                             // line
    omp_set_num_threads(1);  // this thread only: the network keeps the cores
    try {
      for (int64_t step = first; step < last; ++step) {
        TrainingBatch b = batch_of_step(images, rng, dtype, step);
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || ready_.size() < kAhead; });
        if (stop_) return;
        ready_.push_back(std::move(b));
        changed_.notify_all();
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<TrainingBatch> ready_;
  std::exception_ptr error_;
  bool stop_ = false;
  double waited_ = 0;
  std::thread worker_;
};

// Settings that must agree between a checkpoint and the training that goes on from it.

std::string settings_text(const Config& config, bool steps_matter) {
  static const std::set<std::string> free = {
      "log_every",    "validate_every", "validation_images", "checkpoint_every",
      "sample_every", "samples",        "bad_steps"};
  std::istringstream in(config.to_toml());
  std::string line, table, out;
  while (std::getline(in, line)) {
    if (line.empty()) continue;
    if (line[0] == '[') {
      table = line;
      continue;
    }
    bool quoted = false;
    size_t end = line.size();
    for (size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '\\')
        ++i;
      else if (line[i] == '"')
        quoted = !quoted;
      else if (line[i] == '#' && !quoted)
        end = std::min(end, i);
    }
    line.resize(line.find_last_not_of(' ', end - 1) + 1);
    const std::string key = line.substr(0, line.find(' '));
    if (table == "[run]" || table == "[sampling]") continue;
    if (table == "[training]" && (free.count(key) || (key == "steps" && !steps_matter))) continue;
    out += (table.empty() ? "" : table + " ") + line + "\n";
  }
  return out;
}

std::string settings_difference(const std::string& there, const std::string& here) {
  const auto lines = [](const std::string& text) {
    std::set<std::string> out;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) out.insert(line);
    return out;
  };
  const auto a = lines(there), b = lines(here);
  std::string old_line = "nothing", new_line = "nothing";
  for (const auto& l : a)
    if (!b.count(l)) {
      old_line = l;
      break;
    }
  const std::string key = old_line.substr(0, old_line.find('='));
  for (const auto& l : b)
    if (!a.count(l) && (new_line == "nothing" || l.substr(0, l.find('=')) == key)) new_line = l;
  return old_line + " there, " + new_line + " here";
}

// n images as one picture, dark lines between them, small ones enlarged.
io::Raster sample_grid(const at::Tensor& images, bool centered) {
  at::Tensor x = images.to(at::kCPU, at::kFloat);
  if (centered) x = x * 0.5 + 0.5;
  x = (x.clamp(0, 1) * 255).round().to(at::kByte);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const int64_t columns = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(n))));
  const int64_t rows = (n + columns - 1) / columns,
                zoom = std::max<int64_t>(1, 96 / std::max(h, w)), gap = 2;
  io::Raster out;
  out.channels = c == 3 ? 3 : 1;
  out.width = columns * (w * zoom + gap) - gap;
  out.height = rows * (h * zoom + gap) - gap;
  at::Tensor canvas = at::zeros({out.height, out.width, out.channels}, at::kByte);
  for (int64_t i = 0; i < n; ++i) {
    const at::Tensor tile = x[i].narrow(0, 0, out.channels)
                                .permute({1, 2, 0})
                                .repeat_interleave(zoom, 0)
                                .repeat_interleave(zoom, 1);
    canvas.narrow(0, i / columns * (h * zoom + gap), h * zoom)
        .narrow(1, i % columns * (w * zoom + gap), w * zoom)
        .copy_(tile);
  }
  const uint8_t* p = canvas.data_ptr<uint8_t>();
  out.data.assign(p, p + canvas.numel());
  return out;
}

// The image keys of the network follow the data unless written; written ones must agree.
void follow_data(const Config& net, const Dataset& data) {
  const Shape shape = data.image_shape();
  if (shape.size() != 3 || shape[1] != shape[2])
    net.fail("image_size",
             "the data has images " + to_string(shape) + "; networks take square ones");
  const auto follow = [&](const char* key, auto value, const std::string& text) {
    if (!net.has(key)) {
      const auto node = record_node(value);
      node->used = true;
      Config(net).set(key, node);
    } else if (net.get<decltype(value)>(key) != value) {
      net.fail(key, "the data (" + data.describe() + ") needs " + text);
    }
  };
  follow("image_size", shape[1], std::to_string(shape[1]));
  follow("channels", shape[0], std::to_string(shape[0]));
  const bool centered = data.range() == "centered";
  follow("centered", centered, centered ? "true" : "false");
}

// A network for added-noise processes is fed std(t) and answers with the score itself, of size
// 1/std: unless written, its embedding spans the process's range and its output is divided by the
// label.
void follow_process(const Config& net, const Sde& sde, double t_min) {
  const std::string name = net.get<std::string>("name", "ncsnpp");
  if (sde.prior_std() == 1.0 || (name != "ncsnpp" && name != "ddpm")) return;
  const auto follow = [&](const char* key, auto value) {
    if (net.has(key)) return;
    const auto node = record_node(value);
    node->used = true;
    Config(net).set(key, node);
  };
  follow("embedding_min", sde.std(at::full({1}, t_min, at::kDouble)).item<double>());
  follow("embedding_max", sde.prior_std());
  if (name == "ncsnpp") follow("scale_by_sigma", true);
}

// Lets a stop request through and swallows the rest.
class PreviewObserver final : public Observer {
 public:
  explicit PreviewObserver(const Observer& outer) : outer_(outer) {}
  bool stop_requested() const override { return outer_.stop_requested(); }

 private:
  const Observer& outer_;
};

class Training {
 public:
  Training(const Config& config, const fs::path& folder, Observer& observer);
  Summary run();
  TrainingTrial trial();

 private:
  struct Counters {  // everything besides the optimiser's state that a checkpoint carries
    int64_t step = 0, skipped = 0, bad_in_a_row = 0;
    double seconds = 0, waited = 0, window_loss = 0, window_norm = 0, window_count = 0,
           window_skipped = 0;
    double last_loss = NAN, last_validation = NAN;
  };

  void check();
  bool resume();
  void one_step(TrainingBatch batch);
  void log_window();
  void validate();
  void draw_samples();
  void save_checkpoint();
  void save_model();
  void write_page(const std::string& verdict, report::Level level) const;
  fs::path checkpoint_path() const { return folder_ / "checkpoint.safetensors"; }
  Summary summary(Status status, const std::string& message) const;
  double total_seconds() const { return counters_.seconds + seconds_since(started_); }

  // The weights are their moving average while one of these lives.
  class Averaged {
   public:
    explicit Averaged(Training& t) : t_(t) { swap(); }
    ~Averaged() { swap(); }

   private:
    void swap() {
      t_.adam_->swap_average();
      t_.model_->net().parameters_changed();
    }
    Training& t_;
  };

  const Config config_;
  const fs::path folder_;
  Observer& observer_;
  Session session_;
  uint64_t seed_;
  Rng rng_;
  TrainingOptions options_;
  DsmOptions loss_;
  AdamOptions adam_options_;
  SamplerOptions sampler_;
  Config net_table_, sde_table_;
  std::unique_ptr<Dataset> train_data_, validation_data_;
  std::unique_ptr<NetworkScore> model_;
  std::unique_ptr<FlatAdam> adam_;
  std::unique_ptr<TrainingImages> images_;
  std::unique_ptr<report::MetricsLog> metrics_;
  std::unique_ptr<report::TensorBoardWriter> board_;
  at::Tensor validation_images_;
  std::vector<std::pair<double, double>> curve_, validation_curve_;
  Counters counters_;
  std::string settings_, run_id_;
  int64_t first_step_ = 0;
  double last_step_loss_ = NAN;
  Clock::time_point started_ = Clock::now(), window_start_ = Clock::now();
};

Training::Training(const Config& config, const fs::path& folder, Observer& observer)
    : config_(config),
      folder_(folder),
      observer_(observer),
      session_(make_session(config.table("run"))),
      seed_(config.get<uint64_t>("seed", 0, "seed of every random choice")),
      rng_(Rng(seed_).split("train")) {
  const Config training = config_.table("training");
  options_ = training.read<TrainingOptions>();
  loss_ = training.read<DsmOptions>();
  training.one_of("schedule", adam_options_.schedule, {"constant", "cosine"});
  adam_options_ = training.read<AdamOptions>();
  SamplerOptions preview;
  preview.steps = 500;
  sampler_ = config_.table("sampling").read<SamplerOptions>(preview);

  const Config data = config_.table("data");
  train_data_ = datasets().make(data, "blackhole", "train");
  validation_data_ = datasets().make(data, "blackhole", "valid");

  const Config model = config_.table("model");
  net_table_ = model.has("net") ? model.table("net") : model;
  sde_table_ = model.has("sde") ? model.table("sde") : config_.table("sde");
  follow_data(net_table_, *train_data_);
  auto sde = make_sde(sde_table_);
  if (!(loss_.t_min > 0 && loss_.t_min < 1)) training.fail("t_min", "expected a time in (0,1)");
  follow_process(net_table_, *sde, loss_.t_min);
  auto net = score_nets().make(net_table_, "ncsnpp");
  if (loss_.importance_weighting && !sde->has_importance())
    training.fail("importance_weighting", "exists for vp and subvp, not for " + sde->name());
  check();
  config_.require_all_used();

  net->initialize(rng_.split("init"));
  net->to(session_.dtype, session_.device);
  if (options_.bfloat16) {
    if (session_.dtype != at::kFloat)
      training.fail("bfloat16", "goes with dtype = \"float32\" only");
    net->use_bfloat16_convolutions();
  }
  model_ = std::make_unique<NetworkScore>(std::move(net), std::move(sde), session_.dtype,
                                          session_.device, train_data_->range());
  adam_ = std::make_unique<FlatAdam>(model_->net().parameters());
  model_->net().parameters_changed();
  images_ = std::make_unique<TrainingImages>(*train_data_, options_, rng_.split("data"));
  settings_ = settings_text(config_, adam_options_.schedule == "cosine");
}

void Training::check() {
  const Config t = config_.table("training");
  const auto at_least = [&](const char* key, int64_t value, int64_t least) {
    if (value < least) t.fail(key, "expected at least " + std::to_string(least));
  };
  at_least("steps", options_.steps, 1);
  at_least("batch", options_.batch, 1);
  at_least("accumulate", options_.accumulate, 1);
  at_least("pool", options_.pool, 0);
  at_least("log_every", options_.log_every, 1);
  at_least("validate_every", options_.validate_every, 0);
  at_least("validation_images", options_.validation_images, 1);
  at_least("checkpoint_every", options_.checkpoint_every, 1);
  at_least("sample_every", options_.sample_every, 0);
  at_least("samples", options_.samples, 1);
  at_least("bad_steps", options_.bad_steps, 1);
  at_least("warmup", adam_options_.warmup, 0);
  if (options_.batch % options_.accumulate != 0)
    t.fail("accumulate", "expected a divisor of batch");
  if (!(adam_options_.lr > 0)) t.fail("lr", "expected a positive learning rate");
  if (!(adam_options_.clip >= 0)) t.fail("clip", "expected a norm, or 0 for no clipping");
  if (!(adam_options_.ema_rate >= 0 && adam_options_.ema_rate < 1))
    t.fail("ema_rate", "expected a decay in [0,1)");
}

// True when the folder held a checkpoint of these settings, which is then loaded.
bool Training::resume() {
  io::make_folder(folder_);
  if (!fs::exists(checkpoint_path())) return false;
  const std::string name = checkpoint_path().string();
  io::Safetensors file = io::read_safetensors(checkpoint_path());
  if (!file.metadata.count("settings") || !file.tensors.count("counters"))
    throw DataError(name + ": not a training checkpoint; choose another folder");
  if (file.metadata["settings"] != settings_)
    throw CannotCreateError("the folder " + folder_.string() +
                            " holds a training with other settings (" +
                            settings_difference(file.metadata["settings"], settings_) +
                            "); choose another folder with --out or remove it");
  adam_->load_state(file.tensors, name);
  model_->net().parameters_changed();
  const at::Tensor c = file.tensors.at("counters");
  if (c.numel() != 11 || c.scalar_type() != at::kDouble)
    throw DataError(name + ": damaged counters");
  const double* p = c.data_ptr<double>();
  counters_ = {static_cast<int64_t>(p[0]),
               static_cast<int64_t>(p[1]),
               static_cast<int64_t>(p[2]),
               p[3],
               p[4],
               p[5],
               p[6],
               p[7],
               p[8],
               p[9],
               p[10]};
  const auto read_curve = [&](const char* key, auto& curve) {
    const at::Tensor a =
        file.tensors.count(key) ? file.tensors[key].to(at::kDouble).contiguous() : at::Tensor();
    if (a.defined())
      for (int64_t i = 0; i < a.size(0); ++i)
        curve.emplace_back(a.data_ptr<double>()[2 * i], a.data_ptr<double>()[2 * i + 1]);
  };
  read_curve("curve", curve_);
  read_curve("validation_curve", validation_curve_);
  run_id_ = file.metadata["run_id"];
  return true;
}

void Training::save_checkpoint() {
  counters_.seconds = total_seconds();
  started_ = Clock::now();
  const Counters& c = counters_;
  io::Safetensors file;
  file.tensors = adam_->state();
  file.tensors["counters"] =
      at::tensor({static_cast<double>(c.step), static_cast<double>(c.skipped),
                  static_cast<double>(c.bad_in_a_row), c.seconds, c.waited, c.window_loss,
                  c.window_norm, c.window_count, c.window_skipped, c.last_loss, c.last_validation},
                 at::kDouble);
  const auto put_curve = [&](const char* key, const auto& curve) {
    if (curve.empty()) return;
    at::Tensor a = at::empty({static_cast<int64_t>(curve.size()), 2}, at::kDouble);
    for (size_t i = 0; i < curve.size(); ++i) {
      a.data_ptr<double>()[2 * i] = curve[i].first;
      a.data_ptr<double>()[2 * i + 1] = curve[i].second;
    }
    file.tensors[key] = a;
  };
  put_curve("curve", curve_);
  put_curve("validation_curve", validation_curve_);
  file.metadata = {{"settings", settings_}, {"run_id", run_id_}};
  io::write_safetensors(checkpoint_path(), file);
  save_model();
}

void Training::save_model() {
  ModelFile m;
  m.weights = adam_->average();
  for (const auto& [name, b] : model_->net().buffers()) m.weights[name] = b;
  m.net = net_table_;
  m.sde = sde_table_;
  m.image_shape = model_->event_shape();
  m.range = model_->range();
  m.fov_uas = config_.table("data").maybe<double>("fov_uas").value_or(0);
  const auto put = [&](const char* key, decltype(ConfigNode::value) value) {
    m.record.set(key, record_node(value));
  };
  put("data", train_data_->describe());
  put("seed", static_cast<int64_t>(seed_));
  put("steps", counters_.step);
  put("images_seen", counters_.step * options_.batch);
  put("seconds", counters_.seconds);
  put("loss", counters_.last_loss);
  put("validation_loss", counters_.last_validation);
  put("weights_are", std::string("moving average"));
  put("run_id", run_id_);
  constexpr size_t kPoints =
      100;  // the record's curve is for a picture, metrics.jsonl has all of it
  ConfigArray steps, losses;
  const size_t stride = std::max<size_t>(1, (curve_.size() + kPoints - 1) / kPoints);
  for (size_t i = 0; i < curve_.size(); i += stride) {
    double mean = 0;
    const size_t end = std::min(curve_.size(), i + stride);
    for (size_t j = i; j < end; ++j) mean += curve_[j].second / static_cast<double>(end - i);
    steps.push_back(record_node(static_cast<int64_t>(curve_[end - 1].first)));
    losses.push_back(record_node(mean));
  }
  put("curve_steps", steps);
  put("curve_loss", losses);
  put("config", config_.to_toml());
  write_model_file(folder_ / "model.safetensors", m);
}

void Training::one_step(TrainingBatch batch) {
  const int64_t step = counters_.step, n = options_.batch / options_.accumulate;
  adam_->zero_grad();
  double loss = 0;
  for (int64_t part = 0; part < options_.accumulate; ++part) {
    const int64_t row = part * n;
    const auto rows = [&](const at::Tensor& a) { return a.narrow(0, row, n).to(session_.device); };
    const at::Tensor t =
        dsm_times(model_->sde(), loss_, rng_.split("time").at(step), options_.batch, row, n)
            .to(session_.device, session_.dtype);
    const Rng dropout = rng_.split("dropout").at(step).from_row(row);
    const at::Tensor mean =
        dsm_loss(*model_, loss_, rows(batch.images), t, rows(batch.noise), &dropout).sum() /
        static_cast<double>(options_.batch);
    const double value = mean.item<double>();
    loss += value;
    if (!std::isfinite(value)) break;
    mean.backward();
  }
  FlatAdam::Outcome outcome;
  if (std::isfinite(loss))
    outcome = adam_->step(adam_options_, learning_rate(adam_options_, step, options_.steps));
  if (outcome.applied) {
    model_->net().parameters_changed();
    counters_.window_loss += loss;
    counters_.window_norm += outcome.grad_norm;
    counters_.window_count += 1;
    counters_.bad_in_a_row = 0;
  } else {
    counters_.skipped += 1;
    counters_.window_skipped += 1;
    counters_.bad_in_a_row += 1;
  }
  last_step_loss_ = loss;
  counters_.step += 1;
}

void Training::log_window() {
  Counters& c = counters_;
  const double elapsed = seconds_since(window_start_);
  const double speed =
      static_cast<double>(options_.batch) * (c.window_count + c.window_skipped) / elapsed;
  Metrics m;
  if (c.window_count > 0) {
    c.last_loss = c.window_loss / c.window_count;
    curve_.emplace_back(static_cast<double>(c.step), c.last_loss);
    m = {{"loss", c.last_loss}, {"grad_norm", c.window_norm / c.window_count}};
  }
  m.emplace_back("lr", learning_rate(adam_options_, c.step - 1, options_.steps));
  m.emplace_back("images_per_second", speed);
  m.emplace_back("skipped", c.window_skipped);
  metrics_->append(c.step, m);
  for (const auto& [key, value] : m) board_->scalar("train/" + key, c.step, value);
  board_->flush();
  c.window_loss = c.window_norm = c.window_count = c.window_skipped = 0;
  window_start_ = Clock::now();
}

// The training loss of the averaged weights on the same held-out images, times and noise every
// time.
void Training::validate() {
  const auto pause = Clock::now();
  at::NoGradGuard no_grad;
  const Rng rng = rng_.split("validation");
  if (!validation_images_.defined()) {
    const int64_t n = validation_data_->size() > 0
                          ? std::min(validation_data_->size(), options_.validation_images)
                          : options_.validation_images;
    std::vector<int64_t> indices(n);
    for (int64_t i = 0; i < n; ++i) indices[i] = i;
    validation_images_ = validation_data_->batch(indices, rng.split("augment"));
  }
  DsmOptions spread = loss_;
  spread.stratified_time = true;
  const Averaged averaged(*this);
  const int64_t n = validation_images_.size(0), part = options_.batch / options_.accumulate;
  double sum = 0;
  for (int64_t row = 0; row < n; row += part) {
    const int64_t b = std::min(part, n - row);
    const at::Tensor x = validation_images_.narrow(0, row, b).to(session_.device, session_.dtype);
    const at::Tensor z =
        rng.split("noise").from_row(row).normal(x.sizes(), session_.dtype).to(session_.device);
    const at::Tensor t = dsm_times(model_->sde(), spread, rng.split("time"), n, row, b)
                             .to(session_.device, session_.dtype);
    sum += dsm_loss(*model_, loss_, x, t, z).sum().item<double>();
  }
  counters_.last_validation = sum / static_cast<double>(n);
  validation_curve_.emplace_back(static_cast<double>(counters_.step), counters_.last_validation);
  metrics_->append(counters_.step, {{"validation_loss", counters_.last_validation}});
  board_->scalar("validation/loss", counters_.step, counters_.last_validation);
  window_start_ += Clock::now() - pause;
}

void Training::draw_samples() {
  const auto pause = Clock::now();
  at::NoGradGuard no_grad;
  const Averaged averaged(*this);
  PreviewObserver quiet(observer_);
  const at::Tensor x =
      sample_score_model(*model_, sampler_, options_.samples, rng_.split("samples"), quiet)
          .detach();
  window_start_ += Clock::now() - pause;
  if (x.size(0) < options_.samples) return;  // asked to stop meanwhile
  io::make_folder(folder_ / "samples");
  char name[40];
  std::snprintf(name, sizeof name, "step_%07lld", static_cast<long long>(counters_.step));
  io::write_npy(folder_ / "samples" / (std::string(name) + ".npy"), x.to(at::kCPU));
  const io::Raster grid = sample_grid(x, model_->range() == "centered");
  io::write_png(folder_ / "samples" / (std::string(name) + ".png"), grid);
  board_->image("samples", counters_.step, grid);
  observer_.note(std::to_string(options_.samples) + " samples of step " +
                 std::to_string(counters_.step) + " are in " +
                 (folder_ / "samples" / (std::string(name) + ".png")).string());
}

// report.html of the state the checkpoint holds; the grids are those on disk, so that a resumed
// training shows the ones before it too.
void Training::write_page(const std::string& verdict, report::Level level) const {
  report::TrainReport r;
  r.subtitle = train_data_->describe();
  r.statements.push_back({level, verdict});
  if (counters_.skipped > 0)
    r.statements.push_back({report::Level::kWarning,
                            std::to_string(counters_.skipped) +
                                " steps had a non-finite loss or gradient and were left out."});

  const auto line = [](const std::string& name, const auto& curve) {
    at::Tensor x = at::empty({static_cast<int64_t>(curve.size())}, at::kDouble), y = x.clone();
    for (size_t i = 0; i < curve.size(); ++i) {
      x.data_ptr<double>()[i] = curve[i].first;
      y.data_ptr<double>()[i] = curve[i].second;
    }
    report::Curve c;
    c.title = name;
    c.y_label = "Loss per image";
    c.x = x;
    c.lines = {{name, y}};
    c.log_y = curve.size() > 0 && y.min().item<double>() > 0;
    return c;
  };
  if (curve_.size() > 1) r.histories.push_back(line("Training loss", curve_));
  if (validation_curve_.size() > 1)
    r.histories.push_back(line("Validation loss of the averaged weights", validation_curve_));

  std::vector<std::pair<int64_t, fs::path>> grids;
  if (fs::is_directory(folder_ / "samples"))
    for (const auto& entry : fs::directory_iterator(folder_ / "samples")) {
      const std::string stem = entry.path().stem().string();
      if (entry.path().extension() != ".npy" || stem.rfind("step_", 0) != 0) continue;
      const int64_t step = std::atoll(stem.c_str() + 5);
      if (step <= counters_.step) grids.emplace_back(step, entry.path());  // later ones are undone
    }
  std::sort(grids.begin(), grids.end());
  constexpr size_t kGrids = 6;  // evenly over the training, the last one always
  const size_t shown = std::min(kGrids, grids.size());
  for (size_t k = 0; k < shown; ++k) {
    const auto& [step, file] =
        grids[shown == 1 ? grids.size() - 1 : k * (grids.size() - 1) / (shown - 1)];
    r.samples.emplace_back("step " + std::to_string(step), io::read_npy(file));
  }
  // The scale of real images, one for all grids: a sky fills little of the range.
  r.scale = {model_->range() == "centered" ? -1.0 : 0.0,
             validation_images_.defined() ? validation_images_.max().item<double>() : 1.0};
  if (config_.table("data").maybe<double>("fov_uas").value_or(0) > 0)
    r.colormap = report::Colormap::kAfmhot;

  const auto number = [](double v) {
    std::ostringstream s;
    s << v;
    return s.str();
  };
  const double images = static_cast<double>(counters_.step * options_.batch),
               seconds = std::max(total_seconds(), 1e-9);
  report::Table t;
  t.title = "Training";
  t.columns = {"Quantity", "Value"};
  t.rows = {{"steps", std::to_string(counters_.step) + " of " + std::to_string(options_.steps)},
            {"images", std::to_string(counters_.step * options_.batch)},
            {"time [s]", number(seconds)},
            {"images per second", number(images / seconds)},
            {"loss", number(counters_.last_loss)},
            {"validation loss", number(counters_.last_validation)},
            {"time waiting for data", number(100 * counters_.waited / seconds) + " %"}};
  r.tables.push_back(t);
  r.facts = {{"run", run_id_},
             {"seed", std::to_string(seed_)},
             {"network", net_table_.get<std::string>("name", "ncsnpp") + ", " +
                             std::to_string(adam_->size()) + " parameters, images " +
                             to_string(model_->event_shape()) + ", " + model_->range() + " pixels"},
             {"process", model_->sde().name()}};
  r.settings = config_.to_toml();
  report::write_train_report(r, folder_);
}

Summary Training::summary(Status status, const std::string& message) const {
  const double images = static_cast<double>(counters_.step * options_.batch);
  Summary s;
  s.status = status;
  s.message = message;
  s.numbers = {
      {"steps", static_cast<double>(counters_.step)},
      {"images", images},
      {"seconds", counters_.seconds},
      {"images_per_second", counters_.seconds > 0 ? images / counters_.seconds : 0},
      {"loss", counters_.last_loss},
      {"validation_loss", counters_.last_validation},
      {"skipped_steps", static_cast<double>(counters_.skipped)},
      {"data_wait_share", counters_.seconds > 0 ? counters_.waited / counters_.seconds : 0},
      {"parameters", static_cast<double>(adam_->size())}};
  return s;
}

Summary Training::run() {
  const bool resumed = resume();
  first_step_ = counters_.step;
  if (run_id_.empty()) {
    std::ostringstream id;
    id << std::hex
       << Rng(seed_).at(std::chrono::system_clock::now().time_since_epoch().count()).key();
    run_id_ = id.str();
  }
  io::write_text(folder_ / "config.toml", config_.to_toml());
  metrics_ = std::make_unique<report::MetricsLog>(folder_ / "metrics.jsonl",
                                                  resumed ? counters_.step : -1);
  board_ = std::make_unique<report::TensorBoardWriter>(folder_ / "tensorboard",
                                                       resumed ? counters_.step + 1 : -1);
  const int64_t total = options_.steps;
  observer_.note(train_data_->describe() + "; network of " + std::to_string(adam_->size()) +
                 " parameters on " + to_string(model_->event_shape()) + ", " + model_->range() +
                 " pixels, " + model_->sde().name());
  if (resumed)
    observer_.note("resumed at step " + std::to_string(first_step_) + " of " +
                   std::to_string(total));
  if (first_step_ >= total) {
    save_model();
    started_ = Clock::now();
    write_page("Trained for " + std::to_string(first_step_) + " steps.", report::Level::kGood);
    return summary(Status::kConverged,
                   "already trained for " + std::to_string(first_step_) + " steps");
  }

  Status status = Status::kConverged;
  std::string message = "trained for " + std::to_string(total) + " steps";
  const double waited_before = counters_.waited;
  double speed = 0;
  started_ = window_start_ = Clock::now();
  observer_.begin("training", total, "steps");
  {
    Prefetcher ahead(*images_, rng_, session_.dtype, first_step_, total);
    while (counters_.step < total) {
      const auto step_start = Clock::now();
      one_step(ahead.next());
      counters_.waited = waited_before + ahead.seconds_waited();
      const int64_t done = counters_.step;
      const double pace = static_cast<double>(options_.batch) / seconds_since(step_start);
      speed = speed > 0 ? 0.9 * speed + 0.1 * pace : pace;
      const bool bad = counters_.bad_in_a_row >= options_.bad_steps;
      const bool stop = observer_.stop_requested(), last = done == total || bad || stop;
      if (done % options_.log_every == 0 || done == total || bad) log_window();
      const auto due = [&](int64_t every) {
        return every > 0 && (done % every == 0 || done == total);
      };
      if (due(options_.validate_every)) validate();
      if (due(options_.sample_every) && !bad) draw_samples();
      if (last || done % options_.checkpoint_every == 0) save_checkpoint();
      if (!last && (due(options_.validate_every) || due(options_.sample_every))) {
        const auto pause = Clock::now();
        write_page("Step " + std::to_string(done) + " of " + std::to_string(total) +
                       "; the training goes on.",
                   report::Level::kNeutral);
        window_start_ += Clock::now() - pause;
      }
      Metrics shown = {{"loss", last_step_loss_}, {"images/s", speed}};
      if (std::isfinite(counters_.last_validation))
        shown.emplace_back("valid", counters_.last_validation);
      observer_.step(done, shown);
      if (bad) {
        status = Status::kDiverged;
        message = "stopped at step " + std::to_string(done) + ": " +
                  std::to_string(counters_.bad_in_a_row) +
                  " steps in a row had a non-finite loss or gradient; a smaller lr or more warm-up "
                  "may help, and the "
                  "data should be checked for values that are not finite";
        break;
      }
      if (stop && done < total) {
        status = Status::kInterrupted;
        message = "stopped at step " + std::to_string(done) + " of " + std::to_string(total) +
                  "; the same command goes on from there";
        break;
      }
    }
  }
  observer_.end();
  std::string verdict = message + ".";
  verdict[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(verdict[0])));
  write_page(verdict, status == Status::kConverged  ? report::Level::kGood
                      : status == Status::kDiverged ? report::Level::kBad
                                                    : report::Level::kNeutral);
  Summary s = summary(status, message);
  std::ostringstream told;
  told << message << "; loss " << counters_.last_loss << ", validation "
       << counters_.last_validation << ", " << s.numbers["images_per_second"] << " images/s, "
       << 100 * s.numbers["data_wait_share"] << " % of the time waiting for data";
  if (counters_.skipped > 0) told << ", " << counters_.skipped << " steps skipped (non-finite)";
  observer_.note(told.str());
  return s;
}

TrainingTrial Training::trial() {
  TrainingTrial t;
  t.options = options_;
  t.sampler = sampler_;
  t.data = train_data_->describe();
  t.range = train_data_->range();
  t.process = model_->sde().name();
  t.image_shape = model_->event_shape();
  t.training_images = train_data_->size();
  t.validation_images = validation_data_->size();
  t.parameters = adam_->size();
  const auto timed = [](const auto& work) {
    const auto start = Clock::now();
    work();
    return seconds_since(start);
  };
  const at::Tensor held_out = validation_data_->batch({0}, rng_.split("validation"));
  t.lowest = held_out.min().item<double>();
  t.highest = held_out.max().item<double>();
  constexpr int64_t kSteps = 3;  // the first one also allocates and fills caches
  observer_.begin("first steps", kSteps, "steps");
  for (int64_t step = 0; step < kSteps; ++step) {
    TrainingBatch batch;
    t.read_seconds = timed([&] { batch = batch_of_step(*images_, rng_, session_.dtype, step); });
    t.lowest = std::min(t.lowest, batch.images.min().item<double>());
    t.highest = std::max(t.highest, batch.images.max().item<double>());
    const auto work = [&] { one_step(batch); };
    if (step == 1)  // what stands beside the measured time is not part of it
      t.step_bytes = peak_allocation(work);
    else
      t.step_seconds = timed(work);
    if (step == 0) {
      t.loss = last_step_loss_;
      t.grad_norm = counters_.window_count > 0 ? counters_.window_norm : NAN;
      const int64_t n = std::min<int64_t>(batch.images.size(0), 8);
      const at::Tensor x = batch.images.narrow(0, 0, n).to(session_.device);
      const at::Tensor time = at::full({n}, 0.5, x.options());
      at::NoGradGuard no_grad;
      model_->score(x, time);
      t.forward_seconds = timed([&] { model_->score(x, time); }) / static_cast<double>(n);
    }
    observer_.step(step + 1, {{"loss", last_step_loss_}});
  }
  observer_.end();
  return t;
}

}  // namespace

TrainingTrial try_training(const Config& config, Observer& observer) {
  return Training(config, {}, observer).trial();
}

Summary train(const Config& config, const fs::path& folder, Observer& observer) {
  return Training(config, folder, observer).run();
}

}  // namespace scoreprior
