/// radon: parallel-beam computed tomography.
///   y[a,j] = integral of x along the ray  X cos(theta_a) + Y sin(theta_a) = s_j,
///   X to the right, Y upwards, origin at the centre of the image; pixels are squares of constant
///   brightness and the integral over them is exact:
///     line   chord of the ray through the pixel
///     strip  area that a strip one detector wide shares with the pixel, over the strip's width
///   theta_a = start + a * range/angles; s_j = (j - (detectors - 1)/2) * detector_spacing
///   Shapes [B,C,H,W] -> [B,angles*detectors*C], C fastest; linear
///   Units: y = units of x times those of pixel_size, e.g. 1/mm * mm
///   naive inverse: filtered back-projection with the band-limited ramp of [Kak88] ch. 3; angles
///   not measured count as zero
///   Cost: about 2 angles * N multiply-adds per image, one sparse matrix kept both ways (at most
///   2 GB); on the CPU only

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/linear_function.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct RadonOptions {
  int64_t angles = 60, detectors = -1;
  double start = 0, range = 180, detector_spacing = 1, pixel_size = 1;
  std::string integral = "strip";
  template <class F>
  void fields(F&& f) {
    f("angles", angles, "views, evenly spaced over the range");
    f("start", start, "angle of the first view [degrees]");
    f("range", range, "angle covered [degrees]; less than 180 = limited-angle tomography");
    f("detectors", detectors, "rays per view; -1 = enough for the image's diagonal");
    f("detector_spacing", detector_spacing, "distance between rays [pixels]");
    f("pixel_size", pixel_size, "side of a pixel [any length]; sets the unit of y");
    f("integral", integral, "line or strip");
  }
};

/// The projection of a unit square along a direction: a trapezoid of area 1 over the offset from
/// its centre.
class Footprint {
 public:
  explicit Footprint(double angle)
      : wide_(std::max(std::abs(std::cos(angle)), std::abs(std::sin(angle)))),
        slim_(std::min(std::abs(std::cos(angle)), std::abs(std::sin(angle)))) {
    if (slim_ < 1e-12) slim_ = 0;  // axis-parallel up to the rounding of the angle
  }
  double reach() const { return (wide_ + slim_) / 2; }
  /// Chord through the square; a ray along an edge belongs half to each neighbour.
  double chord(double t) const {
    t = std::abs(t);
    const double flat = (wide_ - slim_) / 2;
    if (slim_ == 0) {
      const double edge = wide_ / 2 - t;
      return std::abs(edge) < 1e-9 ? 0.5 : edge > 0 ? 1.0 : 0.0;
    }
    if (t <= flat) return 1 / wide_;
    return t < reach() ? (reach() - t) / (wide_ * slim_) : 0.0;
  }
  /// Area of the square below offset t.
  double below(double t) const {
    if (t <= -reach()) return 0;
    if (t >= reach()) return 1;
    const double flat = (wide_ - slim_) / 2;
    if (t < -flat) return (t + reach()) * (t + reach()) / (2 * wide_ * slim_);
    if (t > flat) return 1 - (reach() - t) * (reach() - t) / (2 * wide_ * slim_);
    return 0.5 + t / wide_;
  }

 private:
  double wide_, slim_;
};

/// Compressed rows: y = M x for x [columns,B]. Made row by row or in any other order, once the
/// number of entries of every row is known.
class SparseRows {
 public:
  SparseRows(const std::vector<int64_t>& entries, at::ScalarType dtype)
      : rows_(static_cast<int64_t>(entries.size())), first_(entries.size() + 1, 0) {
    std::partial_sum(entries.begin(), entries.end(), first_.begin() + 1);
    next_.assign(first_.begin(), first_.end() - 1);
    column_.resize(static_cast<size_t>(first_.back()));
    value_ = at::empty({first_.back()}, dtype);
  }
  void add(int64_t row, int64_t column, double value) {
    const int64_t k = next_[row]++;
    column_[k] = static_cast<int32_t>(column);
    if (value_.scalar_type() == at::kDouble)
      value_.data_ptr<double>()[k] = value;
    else
      value_.data_ptr<float>()[k] = static_cast<float>(value);
  }
  at::Tensor times(const at::Tensor& x) const {
    const at::Tensor in = x.contiguous();
    at::Tensor out = at::empty({rows_, in.size(1)}, in.options());
    if (in.scalar_type() == at::kDouble)
      multiply<double>(in, out);
    else
      multiply<float>(in, out);
    return out;
  }

