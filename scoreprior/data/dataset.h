#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// Images by index. A split's image `index` is always the same; generated sets are infinite (size()
/// = 0). Augmentation and dequantisation draw from rng, keyed by position in the batch.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual Shape image_shape() const = 0;  ///< {C,H,W}
  virtual int64_t size() const = 0;       ///< 0 = infinite
  /// [n,C,H,W] float32.
  virtual at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const = 0;
  /// "unit" for [0,1] data, "centered" for [-1,1].
  virtual std::string range() const { return "unit"; }
  /// One line for logs and model metadata.
  virtual std::string describe() const = 0;
};

/// split = "train" | "valid" | "test".
const Catalog<Dataset, const std::string&>& datasets();
Catalog<Dataset, const std::string&>& mutable_datasets();

}  // namespace scoreprior
