/// mri: single-coil magnetic resonance imaging.
///   Y = mask * fftshift(FFT2(ifftshift(x))), orthonormal; zero frequency at (H/2, W/2)
///   y = [Re Y, Im Y], each (H,W,C) with C fastest; entries outside the mask are zero (and carry
///   noise when simulated) Shapes [B,C,H,W] -> [B,2*H*W*C]; linear, norm 1; naive inverse: inverse
///   FFT of y as it stands, real part
/// A stated noise level is that of the complex number: each real entry has noise/sqrt(2).

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/kspace_model.h"
#include "scoreprior/forward/measurement_order.h"
#include "scoreprior/forward/mri_masks.h"

namespace scoreprior {
namespace {

class Mri final : public ForwardModel, public KSpaceModel {
 public:
  Mri(Shape shape, at::Tensor mask) : shape_(std::move(shape)), mask_(std::move(mask)) {}
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {2 * numel(shape_)}; }
  bool linear() const override { return true; }
  double noise_scale() const override { return M_SQRT1_2; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("mri", "x", x, shape_);
    const at::Tensor k = at::fft_fftshift(
        at::fft_fft2(at::fft_ifftshift(x, kImageAxes), c10::nullopt, kImageAxes, "ortho"),
        kImageAxes);
    return complex_to_measurement(k * mask_);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("mri", "y", y, output_shape());
    return inverse(complex_from_measurement(y, shape_) * mask_);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("mri", "y", y, output_shape());
    return inverse(complex_from_measurement(y, shape_));
  }
  int64_t coils() const override { return 1; }
  at::Tensor measurement(const at::Tensor& kspace) const override {
    if (shape_[0] != 1)
      throw DataError(
          "[mri] k-space is measured of real images of one channel; complex images of two channels "
          "are for multicoil_mri");
    check_batched("mri", "kspace", kspace, shape_);
    SP_CHECK(kspace.is_complex(), "mri", "expected complex k-space");
    return complex_to_measurement(kspace.to(mask_.device()) * mask_.ne(0)).to(mask_.scalar_type());
  }

 private:
  static constexpr int64_t kImageAxes[2] = {2, 3};
  static at::Tensor inverse(const at::Tensor& k) {
    return at::real(at::fft_fftshift(
        at::fft_ifft2(at::fft_ifftshift(k, kImageAxes), c10::nullopt, kImageAxes, "ortho"),
        kImageAxes));
  }

  Shape shape_;
  at::Tensor mask_;  ///< [H,W]
};

}  // namespace

std::unique_ptr<ForwardModel> make_mri(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  const at::Tensor mask = sampling_mask(config, shape, context);
  return std::make_unique<Mri>(std::move(shape), mask.to(context.device, context.dtype));
}

}  // namespace scoreprior
