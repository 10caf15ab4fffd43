#include "scoreprior/pipeline/logp.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/data/transforms.h"
#include "scoreprior/diffusion/elbo.h"
#include "scoreprior/diffusion/path_estimator.h"
#include "scoreprior/diffusion/probability_flow.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/png.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct LogpImageOptions {
  std::string array;
  double scale = 1, total_flux = 0;
  bool resize = false, dequantize = false, perturb = false, check_range = true;
  std::string split = "test";
  int64_t first = 0, count = 0, batch = 16;
  template <class F>
  void fields(F&& f) {
    f("array", array, "name inside an .npz; may be left out when there is only one");
    f("scale", scale, "factor on pixels that are not 8-bit");
    f("total_flux", total_flux, "scale every image to this sum of pixels; 0 = leave it");
    f("resize", resize, "crop to a square and resize to the model's size instead of refusing");
    f("dequantize", dequantize, "8-bit pixels: x = (level + u)/256 with u uniform in [0,1)");
    f("perturb", perturb,
      "ode, path: x(t0) = alpha(t0) x + std(t0) n, seeded: clean images are no draws of p_t0");
    f("check_range", check_range, "refuse pixels far outside the range the model was trained on");
    f("split", split, "of a data set: train | valid | test");
    f("first", first, "first image taken");
    f("count", count, "images taken; 0 = all of a file, 16 of a generated set");
    f("batch", batch, "images evaluated together");
  }
};

struct LogpOdeOptions : ProbabilityFlowOptions {
  LogpOdeOptions() {
    n_probes = 4;
    colours = 0;
    solver_error = "second";
  }
  // Colours cost nothing and take most of the probes' spread away; the standard error needs sets.
  void choose_colours() {
    if (colours != 0) return;
    const int64_t sets = n_probes >= 8 ? 4 : 2;
    colours = n_probes >= 4 && n_probes % sets == 0 ? n_probes / sets : 1;
  }
  // No gradient is computed here.
  template <class F>
  void fields(F&& f) {
    value_fields(f);
  }
};

struct LogpElboOptions : ElboOptions {
  int64_t replicates = 8;
  LogpElboOptions() { n_times = 32; }
  template <class F>
  void fields(F&& f) {
    ElboOptions::fields(f);
    f("replicates", replicates, "independent estimates, whose spread gives the standard error");
  }
};

std::string logp_number(double v) {
  std::ostringstream s;
  s << std::setprecision(6) << v;
  return s.str();
}

std::string shape_of(const at::Tensor& a) { return to_string(a.sizes().vec()); }

// ---- the model ----

// A model file or law of its own, or the score model inside the [prior] of a run configuration.
Config score_table(const Config& config) {
  if (config.has("score")) return config.table("score");
  if (!config.has("prior"))
    config.fail("", "expected a table [score] or [prior.score] that names the score model");
  const Config prior = config.table("prior");
  prior.mark_used();
  if (prior.has("score")) return prior.table("score");
  for (const char* part : {"score_elbo", "score_ode"})
    if (prior.is_table(part) && prior.table(part).has("score"))
      return prior.table(part).table("score");
  prior.fail("", "[prior] has no score model: log p needs [prior.score]");
}

// Tables of a run configuration that are not this command's to judge.
void accept_run_tables(const Config& config) {
  config.maybe<std::string>("title");
  config.maybe<uint64_t>("seed");
  for (const char* other : {"run", "forward", "likelihood", "infer", "image", "truth", "observe"})
    if (config.is_table(other)) config.table(other).mark_used();
}

// ---- the images ----

struct LogpImages {
  at::Tensor x;  // [N,C,H,W] float64, in the model's range
  std::string what;
  std::vector<std::string> names;
  bool bytes = false;
};