 private:
  template <class T>
  void multiply(const at::Tensor& x, at::Tensor& y) const {
    const int64_t width = x.size(1);
    const T *in = x.data_ptr<T>(), *value = value_.data_ptr<T>();
    T* out = y.data_ptr<T>();
    const int64_t work = std::max<int64_t>(1, static_cast<int64_t>(column_.size()) / rows_ * width);
    at::parallel_for(0, rows_, std::max<int64_t>(1, 32768 / work), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* sum = out + r * width;
        std::fill(sum, sum + width, T(0));
        for (int64_t k = first_[r]; k < first_[r + 1]; ++k) {
          const T w = value[k];
          const T* source = in + column_[k] * width;
          for (int64_t b = 0; b < width; ++b) sum[b] += w * source[b];
        }
      }
    });
  }
  int64_t rows_;
  std::vector<int64_t> first_, next_;  // where a row begins; its next entry to be added
  std::vector<int32_t> column_;
  at::Tensor value_;
};

double view_angle(const RadonOptions& o, int64_t view) {
  return (o.start + o.range * static_cast<double>(view) / static_cast<double>(o.angles)) * M_PI /
         180;
}

/// Half the width of what a pixel's rays cover on the detectors [pixels].
double half_width(const Footprint& footprint, const RadonOptions& o) {
  return footprint.reach() + (o.integral == "strip" ? o.detector_spacing / 2 : 0);
}

/// visit(ray, pixel, weight) for every entry of the matrix that is not 0.
template <class Visit>
void visit_rays(const Shape& shape, const RadonOptions& o, Visit&& visit) {
  const int64_t height = shape[1], width = shape[2];
  const double middle = static_cast<double>(o.detectors - 1) / 2;
  const bool strip = o.integral == "strip";
  for (int64_t a = 0; a < o.angles; ++a) {
    const double angle = view_angle(o, a);
    const Footprint footprint(angle);
    const double half = half_width(footprint, o);
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < width; ++c) {
        const double x = static_cast<double>(c) - static_cast<double>(width - 1) / 2;
        const double y = static_cast<double>(height - 1) / 2 - static_cast<double>(r);
        const double t = x * std::cos(angle) + y * std::sin(angle);
        const auto ray = [&](double s) { return s / o.detector_spacing + middle; };
        const auto first = std::max<int64_t>(0, std::lround(std::floor(ray(t - half))));
        const auto last = std::min(o.detectors - 1, std::lround(std::ceil(ray(t + half))));
        for (int64_t j = first; j <= last; ++j) {
          const double s = (static_cast<double>(j) - middle) * o.detector_spacing - t;
          const double weight = strip ? (footprint.below(s + o.detector_spacing / 2) -
                                         footprint.below(s - o.detector_spacing / 2)) /
                                            o.detector_spacing
                                      : footprint.chord(s);
          if (weight > 0) visit(a * o.detectors + j, r * width + c, weight * o.pixel_size);
        }
      }
  }
}

constexpr double kMostBytes = 2e9;  // of the matrix and its transpose

/// About how many bytes the matrix takes both ways: a column number and a weight for each entry.
double matrix_bytes(const Shape& shape, const RadonOptions& o, at::ScalarType dtype) {
  double rays = 0;  // that meet one pixel, all views
  for (int64_t a = 0; a < o.angles; ++a)
    rays += std::min(static_cast<double>(o.detectors),
                     2 * half_width(Footprint(view_angle(o, a)), o) / o.detector_spacing);
  return 2 * rays * static_cast<double>(shape[1] * shape[2]) *
         (sizeof(int32_t) + (dtype == at::kDouble ? sizeof(double) : sizeof(float)));
}

