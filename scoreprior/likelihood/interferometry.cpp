#include "scoreprior/likelihood/interferometry.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/dirty_image.h"

namespace scoreprior {
namespace {

/// log p with the hand-written gradient. The likelihood outlives the graph of one evaluation.
class InterferometryLogProb : public torch::autograd::Function<InterferometryLogProb> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const InterferometryLikelihood* self) {
    auto result = self->evaluate(x.detach(), true);
    context->saved_data["likelihood"] = reinterpret_cast<int64_t>(self);
    context->save_for_backward({x, result.second});
    return result.first;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list upstream) {
    const auto saved = context->get_saved_variables();
    at::Tensor gradient = saved[1];
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: the gradient as a graph
      const auto* self = reinterpret_cast<const InterferometryLikelihood*>(
          context->saved_data["likelihood"].toInt());
      gradient = self->evaluate(saved[0], true).second;
    }
    return {expand_like_batch(upstream[0], gradient) * gradient, at::Tensor()};
  }
};

VisibilityTransform transform_of(const VisibilityTable& table, const InterferometryOptions& options,
                                 int64_t height, int64_t width, at::ScalarType dtype,
                                 at::Device device) {
  std::vector<double> u, v;
  for (const VisibilityRow& row : table.rows) u.push_back(row.u), v.push_back(row.v);
  return {u, v, make_sky_grid(height, width, options.fov_uas), pulse_from(options.pulse),
          ForwardContext{dtype, device}};
}

/// Converted before the members that need sound rows are built.
VisibilityTable checked(VisibilityTable table) {
  check_visibilities(table);
  return table;
}

std::string site_names(const VisibilityTable& table, const Closure& c, int64_t n) {
  std::string s;
  for (int64_t i = 0; i < n; ++i) s += (i ? "-" : "") + table.sites[c.site[i]].name;
  return s;
}

constexpr size_t kTrianglePlots = 6;

}  // namespace

double zero_baseline_flux(const VisibilityTable& table) {
  std::vector<std::pair<double, double>> length_amplitude;
  for (const VisibilityRow& row : table.rows)
    length_amplitude.push_back({std::hypot(row.u, row.v), std::abs(row.vis)});
  SP_CHECK(!length_amplitude.empty(), "zero_baseline_flux", "expected visibilities, got none");
  std::sort(length_amplitude.begin(), length_amplitude.end());
  size_t n = 0;
  while (n < length_amplitude.size() && length_amplitude[n].first < 0.1e9) ++n;
  if (n == 0) n = (length_amplitude.size() + 9) / 10;
  std::vector<double> a;
  for (size_t k = 0; k < n; ++k) a.push_back(length_amplitude[k].second);
  std::sort(a.begin(), a.end());
  return (a[(n - 1) / 2] + a[n / 2]) / 2;
}

double image_flux_scale(const InterferometryOptions& options, const VisibilityTable& table,
                        const SkyGrid& grid) {
  if (options.units == "jy") return 1;
  if (options.flux_scale > 0) return options.flux_scale;
  const double flux = options.total_flux > 0 ? options.total_flux : zero_baseline_flux(table);
  if (options.pixel_sum > 0) return flux / options.pixel_sum;
  const double width = options.scale_fwhm_uas * kRadPerUas;
  return gaussian_image({width, width, 0}, grid, flux).max().item<double>();
}

InterferometryLikelihood::InterferometryLikelihood(VisibilityTable table,
                                                   const InterferometryOptions& options,
                                                   int64_t height, int64_t width,
                                                   at::ScalarType dtype, at::Device device)
    : table_(checked(std::move(table))),
      transform_(transform_of(table_, options, height, width, dtype, device)),
      floor2_(visibility_floor(table_, dtype, device)),
      flux_scale_(image_flux_scale(options, table_, transform_.grid())),
      normalized_(options.normalized),
      covariance_(options.closure_covariance) {
  const ClosureCovariance covariance = closure_covariance_from(covariance_);
  const auto closure = [&](ClosureKind kind, ClosureCovariance c) {
    return make_closure_product(table_, kind, c, dtype, device);
  };
  const auto add = [&](const char* name, double weight, std::unique_ptr<DataProduct> product) {
    if (product->size() > 0) terms_.push_back({name, weight, std::move(product)});
  };
  if (options.vis_weight > 0 && options.gain.gains != "none") {
    auto product = std::make_unique<UncalibratedVisibilities>(table_, options.gain, dtype, device);
    gains_ = product.get();
    add("vis", options.vis_weight, std::move(product));
  } else if (options.vis_weight > 0) {
    add("vis", options.vis_weight, make_visibility_product(table_, dtype, device));
  }
  if (options.amp_weight > 0)
    add("amp", options.amp_weight, make_amplitude_product(table_, dtype, device));
  if (options.cphase_weight > 0)
    add("cphase", options.cphase_weight, closure(ClosureKind::kPhase, covariance));
  if (options.logcamp_weight > 0)
    add("logcamp", options.logcamp_weight, closure(ClosureKind::kLogAmplitude, covariance));
  if (terms_.empty())
    throw DataError("[interferometry] nothing to fit: every product has weight 0 or no data");
  position_known_ = options.vis_weight > 0 &&
                    (options.gain.gains == "none" || options.gain.gain_phases != "uniform");
  amplitude_ = make_amplitude_product(table_, dtype, device);
  cphase_ = closure(ClosureKind::kPhase, ClosureCovariance::kIndependent);
  logcamp_ = closure(ClosureKind::kLogAmplitude, ClosureCovariance::kIndependent);
}

