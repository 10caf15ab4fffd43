/// identity: denoising.      y = x, flattened (H,W,C) with C fastest
///   Shapes [B,C,H,W] -> [B,H*W*C]; linear

#include <ATen/ATen.h>

#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

class IdentityModel final : public ForwardModel {
 public:
  explicit IdentityModel(Shape shape) : shape_(std::move(shape)) {}
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {numel(shape_)}; }
  Shape output_image() const override { return shape_; }
  bool linear() const override { return true; }
  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("identity", "x", x, shape_);
    return to_measurement(x);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("identity", "y", y, output_shape());
    return from_measurement(y, shape_);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override { return adjoint(y); }

 private:
  Shape shape_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_identity(const Config& config, const ForwardContext& context) {
  return std::make_unique<IdentityModel>(image_shape(config, context));
}

}  // namespace scoreprior