at::Tensor stacked_images(const at::Tensor& a, const Shape& shape, const std::string& what) {
  const int64_t c = shape[0], h = shape[1], w = shape[2];
  const auto ends = [&](const Shape& tail) {
    const Shape have = a.sizes().vec();
    return have.size() >= tail.size() && std::equal(tail.rbegin(), tail.rend(), have.rbegin());
  };
  if (a.dim() == 4 && ends({c, h, w})) return a;
  if (a.dim() == 3 && ends({c, h, w})) return a.unsqueeze(0);
  if (a.dim() == 4 && ends({h, w, c})) return a.permute({0, 3, 1, 2});
  if (c == 1 && a.dim() == 3 && ends({h, w})) return a.unsqueeze(1);
  if (c == 1 && a.dim() == 2 && ends({h, w})) return a.unsqueeze(0).unsqueeze(0);
  throw DataError(what + ": an array " + shape_of(a) + ", expected images [N," +
                  to_string(shape).substr(1) + " as the model's");
}

// One picture [C,H,W] of any size to the model's channels and size.
at::Tensor fitted_image(const at::Tensor& image, const Shape& shape, bool resize,
                        const std::string& what) {
  const at::Tensor x = to_channels(image, shape[0]);
  if (x.sizes().vec() == shape) return x;
  if (!resize)
    throw DataError(detail::concat(what, ": ", image.size(1), " x ", image.size(2),
                                   " pixels, the model is for ", shape[1], " x ", shape[2],
                                   "; images.resize=true crops and resizes"));
  return resize_image(centre_square(x), shape[1], /*antialias=*/true);
}

at::Tensor read_picture(const fs::path& file, const LogpImageOptions& o, const Shape& shape,
                        bool* bytes) {
  if (file.extension() == ".png") {
    io::Raster raster = io::read_png(file);
    *bytes = true;
    const at::Tensor pixels =
        at::from_blob(raster.data.data(), {raster.height, raster.width, raster.channels}, at::kByte)
            .permute({2, 0, 1})
            .to(at::kDouble) /
        255;
    return fitted_image(pixels, shape, o.resize, file.string());
  }
  if (shape[0] != 1)
    throw DataError(file.string() + ": a sky image has one channel, the model has " +
                    std::to_string(shape[0]));
  return fitted_image(io::read_fits_image(file).pixels.unsqueeze(0) * o.scale, shape, o.resize,
                      file.string());
}

void take_some(LogpImages& images, const LogpImageOptions& o) {
  const int64_t n = images.x.size(0);
  if (n == 0) throw DataError(images.what + " holds no image");
  if (o.first >= n)
    throw UsageError(
        detail::concat("images.first=", o.first, ", but ", images.what, " holds ", n, " image(s)"));
  const int64_t last = o.count > 0 ? std::min(n, o.first + o.count) : n;
  images.x = images.x.slice(0, o.first, last);
  images.names = {images.names.begin() + o.first, images.names.begin() + last};
}

LogpImages stored_images(const fs::path& path, const LogpImageOptions& o, const Shape& shape) {
  LogpImages out;
  out.what = path.string();
  const std::string kind = path.extension();
  std::error_code ec;
  if (kind == ".npy" || kind == ".npz") {
    at::Tensor a;
    if (kind == ".npy") {
      a = io::read_npy(path);
    } else {
      const io::Arrays arrays = io::read_npz(path);
      const auto found =
          o.array.empty() && arrays.size() == 1 ? arrays.begin() : arrays.find(o.array);
      std::string names;
      for (const auto& [name, value] : arrays) names += (names.empty() ? "" : ", ") + name;
      if (found == arrays.end())
        throw DataError(out.what + ": " +
                        (o.array.empty() ? "several arrays, name one by images.array="
                                         : "no array \"" + o.array + "\"") +
                        " (it holds " + names + ")");
      a = found->second;
    }
    if (a.is_complex()) throw DataError(out.what + ": complex pixels");
    out.bytes = a.scalar_type() == at::kByte;
    at::Tensor x;
    if (o.resize && a.dim() >= 3) {
      const at::Tensor stack = a.dim() == 3 ? a.unsqueeze(1) : a;
      std::vector<at::Tensor> rows;
      for (int64_t i = 0; i < stack.size(0); ++i)
        rows.push_back(fitted_image(stack[i].to(at::kDouble), shape, true, out.what));
      x = rows.empty() ? at::empty(batched(0, shape), at::kDouble) : at::stack(rows);
    } else {
      x = stacked_images(a, shape, out.what).to(at::kDouble);
    }
    out.x = out.bytes ? x / 255 : x * o.scale;
    for (int64_t i = 0; i < out.x.size(0); ++i) out.names.push_back(std::to_string(i));
  } else if (kind == ".png" || kind == ".fits" || kind == ".fit" || fs::is_directory(path, ec)) {
    std::vector<fs::path> files{path};
    if (fs::is_directory(path, ec))
      files = list_files(path, {".png", ".fits", ".fit"}, "all").files;
    std::vector<at::Tensor> rows;
    for (const auto& file : files) {
      io::require_file(file, "image");
      rows.push_back(read_picture(file, o, shape, &out.bytes));
      out.names.push_back(files.size() == 1 ? file.filename().string()
                                            : file.lexically_relative(path).string());
    }
    out.x = at::stack(rows);
  } else {
    throw UsageError("unknown kind of images \"" + path.string() +
                     "\": .npy, .npz, .png, .fits, a folder of pictures, or a data set's name");
  }
  take_some(out, o);
  return out;
}

