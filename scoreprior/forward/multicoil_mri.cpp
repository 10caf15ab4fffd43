#include "scoreprior/forward/multicoil_mri.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/mri_masks.h"

namespace scoreprior {
namespace {

constexpr int64_t kAxes[2] = {2, 3};
// Coil images worked on together [bytes]: on a CPU as many as stay in its caches from the maps to
// the samples, since the FFTs of a whole batch would wait for memory at every step.
constexpr int64_t kPieceCpu = int64_t{1} << 20, kPieceDevice = int64_t{1} << 28;

// The centred FFT is the plain one of an image rolled by `away` whose frequencies are rolled
// `back`: the maps are rolled once, the samples' places likewise, the image and its gradient each
// time.
struct Roll {
  int64_t away[2], back[2];
};
Roll centring(const Shape& shape) {
  const int64_t rows = shape[1] / 2, columns = shape[2] / 2;
  return {{-rows, -columns}, {rows, columns}};
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
  const at::Tensor sampled = mask64.nonzero().flatten();
  SP_CHECK(sampled.numel() > 0, "multicoil_mri", "expected a mask that samples something");
  maps_ = maps64.to(context.device, complex);
  rolled_maps_ = maps_.roll(centring(shape_).away, {1, 2}).contiguous();
  if (channels == 2) conjugate_maps_ = rolled_maps_.conj().resolve_conj();
  const at::Tensor weights = mask64.index_select(0, sampled);
  if (weights.ne(1).any().item<bool>()) weights_ = weights.to(context.device, complex);
  sampled_ = sampled.to(context.device);
  // After the FFT along one axis only the lines with samples need the other.
  const at::Tensor row = (at::div(sampled, width, "floor") - height / 2).remainder(height),
                   column = (sampled - width / 2).remainder(width);
  const auto distinct = [](const at::Tensor& a) { return std::get<0>(at::_unique(a, true)); };
  const at::Tensor rows = distinct(row), columns = distinct(column);
  const bool by_rows = rows.numel() * width < columns.numel() * height;
  const at::Tensor& lines = by_rows ? rows : columns;
  first_axis_ = by_rows ? 2 : 3;
  at::Tensor place = row * width + column;
  if (lines.numel() < (by_rows ? height : width)) {
    lines_ = lines.to(context.device);
    place = by_rows ? at::searchsorted(lines, row) * width + column
                    : row * lines.numel() + at::searchsorted(lines, column);
  }
  place_ = place.to(context.device);
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

void MulticoilMri::in_pieces(int64_t batch, const std::function<void(const Piece&)>& work) const {
  const bool cpu = rolled_maps_.is_cpu();
  const int64_t bytes = shape_[1] * shape_[2] * static_cast<int64_t>(rolled_maps_.element_size());
  const int64_t fit = std::max<int64_t>(1, (cpu ? kPieceCpu : kPieceDevice) / bytes);
  const int64_t coils = std::min(coils_, fit), images = std::max<int64_t>(1, fit / coils_);
  const auto groups = [&](int64_t begin, int64_t end) {
    at::NoGradGuard no_grad;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < coils_; c += coils)
        work({i * images, std::min(images, batch - i * images), c, std::min(coils, coils_ - c)});
  };
  const int64_t all = (batch + images - 1) / images;
  if (cpu)
    at::parallel_for(0, all, 1, groups);
  else
    groups(0, all);
}

at::Tensor MulticoilMri::product(const at::Tensor& x) const {
  const int64_t batch = x.size(0), points = sampled_.size(0);
  const at::Tensor rolled = x.roll(centring(shape_).away, {2, 3});
  const at::Tensor image =
      shape_[0] == 1 ? rolled.to(rolled_maps_.scalar_type())
                     : at::view_as_complex(rolled.permute({0, 2, 3, 1}).contiguous()).unsqueeze(1);
  at::Tensor taken = at::empty({batch, coils_, points}, rolled_maps_.options());
  in_pieces(batch, [&](const Piece& p) {
    at::Tensor k = image.narrow(0, p.image, p.images) * rolled_maps_.narrow(0, p.coil, p.coils);
    if (lines_.defined()) {
      k = at::fft_fft(k, c10::nullopt, first_axis_, "ortho").index_select(first_axis_, lines_);
      k = at::fft_fft(k, c10::nullopt, 5 - first_axis_, "ortho");
    } else {
      k = at::fft_fft2(k, c10::nullopt, kAxes, "ortho");
    }
    at::Tensor out = taken.narrow(0, p.image, p.images).narrow(1, p.coil, p.coils);
    at::index_select_out(out, k.flatten(2), 2, place_);
  });
  if (weights_.defined()) taken.mul_(weights_);
  at::Tensor y = at::empty({batch, 2, points, coils_}, x.options());
  y.copy_(at::view_as_real(taken).permute({0, 3, 2, 1}));
  return y.view({batch, -1});
}

at::Tensor MulticoilMri::complex_of(const at::Tensor& y) const {
  const at::Tensor parts = y.reshape({y.size(0), 2, sampled_.size(0), coils_});
  return at::view_as_complex(parts.permute({0, 3, 2, 1}).contiguous());
}

at::Tensor MulticoilMri::transposed_product(const at::Tensor& y) const {
  const int64_t batch = y.size(0), height = shape_[1], width = shape_[2];
  const at::Tensor taken = weights_.defined() ? complex_of(y) * weights_ : complex_of(y);
  Shape some = {0, 0, height, width};  // the lines that hold samples
  if (lines_.defined()) some[static_cast<size_t>(first_axis_)] = lines_.size(0);
  at::Tensor x = at::zeros({batch, height, width, 2}, y.options());
  in_pieces(batch, [&](const Piece& p) {
    at::Tensor k = at::zeros({p.images, p.coils, some[2] * some[3]}, taken.options());
    k.index_copy_(2, place_, taken.narrow(0, p.image, p.images).narrow(1, p.coil, p.coils));
    k = k.view({p.images, p.coils, some[2], some[3]});
    if (lines_.defined()) {
      const at::Tensor seen = at::fft_ifft(k, c10::nullopt, 5 - first_axis_, "ortho");
      k = at::zeros({p.images, p.coils, height, width}, taken.options())
              .index_copy_(first_axis_, lines_, seen);
      k = at::fft_ifft(k, c10::nullopt, first_axis_, "ortho");
    } else {
      k = at::fft_ifft2(k, c10::nullopt, kAxes, "ortho");
    }
    at::Tensor sum = x.narrow(0, p.image, p.images);
    for (int64_t c = 0; c < p.coils; ++c) {
      const at::Tensor& maps = shape_[0] == 1 ? rolled_maps_ : conjugate_maps_;
      const at::Tensor one = k.select(1, c), map = maps[p.coil + c];
      if (shape_[0] == 1)  // Re(one conj(map)) is the sum of the products of the parts
        sum.addcmul_(at::view_as_real(one), at::view_as_real(map));
      else
        at::view_as_complex(sum).addcmul_(one, map);
    }
  });
  return (shape_[0] == 1 ? x.sum(3).unsqueeze(1) : x.permute({0, 3, 1, 2}))
      .roll(centring(shape_).back, {2, 3});
}

at::Tensor MulticoilMri::measurement(const at::Tensor& kspace) const {
  check_batched("multicoil_mri", "kspace", kspace, {coils_, shape_[1], shape_[2]});
  SP_CHECK(kspace.is_complex(), "multicoil_mri", "expected complex k-space");
  const at::Tensor taken = kspace.to(rolled_maps_.options())
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
    // A real image has no phase of its own.
    if (shape[0] == 1) maps = with_object_phase(maps, kspace, o.calibration_region);
  } else {
    if (o.coils < 1) config.fail("coils", "coils must be at least 1");
    maps = simulated_coil_maps(o.coils, shape[1], shape[2]);
  }
  const at::Tensor mask = sampling_mask(config, shape, context);
  if (mask.ne(0).sum().item<int64_t>() == 0) config.fail("mask", "the mask samples nothing");
  return std::make_unique<MulticoilMri>(shape[0], maps, mask, context);
}

}  // namespace scoreprior
