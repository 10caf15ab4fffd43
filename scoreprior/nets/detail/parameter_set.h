#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"

namespace scoreprior::nets {

/// How a tensor starts. kFanAvg: uniform with variance scale / mean(fan_in, fan_out) [Song21 code];
/// a scale of 0 means 1e-10, so that the layer is nearly silent but still learns.
struct Init {
  enum Kind { kZeros, kOnes, kFanAvg, kNormal } kind = kZeros;
  double scale = 1;
};

/// The named tensors of one network. Handles given out stay the network's own through to() and
/// load().
class ParameterSet {
 public:
  at::Tensor parameter(const std::string& name, const Shape& shape, Init init);
  at::Tensor buffer(const std::string& name, const Shape& shape, Init init);

  std::map<std::string, at::Tensor> parameters() const { return pick(false); }
  std::map<std::string, at::Tensor> buffers() const { return pick(true); }
  void initialize(const Rng& rng);
  void to(at::ScalarType dtype, at::Device device);
  void freeze();

 private:
  struct Entry {
    std::string name;
    at::Tensor tensor;
    Init init;
    bool is_buffer;
  };
  at::Tensor add(const std::string& name, const Shape& shape, Init init, bool is_buffer);
  std::map<std::string, at::Tensor> pick(bool is_buffer) const;
  std::vector<Entry> entries_;
};

}  // namespace scoreprior::nets