LogpImages generated_images(const Config& config, const std::string& name,
                            const LogpImageOptions& o, const Shape& shape) {
  if (!config.has("data.image_size")) {
    auto node = std::make_shared<ConfigNode>();
    node->value = shape[1];
    Config(config).set("data.image_size", node);
    config.table("data").maybe<int64_t>("image_size");  // sets of one size have no such key
  }
  auto node = std::make_shared<ConfigNode>();
  node->value = name;
  Config(config).set("data.name", node);
  const auto set = datasets().make(config.table("data"), name, o.split);
  if (set->image_shape() != shape)
    throw DataError("the data set " + name + " has images " + to_string(set->image_shape()) +
                    ", the model is for " + to_string(shape));
  const int64_t count = o.count > 0 ? o.count : set->size() > 0 ? set->size() : 16;
  if (set->size() > 0 && o.first + count > set->size())
    throw UsageError(detail::concat("the ", o.split, " split has ", set->size(), " images"));
  std::vector<int64_t> indices;
  LogpImages out;
  for (int64_t i = o.first; i < o.first + count; ++i) {
    indices.push_back(i);
    out.names.push_back(std::to_string(i));
  }
  out.x = set->batch(indices, Rng(0)).to(at::kDouble);
  out.what = set->describe();
  if (set->range() == "centered") out.x = 0.5 * (out.x + 1);
  return out;
}

void check_pixels(const LogpImages& images, const std::string& range, bool check_range) {
  for (int64_t i = 0; i < images.x.size(0); ++i)
    if (!at::isfinite(images.x[i]).all().item<bool>())
      throw DataError(images.what + ": image " + images.names[i] +
                      " has pixels that are not finite");
  if (range.empty() || !check_range) return;
  // Noise and other images a prior may be asked about leave the range, but not by its whole width.
  const bool centered = range == "centered";
  const double low = centered ? -2.5 : -0.8, high = centered ? 2.5 : 1.8;
  const double least = images.x.min().item<double>(), most = images.x.max().item<double>();
  if (least < low || most > high)
    throw DataError(images.what + ": pixels from " + logp_number(least) + " to " +
                    logp_number(most) + ", the model's images are in " +
                    (centered ? "[-1,1]" : "[0,1]") +
                    "; set images.scale, or images.check_range=false to go on");
}

LogpImages load_logp_images(const Config& config, const std::string& name, const Shape& shape,
                            const std::string& range, const Rng& rng, bool* dequantized) {
  const Config table = config.table("images");
  const auto o = table.read<LogpImageOptions>();
  table.one_of("split", o.split, {"train", "valid", "test"});
  if (o.first < 0) table.fail("first", "first must be at least 0");
  if (o.count < 0) table.fail("count", "count must be at least 0");
  if (o.batch < 1) table.fail("batch", "batch must be at least 1");
  if (o.total_flux < 0) table.fail("total_flux", "total_flux must be at least 0");
  if (shape.size() != 3)
    throw DataError("the model is for arrays " + to_string(shape) + ", not for images [C,H,W]");
  const auto known = datasets().names();
  const bool generated =
      std::find(known.begin(), known.end(), name) != known.end() && !fs::exists(name);
  LogpImages images =
      generated ? generated_images(config, name, o, shape) : stored_images(name, o, shape);
  if (!generated && config.is_table("data")) config.table("data").mark_used();
  if (o.dequantize && !images.bytes)
    throw UsageError("images.dequantize=true is for 8-bit pixels; " + images.what + " has others");
  check_pixels(images, images.bytes || generated ? "" : range, o.check_range);
  if (o.dequantize)
    images.x =
        (images.x * 255 + rng.split("dequantization").uniform(images.x.sizes(), at::kDouble)) / 256;
  if (o.total_flux > 0) {
    const at::Tensor sum = images.x.sum({1, 2, 3}, true);
    if (!(sum.min().item<double>() > 0))
      throw DataError(images.what + ": an image without light cannot be scaled to a flux");
    images.x = images.x * (o.total_flux / sum);
  }
  // Bytes and generated sets are in [0,1] here; arrays come in the model's own range.
  if (range == "centered" && (images.bytes || generated)) images.x = 2 * images.x - 1;
  *dequantized = o.dequantize;
  return images;
}

