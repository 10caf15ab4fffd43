#include "scoreprior/forward/multicoil_mri.h"

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/mri_masks.h"

namespace scoreprior {
namespace {

constexpr int64_t kCoilImageAxes[2] = {2, 3};

/// exp(2 pi i c n / N) with c = N/2: multiplied in before and after, it centres a DFT of N points
/// up to the constant exp(-2 pi i c^2 / N).
at::Tensor centring(int64_t n, bool with_constant) {
  const int64_t c = n / 2;
  const at::Tensor steps =
      (at::arange(n, at::kLong) * c - (with_constant ? c * c : 0)).remainder(n);
  const at::Tensor angle = steps.to(at::kDouble) * (2 * M_PI / static_cast<double>(n));
  return at::polar(at::ones_like(angle), angle);
}

}  // namespace

MulticoilMri::MulticoilMri(int64_t channels, const at::Tensor& maps, const at::Tensor& mask,
                           const ForwardContext& context)
    : coils_(maps.size(0)) {
  SP_CHECK(channels == 1 || channels == 2, "multicoil_mri", "expected 1 or 2 channels, got ",
           channels);
  SP_CHECK(maps.dim() == 3 && maps.is_complex() && mask.dim() == 2 &&
               mask.sizes() == maps.sizes().slice(1),
           "multicoil_mri", "expected complex maps [coils,H,W] and a mask [H,W], got ",
           maps.sizes(), " and ", mask.sizes());
  const int64_t height = maps.size(1), width = maps.size(2);
  shape_ = {channels, height, width};
  const auto complex = context.dtype == at::kDouble ? at::kComplexDouble : at::kComplexFloat;
  const at::Tensor maps64 = maps.to(at::kCPU, at::kComplexDouble);
  const at::Tensor mask64 = mask.to(at::kCPU, at::kDouble).flatten();
  const auto turns = [&](bool with_constant) {
    return at::outer(centring(height, with_constant), centring(width, with_constant));
  };
  const at::Tensor sampled = mask64.nonzero().flatten();
  SP_CHECK(sampled.numel() > 0, "multicoil_mri", "expected a mask that samples something");
  maps_ = maps64.to(context.device, complex);
  turned_maps_ = (maps64 * turns(false)).to(context.device, complex);
  conjugate_maps_ = turned_maps_.conj().resolve_conj();
  turned_mask_ =
      (mask64 * turns(true).flatten()).index_select(0, sampled).to(context.device, complex);
  sampled_ = sampled.to(context.device);
  const at::Tensor power = at::real(maps64 * maps64.conj()).sum(0);
  inverse_power_ =
      at::where(power > 0, 1 / power, at::zeros_like(power)).to(context.device, context.dtype);
}

Shape MulticoilMri::output_shape() const { return {2 * sampled_.size(0) * coils_}; }

at::Tensor MulticoilMri::apply(const at::Tensor& x) const {
  check_batched("multicoil_mri", "x", x, shape_);
  return apply_linear(*this, x);
}

std::optional<at::Tensor> MulticoilMri::adjoint(const at::Tensor& y) const {
  check_batched("multicoil_mri", "y", y, output_shape());
  return apply_linear(*this, y, true);
}

std::optional<at::Tensor> MulticoilMri::naive_inverse(const at::Tensor& y) const {
  return *adjoint(y) * inverse_power_;
}

at::Tensor MulticoilMri::product(const at::Tensor& x) const {
  const int64_t batch = x.size(0), points = sampled_.size(0);
  const at::Tensor image =
      shape_[0] == 1 ? x : at::view_as_complex(x.permute({0, 2, 3, 1}).contiguous()).unsqueeze(1);
  const at::Tensor k =
      at::fft_fft2(image * turned_maps_, c10::nullopt, kCoilImageAxes, "ortho").flatten(2);
  at::Tensor taken = k.index_select(2, sampled_).mul_(turned_mask_);
  at::Tensor y = at::empty({batch, 2, points, coils_}, x.options());
  y.copy_(at::view_as_real(taken).permute({0, 3, 2, 1}));
  return y.view({batch, -1});
}

at::Tensor MulticoilMri::complex_of(const at::Tensor& y) const {
  const at::Tensor parts = y.reshape({y.size(0), 2, sampled_.size(0), coils_});
  return at::view_as_complex(parts.permute({0, 3, 2, 1}).contiguous());
}

at::Tensor MulticoilMri::transposed_product(const at::Tensor& y) const {
  const int64_t batch = y.size(0);
  const at::Tensor taken = complex_of(y).mul_(turned_mask_.conj());
  at::Tensor k = at::zeros({batch, coils_, shape_[1] * shape_[2]}, taken.options());
  k.index_copy_(2, sampled_, taken);
  const at::Tensor images = at::fft_ifft2(k.view({batch, coils_, shape_[1], shape_[2]}),
                                          c10::nullopt, kCoilImageAxes, "ortho");
  // Coil by coil: nothing as large as all coil images is written again.
  at::Tensor sum = images.select(1, 0) * conjugate_maps_[0];
  for (int64_t c = 1; c < coils_; ++c) sum.addcmul_(images.select(1, c), conjugate_maps_[c]);
  if (shape_[0] == 1) return at::real(sum).unsqueeze(1).contiguous();
  return at::view_as_real(sum).permute({0, 3, 1, 2}).contiguous();
}

at::Tensor MulticoilMri::measurement(const at::Tensor& kspace) const {
  check_batched("multicoil_mri", "kspace", kspace, {coils_, shape_[1], shape_[2]});
  SP_CHECK(kspace.is_complex(), "multicoil_mri", "expected complex k-space");
  const at::Tensor taken = kspace.to(turned_maps_.options())
                               .flatten(2)
                               .index_select(2, sampled_)
                               .transpose(1, 2)
                               .flatten(1);
  return at::cat({at::real(taken), at::imag(taken)}, 1);
}

at::Tensor MulticoilMri::kspace(const at::Tensor& y) const {
  check_batched("multicoil_mri", "y", y, output_shape());
  const at::Tensor taken = complex_of(y);
  return at::zeros({y.size(0), coils_, shape_[1] * shape_[2]}, taken.options())
      .index_copy_(2, sampled_, taken)
      .view({y.size(0), coils_, shape_[1], shape_[2]});
}

namespace {

struct CoilOptions {
  int64_t coils = 8, calibration_region = 24, calibration_kernel = 6;
  double calibration_threshold = 0.03, calibration_crop = 0.8;
  template <class F>
  void fields(F&& f) {
    f("coils", coils, "coils of the built-in simulator, without a file");
    f("calibration_region", calibration_region,
      "side of the fully sampled square from which maps are estimated [samples]");
    f("calibration_kernel", calibration_kernel, "side of the patches [samples]");
    f("calibration_threshold", calibration_threshold,
      "singular values kept, relative to the largest");
    f("calibration_crop", calibration_crop, "eigenvalue below which a pixel counts as empty");
  }
};

at::Tensor complex_file(const Config& config, const char* key, const Shape& shape,
                        const ForwardContext& context) {
  const at::Tensor a = read_array(config, key, context.read_array);
  if (!a.is_complex() || a.dim() != 3 || a.size(1) != shape[1] || a.size(2) != shape[2])
    config.fail(key, "expected complex numbers [coils," + std::to_string(shape[1]) + "," +
                         std::to_string(shape[2]) + "]");
  if (!at::isfinite(at::view_as_real(a.contiguous())).all().item<bool>())
    throw DataError(std::string("[multicoil_mri] ") + key + " has entries that are not finite");
  return a.to(at::kComplexDouble);
}

}  // namespace

/// Maps from the file `coil_maps`, else estimated from the k-space file `calibration`, else
/// simulated.
std::unique_ptr<ForwardModel> make_multicoil_mri(const Config& config,
                                                 const ForwardContext& context) {
  const Shape shape = image_shape(config, context);
  if (shape[0] > 2)
    config.fail("channels",
                "multicoil_mri takes real images (1 channel) or complex ones (2 channels)");
  const auto o = config.read<CoilOptions>();
  at::Tensor maps;
  if (config.has("coil_maps")) {
    if (config.has("calibration"))
      config.fail("calibration", "give coil_maps or calibration, not both");
    maps = complex_file(config, "coil_maps", shape, context);
  } else if (config.has("calibration")) {
    const at::Tensor kspace = complex_file(config, "calibration", shape, context);
    if (o.calibration_kernel < 1) config.fail("calibration_kernel", "must be at least 1");
    if (o.calibration_region < o.calibration_kernel ||
        o.calibration_region > std::min(shape[1], shape[2]))
      config.fail("calibration_region", "must be at least calibration_kernel and fit the image");
    if (!(o.calibration_threshold > 0 && o.calibration_threshold < 1))
      config.fail("calibration_threshold", "must be between 0 and 1");
    maps = estimated_coil_maps(kspace, {o.calibration_region, o.calibration_kernel,
                                        o.calibration_threshold, o.calibration_crop});
  } else {
    if (o.coils < 1) config.fail("coils", "coils must be at least 1");
    maps = simulated_coil_maps(o.coils, shape[1], shape[2]);
  }
  const at::Tensor mask = sampling_mask(config, shape, context);
  if (mask.ne(0).sum().item<int64_t>() == 0) config.fail("mask", "the mask samples nothing");
  return std::make_unique<MulticoilMri>(shape[0], maps, mask, context);
}

}  // namespace scoreprior
