#include "scoreprior/likelihood/dirty_image.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

struct UvWeights {
  std::vector<double> u, v, w;
};

UvWeights uv_weights(const VisibilityTable& table, VisibilityWeighting weighting) {
  UvWeights out;
  for (const VisibilityRow& row : table.rows) {
    out.u.push_back(row.u);
    out.v.push_back(row.v);
    out.w.push_back(weighting == VisibilityWeighting::kUniform ? 1 : 1 / (row.sigma * row.sigma));
  }
  return out;
}

at::Tensor beam_numerator(const UvWeights& uv, const SkyGrid& grid) {
  const at::Tensor w = at::tensor(uv.w, at::kDouble).unsqueeze(0);
  return backproject(uv.u, uv.v, at::complex(w, at::zeros_like(w)), grid).select(0, 0).select(0, 0);
}

}  // namespace

at::Tensor dirty_beam(const VisibilityTable& table, const SkyGrid& grid,
                      VisibilityWeighting weighting) {
  const at::Tensor beam = beam_numerator(uv_weights(table, weighting), grid);
  return beam / beam.sum();
}

at::Tensor dirty_image(const VisibilityTable& table, const SkyGrid& grid,
                       VisibilityWeighting weighting) {
  const UvWeights uv = uv_weights(table, weighting);
  const auto rows = static_cast<int64_t>(table.rows.size());
  at::Tensor vis = at::empty({1, rows}, at::kComplexDouble);
  auto* p = vis.data_ptr<c10::complex<double>>();
  for (int64_t k = 0; k < rows; ++k) {
    const std::complex<double> value = table.rows[k].vis * uv.w[k];
    p[k] = {value.real(), value.imag()};
  }
  return backproject(uv.u, uv.v, vis, grid).select(0, 0).select(0, 0) /
         beam_numerator(uv, grid).sum();
}

double resolution_rad(const VisibilityTable& table) {
  double longest = 0;
  for (const VisibilityRow& row : table.rows) longest = std::max(longest, std::hypot(row.u, row.v));
  SP_CHECK(longest > 0, "resolution", "expected a baseline of positive length");
  return 1 / longest;
}

GaussianBeam fit_beam(const VisibilityTable& table, VisibilityWeighting weighting) {
  const UvWeights uv = uv_weights(table, weighting);
  double sum = 0, uu = 0, vv = 0, u_v = 0;
  for (size_t k = 0; k < uv.w.size(); ++k) {
    sum += uv.w[k];
    uu += uv.w[k] * uv.u[k] * uv.u[k];
    vv += uv.w[k] * uv.v[k] * uv.v[k];
    u_v += uv.w[k] * uv.u[k] * uv.v[k];
  }
  const double scale = 2 * M_PI * M_PI / sum;
  const double a = scale * uu, b = scale * vv, half_c = scale * u_v;
  const double mean = (a + b) / 2, spread = std::hypot((a - b) / 2, half_c);
  const double large = mean + spread;
  const double small = (a * b - half_c * half_c) / large;
  SP_CHECK(small > 0, "fit_beam", "expected baselines in more than one direction");
  GaussianBeam beam;
  beam.major_rad = std::sqrt(4 * M_LN2 / small);
  beam.minor_rad = std::sqrt(4 * M_LN2 / large);
  // Long axis: eigenvector (x east, y north) of the small eigenvalue.
  const double axis = 0.5 * std::atan2(2 * half_c, a - b) + M_PI / 2;  // from east towards north
  beam.theta = std::fmod(M_PI / 2 - axis + 2 * M_PI, M_PI);
  return beam;
}

at::Tensor gaussian_image(const GaussianBeam& beam, const SkyGrid& grid, double flux, double x0,
                          double y0) {
  const double to_sd = 1 / std::sqrt(8 * M_LN2);
  const double major = beam.major_rad * to_sd, minor = beam.minor_rad * to_sd;
  const double cosine = std::cos(beam.theta), sine = std::sin(beam.theta);
  at::Tensor image = at::empty({grid.height, grid.width}, at::kDouble);
  auto p = image.accessor<double, 2>();
  for (int64_t r = 0; r < grid.height; ++r)
    for (int64_t c = 0; c < grid.width; ++c) {
      const double x = grid.x(c) - x0, y = grid.y(r) - y0;
      const double along = (y * cosine + x * sine) / major;
      const double across = (x * cosine - y * sine) / minor;
      p[r][c] = std::exp(-(along * along + across * across) / 2);
    }
  return image * (flux / image.sum().item<double>());
}

}  // namespace scoreprior