// ---- the methods ----

struct LogpPart {
  at::Tensor log_prob, random_error, step_error, evaluations, error_evaluations;
  std::string message, note;
};
struct LogpWay {
  std::string name, settings;
  double t0;          // where the evaluation begins
  double density_t0;  // the density is the one at this time
  std::function<LogpPart(const at::Tensor& x, const Rng&)> evaluate;
};

std::string words(std::initializer_list<std::pair<const char*, double>> facts) {
  std::string s;
  for (const auto& [name, value] : facts)
    s += (s.empty() ? "" : ", ") + logp_number(value) + " " + name;
  return s;
}

LogpPart ode_part(const ScoreModel& model, const ProbabilityFlowOptions& o, const at::Tensor& x,
                  const Rng& rng) {
  const at::Tensor probes = draw_probes(model, o, x.size(0), rng);
  const ProbabilityFlow flow = probability_flow_log_prob(model, o, x, probes, false);
  LogpPart p;
  p.log_prob = flow.log_prob;
  p.random_error = flow.standard_error;
  p.step_error = flow.solver_error;
  p.evaluations = at::tensor(flow.evaluations, at::kLong);
  if (!flow.second_evaluations.empty())
    p.error_evaluations = at::tensor(flow.second_evaluations, at::kLong);
  p.message = flow.failure;
  const auto& n = flow.summary.numbers;
  if (flow.summary.message.find("max_memory_mib") != std::string::npos)
    p.note = detail::concat("ode: ", x.size(0), " images at a time, in ", n.at("pieces"),
                            " pieces of up to ", n.at("piece_images"),
                            " to fit into the memory (ode.max_memory_mib)");
  return p;
}

const char* const kNotFinite = "the value is not finite";

bool all_finite(const at::Tensor& a) { return at::isfinite(a).all().item<bool>(); }

LogpPart elbo_part(const ScoreModel& model, const LogpElboOptions& o, const at::Tensor& x,
                   const Rng& rng) {
  const at::NoGradGuard off;
  std::vector<at::Tensor> values;
  for (int64_t r = 0; r < o.replicates; ++r)
    values.push_back(
        elbo(model, o, x, draw_elbo(model, o, x.size(0), rng.at(r))).value().to(at::kDouble));
  const at::Tensor all = at::stack(values);
  LogpPart p;
  p.log_prob = all.mean(0);
  if (!all_finite(p.log_prob)) p.message = kNotFinite;
  p.random_error = o.replicates > 1
                       ? all.std(0, true) / std::sqrt(static_cast<double>(o.replicates))
                       : at::full_like(p.log_prob, std::nan(""));
  p.evaluations = at::full({x.size(0)}, o.replicates * (o.n_times + (o.offset ? 1 : 0)), at::kLong);
  return p;
}

LogpPart path_part(const ScoreModel& model, const PathOptions& o, const at::Tensor& x,
                   const Rng& rng) {
  const PathEstimate e = path_log_prob(model, o, x, rng);
  LogpPart p;
  p.log_prob = e.log_prob;
  if (!all_finite(p.log_prob)) p.message = kNotFinite;
  p.random_error = e.standard_error;
  p.step_error = e.step_error.abs();
  p.evaluations = at::full({x.size(0)}, e.evaluations, at::kLong);
  return p;
}

