/// low_dft: deblurring as in score_prior.
///   Y[k,l] = sum_{r,c} x[r,c] exp(-2 pi i (k r / H + l c / W)), 0 <= k,l < n (un-normalised,
///   corner only) y = [Re Y, Im Y], each (n,n,C) with C fastest Shapes [B,C,H,W] -> [B,2*n*n*C];
///   linear; naive inverse: zero-filled inverse DFT, real part
/// A stated noise level is that of the complex number: each real entry has noise/sqrt(2).
///   Cost 4 B C W n (H + n) multiply-adds: two small products, cheaper than an FFT while n << W.

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct LowDftOptions {
  int64_t n_freqs = 8;
  template <class F>
  void fields(F&& f) {
    f("n_freqs", n_freqs, "frequencies kept per direction, from zero upwards");
  }
};

/// cos and sin of 2 pi k j / size, [n,size].
std::pair<at::Tensor, at::Tensor> low_dft_tables(int64_t n, int64_t size,
                                                 const ForwardContext& context) {
  const at::Tensor turns = at::outer(at::arange(n, at::kLong), at::arange(size, at::kLong))
                               .remainder(size)
                               .to(at::kDouble) *
                           (2 * M_PI / static_cast<double>(size));
  return {turns.cos().to(context.device, context.dtype),
          turns.sin().to(context.device, context.dtype)};
}

class LowDft final : public ForwardModel {
 public:
  LowDft(Shape shape, int64_t n, const ForwardContext& context) : shape_(std::move(shape)), n_(n) {
    std::tie(cos_h_, sin_h_) = low_dft_tables(n, shape_[1], context);
    std::tie(cos_w_, sin_w_) = low_dft_tables(n, shape_[2], context);
  }
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {2 * n_ * n_ * shape_[0]}; }
  bool linear() const override { return true; }
  double noise_scale() const override { return M_SQRT1_2; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("low_dft", "x", x, shape_);
    // (Ch - i Sh) x (Cw - i Sw)^T
    const at::Tensor c = at::matmul(x, cos_w_.t()), s = at::matmul(x, sin_w_.t());
    const at::Tensor re = at::matmul(cos_h_, c) - at::matmul(sin_h_, s);
    const at::Tensor im = -(at::matmul(sin_h_, c) + at::matmul(cos_h_, s));
    return at::cat({to_measurement(re), to_measurement(im)}, 1);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("low_dft", "y", y, output_shape());
    const int64_t half = y.size(1) / 2;
    const Shape corner = {shape_[0], n_, n_};
    const at::Tensor re = from_measurement(y.narrow(1, 0, half), corner);
    const at::Tensor im = from_measurement(y.narrow(1, half, half), corner);
    const at::Tensor c = at::matmul(cos_h_.t(), re) - at::matmul(sin_h_.t(), im);
    const at::Tensor s = -(at::matmul(sin_h_.t(), re) + at::matmul(cos_h_.t(), im));
    return at::matmul(c, cos_w_) + at::matmul(s, sin_w_);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    return *adjoint(y) / static_cast<double>(shape_[1] * shape_[2]);
  }

 private:
  Shape shape_;
  int64_t n_;
  at::Tensor cos_h_, sin_h_, cos_w_, sin_w_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_low_dft(const Config& config, const ForwardContext& context) {
  const auto options = config.read<LowDftOptions>();
  Shape shape = image_shape(config, context);
  if (options.n_freqs < 1 || options.n_freqs > std::min(shape[1], shape[2]))
    config.fail("n_freqs", "n_freqs must be between 1 and the side of the image");
  return std::make_unique<LowDft>(std::move(shape), options.n_freqs, context);
}

}  // namespace scoreprior
