#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/forward/forward_model.h"

namespace scoreprior {

constexpr double kRadPerUas = M_PI / (180.0 * 3600.0 * 1e6);

/// Pixel centres of a sky image: row 0 north, column 0 east, square pixels, origin in the middle of
/// the image.
struct SkyGrid {
  int64_t height = 32, width = 32;
  double pixel_rad = 0;
  double x(int64_t column) const { return ((width - 1) / 2.0 - column) * pixel_rad; }  ///< east
  double y(int64_t row) const { return ((height - 1) / 2.0 - row) * pixel_rad; }       ///< north
};
/// fov_uas is the width of the image.
SkyGrid make_sky_grid(int64_t height, int64_t width, double fov_uas);

/// How a pixel becomes a continuous brightness: a point, or a triangle two pixels wide in x and y.
enum class Pulse { kDelta, kTriangle };
Pulse pulse_from(const std::string& name);

/// Visibilities by direct Fourier transform, linear in the image [Jy/pixel]:
///
///   V_k = P(u_k) P(v_k) sum_{r,c} x[r,c] exp(+2 pi i (u_k X_c + v_k Y_r))     [Jy]
///   P = 1 (delta) or (sin(pi w d)/(pi w d))^2 for pixel side d (triangle)
///
/// Shapes [B,1,H,W] -> [B,2M], real then imaginary parts.
/// The cosine acts on the part of the image that is even about its centre and the sine on the odd
/// part. Three ways to the same numbers, chosen by size:
///   factored  A field of view of L and baselines up to U leave about 2 U L + 10 numbers per axis
///             that data can see. The image is reduced to those (orthogonal bases of the cosines
///             and sines, from a singular value decomposition cut at rounding) and a table of K
///             numbers per row does the rest: K = 580 for an Event Horizon Telescope image of any
///             number of pixels. Taken while K is below half the pixels.
///   tables    N multiply-adds per row for N pixels: a quarter of a complex matrix.
///   axis by axis, with (H + W) M numbers: for few images, where reading tables would cost more
///             than the arithmetic, and beyond `table_limit` bytes of tables.
class VisibilityTransform final : public ForwardModel {
 public:
  VisibilityTransform(const std::vector<double>& u, const std::vector<double>& v,
                      const SkyGrid& grid, Pulse pulse, const ForwardContext& context,
                      int64_t table_limit = int64_t{1} << 30);

  Shape input_shape() const override { return {1, grid_.height, grid_.width}; }
  Shape output_shape() const override { return {2 * rows_}; }
  bool linear() const override { return true; }
  at::Tensor apply(const at::Tensor& x) const override;
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override;
  /// Dirty image with uniform weights; see likelihood/dirty_image.h.
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override;

  /// (Re V, Im V), each [M,B]: rows lie together, which is what per-baseline arithmetic wants.
  std::pair<at::Tensor, at::Tensor> parts(const at::Tensor& x) const;
  /// The transpose of parts: ([M,B], [M,B]) -> [B,1,H,W].
  at::Tensor adjoint_parts(const at::Tensor& re, const at::Tensor& im) const;

  /// How a batch is transformed: "factored", "tables" or "axis by axis".
  const char* method(int64_t batch) const;
  /// Multiply-adds of one transform of a batch, either way.
  double multiply_adds(int64_t batch) const;
  const SkyGrid& grid() const { return grid_; }
  int64_t rows() const { return rows_; }

 private:
  /// Basis of one axis [n,r], even functions first, and the numbers of each row in it.
  struct AxisFactor {
    at::Tensor basis, row_even, row_odd;  ///< [n,r], [M,even], [M,r - even]
  };
  bool axis_by_axis(int64_t batch) const;
  bool make_factored(const AxisFactor& x, const AxisFactor& y, const at::Tensor& pulse,
                     const ForwardContext& context, int64_t table_limit);
  static AxisFactor axis_factor(const at::Tensor& frequency, int64_t size, double pixel_rad,
                                at::ScalarType dtype);
  SkyGrid grid_;
  int64_t rows_;
  std::vector<double> u_, v_;
  at::Tensor cos_,
      sin_;  ///< [M,ceil(N/2)] with the pulse; the centre pixel of an odd image counts half
  at::Tensor basis_x_, basis_y_;      ///< factored: [W,r], [H,r], even functions first
  int64_t even_x_ = 0, even_y_ = 0;   ///< how many are even
  at::Tensor factor_re_, factor_im_;  ///< factored: [M,K/2] with the pulse
  at::Tensor cos_x_, sin_x_, cos_y_,
      sin_y_;  ///< [M,ceil(W/2)], [M,ceil(H/2)]: axis by axis, pulse in x
};

/// sum_k Re( V_k exp(-2 pi i (u_k X_c + v_k Y_r)) ) without pulse, float64: vis complex [B,M] ->
/// [B,1,H,W].
at::Tensor backproject(const std::vector<double>& u, const std::vector<double>& v,
                       const at::Tensor& vis, const SkyGrid& grid);

}  // namespace scoreprior
