#include "scoreprior/flows/realnvp.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

constexpr int64_t kDrawChunk = 256;  // rows at a time where rows are independent

std::string realnvp_key(int64_t step, int which, const char* part) {
  return "flow." + std::to_string(step) + "." + part + std::to_string(which);
}

bool is_permutation_of(const std::vector<int64_t>& order, int64_t n) {
  std::vector<bool> seen(n, false);
  for (int64_t i : order) {
    if (i < 0 || i >= n || seen[i]) return false;
    seen[i] = true;
  }
  return static_cast<int64_t>(order.size()) == n;
}

}  // namespace

RealNvp::RealNvp(const RealNvpOptions& options, at::ScalarType dtype,
                 std::vector<std::vector<int64_t>> orders)
    : options_(options), dtype_(dtype), orders_(std::move(orders)) {
  SP_CHECK(options.dim >= 2, "realnvp", "expected dim >= 2, got ", options.dim);
  SP_CHECK(options.n_flow >= 1, "realnvp", "expected n_flow >= 1, got ", options.n_flow);
  SP_CHECK(options.seqfrac > 0, "realnvp", "expected seqfrac > 0, got ", options.seqfrac);
  SP_CHECK(dtype == at::kFloat || dtype == at::kDouble, "realnvp", "float32 or float64 only");
  if (orders_.empty()) {
    const Rng rng = Rng(options.order_seed).split("realnvp.orders");
    for (int64_t k = 0; k < options.n_flow; ++k)
      orders_.push_back(rng.at(k).permutation(options.dim));
  }
  SP_CHECK(static_cast<int64_t>(orders_.size()) == options.n_flow, "realnvp", "expected ",
           options.n_flow, " permutations, got ", orders_.size());
  for (const auto& order : orders_)
    SP_CHECK(is_permutation_of(order, options.dim), "realnvp",
             "each order must be a permutation of 0..", options.dim - 1);
  make_plan();
  const auto type = at::TensorOptions().dtype(dtype);
  parameters_ = at::zeros({parameter_map_.size()}, type);
  gradient_ = at::zeros({parameter_map_.size()}, type);
  statistics_ = at::zeros({std::max<int64_t>(statistics_map_.size(), 1)}, type);
  make_engine();
  initialize(Rng(0));
}

RealNvp::RealNvp(RealNvp&&) noexcept = default;
RealNvp::~RealNvp() = default;

void RealNvp::make_plan() {
  const int64_t D = options_.dim;
  plan_.dim = D;
  plan_.changed = D / 2;
  plan_.kept = D - D / 2;
  plan_.hidden = std::max<int64_t>(
      static_cast<int64_t>(static_cast<double>(plan_.kept) / options_.seqfrac), 1);
  plan_.batch_norm = options_.batch_norm;
  plan_.softplus = options_.softplus;
  plan_.norm_clip = options_.norm_clip;
  const int64_t A = plan_.kept, C = plan_.changed, H = plan_.hidden;
  std::vector<detail::CouplingSlots> in_file_order;
  for (int64_t k = 0; k < options_.n_flow; ++k)
    for (int which = 1; which <= 2; ++which) {
      detail::CouplingSlots s{};
      const std::string norm = realnvp_key(k, which, "actnorm"),
                        net = realnvp_key(k, which, "coupling");
      s.loc = parameter_map_.add(norm + ".loc", {1});
      s.log_scale_inv = parameter_map_.add(norm + ".log_scale_inv", {1});
      for (int i = 0; i < 2; ++i) {
        const std::string layer = net + ".dense" + std::to_string(i),
                          bn = net + ".bn" + std::to_string(i);
        s.dense_weight[i] = parameter_map_.add(layer + ".weight", {H, i == 0 ? A : H});
        s.dense_bias[i] = parameter_map_.add(layer + ".bias", {H});
        if (!plan_.batch_norm) continue;
        s.bn_weight[i] = parameter_map_.add(bn + ".weight", {H});
        s.bn_bias[i] = parameter_map_.add(bn + ".bias", {H});
        s.running_mean[i] = statistics_map_.add(bn + ".running_mean", {H});
        s.running_var[i] = statistics_map_.add(bn + ".running_var", {H});
      }
      s.fc_weight = parameter_map_.add(net + ".zerofc.weight", {2 * C, H});
      s.fc_bias = parameter_map_.add(net + ".zerofc.bias", {2 * C});
      s.fc_scale = parameter_map_.add(net + ".zerofc.scale", {2 * C});
      in_file_order.push_back(s);
    }
  if (plan_.softplus) plan_.softplus_slot = parameter_map_.add("softplus.log_scale", {1});
  plan_.couplings.assign(in_file_order.rbegin(), in_file_order.rend());
}

