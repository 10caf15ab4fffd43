#include "scoreprior/flows/detail/parameter_map.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"

namespace scoreprior::detail {

int64_t ParameterMap::add(const std::string& name, const Shape& shape) {
  constexpr int64_t kStep = 32;  // 128 bytes of float32
  const int64_t offset = size_;
  entries_[name] = {offset, shape};
  size_ += (numel(shape) + kStep - 1) / kStep * kStep;
  return offset;
}

at::Tensor ParameterMap::view(const at::Tensor& flat, const std::string& name) const {
  const Entry& e = entries_.at(name);
  return flat.narrow(0, e.offset, numel(e.shape)).view(e.shape);
}

std::map<std::string, at::Tensor> ParameterMap::views(const at::Tensor& flat) const {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, entry] : entries_) all[name] = view(flat, name);
  return all;
}

void ParameterMap::load(const std::map<std::string, at::Tensor>& source, const std::string& file,
                        at::Tensor& flat) const {
  for (const auto& [name, entry] : entries_) {
    const auto it = source.find(name);
    if (it == source.end()) throw DataError(file + ": no tensor \"" + name + "\"");
    const at::Tensor& value = it->second;
    if (Shape(value.sizes().begin(), value.sizes().end()) != entry.shape)
      throw DataError(file + ": \"" + name + "\" has shape " +
                      to_string(Shape(value.sizes().begin(), value.sizes().end())) + ", expected " +
                      to_string(entry.shape));
    if (!at::isfinite(value).all().item<bool>())
      throw DataError(file + ": \"" + name + "\" has values that are not finite");
    view(flat, name).copy_(value);
  }
}

}  // namespace scoreprior::detail
