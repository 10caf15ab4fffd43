#include "scoreprior/forward/visibilities.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

/// Parts of x even and odd about the middle of axis dim, first half only. The centre of an odd axis
/// comes out doubled in the even part, so the tables count it half.
std::pair<at::Tensor, at::Tensor> fold(const at::Tensor& x, int64_t dim) {
  const int64_t half = (x.size(dim) + 1) / 2;
  const at::Tensor head = x.narrow(dim, 0, half);
  const at::Tensor tail = x.narrow(dim, x.size(dim) - half, half).flip(dim);
  return {head + tail, head - tail};
}

/// The transpose of fold.
at::Tensor unfold(const at::Tensor& even, const at::Tensor& odd, int64_t dim, int64_t size) {
  const int64_t half = even.size(dim);
  const at::Tensor head = even + odd;
  if (size % 2 == 1) head.narrow(dim, half - 1, 1).add_(even.narrow(dim, half - 1, 1));
  return at::cat({head, (even - odd).narrow(dim, 0, size - half).flip(dim)}, dim);
}

at::Tensor column(const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).unsqueeze(1);
}

/// 2 pi times the coordinates of the first n pixels of an axis, [1,n].
at::Tensor angles(int64_t n, int64_t size, double pixel_rad) {
  const double middle = static_cast<double>(size - 1) / 2;
  return ((middle - at::arange(n, at::kDouble)) * (2 * M_PI * pixel_rad)).unsqueeze(0);
}

void halve_centre(at::Tensor& table, int64_t size) {
  if (size % 2 == 1) table.select(1, table.size(1) - 1).mul_(0.5);
}

/// P(u) P(v), [M,1].
at::Tensor pulse_factor(const at::Tensor& u, const at::Tensor& v, double pixel_rad, Pulse pulse) {
  if (pulse == Pulse::kDelta) return at::ones_like(u);
  return (at::sinc(u * pixel_rad) * at::sinc(v * pixel_rad)).square();
}

}  // namespace

SkyGrid make_sky_grid(int64_t height, int64_t width, double fov_uas) {
  return {height, width, fov_uas * kRadPerUas / static_cast<double>(width)};
}

Pulse pulse_from(const std::string& name) {
  SP_CHECK(name == "triangle" || name == "delta", "pulse", "expected triangle or delta, got ",
           name);
  return name == "triangle" ? Pulse::kTriangle : Pulse::kDelta;
}

VisibilityTransform::VisibilityTransform(const std::vector<double>& u, const std::vector<double>& v,
                                         const SkyGrid& grid, Pulse pulse,
                                         const ForwardContext& context, int64_t table_limit)
    : grid_(grid), rows_(static_cast<int64_t>(u.size())), u_(u), v_(v) {
  SP_CHECK(u.size() == v.size(), "visibilities", "expected u and v of one length, got ", u.size(),
           " and ", v.size());
  SP_CHECK(grid.height > 0 && grid.width > 0 && grid.pixel_rad > 0, "visibilities",
           "expected an image with pixels, got ", grid.height, " x ", grid.width, " of ",
           grid.pixel_rad, " rad");
  const at::Tensor u_col = column(u), v_col = column(v);
  const at::Tensor factor = pulse_factor(u_col, v_col, grid.pixel_rad, pulse);
  const int64_t pixels = grid.height * grid.width, half = (pixels + 1) / 2;
  const int64_t item = context.dtype == at::kDouble ? 8 : 4;
  if (2 * half * rows_ * item <= table_limit) {
    cos_ = at::empty({rows_, half}, at::TensorOptions(context.dtype).device(context.device));
    sin_ = at::empty_like(cos_);
    const at::Tensor x = angles(grid.width, grid.width, grid.pixel_rad);
    const at::Tensor y = angles(grid.height, grid.height, grid.pixel_rad);
    const at::Tensor xy_x = x.expand({grid.height, grid.width}).reshape({1, -1}).narrow(1, 0, half);
    const at::Tensor xy_y =
        y.t().expand({grid.height, grid.width}).reshape({1, -1}).narrow(1, 0, half);
    const int64_t chunk = std::max<int64_t>(1, (int64_t{1} << 22) / half);  // 32 MB of phases
    for (int64_t first = 0; first < rows_; first += chunk) {
      const int64_t n = std::min(chunk, rows_ - first);
      const at::Tensor phase = u_col.narrow(0, first, n) * xy_x + v_col.narrow(0, first, n) * xy_y;
      const at::Tensor p = factor.narrow(0, first, n);
      cos_.narrow(0, first, n).copy_(phase.cos() * p);
      sin_.narrow(0, first, n).copy_(phase.sin() * p);
    }
    halve_centre(cos_, pixels);
  }
  const at::Tensor x = u_col * angles((grid.width + 1) / 2, grid.width, grid.pixel_rad);
  const at::Tensor y = v_col * angles((grid.height + 1) / 2, grid.height, grid.pixel_rad);
  cos_x_ = (x.cos() * factor).to(context.device, context.dtype);
  sin_x_ = (x.sin() * factor).to(context.device, context.dtype);
  cos_y_ = y.cos().to(context.device, context.dtype);
  sin_y_ = y.sin().to(context.device, context.dtype);
  halve_centre(cos_x_, grid.width);
  halve_centre(cos_y_, grid.height);
}

