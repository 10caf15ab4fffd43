#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace scoreprior {

/// A second face of forward models whose measurement is k-space on the grid of the images (found by
/// dynamic_cast): how files become y.
class KSpaceModel {
 public:
  virtual ~KSpaceModel() = default;
  virtual int64_t coils() const = 0;
  /// k-space as scanners' files hold it, complex [B,coils,H,W], k = 0 at (H/2, W/2), to y [B,M].
  /// Points outside the model's mask do not count. Values are taken as measured: the mask's weights
  /// are not applied.
  virtual at::Tensor measurement(const at::Tensor& kspace) const = 0;
};

}  // namespace scoreprior
