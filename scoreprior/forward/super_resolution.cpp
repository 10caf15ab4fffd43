/// super_resolution: a smaller image.
///   y = R x C^T with one matrix per axis, `factor` pixels to one
///   area     mean over the square of factor x factor pixels
///   bicubic  cubic convolution with a = -1/2 [Keys81], stretched by `factor` so that it is also
///            the anti-alias filter; weights that leave the image are dropped and the rest
///            renormalised
///   Shapes [B,C,H,W] -> [B,h*w*C], h = H/factor, w = W/factor; linear; units of the image
///   naive inverse: cubic interpolation of y

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct SuperResolutionOptions {
  int64_t factor = 4;
  std::string filter = "area";
  template <class F>
  void fields(F&& f) {
    f("factor", factor, "pixels of the unknown image per pixel measured, along each axis");
    f("filter", filter, "area or bicubic");
  }
};

double cubic_kernel(double t) {
  t = std::abs(t);
  if (t >= 2) return 0;
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return ((-0.5 * t + 2.5) * t - 4) * t + 2;
}

/// [to,from]: an axis of `from` pixels seen as `to`; the kernel is stretched when pixels get fewer.
at::Tensor cubic_axis(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double stretch = std::max(scale, 1.0);
  at::Tensor m = at::zeros({to, from}, at::kDouble);
  auto a = m.accessor<double, 2>();
  for (int64_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale - 0.5;
    for (int64_t j = 0; j < from; ++j)
      a[i][j] = cubic_kernel((static_cast<double>(j) - centre) / stretch);
  }
  return m / m.sum(1, true);
}

at::Tensor area_axis(int64_t from, int64_t factor) {
  return at::eye(from / factor, at::kDouble).repeat_interleave(factor, 1) /
         static_cast<double>(factor);
}

class SuperResolution final : public ForwardModel {
 public:
  SuperResolution(Shape shape, const SuperResolutionOptions& o, const ForwardContext& context)
      : shape_(std::move(shape)), small_({shape_[0], shape_[1] / o.factor, shape_[2] / o.factor}) {
    const auto axis = [&](int64_t n) {
      return (o.filter == "area" ? area_axis(n, o.factor) : cubic_axis(n, n / o.factor))
          .to(context.device, context.dtype);
    };
    const auto back = [&](int64_t n) {
      return cubic_axis(n / o.factor, n).to(context.device, context.dtype);
    };
    rows_ = axis(shape_[1]), columns_ = axis(shape_[2]);
    rows_back_ = back(shape_[1]), columns_back_ = back(shape_[2]);
  }
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {numel(small_)}; }
  Shape output_image() const override { return small_; }
  bool linear() const override { return true; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("super_resolution", "x", x, shape_);
    return to_measurement(at::matmul(rows_, at::matmul(x, columns_.t())));
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("super_resolution", "y", y, output_shape());
    return at::matmul(rows_.t(), at::matmul(from_measurement(y, small_), columns_));
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("super_resolution", "y", y, output_shape());
    return at::matmul(rows_back_, at::matmul(from_measurement(y, small_), columns_back_.t()));
  }

 private:
  Shape shape_, small_;
  at::Tensor rows_, columns_, rows_back_, columns_back_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_super_resolution(const Config& config,
                                                    const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  const auto o = config.read<SuperResolutionOptions>();
  config.one_of("filter", "area", {"area", "bicubic"});
  if (o.factor < 1 || shape[1] % o.factor != 0 || shape[2] % o.factor != 0)
    config.fail("factor",
                "factor must divide the sides of the image, " + to_string({shape[1], shape[2]}));
  return std::make_unique<SuperResolution>(std::move(shape), o, context);
}

}  // namespace scoreprior
