#include "scoreprior/nets/detail/conv.h"

#include <ATen/ATen.h>

#include "scoreprior/nets/detail/layers.h"

namespace scoreprior::nets {

at::Tensor conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  int64_t stride, int64_t padding) {
  return channels_last(at::conv2d(x, weight, bias, {stride, stride}, {padding, padding}));
}

}  // namespace scoreprior::nets
