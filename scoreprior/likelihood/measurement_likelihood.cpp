#include "scoreprior/likelihood/measurement_likelihood.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {

MeasuredVector measured_vector(const char* where, const Observation& data,
                               const LikelihoodContext& context) {
  const std::string name = "[" + std::string(where) + "] ";
  MeasuredVector m;
  m.forward = forward_models().make(
      context.forward, "identity",
      ForwardContext{context.dtype, context.device, context.read_array, context.image_shape});
  if (!data.y.defined()) throw DataError(name + "the observation has no measurement vector y");
  m.y = data.y.detach().to(at::kCPU, at::kDouble).flatten();
  const int64_t entries = numel(m.forward->output_shape());
  if (m.y.numel() != entries)
    throw DataError(name + "the forward model gives " + std::to_string(entries) +
                    " numbers, the observation has " + std::to_string(m.y.numel()));
  if (!at::isfinite(m.y).all().item<bool>())
    throw DataError(name + "the measurement has entries that are not finite");
  return m;
}

at::Tensor measured_numbers(const char* where, const Config& config, const std::string& key,
                            const Observation& data, const LikelihoodContext& context,
                            int64_t entries, double fallback, const std::string& help) {
  at::Tensor a;
  const auto stored = data.extra.find(key);
  if (config.is_string(key)) {
    a = read_array(config, key, context.read_array);
  } else if (!config.has(key) && stored != data.extra.end()) {
    a = stored->second;
  } else {
    a = at::full({1}, config.get<double>(key, fallback, help), at::kDouble);
  }
  if (a.is_complex()) throw DataError("[" + std::string(where) + "] " + key + " is complex");
  a = a.detach().to(at::kCPU, at::kDouble).flatten();
  if (a.numel() != 1 && a.numel() != entries)
    throw DataError("[" + std::string(where) + "] " + key + " has " + std::to_string(a.numel()) +
                    " entries for " + std::to_string(entries) + " measurements");
  if (!at::isfinite(a).all().item<bool>())
    throw DataError("[" + std::string(where) + "] " + key + " has entries that are not finite");
  return a;
}

MeasurementLikelihood::MeasurementLikelihood(MeasuredVector measured,
                                             const LikelihoodContext& context)
    : forward_(std::move(measured.forward)),
      y_(measured.y.to(context.device, context.dtype).unsqueeze(0)) {}

at::Tensor MeasurementLikelihood::naive_image() const {
  at::NoGradGuard no_grad;
  const auto image = forward_->naive_inverse(y_.reshape(batched(1, forward_->output_shape())));
  return image ? image->contiguous() : at::Tensor();
}

std::vector<DataFit> MeasurementLikelihood::data_fits(const at::Tensor& x) const {
  at::NoGradGuard no_grad;
  return {{"y", "entry", "measurement", at::arange(y_.size(1), y_.options()), y_.squeeze(0),
           spread(), expected(x)}};
}

at::Tensor MeasurementLikelihood::transposed(const at::Tensor& v) const {
  return forward_->adjoint(v.reshape(batched(v.size(0), forward_->output_shape())))->contiguous();
}

at::Tensor MeasurementLikelihood::matrix() const {
  at::NoGradGuard no_grad;
  const int64_t pixels = numel(event_shape());
  return clean(at::eye(pixels, y_.options()).view(batched(pixels, event_shape()))).t();
}

Observation MeasurementLikelihood::observed(const at::Tensor& y, const at::Tensor& x) const {
  Observation out;
  out.y = y.reshape(forward_->output_shape()).clone();
  out.truth = x.squeeze(0).detach().clone();
  return out;
}

}  // namespace scoreprior
