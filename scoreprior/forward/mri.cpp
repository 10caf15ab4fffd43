/// mri: single-coil magnetic resonance imaging.
///   Y = mask * fftshift(FFT2(ifftshift(x))), orthonormal; zero frequency at (H/2, W/2)
///   y = [Re Y, Im Y], each (H,W,C) with C fastest; entries outside the mask are zero (and carry
///   noise when simulated) Shapes [B,C,H,W] -> [B,2*H*W*C]; linear, norm 1; naive inverse: inverse
///   FFT of y as it stands, real part
/// A stated noise level is that of the complex number: each real entry has noise/sqrt(2).

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"
#include "scoreprior/forward/mri_masks.h"

namespace scoreprior {
namespace {

class Mri final : public ForwardModel {
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

struct MriOptions {
  std::string pattern = "cartesian";
  int64_t acceleration = 4, centre_lines = -1, mask_seed = 0;
  template <class F>
  void fields(F&& f) {
    f("pattern", pattern, "without a mask file: cartesian (whole columns) or poisson (discs)");
    f("acceleration", acceleration, "pixels per sample");
    f("centre_lines", centre_lines,
      "fully sampled columns, or side of the square, at zero frequency; -1 = 0.32/acceleration of "
      "the columns, or none");
    f("mask_seed", mask_seed, "seed of the poisson pattern");
  }
};

at::Tensor generated_mask(const Config& config, const Shape& shape) {
  const auto options = config.read<MriOptions>();
  config.one_of("pattern", "cartesian", {"cartesian", "poisson"});
  const bool poisson = options.pattern == "poisson";
  if (options.acceleration < (poisson ? 2 : 1))
    config.fail("acceleration", poisson ? "acceleration must be at least 2 for the poisson pattern"
                                        : "acceleration must be at least 1");
  int64_t centre = options.centre_lines;
  if (centre < 0)
    centre = poisson ? 0
                     : std::lround(0.32 * static_cast<double>(shape[2]) /
                                   static_cast<double>(options.acceleration));
  if (poisson) {
    if (centre >= std::min(shape[1], shape[2]))
      config.fail("centre_lines", "centre_lines must be smaller than the image");
    PoissonMaskOptions mask;
    mask.acceleration = static_cast<double>(options.acceleration);
    mask.centre = centre;
    mask.seed = static_cast<uint32_t>(options.mask_seed);
    return poisson_mask(shape[1], shape[2], mask);
  }
  if (options.acceleration > 1 && centre * options.acceleration >= shape[2])
    config.fail("centre_lines", "centre_lines must be fewer than width/acceleration");
  return cartesian_mask(shape[1], shape[2], options.acceleration, centre);
}

}  // namespace

std::unique_ptr<ForwardModel> make_mri(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  at::Tensor mask;
  if (config.has("mask")) {
    mask = read_array(config, "mask", context.read_array);
    if (mask.dim() != 2 || mask.size(0) != shape[1] || mask.size(1) != shape[2])
      config.fail("mask", "the mask is not " + to_string({shape[1], shape[2]}));
    if (!at::isfinite(mask.to(at::kDouble)).all().item<bool>())
      throw DataError("[mri] the mask has entries that are not finite");
  } else {
    mask = generated_mask(config, shape);
  }
  return std::make_unique<Mri>(std::move(shape), mask.to(context.device, context.dtype));
}

}  // namespace scoreprior
