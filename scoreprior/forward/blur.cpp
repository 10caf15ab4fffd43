/// blur: convolution with a kernel.
///   y[r,c] = sum_{i,j} k[i,j] x[r - (i - ic), c - (j - jc)],  (ic,jc) = (rows/2, columns/2)
///   Shapes [B,C,H,W] -> [B,H*W*C]; linear; the same kernel for every channel
///   Beyond the edge x is `periodic`, `reflect`ed about the edge pixel (c b | a b c) or `zero`.
///   naive inverse: conj(K) Y / (|K|^2 + ridge max|K|^2) on the periodic grid, whatever the
///   boundary
/// Kernels sum to 1, so y has the image's units and range; a kernel from a file keeps its own sum.
///   Cost: two real FFTs of the padded image.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/linear_function.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct BlurOptions {
  std::string kernel = "gaussian", boundary = "periodic";
  double fwhm = 4, length = 9, angle = 0, ridge = 0.01;
  template <class F>
  void fields(F&& f) {
    f("kernel", kernel, "gaussian, motion, or file");
    f("boundary", boundary, "what lies beyond the edge: periodic, reflect or zero");
    f("fwhm", fwhm, "full width at half maximum of the gaussian [pixels]");
    f("length", length, "length of the motion [pixels]");
    f("angle", angle, "direction of the motion [degrees, anticlockwise from the rows' direction]");
    f("ridge", ridge, "of the naive inverse, relative to the largest |K|^2");
  }
};

/// Cut at 4 standard deviations, where the tail weighs 6e-5.
at::Tensor gaussian_kernel(double fwhm) {
  const double sigma = fwhm / std::sqrt(8 * std::log(2.0));
  const auto reach = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(4 * sigma)));
  const at::Tensor axis = at::arange(-reach, reach + 1, at::kDouble);
  const at::Tensor g = at::exp(-0.5 * (axis / sigma).square());
  const at::Tensor k = at::outer(g, g);
  return k / k.sum();
}

/// The time spent at each pixel by a point that moves evenly along a segment about the centre,
/// shared among its four neighbours.
at::Tensor motion_kernel(double length, double angle_deg) {
  const auto reach = static_cast<int64_t>(std::ceil(length / 2)) + 1;
  const int64_t side = 2 * reach + 1;
  at::Tensor k = at::zeros({side, side}, at::kDouble);
  auto weight = k.accessor<double, 2>();
  const double dx = std::cos(angle_deg * M_PI / 180), dy = -std::sin(angle_deg * M_PI / 180);
  const auto steps = static_cast<int64_t>(std::ceil(length * 64)) + 1;
  for (int64_t s = 0; s < steps; ++s) {
    const double t = ((static_cast<double>(s) + 0.5) / static_cast<double>(steps) - 0.5) * length;
    const double x = t * dx + static_cast<double>(reach), y = t * dy + static_cast<double>(reach);
    const auto c = static_cast<int64_t>(std::floor(x)), r = static_cast<int64_t>(std::floor(y));
    const double fx = x - static_cast<double>(c), fy = y - static_cast<double>(r);
    weight[r][c] += (1 - fy) * (1 - fx);
    weight[r][c + 1] += (1 - fy) * fx;
    weight[r + 1][c] += fy * (1 - fx);
    weight[r + 1][c + 1] += fy * fx;
  }
  return k / k.sum();
}

/// The least size of at least n whose only factors are 2, 3 and 5.
int64_t fast_fft_size(int64_t n) {
  for (;; ++n) {
    int64_t rest = n;
    for (const int64_t factor : {2, 3, 5})
      while (rest % factor == 0) rest /= factor;
    if (rest == 1) return n;
  }
}

