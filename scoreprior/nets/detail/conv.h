#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>

namespace scoreprior::nets {

/// Forms of one layer's weights kept from call to call while the weights are frozen, and the
/// precision they are used in. At batch 1 transforming them costs more than the convolution.
class PackedWeights {
 public:
  /// Winograd's, of weight [O,I,3,3], for the convolution or (transposed) its adjoint.
  at::Tensor get(const at::Tensor& weight, bool transposed);
  void clear();

  /// Set once, before the first use.
  void use_bfloat16() { rounded_ = std::make_shared<PackedWeights>(); }
  bool bfloat16() const { return rounded_ != nullptr; }
  /// The weights rounded to bfloat16, as float32, and their own packed forms.
  at::Tensor rounded(const at::Tensor& weight);
  const std::shared_ptr<PackedWeights>& of_rounded() const { return rounded_; }

 private:
  void forget_other_weights(const at::Tensor& weight);

  std::mutex mutex_;
  at::Tensor packed_[2], rounded_weight_;
  std::shared_ptr<PackedWeights> rounded_;
  uint32_t version_ = 0;
  const void* data_ = nullptr;
};

/// 2-D convolution of channels-last x with weight [O,I,k,k] and bias [O], zero padding;
/// channels-last out. On the CPU in float32 Winograd where it applies, for few channels sums in
/// double; otherwise at::conv2d; in bfloat16 if `packed` says so and x is float32. `packed` may be
/// null.
at::Tensor conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  int64_t stride = 1, int64_t padding = 1,
                  const std::shared_ptr<PackedWeights>& packed = nullptr);

}  // namespace scoreprior::nets