ModelVisibilities InterferometryLikelihood::model(const at::Tensor& x) const {
  auto parts = transform_.parts(flux_scale_ == 1 ? x : x * flux_scale_);
  return model_visibilities(std::move(parts.first), std::move(parts.second), floor2_);
}

std::pair<at::Tensor, at::Tensor> InterferometryLikelihood::evaluate(const at::Tensor& x,
                                                                     bool gradient) const {
  const ModelVisibilities m = model(x);
  at::Tensor value;
  VisibilityGradient sum;
  double constant = 0;
  for (const Term& term : terms_) {
    const DataProduct::Misfit misfit = term.product->misfit(m, gradient);
    value = value.defined() ? value - misfit.value * term.weight : misfit.value * -term.weight;
    if (gradient) sum.add(misfit.gradient, -term.weight * flux_scale_);
    if (normalized_) constant += term.weight * term.product->log_constant();
  }
  if (normalized_) value = value + constant;
  if (!gradient) return {value, {}};
  const auto parts = sum.parts(m);
  return {value, transform_.adjoint_parts(parts.first, parts.second)};
}

at::Tensor InterferometryLikelihood::log_prob(const at::Tensor& x, const Rng&) const {
  if (at::GradMode::is_enabled() && x.requires_grad()) return InterferometryLogProb::apply(x, this);
  return evaluate(x, false).first;
}

std::pair<at::Tensor, at::Tensor> InterferometryLikelihood::value_and_score(const at::Tensor& x,
                                                                            const Rng&) const {
  at::NoGradGuard no_grad;
  return evaluate(x.detach(), true);
}

std::vector<std::pair<std::string, at::Tensor>> InterferometryLikelihood::terms(const at::Tensor& x,
                                                                                const Rng&) const {
  at::NoGradGuard no_grad;
  const ModelVisibilities m = model(x);
  std::vector<std::pair<std::string, at::Tensor>> out;
  for (const Term& term : terms_) {
    at::Tensor value = term.product->misfit(m, false).value * -term.weight;
    if (normalized_) value = value + term.weight * term.product->log_constant();
    out.push_back({term.name, value});
  }
  return out;
}

at::Tensor InterferometryLikelihood::residuals(const at::Tensor& x) const {
  at::NoGradGuard no_grad;
  const ModelVisibilities m = model(x);
  std::vector<at::Tensor> parts;
  for (const Term& term : terms_) parts.push_back(term.product->residuals(m));
  return at::cat(parts, 0).t();
}

at::Tensor InterferometryLikelihood::linear_part() const {
  at::NoGradGuard no_grad;
  const int64_t pixels = numel(event_shape());
  const auto parts = transform_.parts(
      at::eye(pixels, floor2_.options()).mul_(flux_scale_).view(batched(pixels, event_shape())));
  return at::cat({parts.first, parts.second}, 0);
}

at::Tensor InterferometryLikelihood::slopes(const at::Tensor& x) const {
  at::NoGradGuard no_grad;
  const ModelVisibilities m = model(x);
  std::vector<at::Tensor> rows;
  for (const Term& term : terms_) {
    const auto parts = term.product->residual_slopes(m);
    const at::Tensor both = at::cat({parts.first, parts.second}, 2) * std::sqrt(term.weight);
    rows.push_back(both.expand({x.size(0), both.size(1), both.size(2)}));
  }
  return at::cat(rows, 1);
}