std::vector<LogpWay> logp_ways(const Config& config, const std::string& method,
                               const ScoreModel& model) {
  // The options of a run's own prior hold here too.
  const Config prior = config.table("prior");
  const auto options = [&](const char* table, const char* prior_name) {
    const bool own = !config.has(table) && prior.is_string("name") &&
                     prior.get<std::string>("name") == prior_name;
    return own ? prior : config.table(table);
  };
  std::vector<LogpWay> ways;
  {
    const Config table = options("ode", "score_ode");
    auto o = table.read<LogpOdeOptions>();
    o.choose_colours();
    check_value_options(table, o);
    ways.push_back(
        {"ode",
         o.solver + ", " +
             (o.steps > 0 ? words({{"equal steps", static_cast<double>(o.steps)}})
                          : "rtol " + logp_number(o.rtol) + ", atol " + logp_number(o.atol)) +
             ", " +
             (o.trace == "exact"
                  ? "exact trace"
                  : words({{"probes", static_cast<double>(o.n_probes)}}) + " (" + o.trace +
                        (o.colours > 1 ? ", " + std::to_string(o.colours) + " colours" : "") + ")"),
         o.t0, o.t0,
         [&model, o](const at::Tensor& x, const Rng& rng) { return ode_part(model, o, x, rng); }});
  }
  {
    const Config table = options("elbo", "score_elbo");
    const auto o = table.read<LogpElboOptions>();
    check_options(table, o);
    if (o.replicates < 1) table.fail("replicates", "replicates must be at least 1");
    ways.push_back({"elbo",
                    words({{"replicates", static_cast<double>(o.replicates)},
                           {"times each", static_cast<double>(o.n_times)}}) +
                        (o.offset ? ", down to t = 0" : ", from t0"),
                    o.t0, o.offset ? 0.0 : o.t0, [&model, o](const at::Tensor& x, const Rng& rng) {
                      return elbo_part(model, o, x, rng);
                    }});
  }
  {
    const Config table = config.table("path");
    const auto o = table.read<PathOptions>();
    check_options(table, o);
    ways.push_back({"path",
                    words({{"paths", static_cast<double>(o.paths)},
                           {"steps each", static_cast<double>(o.steps)}}) +
                        (o.extrapolate ? ", extrapolated" : ""),
                    o.t0, o.t0, [&model, o](const at::Tensor& x, const Rng& rng) {
                      return path_part(model, o, x, rng);
                    }});
  }
  if (method != "all")
    ways.erase(std::remove_if(ways.begin(), ways.end(),
                              [&](const LogpWay& w) { return w.name != method; }),
               ways.end());
  if (ways.empty()) throw UsageError("unknown method \"" + method + "\": ode, elbo, path or all");
  return ways;
}

at::Tensor at_time(const Sde& sde, double time, const at::Tensor& x, const Rng& rng) {
  const at::Tensor t = at::full({1}, time, x.options());
  return x * sde.mean_coeff(t) + sde.std(t) * rng.normal(x.sizes(), x.scalar_type()).to(x.device());
}

at::Tensor joined(const std::vector<at::Tensor>& parts) {
  if (parts.empty() || !parts[0].defined()) return {};
  std::vector<at::Tensor> on_cpu;
  for (const auto& p : parts)
    on_cpu.push_back(p.to(at::kCPU, p.is_floating_point() ? at::kDouble : at::kLong));
  return at::cat(on_cpu);
}

// ---- the table ----

// Over the finite ones; NaN without any.
double mean_of(const at::Tensor& a) {
  const at::Tensor d = a.to(at::kDouble);
  return d.masked_select(at::isfinite(d)).mean().item<double>();
}

std::string cell(double v, int width, int digits) {
  std::ostringstream s;
  if (!std::isfinite(v))
    s << "-";
  else if (v != 0 && (std::abs(v) >= 1e7 || std::abs(v) < 0.5 * std::pow(10.0, -digits)))
    s << std::scientific << std::setprecision(1) << v;
  else
    s << std::fixed << std::setprecision(digits) << v;
  const std::string text = s.str();
  return std::string(std::max<int>(1, width - static_cast<int>(text.size())), ' ') + text;
}

const LogpColumn* column_of(const LogpResult& r, const char* method) {
  for (const auto& c : r.columns)
    if (c.method == method) return &c;
  return nullptr;
}

