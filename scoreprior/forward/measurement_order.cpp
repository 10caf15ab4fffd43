#include "scoreprior/forward/measurement_order.h"

#include <ATen/ATen.h>

namespace scoreprior {

at::Tensor to_measurement(const at::Tensor& image) {
  return image.permute({0, 2, 3, 1}).reshape({image.size(0), -1});
}

at::Tensor from_measurement(const at::Tensor& vector, const Shape& shape) {
  return vector.reshape({vector.size(0), shape[1], shape[2], shape[0]}).permute({0, 3, 1, 2});
}

at::Tensor complex_to_measurement(const at::Tensor& image) {
  return at::cat({to_measurement(at::real(image)), to_measurement(at::imag(image))}, 1);
}

at::Tensor complex_from_measurement(const at::Tensor& vector, const Shape& shape) {
  const int64_t half = vector.size(1) / 2;
  return at::complex(from_measurement(vector.narrow(1, 0, half), shape).contiguous(),
                     from_measurement(vector.narrow(1, half, half), shape).contiguous());
}

}  // namespace scoreprior