void RealNvp::make_engine() {
  const int64_t D = options_.dim;
  plan_.source.clear();
  for (int64_t k = options_.n_flow - 1; k >= 0; --k) {
    std::vector<int32_t> undo(D), permuted(D), reversed(D);
    for (int64_t j = 0; j < D; ++j) undo[orders_[k][j]] = static_cast<int32_t>(j);
    for (int64_t j = 0; j < D; ++j) {
      permuted[j] = undo[D - 1 - j];
      reversed[j] = static_cast<int32_t>(D - 1 - j);
    }
    plan_.source.push_back(std::move(permuted));
    plan_.source.push_back(std::move(reversed));
  }
  if (dtype_ == at::kFloat)
    engine_f32_ = detail::make_realnvp_engine<float>(plan_);
  else
    engine_f64_ = detail::make_realnvp_engine<double>(plan_);
}

void RealNvp::initialize(const Rng& rng) {
  parameters_.zero_();
  statistics_.zero_();
  for (const auto& [name, view] : parameter_map_.views(parameters_)) {
    const auto ends_with = [&n = name](const std::string& tail) {
      return n.size() >= tail.size() && n.compare(n.size() - tail.size(), tail.size(), tail) == 0;
    };
    if (name.find(".bn") != std::string::npos && ends_with(".weight")) view.fill_(1);
    if (name.find(".dense") != std::string::npos && ends_with(".weight"))
      view.copy_(rng.split(name).normal(view.sizes(), dtype_) / std::sqrt(double(view.size(1))));
  }
  for (const auto& [name, view] : statistics_map_.views(statistics_))
    if (name.find("running_var") != std::string::npos) view.fill_(1);

  // The image is the affine image of the latent until the couplings learn something.
  const at::Tensor loc = parameter_map_.view(parameters_, "flow.0.actnorm1.loc");
  const at::Tensor log_scale = parameter_map_.view(parameters_, "flow.0.actnorm1.log_scale_inv");
  if (!options_.softplus) {
    loc.fill_(-options_.init_mean);
    if (options_.init_std > 0) log_scale.fill_(std::log(options_.init_std));
  } else if (options_.init_mean > 0) {
    // exp(a) softplus(u) with softplus(u0) = 1, whose slope there is 1 - 1/e.
    const double slope = 1 - std::exp(-1.0), u0 = std::log(std::expm1(1.0));
    parameter_map_.view(parameters_, "softplus.log_scale").fill_(std::log(options_.init_mean));
    loc.fill_(-u0);
    if (options_.init_std > 0)
      log_scale.fill_(std::log(options_.init_std / (options_.init_mean * slope)));
  }
}

Flow::Sample RealNvp::run(const at::Tensor& z, bool batch_statistics, double momentum,
                          bool keep) const {
  check_batched("realnvp", "z", z, {options_.dim});
  const at::Tensor in = z.to(dtype_).contiguous();
  const int64_t rows = in.size(0), D = options_.dim;
  Sample out{at::empty_like(in), at::empty({rows}, in.options())};
  const auto go = [&](auto* engine, auto zero) {
    using T = decltype(zero);
    const int64_t chunk = keep || batch_statistics ? rows : kDrawChunk;
    for (int64_t b = 0; b < rows; b += chunk)
      engine->sample({parameters_.data_ptr<T>(), statistics_.data_ptr<T>(),
                      in.data_ptr<T>() + b * D, std::min(chunk, rows - b), batch_statistics,
                      momentum, keep, out.x.template data_ptr<T>() + b * D,
                      out.log_det.template data_ptr<T>() + b});
  };
  if (rows == 0) return out;
  if (dtype_ == at::kFloat)
    go(engine_f32_.get(), float{});
  else
    go(engine_f64_.get(), double{});
  return out;
}

Flow::Sample RealNvp::sample(const at::Tensor& z, bool train) {
  return run(z, train && !frozen_, 0.9, train);
}

void RealNvp::calibrate(const at::Tensor& z) {
  if (options_.batch_norm) run(z, true, 0.0, false);
}

