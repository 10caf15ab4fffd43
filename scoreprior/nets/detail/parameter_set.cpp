#include "scoreprior/nets/detail/parameter_set.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

namespace scoreprior::nets {

at::Tensor ParameterSet::add(const std::string& name, const Shape& shape, Init init,
                             bool is_buffer) {
  at::Tensor t = at::zeros(shape, at::TensorOptions().dtype(at::kFloat));
  if (!is_buffer) t.set_requires_grad(true);
  entries_.push_back({name, t, init, is_buffer});
  return t;
}

at::Tensor ParameterSet::parameter(const std::string& name, const Shape& shape, Init init) {
  return add(name, shape, init, false);
}
at::Tensor ParameterSet::buffer(const std::string& name, const Shape& shape, Init init) {
  return add(name, shape, init, true);
}

std::map<std::string, at::Tensor> ParameterSet::pick(bool is_buffer) const {
  std::map<std::string, at::Tensor> out;
  for (const auto& e : entries_)
    if (e.is_buffer == is_buffer) out.emplace(e.name, e.tensor);
  return out;
}

void ParameterSet::initialize(const Rng& rng) {
  at::NoGradGuard no_grad;
  for (auto& e : entries_) {
    const Shape shape = e.tensor.sizes().vec();
    switch (e.init.kind) {
      case Init::kZeros:
        e.tensor.zero_();
        break;
      case Init::kOnes:
        e.tensor.fill_(1);
        break;
      case Init::kNormal:
        e.tensor.copy_(rng.split(e.name).normal(shape, at::kDouble) * e.init.scale);
        break;
      case Init::kFanAvg: {
        const double receptive = shape.size() == 4 ? double(shape[2] * shape[3]) : 1.0;
        const double fan = 0.5 * double(shape[0] + shape[1]) * receptive;
        const double limit = std::sqrt(3 * (e.init.scale == 0 ? 1e-10 : e.init.scale) / fan);
        e.tensor.copy_((rng.split(e.name).uniform(shape, at::kDouble) * 2 - 1) * limit);
        break;
      }
    }
  }
}

void ParameterSet::to(at::ScalarType dtype, at::Device device) {
  at::NoGradGuard no_grad;
  for (auto& e : entries_) e.tensor.set_data(e.tensor.detach().to(device, dtype));
}

void ParameterSet::freeze() {
  for (auto& e : entries_) {
    e.tensor.set_requires_grad(false);
    e.tensor.mutable_grad() = at::Tensor();
  }
}

}  // namespace scoreprior::nets