ChiSquares InterferometryLikelihood::chi2(const at::Tensor& x) const {
  at::NoGradGuard no_grad;
  const ModelVisibilities m = model(x);
  ChiSquares out;
  const auto add = [&](const std::string& name, const DataProduct& product) {
    if (product.size() > 0) out.push_back({"chi2_" + name, product.reduced_chi2(m)});
  };
  for (const Term& term : terms_)
    if (term.name == "vis" || term.name == "amp") add(term.name, *term.product);
  add("cphase", *cphase_);
  add("logcamp", *logcamp_);
  if (covariance_ != "independent")
    for (const Term& term : terms_)
      if (term.name == "cphase" || term.name == "logcamp")
        add(term.name + "_" + covariance_, *term.product);
  return out;
}

Observation InterferometryLikelihood::simulate(const at::Tensor& x, const Rng& rng) const {
  check_batched("interferometry", "x", x, event_shape());
  SP_CHECK(x.size(0) == 1, "interferometry", "expected one image to observe, got ", x.size(0));
  at::NoGradGuard no_grad;
  const auto parts = transform_.parts(x * flux_scale_);
  const at::Tensor re = parts.first.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor im = parts.second.to(at::kCPU, at::kDouble).contiguous();
  const auto rows = static_cast<int64_t>(table_.rows.size());
  const std::vector<double> noise = rng.split("noise").normals(2 * rows);
  std::vector<std::complex<double>> gain(static_cast<size_t>(rows), 1.0);
  if (gains_) gain = gains_->draw(rng.split("gains"));
  Observation out;
  out.visibilities = table_;
  for (int64_t k = 0; k < rows; ++k) {
    VisibilityRow& row = out.visibilities->rows[k];
    const std::complex<double> model(re.data_ptr<double>()[k], im.data_ptr<double>()[k]);
    row.vis = gain[static_cast<size_t>(k)] * model +
              row.sigma * std::complex<double>(noise[2 * k], noise[2 * k + 1]);
  }
  out.truth = x.squeeze(0).detach().clone();
  return out;
}

GainSolution InterferometryLikelihood::best_gains(const at::Tensor& x) const {
  if (!gains_) return {};
  at::NoGradGuard no_grad;
  return gains_->solve(model(x));
}

at::Tensor InterferometryLikelihood::naive_image() const {
  return (dirty_image(table_, transform_.grid()) / flux_scale_)
      .unsqueeze(0)
      .unsqueeze(0)
      .to(floor2_.device(), floor2_.scalar_type());
}