// Bits per dimension that 8-bit levels of width 1/256 of the unit range add to those of x.
double level_bits(const LogpResult& r, double levels) {
  return std::log2(levels) - (r.range == "centered" ? 1 : 0);
}

double bits_per_dim(const LogpResult& r, double log_prob) {
  return -log_prob / (static_cast<double>(numel(r.shape)) * M_LN2);
}

void append_table(const LogpResult& r, std::ostringstream& s) {
  const LogpColumn* ode = column_of(r, "ode");
  size_t width = 5;
  for (const auto& n : r.names) width = std::max(width, std::min<size_t>(n.size(), 40));
  const auto left = [&](std::string text) {
    if (text.size() > 40) text = "..." + text.substr(text.size() - 37);
    return text + std::string(width - text.size(), ' ');
  };
  const auto right = [](const std::string& text, size_t w) {
    return std::string(w > text.size() ? w - text.size() : 0, ' ') + text;
  };
  const auto gapped = [&](const LogpColumn& c) { return ode && &c != ode; };
  s << left("image");
  for (const auto& c : r.columns) {
    s << "  " << right(c.method == "elbo" ? "ELBO" : "log p " + c.method, 12)
      << right(c.method == "ode" ? "+- probes" : "+- s.e.", 11);
    if (c.step_error.defined()) s << right(c.method == "ode" ? "+- solver" : "+- steps", 11);
    s << right("bits/dim", 10);
    if (gapped(c)) s << right("gap", 10);
  }
  s << "\n";
  using Pick = std::function<double(const at::Tensor&)>;
  const auto row = [&](const std::string& name, const Pick& at, bool errors) {
    s << left(name);
    for (const auto& c : r.columns) {
      s << "  " << cell(at(c.log_prob), 12, 2)
        << (errors ? cell(at(c.random_error), 11, 3) : std::string(11, ' '));
      if (c.step_error.defined())
        s << (errors ? cell(at(c.step_error), 11, 3) : std::string(11, ' '));
      s << cell(bits_per_dim(r, at(c.log_prob)), 10, 4);
      if (gapped(c)) s << cell(at(ode->log_prob - c.log_prob), 10, 2);
    }
    s << "\n";
  };
  for (size_t i = 0; i < r.names.size(); ++i)
    row(
        r.names[i],
        [i](const at::Tensor& a) { return a[static_cast<int64_t>(i)].item().toDouble(); }, true);
  if (r.names.size() > 1) row("mean", mean_of, false);
}

std::string failure_of(const LogpColumn& c) {
  const int64_t failed = c.failed(), n = c.log_prob.size(0);
  if (failed == 0) return "";
  return detail::concat(c.method, ": no value for ", failed, " of ", n, " images",
                        failed < n ? ", left out of the means" : "", c.message.empty() ? "" : ": ",
                        c.message);
}

// What the numbers of a method are the density of.
std::string meaning(const LogpColumn& c) {
  if (c.t0 == 0) return "bounds log p at t = 0";
  return std::string(c.method == "elbo" ? "bounds log p from" : "log p at") +
         " t0 = " + logp_number(c.t0) + ", where the noise is " + logp_number(c.noise);
}

}  // namespace