class Blur final : public ForwardModel, private LinearMap {
 public:
  Blur(Shape shape, const at::Tensor& kernel, const std::string& boundary, double ridge,
       const ForwardContext& context)
      : shape_(std::move(shape)), periodic_(boundary == "periodic"), ridge_(ridge) {
    const int64_t kh = kernel.size(0), kw = kernel.size(1);
    centre_h_ = kh / 2, centre_w_ = kw / 2;
    if (periodic_) {
      grid_ = {shape_[1], shape_[2]};
    } else {
      // The image with a margin of the kernel's reach; pixels of the margin copy `source` pixels.
      before_h_ = kh - 1 - centre_h_, before_w_ = kw - 1 - centre_w_;
      padded_ = {shape_[1] + kh - 1, shape_[2] + kw - 1};
      grid_ = {fast_fft_size(padded_[0]), fast_fft_size(padded_[1])};
      if (boundary == "reflect") {
        rows_ = mirrored(shape_[1], before_h_, padded_[0]).to(context.device);
        columns_ = mirrored(shape_[2], before_w_, padded_[1]).to(context.device);
      }
    }
    transfer_ = transfer(kernel, grid_[0], grid_[1]).to(context.device);
    periodic_transfer_ = transfer(kernel, shape_[1], shape_[2]).to(context.device);
    const auto complex = context.dtype == at::kDouble ? at::kComplexDouble : at::kComplexFloat;
    transfer_ = transfer_.to(complex), periodic_transfer_ = periodic_transfer_.to(complex);
  }
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {numel(shape_)}; }
  Shape output_image() const override { return shape_; }
  bool linear() const override { return true; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("blur", "x", x, shape_);
    return to_measurement(apply_linear(*this, x));
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("blur", "y", y, output_shape());
    return apply_linear(*this, from_measurement(y, shape_), true);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("blur", "y", y, output_shape());
    const at::Tensor power = at::real(periodic_transfer_ * periodic_transfer_.conj());
    const at::Tensor wiener = periodic_transfer_.conj() / (power + ridge_ * power.max());
    return filtered(from_measurement(y, shape_), wiener, {shape_[1], shape_[2]});
  }

 private:
  static at::Tensor mirrored(int64_t n, int64_t before, int64_t size) {
    at::Tensor index = at::empty({size}, at::kLong);
    const int64_t period = std::max<int64_t>(1, 2 * (n - 1));
    for (int64_t k = 0; k < size; ++k) {
      const int64_t p = ((k - before) % period + period) % period;
      index[k] = std::min(p, period - p);
    }
    return index;
  }
  /// The kernel's DFT with its centre at pixel 0; kernels larger than the grid wrap.
  at::Tensor transfer(const at::Tensor& kernel, int64_t height, int64_t width) const {
    at::Tensor k = at::zeros({height, width}, at::kDouble);
    auto out = k.accessor<double, 2>();
    const at::Tensor source = kernel.contiguous();
    const auto in = source.accessor<double, 2>();
    for (int64_t i = 0; i < kernel.size(0); ++i)
      for (int64_t j = 0; j < kernel.size(1); ++j) {
        const int64_t r = ((i - centre_h_) % height + height) % height;
        const int64_t c = ((j - centre_w_) % width + width) % width;
        out[r][c] += in[i][j];
      }
    return at::fft_rfft2(k);
  }
  static at::Tensor filtered(const at::Tensor& x, const at::Tensor& transfer, const Shape& size) {
    return at::fft_irfft2(at::fft_rfft2(x, at::IntArrayRef(size)) * transfer,
                          at::IntArrayRef(size));
  }

  at::Tensor product(const at::Tensor& x) const override {
    if (periodic_) return filtered(x, transfer_, grid_);
    at::Tensor wide;
    if (rows_.defined()) {
      wide = x.index_select(2, rows_).index_select(3, columns_);
    } else {
      wide = at::zeros({x.size(0), x.size(1), padded_[0], padded_[1]}, x.options());
      inside(wide).copy_(x);
    }
    return inside(filtered(wide, transfer_, grid_)).contiguous();
  }
  at::Tensor transposed_product(const at::Tensor& y) const override {
    if (periodic_) return filtered(y, transfer_.conj(), grid_);
    at::Tensor wide = at::zeros({y.size(0), y.size(1), grid_[0], grid_[1]}, y.options());
    inside(wide).copy_(y);
    wide =
        filtered(wide, transfer_.conj(), grid_).narrow(2, 0, padded_[0]).narrow(3, 0, padded_[1]);
    if (!rows_.defined()) return inside(wide).contiguous();
    at::Tensor tall = at::zeros({y.size(0), y.size(1), shape_[1], padded_[1]}, y.options());
    tall.index_add_(2, rows_, wide);
    at::Tensor x = at::zeros({y.size(0), y.size(1), shape_[1], shape_[2]}, y.options());
    return x.index_add_(3, columns_, tall);
  }
  at::Tensor inside(const at::Tensor& wide) const {
    return wide.narrow(2, before_h_, shape_[1]).narrow(3, before_w_, shape_[2]);
  }

  Shape shape_;
  bool periodic_;
  double ridge_;
  int64_t centre_h_ = 0, centre_w_ = 0, before_h_ = 0, before_w_ = 0;
  Shape padded_, grid_;        ///< {H,W} with the margin, and as transformed
  at::Tensor rows_, columns_;  ///< reflect: the image pixel under each pixel of the margin
  at::Tensor transfer_, periodic_transfer_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_blur(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  const auto o = config.read<BlurOptions>();
  config.one_of("kernel", "gaussian", {"gaussian", "motion", "file"});
  config.one_of("boundary", "periodic", {"periodic", "reflect", "zero"});
  if (!(o.fwhm > 0) || !std::isfinite(o.fwhm)) config.fail("fwhm", "fwhm must be positive");
  if (!(o.length > 0) || !std::isfinite(o.length)) config.fail("length", "length must be positive");
  if (!std::isfinite(o.angle)) config.fail("angle", "angle must be a number of degrees");
  if (!(o.ridge > 0)) config.fail("ridge", "ridge must be positive");
  // A kernel may be wider than the image; beyond a few images it is a mistake of units.
  const auto widest = static_cast<double>(4 * std::max(shape[1], shape[2]));
  at::Tensor kernel;
  if (o.kernel == "file") {
    kernel = read_array(config, "kernel_file", context.read_array).to(at::kDouble);
    if (kernel.dim() != 2 || kernel.numel() == 0)
      config.fail("kernel_file", "the kernel is not [rows,columns]");
    if (static_cast<double>(std::max(kernel.size(0), kernel.size(1))) > widest)
      config.fail("kernel_file", "the kernel is more than four images wide");
    if (!at::isfinite(kernel).all().item<bool>() || !(kernel.abs().sum().item<double>() > 0))
      throw DataError("[blur] the kernel is zero or has entries that are not finite");
  } else if (o.kernel == "gaussian") {
    if (o.fwhm > widest) config.fail("fwhm", "the kernel is more than four images wide");
    kernel = gaussian_kernel(o.fwhm);
  } else {
    if (o.length > widest) config.fail("length", "the motion is more than four images long");
    kernel = motion_kernel(o.length, o.angle);
  }
  return std::make_unique<Blur>(std::move(shape), kernel, o.boundary, o.ridge, context);
}

}  // namespace scoreprior
