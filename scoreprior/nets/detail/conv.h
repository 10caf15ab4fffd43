#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>

namespace scoreprior::nets {

/// Transformed weights of one layer, kept from call to call while the weights are frozen. At batch
/// 1 transforming them costs more than the convolution.
class PackedWeights {
 public:
  /// Of weight [O,I,3,3], for the convolution or (transposed) its adjoint.
  at::Tensor get(const at::Tensor& weight, bool transposed);
  void clear();

 private:
  std::mutex mutex_;
  at::Tensor packed_[2];
  uint32_t version_ = 0;
  const void* data_ = nullptr;
};

/// 2-D convolution of channels-last x with weight [O,I,k,k] and bias [O], zero padding;
/// channels-last out. Winograd on the CPU in float32 where it applies, otherwise at::conv2d.
/// `packed` may be null.
at::Tensor conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  int64_t stride = 1, int64_t padding = 1,
                  const std::shared_ptr<PackedWeights>& packed = nullptr);

}  // namespace scoreprior::nets