LogpResult log_densities(const Config& config, const std::string& images, const std::string& method,
                         uint64_t seed, const Session& session, Observer& observer) {
  const Rng rng = Rng(seed).split("logp");
  const Config score = score_table(config);
  const auto model = make_score_model(score, session.dtype, session.device);
  const auto ways = logp_ways(config, method, *model);
  LogpResult out;
  const LogpImages in =
      load_logp_images(config, images, model->event_shape(), model->range(), rng, &out.dequantized);
  accept_run_tables(config);
  config.require_all_used();

  out.shape = model->event_shape();
  out.range = model->range();
  out.bytes = in.bytes;
  out.images = in.what;
  out.model = (score.has("weights") ? score.get<fs::path>("weights").filename().string()
                                    : "analytic " + score.get<std::string>("name")) +
              ", " + model->sde().name();
  if (out.range == "centered" && !in.bytes && in.x.min().item<double>() >= 0)
    out.notes.push_back("no pixel is negative, but the model's images are in [-1,1]");

  const int64_t n = in.x.size(0),
                batch = config.table("images").get<int64_t>("batch", LogpImageOptions().batch);
  out.perturbed = config.table("images").get<bool>("perturb", false);
  const Rng noise = rng.split("perturbation");
  const size_t w = ways.size();
  std::vector<std::vector<LogpPart>> parts(w);
  out.columns.resize(w);
  int64_t done = 0;
  observer.begin("log p", n * static_cast<int64_t>(w), "values");
  for (int64_t first = 0; first < n && !out.interrupted; first += batch) {
    const int64_t last = std::min(n, first + batch);
    const at::Tensor x = in.x.slice(0, first, last).to(session.device, session.dtype);
    for (size_t k = 0; k < w; ++k) {
      const auto start = std::chrono::steady_clock::now();
      // The bound begins with the noise itself.
      const bool noised = out.perturbed && ways[k].name != "elbo";
      parts[k].push_back(
          ways[k].evaluate(noised ? at_time(model->sde(), ways[k].t0, x, noise.from_row(first)) : x,
                           rng.split(ways[k].name).from_row(first)));
      out.columns[k].seconds +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      done += last - first;
      observer.step(done, {{ways[k].name, mean_of(parts[k].back().log_prob)}});
    }
    out.names.insert(out.names.end(), in.names.begin() + first, in.names.begin() + last);
    out.interrupted = observer.stop_requested() && last < n;
  }
  observer.end();

  for (size_t k = 0; k < w; ++k) {
    LogpColumn& c = out.columns[k];
    c.method = ways[k].name;
    c.t0 = ways[k].density_t0;
    if (c.t0 > 0) c.noise = model->sde().std(at::full({1}, c.t0, at::kDouble)).item<double>();
    c.settings = ways[k].settings;
    const auto gather = [&](at::Tensor LogpPart::*member) {
      std::vector<at::Tensor> list;
      for (const auto& p : parts[k]) list.push_back(p.*member);
      return joined(list);
    };
    c.log_prob = gather(&LogpPart::log_prob);
    c.random_error = gather(&LogpPart::random_error);
    c.step_error = gather(&LogpPart::step_error);
    c.evaluations = gather(&LogpPart::evaluations);
    c.error_evaluations = gather(&LogpPart::error_evaluations);
    for (const auto& p : parts[k])
      if (c.message.empty()) c.message = p.message;
    for (const auto& p : parts[k]) {
      if (p.note.empty()) continue;
      out.notes.push_back(p.note);
      break;
    }
    // log N(0; 0, std^2 I) at t0: a law blurred by that noise reaches no higher anywhere.
    const double ceiling =
        static_cast<double>(numel(out.shape)) * -std::log(c.noise * std::sqrt(2 * M_PI));
    const int64_t above = (c.log_prob > ceiling).sum().item<int64_t>();
    if (c.method != "elbo" && above > 0 && !out.perturbed)
      out.notes.push_back(detail::concat(
          c.method, ": ", above, " image(s) above ", logp_number(ceiling),
          " nats, which no density with the noise of t0 reaches: the network extrapolates; "
          "images.perturb=true adds that noise"));
  }
  return out;
}

int64_t LogpColumn::failed() const {
  return at::isfinite(log_prob).logical_not().sum().item<int64_t>();
}

std::string logp_failure(const LogpResult& r) {
  std::string all;
  for (const auto& c : r.columns) {
    const std::string one = failure_of(c);
    if (!one.empty()) all += (all.empty() ? "" : "; ") + one;
  }
  return all;
}

