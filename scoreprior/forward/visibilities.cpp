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

/// An orthogonal basis [n,r] of what the rows of a table [nodes,n] span, cut where rounding begins.
at::Tensor row_basis(const at::Tensor& table, at::ScalarType dtype) {
  at::Tensor u, s, vh;
  std::tie(u, s, vh) = at::linalg_svd(table, false);
  const double cut = dtype == at::kDouble ? 1e-15 : 1e-8;
  const int64_t rank =
      std::max<int64_t>(1, s.gt(cut * s.max().item<double>()).sum().item<int64_t>());
  return vh.narrow(0, 0, rank).t().contiguous();
}

/// Products of every column of a with every column of b, row by row: [M,p], [M,q] -> [M,p*q].
at::Tensor row_products(const at::Tensor& a, const at::Tensor& b) {
  return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1);
}

/// Even or odd functions on the first half of an axis, [n/2,r], as functions on all of it.
at::Tensor whole_axis(const at::Tensor& half, int64_t size, double sign) {
  return at::cat({half, half.narrow(0, 0, size - half.size(0)).flip(0) * sign}, 0);
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
  if (rows_ > 0) {
    const AxisFactor fx = axis_factor(u_col, grid.width, grid.pixel_rad, context.dtype);
    const AxisFactor fy = axis_factor(v_col, grid.height, grid.pixel_rad, context.dtype);
    if (make_factored(fx, fy, factor, context, table_limit)) return;
  }
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

VisibilityTransform::AxisFactor VisibilityTransform::axis_factor(const at::Tensor& frequency,
                                                                 int64_t size, double pixel_rad,
                                                                 at::ScalarType dtype) {
  const int64_t n = (size + 1) / 2;
  const at::Tensor x = angles(n, size, pixel_rad);
  const double largest = frequency.abs().max().item<double>();
  const double edge = largest * x.abs().max().item<double>();
  // Beyond a radian per pixel or so the bases are as large as the axis: nothing to gain.
  if (!(edge < static_cast<double>(n))) return {};
  // Chebyshev nodes resolve all frequencies up to the largest once there are more than `edge`.
  const auto nodes = static_cast<int64_t>(std::ceil(edge)) + 40;
  const at::Tensor node =
      (((at::arange(nodes, at::kDouble) + 0.5) * (M_PI / (2.0 * static_cast<double>(nodes))))
           .cos() *
       largest)
          .unsqueeze(1);
  // Orthogonal on the half axis, up to the weight of the centre pixel, which sines do not see.
  const at::Tensor even = row_basis((node * x).cos(), dtype);
  const at::Tensor odd = row_basis((node * x).sin(), dtype);
  const at::Tensor phase = frequency * x;
  AxisFactor f;
  f.row_even = at::mm(phase.cos(), even);
  f.row_odd = at::mm(phase.sin(), odd);
  f.basis = at::cat({whole_axis(even, size, 1), whole_axis(odd, size, -1)}, 1);
  return f;
}

bool VisibilityTransform::make_factored(const AxisFactor& x, const AxisFactor& y,
                                        const at::Tensor& pulse, const ForwardContext& context,
                                        int64_t table_limit) {
  if (!x.basis.defined() || !y.basis.defined()) return false;
  const int64_t width = x.basis.size(1) * y.basis.size(1);
  const int64_t item = context.dtype == at::kDouble ? 8 : 4;
  if (2 * width > grid_.height * grid_.width || width * rows_ * item > table_limit) return false;
  const auto placed = [&](const at::Tensor& a) { return a.to(context.device, context.dtype); };
  const auto row_table = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                             const at::Tensor& d, double sign) {
    const int64_t split = a.size(1) * b.size(1);
    at::Tensor out =
        placed(at::empty({rows_, split + c.size(1) * d.size(1)}, at::TensorOptions(context.dtype)));
    const int64_t chunk = 4096;
    for (int64_t first = 0; first < rows_; first += chunk) {
      const int64_t n = std::min(chunk, rows_ - first);
      const auto rows = [&](const at::Tensor& t) { return t.narrow(0, first, n); };
      const at::Tensor target = out.narrow(0, first, n), p = rows(pulse);
      target.narrow(1, 0, split).copy_(row_products(rows(a) * p, rows(b)));
      target.narrow(1, split, c.size(1) * d.size(1))
          .copy_(row_products(rows(c) * p, rows(d)) * sign);
    }
    return out;
  };
  basis_x_ = placed(x.basis), basis_y_ = placed(y.basis);
  even_x_ = x.row_even.size(1), even_y_ = y.row_even.size(1);
  // cos(a + b) and sin(a + b)
  factor_re_ = row_table(x.row_even, y.row_even, x.row_odd, y.row_odd, -1);
  factor_im_ = row_table(x.row_even, y.row_odd, x.row_odd, y.row_even, 1);
  return true;
}

