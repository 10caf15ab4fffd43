#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "scoreprior/core/shape.h"

namespace scoreprior::detail {

/// Named tensors laid one behind another in a flat buffer, each on a 128-byte boundary (the gaps
/// stay zero, so sums and optimisers may sweep the whole buffer).
class ParameterMap {
 public:
  /// Offset of the new entry [elements].
  int64_t add(const std::string& name, const Shape& shape);
  int64_t size() const { return size_; }

  at::Tensor view(const at::Tensor& flat, const std::string& name) const;
  std::map<std::string, at::Tensor> views(const at::Tensor& flat) const;
  /// Copies what `source` has for every name into flat. Throws DataError naming the file: a missing
  /// name, another shape, a value that is not finite.
  void load(const std::map<std::string, at::Tensor>& source, const std::string& file,
            at::Tensor& flat) const;
  bool has(const std::string& name) const { return entries_.count(name) > 0; }

 private:
  struct Entry {
    int64_t offset;
    Shape shape;
  };
  std::map<std::string, Entry> entries_;
  int64_t size_ = 0;
};

}  // namespace scoreprior::detail