void RealNvp::backward(const at::Tensor& x_bar, const at::Tensor& log_det_bar) {
  check_batched("realnvp", "x_bar", x_bar, {options_.dim});
  SP_CHECK(log_det_bar.dim() == 1 && log_det_bar.size(0) == x_bar.size(0), "realnvp",
           "expected log_det_bar [B], got ", log_det_bar.sizes());
  const at::Tensor xb = x_bar.to(dtype_).contiguous(), lb = log_det_bar.to(dtype_).contiguous();
  if (dtype_ == at::kFloat)
    engine_f32_->backward(parameters_.data_ptr<float>(), xb.data_ptr<float>(), xb.size(0),
                          lb.data_ptr<float>(), gradient_.data_ptr<float>());
  else
    engine_f64_->backward(parameters_.data_ptr<double>(), xb.data_ptr<double>(), xb.size(0),
                          lb.data_ptr<double>(), gradient_.data_ptr<double>());
}

Flow::Sample RealNvp::inverse(const at::Tensor& x) const {
  check_batched("realnvp", "x", x, {options_.dim});
  const at::Tensor in = x.to(dtype_).contiguous();
  const int64_t rows = in.size(0), D = options_.dim;
  Sample out{at::empty_like(in), at::empty({rows}, in.options())};
  const auto go = [&](auto* engine, auto zero) {
    using T = decltype(zero);
    for (int64_t b = 0; b < rows; b += kDrawChunk)
      engine->inverse(parameters_.data_ptr<T>(), statistics_.data_ptr<T>(),
                      in.data_ptr<T>() + b * D, std::min(kDrawChunk, rows - b),
                      out.x.template data_ptr<T>() + b * D, out.log_det.template data_ptr<T>() + b);
  };
  if (dtype_ == at::kFloat)
    go(engine_f32_.get(), float{});
  else
    go(engine_f64_.get(), double{});
  return out;
}

std::map<std::string, at::Tensor> RealNvp::named_tensors() const {
  auto all = parameter_map_.views(parameters_);
  for (auto& [name, view] : statistics_map_.views(statistics_)) all[name] = view;
  for (int64_t k = 0; k < options_.n_flow; ++k)
    all["flow." + std::to_string(k) + ".order"] = at::tensor(orders_[k], at::kLong);
  return all;
}

std::map<std::string, at::Tensor> RealNvp::named_gradients() const {
  return parameter_map_.views(gradient_);
}

void RealNvp::load(const std::map<std::string, at::Tensor>& weights, const std::string& file) {
  parameter_map_.load(weights, file, parameters_);
  statistics_map_.load(weights, file, statistics_);
  bool changed = false;
  for (int64_t k = 0; k < options_.n_flow; ++k) {
    const std::string name = "flow." + std::to_string(k) + ".order";
    const auto it = weights.find(name);
    if (it == weights.end()) continue;
    const at::Tensor t = it->second.to(at::kLong).contiguous();
    std::vector<int64_t> order(t.data_ptr<int64_t>(), t.data_ptr<int64_t>() + t.numel());
    if (!is_permutation_of(order, options_.dim))
      throw DataError(file + ": \"" + name + "\" is not a permutation of 0.." +
                      std::to_string(options_.dim - 1));
    changed = changed || order != orders_[k];
    orders_[k] = std::move(order);
  }
  if (changed) make_engine();
}

std::unique_ptr<Flow> make_realnvp(const Config& config, const FlowContext& context) {
  RealNvpOptions o = config.read<RealNvpOptions>();
  if (o.dim == 0) o.dim = context.dim;
  if (context.dim != 0 && o.dim != context.dim)
    config.fail("dim", "the flow has " + std::to_string(o.dim) + " pixels, the image has " +
                           std::to_string(context.dim));
  if (o.dim < 2)
    config.fail("dim", "a RealNVP needs at least 2 pixels, got " + std::to_string(o.dim));
  if (o.n_flow < 1) config.fail("n_flow", "n_flow must be at least 1");
  if (!(o.seqfrac > 0)) config.fail("seqfrac", "seqfrac must be positive");
  if (o.norm_clip < 0) config.fail("norm_clip", "norm_clip must not be negative");
  if (o.init_std < 0) config.fail("init_std", "init_std must not be negative");
  if (o.softplus && o.init_mean < 0)
    config.fail("init_mean", "softplus pixels have a positive mean");
  return std::make_unique<RealNvp>(o, context.dtype);
}

}  // namespace scoreprior