class Radon final : public ForwardModel, private LinearMap {
 public:
  Radon(Shape shape, const RadonOptions& o, const ForwardContext& context)
      : shape_(std::move(shape)), options_(o) {
    std::vector<int64_t> of_ray(static_cast<size_t>(o.angles * o.detectors), 0),
        of_pixel(static_cast<size_t>(shape_[1] * shape_[2]), 0);
    visit_rays(shape_, o,
               [&](int64_t ray, int64_t pixel, double) { ++of_ray[ray], ++of_pixel[pixel]; });
    matrix_ = SparseRows(of_ray, context.dtype);
    transpose_ = SparseRows(of_pixel, context.dtype);
    visit_rays(shape_, o, [&](int64_t ray, int64_t pixel, double weight) {
      matrix_.add(ray, pixel, weight);
      transpose_.add(pixel, ray, weight);
    });
  }
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {options_.angles * options_.detectors * shape_[0]}; }
  bool linear() const override { return true; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("radon", "x", x, shape_);
    return apply_linear(*this, x);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("radon", "y", y, output_shape());
    return apply_linear(*this, y, true);
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("radon", "y", y, output_shape());
    at::NoGradGuard no_grad;
    // Views beyond half a turn repeat others. A row of the transpose sums to pixel_size / spacing.
    const double step =
        std::min(options_.range, 180.0) * M_PI / 180 / static_cast<double>(options_.angles);
    const double scale = step * std::pow(options_.detector_spacing / options_.pixel_size, 2);
    const at::Tensor views = y.reshape({y.size(0), options_.angles, options_.detectors, shape_[0]});
    return *adjoint(ramp_filtered(views).flatten(1)) * scale;
  }

 private:
  /// Along the detectors, on a grid long enough that nothing wraps.
  at::Tensor ramp_filtered(const at::Tensor& views) const {
    const int64_t n = options_.detectors, size = 2 * n;
    at::Tensor ramp = at::zeros({size}, at::kDouble);
    auto h = ramp.accessor<double, 1>();
    const double spacing2 = options_.detector_spacing * options_.detector_spacing;
    h[0] = 0.25 / spacing2;
    for (int64_t k = 1; k <= n; k += 2)
      h[k] = h[size - k] =
          -1 / (M_PI * M_PI * static_cast<double>(k) * static_cast<double>(k) * spacing2);
    const at::Tensor transfer = at::real(at::fft_rfft(ramp)).to(views.options()).unsqueeze(1);
    return at::fft_irfft(at::fft_rfft(views, size, 2) * transfer, size, 2).narrow(2, 0, n);
  }
  /// The matrix acts on [pixels, C*B].
  at::Tensor product(const at::Tensor& x) const override {
    const at::Tensor columns = x.flatten(2).permute({2, 1, 0}).flatten(1);
    return matrix_.times(columns)
        .view({-1, shape_[0], x.size(0)})
        .permute({2, 0, 1})
        .reshape({x.size(0), -1});
  }
  at::Tensor transposed_product(const at::Tensor& y) const override {
    const at::Tensor columns = y.reshape({y.size(0), -1, shape_[0]}).permute({1, 2, 0}).flatten(1);
    return transpose_.times(columns)
        .view({-1, shape_[0], y.size(0)})
        .permute({2, 1, 0})
        .reshape(batched(y.size(0), shape_));
  }

  Shape shape_;
  RadonOptions options_;
  SparseRows matrix_{{}, at::kFloat}, transpose_{{}, at::kFloat};
};

}  // namespace

std::unique_ptr<ForwardModel> make_radon(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  auto o = config.read<RadonOptions>();
  config.one_of("integral", "strip", {"line", "strip"});
  if (!context.device.is_cpu())
    config.fail("name", "radon computes on the CPU only; start the program with --device cpu");
  if (o.angles < 1) config.fail("angles", "angles must be at least 1");
  if (!(o.range > 0 && o.range <= 360)) config.fail("range", "range must be in (0,360] degrees");
  if (!std::isfinite(o.start)) config.fail("start", "start must be a number of degrees");
  if (!(o.detector_spacing > 0) || !std::isfinite(o.detector_spacing))
    config.fail("detector_spacing", "detector_spacing must be positive");
  if (!(o.pixel_size > 0) || !std::isfinite(o.pixel_size))
    config.fail("pixel_size", "pixel_size must be positive");
  if (o.detectors < 0) {
    const double diagonal = std::hypot(shape[1], shape[2]) / o.detector_spacing;
    if (!(diagonal < 1e6)) config.fail("detector_spacing", "detector_spacing is too fine");
    o.detectors = 2 * static_cast<int64_t>(std::ceil(diagonal / 2)) + 1;
  }
  if (o.detectors < 1) config.fail("detectors", "detectors must be at least 1");
  if (!(static_cast<double>(o.angles) * static_cast<double>(o.detectors) < 2e9))
    config.fail("angles", "angles times detectors must stay below 2e9");
  if (const double bytes = matrix_bytes(shape, o, context.dtype); bytes > kMostBytes) {
    char size[32];
    std::snprintf(size, sizeof size, "%.1f", bytes / 1e9);
    const std::string key = o.detector_spacing < 0.25 ? "detector_spacing" : "angles";
    config.fail(key, std::string("the matrix of all rays would take ") + size +
                         " GB of memory, more than the 2 GB allowed; take " +
                         (key == "angles" ? "fewer angles" : "a wider detector_spacing") +
                         ", or a smaller image");
  }
  return std::make_unique<Radon>(std::move(shape), o, context);
}

}  // namespace scoreprior