std::vector<DataFit> InterferometryLikelihood::data_fits(const at::Tensor& x) const {
  at::NoGradGuard no_grad;
  const ModelVisibilities m = model(x);
  const double degree = 180 / M_PI;
  std::vector<DataFit> out;
  std::vector<double> length, sigma;
  for (const VisibilityRow& row : table_.rows) {
    length.push_back(std::hypot(row.u, row.v) / 1e9);
    sigma.push_back(row.sigma);
  }
  const auto numbers = [](const std::vector<double>& a) { return at::tensor(a, at::kDouble); };
  out.push_back({"amp", "baseline length [Glambda]", "amplitude [Jy]", numbers(length),
                 numbers(amplitudes(table_, Debias::kFloor)), numbers(sigma), m.amplitude.t()});
  const auto closure_fit = [&](const ClosureProduct& product, const std::string& name,
                               const std::string& y_label, double unit) {
    std::vector<double> time, data, error;
    for (const Closure& c : product.set().closures) {
      time.push_back(c.time);
      data.push_back(c.value * unit);
      error.push_back(c.sigma * unit);
    }
    out.push_back({name, "time [h UTC]", y_label, numbers(time), numbers(data), numbers(error),
                   (product.model(m) * unit).t()});
  };
  if (cphase_->size() > 0) closure_fit(*cphase_, "cphase", "closure phase [deg]", degree);
  if (logcamp_->size() > 0) closure_fit(*logcamp_, "logcamp", "log closure amplitude", 1);
  if (gains_) {  // each site's |g| by time, against its prior
    const at::Tensor amplitude = gains_->solve(m).log_amplitude.exp();
    for (size_t s = 0; s < table_.sites.size(); ++s) {
      std::vector<int64_t> seen;
      std::vector<double> time;
      for (size_t t = 0; t < gains_->interval_hours().size(); ++t)
        if (gains_->observed()[static_cast<int64_t>(t)][static_cast<int64_t>(s)].item<bool>()) {
          seen.push_back(static_cast<int64_t>(t));
          time.push_back(gains_->interval_hours()[t]);
        }
      if (seen.empty()) continue;
      const std::vector<double> one(seen.size(), 1.0),
          spread(seen.size(), gains_->amplitude_std()[s]);
      out.push_back({"gain " + table_.sites[s].name, "time [h UTC]",
                     "gain amplitude (data: its prior)", numbers(time), numbers(one),
                     numbers(spread),
                     amplitude.select(2, static_cast<int64_t>(s))
                         .index_select(1, at::tensor(seen, at::kLong).to(amplitude.device()))});
    }
  }
  if (cphase_->size() == 0) return out;
  // The triangles with most data, each by itself.
  std::map<std::string, std::vector<int64_t>> triangles;
  const auto& all = cphase_->set().closures;
  for (size_t k = 0; k < all.size(); ++k)
    triangles[site_names(table_, all[k], 3)].push_back(static_cast<int64_t>(k));
  std::vector<std::pair<std::string, std::vector<int64_t>>> sorted(triangles.begin(),
                                                                   triangles.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  const size_t whole = 1;  // the "cphase" entry
  for (size_t i = 0; i < std::min(kTrianglePlots, sorted.size()); ++i) {
    const DataFit& from = out[whole];
    const at::Tensor index = at::tensor(sorted[i].second, at::kLong);
    out.push_back({"cphase " + sorted[i].first, from.x_label, from.y_label,
                   from.x.index_select(0, index), from.data.index_select(0, index),
                   from.sigma.index_select(0, index),
                   from.model.index_select(1, index.to(from.model.device()))});
  }
  return out;
}

std::unique_ptr<Likelihood> make_interferometry(const Config& config, const Observation& data,
                                                const LikelihoodContext& context) {
  InterferometryOptions defaults;
  if (config.one_of("gains", "none", {"none", "marginal", "joint"}) != "none") {
    defaults.vis_weight = 1;
    defaults.cphase_weight = defaults.logcamp_weight = 0;
  }
  const auto options = config.read<InterferometryOptions>(defaults);
  config.one_of("gain_phases", "uniform", {"uniform", "normal"});
  config.one_of("closure_covariance", "exact", {"exact", "ehtim", "independent"});
  config.one_of("pulse", "triangle", {"triangle", "delta"});
  config.one_of("units", "flux_scaled", {"jy", "flux_scaled"});
  const auto need = [&](bool ok, const char* key, const std::string& message) {
    if (!ok) config.fail(key, std::string(key) + " " + message);
  };
  need(options.vis_weight >= 0, "vis_weight", "must not be negative");
  need(options.amp_weight >= 0, "amp_weight", "must not be negative");
  need(options.cphase_weight >= 0, "cphase_weight", "must not be negative");
  need(options.logcamp_weight >= 0, "logcamp_weight", "must not be negative");
  need(options.fov_uas > 0, "fov_uas", "must be positive");
  need(options.flux_scale >= 0, "flux_scale", "must not be negative");
  need(options.total_flux >= 0, "total_flux", "must not be negative");
  need(options.pixel_sum >= 0, "pixel_sum", "must not be negative");
  need(options.scale_fwhm_uas > 0, "scale_fwhm_uas", "must be positive");
  need(options.gain.gain_amp_std >= 0, "gain_amp_std", "must not be negative");
  need(options.gain.gain_phase_std > 0, "gain_phase_std", "must be positive");
  need(options.gain.gain_seconds >= 0, "gain_seconds", "must not be negative");
  const bool gains = options.gain.gains != "none";
  need(!gains || options.vis_weight > 0, "gains",
       "are those of the visibilities, which have vis_weight 0");
  need(!gains || options.amp_weight == 0, "amp_weight",
       "must be 0 with gains: the amplitudes are not calibrated");
  Shape shape = context.image_shape;
  if (shape.empty()) {
    need(options.image_size > 0, "image_size", "is not known from a prior and must be given");
    shape = {1, options.image_size, options.image_size};
  }
  need(
      options.image_size == 0 || (options.image_size == shape[1] && options.image_size == shape[2]),
      "image_size", "differs from the image " + to_string(shape));
  if (shape[0] != 1)
    config.fail("", "interferometry needs images of one channel, got " + to_string(shape));
  if (!data.visibilities) throw DataError("[interferometry] the observation has no visibilities");
  return std::make_unique<InterferometryLikelihood>(*data.visibilities, options, shape[1], shape[2],
                                                    context.dtype, context.device);
}

}  // namespace scoreprior
