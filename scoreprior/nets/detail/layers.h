#pragma once
/// Layers of the U-nets on channels-last tensors [B,C,H,W]. Each has a fused form (float32 on the
/// CPU, first derivatives by hand) and a composite form (any dtype and device, any number of
/// derivatives); use_fused() chooses.

#include <ATen/core/Tensor.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/nets/detail/kernels.h"

namespace scoreprior::nets {

/// float32 on the CPU; with a DoubleBackwardScope open only where the fused form is twice
/// differentiable.
bool use_fused(const at::Tensor& x, bool twice_differentiable);

at::Tensor channels_last(const at::Tensor& x);

/// The masks of one forward pass; a layer splits them off by its own name. Inactive without rng or
/// with rate 0.
struct DropoutPass {
  const Rng* rng = nullptr;
  double rate = 0;
  bool active() const { return rng != nullptr && rate > 0; }
};

/// act(GroupNorm(x + time_bias) gamma + beta), then dropout [Wu18, Song21].
/// time_bias [B,C] or undefined; `layer` names the dropout stream.
struct NormAct {
  at::Tensor weight, bias;
  int64_t groups = 1;
  Act act = Act::kIdentity;
  double eps = 1e-6;
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& time_bias = {},
                        const DropoutPass& dropout = {}, const std::string& layer = "") const;
  /// {the layer's value, x} for a residual path; the two gradients of x are added where they are
  /// made.
  std::pair<at::Tensor, at::Tensor> fork(const at::Tensor& x) const;
};

/// (a + b) scale
at::Tensor add_scale(const at::Tensor& a, const at::Tensor& b, double scale);

at::Tensor activate(const at::Tensor& x, Act act);

/// softmax(q k^T / sqrt(C)) v over the pixels of each image; qkv [B,N,3C] -> [B,N,C].
at::Tensor attention(const at::Tensor& qkv);

/// x [P,C] times w [C,C'] + b (if defined).
at::Tensor rows_times(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b);

/// The same on the channel axis of x [B,C,H,W].
at::Tensor pixelwise(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b);

}  // namespace scoreprior::nets