bool VisibilityTransform::axis_by_axis(int64_t batch) const {
  if (!cos_.defined()) return true;
  // Measured on one AVX2 core in float32: tables win from 4 images at 5 MB, from 8 at 50 MB, from
  // 16 at 80 MB.
  const auto bytes = 2 * static_cast<int64_t>(cos_.nbytes());
  return batch <= std::min<int64_t>(16, std::max<int64_t>(3, bytes >> 23));
}

std::pair<at::Tensor, at::Tensor> VisibilityTransform::parts(const at::Tensor& x) const {
  check_batched("visibilities", "x", x, input_shape());
  const int64_t batch = x.size(0);
  at::Tensor even, odd;
  if (!axis_by_axis(batch)) {
    std::tie(even, odd) = fold(x.reshape({batch, -1}), 1);
    return {at::mm(cos_, even.t()), at::mm(sin_, odd.t())};
  }
  std::tie(even, odd) = fold(x.squeeze(1), 1);
  const int64_t h = even.size(1);
  at::Tensor ee, eo, oe, oo;  // row parity, column parity
  std::tie(ee, eo) = fold(even, 2);
  std::tie(oe, oo) = fold(odd, 2);
  const auto rows_of = [&](const at::Tensor& a) { return a.reshape({batch * h, -1}); };
  ee = rows_of(ee), eo = rows_of(eo), oe = rows_of(oe), oo = rows_of(oo);
  // Chunks whose [B,H/2,chunk] products stay in cache.
  const int64_t chunk = std::max<int64_t>(8, (int64_t{1} << 20) / (batch * h));
  std::vector<at::Tensor> re, im;
  for (int64_t first = 0; first < rows_; first += chunk) {
    const int64_t n = std::min(chunk, rows_ - first);
    const at::Tensor cx = cos_x_.narrow(0, first, n).t(), sx = sin_x_.narrow(0, first, n).t();
    const at::Tensor cy = cos_y_.narrow(0, first, n).t(), sy = sin_y_.narrow(0, first, n).t();
    const auto along_x = [&](const at::Tensor& a, const at::Tensor& table) {
      return at::mm(a, table).reshape({batch, h, n});
    };
    re.push_back(((along_x(ee, cx) * cy) - (along_x(oo, sx) * sy)).sum(1));
    im.push_back(((along_x(oe, cx) * sy) + (along_x(eo, sx) * cy)).sum(1));
  }
  return {at::cat(re, 1).t(), at::cat(im, 1).t()};
}