const char* VisibilityTransform::method(int64_t batch) const {
  if (factor_re_.defined()) return "factored";
  return axis_by_axis(batch) ? "axis by axis" : "tables";
}

double VisibilityTransform::multiply_adds(int64_t batch) const {
  const auto images = static_cast<double>(batch), rows = static_cast<double>(rows_);
  const auto width = static_cast<double>(grid_.width), height = static_cast<double>(grid_.height);
  if (factor_re_.defined()) {
    const auto x = static_cast<double>(basis_x_.size(1)), y = static_cast<double>(basis_y_.size(1));
    return images * (height * width * x + height * x * y + rows * x * y);
  }
  return axis_by_axis(batch) ? images * rows * height * (width + 2)
                             : images * rows * height * width;
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
  if (factor_re_.defined()) {
    // [B,H,W] -> [B,H,p] -> [B,p,H] -> [B,p,q]
    const int64_t p = basis_x_.size(1), q = basis_y_.size(1);
    const at::Tensor columns = at::mm(x.reshape({-1, grid_.width}), basis_x_);
    const at::Tensor turned = columns.view({batch, grid_.height, p}).transpose(1, 2);
    const at::Tensor core =
        at::mm(turned.reshape({-1, grid_.height}), basis_y_).view({batch, p, q});
    const auto block = [&](bool odd_x, bool odd_y) {
      const at::Tensor in_x =
          odd_x ? core.narrow(1, even_x_, p - even_x_) : core.narrow(1, 0, even_x_);
      return (odd_y ? in_x.narrow(2, even_y_, q - even_y_) : in_x.narrow(2, 0, even_y_)).flatten(1);
    };
    const at::Tensor re = at::cat({block(false, false), block(true, true)}, 1);
    const at::Tensor im = at::cat({block(false, true), block(true, false)}, 1);
    return {at::mm(factor_re_, re.t()), at::mm(factor_im_, im.t())};
  }
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
  if (factor_re_.defined()) {
    const int64_t p = basis_x_.size(1), q = basis_y_.size(1);
    const int64_t odd_x = p - even_x_, odd_y = q - even_y_;
    const at::Tensor from_re = at::mm(re.t(), factor_re_), from_im = at::mm(im.t(), factor_im_);
    const auto block = [&](const at::Tensor& from, int64_t first, int64_t in_x, int64_t in_y) {
      return from.narrow(1, first, in_x * in_y).reshape({batch, in_x, in_y});
    };
    const at::Tensor core = at::cat(
        {at::cat({block(from_re, 0, even_x_, even_y_), block(from_im, 0, even_x_, odd_y)}, 2),
         at::cat({block(from_im, even_x_ * odd_y, odd_x, even_y_),
                  block(from_re, even_x_ * even_y_, odd_x, odd_y)},
                 2)},
        1);
    const at::Tensor turned = at::mm(core.view({-1, q}), basis_y_.t()).view({batch, p, height});
    return at::mm(turned.transpose(1, 2).reshape({-1, p}), basis_x_.t())
        .view({batch, 1, height, width});
  }
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