std::string logp_text(const LogpResult& r) {
  std::ostringstream s;
  const std::string range = r.range == "centered" ? "[-1,1]"
                            : r.range == "unit"   ? "[0,1]"
                                                  : "any range";
  s << "model   " << r.model << ", images " << to_string(r.shape) << " in " << range << "\n"
    << "images  " << r.names.size() << " from " << r.images
    << (r.dequantized ? ", dequantised" : "")
    << (r.perturbed ? ", for ode and path with the noise of t0" : "") << "\n";
  for (const auto& c : r.columns)
    s << c.method << std::string(8 - c.method.size(), ' ') << c.settings << "\n";
  s << "\n";
  append_table(r, s);
  s << "\nlog p in nats, of pixels in " << range << ".\n"
    << "bits/dim = -log p / (" << numel(r.shape) << " ln 2) in that scale";
  if (!r.range.empty())
    s << "; for 8-bit levels add " << logp_number(level_bits(r, 256))
      << " (x = (level + u)/256) or " << logp_number(level_bits(r, 255)) << " (x = level/255)";
  s << ".\n";
  if (r.bytes && !r.dequantized)
    s << "The pixels are 8-bit and were not dequantised: images.dequantize=true.\n";
  const LogpColumn* ode = column_of(r, "ode");
  if (ode && r.columns.size() > 1) {
    s << "gap = log p ode - that column";
    for (const auto& c : r.columns)
      if (c.t0 > 0 && c.t0 != ode->t0) {
        s << "; the densities are those of different times";
        break;
      }
    s << ".\n";
  }
  for (const auto& c : r.columns) {
    s << c.method << ": " << meaning(c) << "; " << logp_number(std::round(mean_of(c.evaluations)))
      << " evaluations per image";
    if (c.error_evaluations.defined())
      s << ", " << logp_number(std::round(mean_of(c.error_evaluations)))
        << " of them for the solver's error";
    s << ", " << cell(c.seconds, 0, 1).substr(1) << " s\n";
    const std::string failure = failure_of(c);
    if (!failure.empty()) s << failure << "\n";
  }
  for (const auto& n : r.notes) s << "note: " << n << "\n";
  if (r.interrupted) s << "interrupted: only the first " << r.names.size() << " images\n";
  return s.str();
}

std::string logp_json(const LogpResult& r) {
  using Json = nlohmann::ordered_json;
  Json j{{"model", r.model},         {"images", r.images},           {"shape", r.shape},
         {"range", r.range},         {"eight_bit", r.bytes},         {"dequantized", r.dequantized},
         {"perturbed", r.perturbed}, {"interrupted", r.interrupted}, {"notes", r.notes},
         {"names", r.names}};
  if (!r.range.empty())
    j["bits_per_dim_of_levels"] = {{"256", level_bits(r, 256)}, {"255", level_bits(r, 255)}};
  const auto list = [](const at::Tensor& a) {
    const at::Tensor d = a.to(at::kDouble).contiguous();
    return std::vector<double>(d.data_ptr<double>(), d.data_ptr<double>() + d.numel());
  };
  for (const auto& c : r.columns) {
    Json m{{"settings", c.settings},
           {"t0", c.t0},
           {"noise", c.noise},
           {"failed", c.failed()},
           {"seconds", c.seconds},
           {"log_prob", list(c.log_prob)},
           {"random_error", list(c.random_error)}};
    if (c.step_error.defined()) m["step_error"] = list(c.step_error);
    std::vector<double> bits;
    for (const double v : list(c.log_prob)) bits.push_back(bits_per_dim(r, v));
    m["bits_per_dim"] = bits;
    m["evaluations"] = list(c.evaluations);
    if (c.error_evaluations.defined()) m["error_evaluations"] = list(c.error_evaluations);
    if (!c.message.empty()) m["message"] = c.message;
    j["methods"][c.method] = m;
  }
  return j.dump(2) + "\n";
}

io::Arrays logp_arrays(const LogpResult& r) {
  io::Arrays a;
  for (const auto& c : r.columns) {
    a[c.method + "_logp"] = c.log_prob;
    a[c.method + "_random_error"] = c.random_error;
    if (c.step_error.defined()) a[c.method + "_step_error"] = c.step_error;
    a[c.method + "_nfe"] = c.evaluations;
  }
  return a;
}

std::string logp_help() {
  std::ostringstream s;
  const auto table = [&](const char* name, auto options) {
    options.fields([&](const char* key, const auto& value, const char* help) {
      std::ostringstream v;
      v << std::boolalpha << value;
      s << "  " << name << "." << key << " = " << (v.str().empty() ? "\"\"" : v.str()) << "  "
        << help << "\n";
    });
  };
  s << "Settings (key=value):\n";
  table("ode", LogpOdeOptions());
  table("elbo", LogpElboOptions());
  table("path", PathOptions());
  table("images", LogpImageOptions());
  return s.str();
}

}  // namespace scoreprior