at::Tensor VisibilityTransform::adjoint_parts(const at::Tensor& re, const at::Tensor& im) const {
  const int64_t batch = re.size(1), height = grid_.height, width = grid_.width;
  if (!axis_by_axis(batch))
    return unfold(at::mm(re.t(), cos_), at::mm(im.t(), sin_), 1, height * width)
        .reshape({batch, 1, height, width});
  const int64_t h = (height + 1) / 2, w = (width + 1) / 2;
  at::Tensor ee = at::zeros({batch * h, w}, re.options()), eo = at::zeros_like(ee),
             oe = at::zeros_like(ee), oo = at::zeros_like(ee);
  const int64_t chunk = std::max<int64_t>(8, (int64_t{1} << 20) / (batch * h));
  for (int64_t first = 0; first < rows_; first += chunk) {
    const int64_t n = std::min(chunk, rows_ - first);
    const at::Tensor cx = cos_x_.narrow(0, first, n), sx = sin_x_.narrow(0, first, n);
    const at::Tensor cy = cos_y_.narrow(0, first, n).t(), sy = sin_y_.narrow(0, first, n).t();
    const at::Tensor a = re.narrow(0, first, n).t().unsqueeze(1);
    const at::Tensor b = im.narrow(0, first, n).t().unsqueeze(1);
    const auto rows_of = [&](const at::Tensor& g) { return g.reshape({batch * h, n}); };
    ee = at::addmm(ee, rows_of(a * cy), cx);
    oo = at::addmm(oo, rows_of(a * sy), sx, 1, -1);
    oe = at::addmm(oe, rows_of(b * sy), cx);
    eo = at::addmm(eo, rows_of(b * cy), sx);
  }
  const auto image_of = [&](const at::Tensor& g) { return g.reshape({batch, h, w}); };
  const at::Tensor even = unfold(image_of(ee), image_of(eo), 2, width);
  const at::Tensor odd = unfold(image_of(oe), image_of(oo), 2, width);
  return unfold(even, odd, 1, height).unsqueeze(1);
}

at::Tensor VisibilityTransform::apply(const at::Tensor& x) const {
  const auto p = parts(x);
  return at::cat({p.first, p.second}, 0).t();
}

std::optional<at::Tensor> VisibilityTransform::adjoint(const at::Tensor& y) const {
  check_batched("visibilities", "y", y, output_shape());
  return adjoint_parts(y.narrow(1, 0, rows_).t(), y.narrow(1, rows_, rows_).t());
}

std::optional<at::Tensor> VisibilityTransform::naive_inverse(const at::Tensor& y) const {
  check_batched("visibilities", "y", y, output_shape());
  const at::Tensor y64 = y.detach().to(at::kCPU, at::kDouble);
  const at::Tensor vis =
      at::complex(y64.narrow(1, 0, rows_).contiguous(), y64.narrow(1, rows_, rows_).contiguous());
  const at::Tensor beam = backproject(u_, v_, at::ones({1, rows_}, at::kComplexDouble), grid_);
  return (backproject(u_, v_, vis, grid_) / beam.sum()).to(y.device(), y.scalar_type());
}

at::Tensor backproject(const std::vector<double>& u, const std::vector<double>& v,
                       const at::Tensor& vis, const SkyGrid& grid) {
  const VisibilityTransform transform(u, v, grid, Pulse::kDelta, {at::kDouble, at::kCPU});
  return transform.adjoint_parts(at::real(vis).t(), at::imag(vis).t());
}

/// Catalogue entry: (u,v) from a file.
std::unique_ptr<ForwardModel> make_visibilities(const Config& config,
                                                const ForwardContext& context) {
  const Shape shape = image_shape(config, context, 32);
  if (shape[0] != 1) config.fail("channels", "visibilities need images of one channel");
  const auto fov = config.get<double>("fov_uas", 160.0, "width of the image [micro-arcsec]");
  if (!(fov > 0)) config.fail("fov_uas", "fov_uas must be positive");
  const Pulse pulse = pulse_from(config.one_of("pulse", "triangle", {"triangle", "delta"}));
  const at::Tensor uv = read_array(config, "uv", context.read_array).to(at::kDouble).contiguous();
  if (uv.dim() != 2 || uv.size(1) != 2) config.fail("uv", "(u,v) [wavelengths] must be [M,2]");
  if (!at::isfinite(uv).all().item<bool>())
    throw DataError("[visibilities] (u,v) has entries that are not finite");
  const auto a = uv.accessor<double, 2>();
  std::vector<double> u, v;
  for (int64_t k = 0; k < uv.size(0); ++k) u.push_back(a[k][0]), v.push_back(a[k][1]);
  return std::make_unique<VisibilityTransform>(u, v, make_sky_grid(shape[1], shape[2], fov), pulse,
                                               context);
}

}  // namespace scoreprior
