#include "scoreprior/report/contour_plot.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "scoreprior/core/errors.h"
#include "scoreprior/report/image_figure.h"

namespace scoreprior::report {
namespace {

// The palette of SvgPlot as numbers.
constexpr std::array<std::array<uint8_t, 3>, 7> kContourPalette = {{{0x2b, 0x6c, 0xb0},
                                                                    {0xd9, 0x77, 0x06},
                                                                    {0x2f, 0x85, 0x5a},
                                                                    {0xc5, 0x30, 0x30},
                                                                    {0x6b, 0x46, 0xc1},
                                                                    {0x8a, 0x94, 0xa3},
                                                                    {0x1f, 0x29, 0x33}}};

std::string contour_color(SvgPlot::Color color) {
  const auto& c = kContourPalette[static_cast<size_t>(color)];
  char text[8];
  std::snprintf(text, sizeof text, "#%02x%02x%02x", c[0], c[1], c[2]);
  return text;
}

std::string contour_number(double v) {
  char text[24];
  std::snprintf(text, sizeof text, "%.2f", v);
  return text;
}

struct Canvas {
  io::Raster raster;
  void blend(int64_t x, int64_t y, SvgPlot::Color color, double opacity) {
    if (x < 0 || y < 0 || x >= raster.width || y >= raster.height) return;
    uint8_t* p = raster.data.data() + (y * raster.width + x) * 3;
    const auto& c = kContourPalette[static_cast<size_t>(color)];
    for (int k = 0; k < 3; ++k)
      p[k] = static_cast<uint8_t>(std::lround((1 - opacity) * p[k] + opacity * c[k]));
  }
  // A line of about `width` pixels: its coverage falls off over one pixel.
  void line(double x0, double y0, double x1, double y1, double width, SvgPlot::Color color) {
    const double reach = width / 2 + 1, dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy;
    for (int64_t y = std::lround(std::min(y0, y1) - reach);
         y <= std::lround(std::max(y0, y1) + reach); ++y)
      for (int64_t x = std::lround(std::min(x0, x1) - reach);
           x <= std::lround(std::max(x0, x1) + reach); ++x) {
        const double px = static_cast<double>(x) - x0, py = static_cast<double>(y) - y0;
        const double along =
            length2 > 0 ? std::clamp((px * dx + py * dy) / length2, 0.0, 1.0) : 0.0;
        const double away = std::hypot(px - along * dx, py - along * dy);
        blend(x, y, color, 0.8 * std::clamp(width / 2 + 0.5 - away, 0.0, 1.0));
      }
  }
};

}  // namespace

std::vector<double> highest_density_levels(const at::Tensor& density,
                                           const std::vector<double>& masses) {
  std::vector<double> p = to_numbers(density);
  for (double& v : p)
    if (!std::isfinite(v) || v < 0) v = 0;
  std::sort(p.begin(), p.end(), std::greater<>());
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<double> levels;
  for (const double mass : masses) {
    double sum = 0;
    size_t k = 0;
    while (k < p.size() && sum < mass * total) sum += p[k++];
    levels.push_back(k > 0 ? p[k - 1] : 0);
  }
  return levels;
}

std::vector<std::array<double, 4>> contour_segments(const at::Tensor& values, double level) {
  SP_CHECK(values.dim() == 2, "contour_segments", "expected values [rows, columns], got ",
           values.sizes());
  const at::Tensor v64 = values.to(at::kCPU, at::kDouble).contiguous();
  const double* v = v64.data_ptr<double>();
  const int64_t rows = v64.size(0), columns = v64.size(1);
  std::vector<std::array<double, 4>> out;
  for (int64_t r = 0; r + 1 < rows; ++r)
    for (int64_t c = 0; c + 1 < columns; ++c) {
      // Corners and edges counted round the cell from the corner (c, r).
      const double corner[4] = {v[r * columns + c], v[r * columns + c + 1],
                                v[(r + 1) * columns + c + 1], v[(r + 1) * columns + c]};
      if (!std::all_of(corner, corner + 4, [](double u) { return std::isfinite(u); })) continue;
      const double at_x[4] = {0, 1, 1, 0}, at_y[4] = {0, 0, 1, 1};
      std::vector<std::array<double, 2>> crossing;
      for (int e = 0; e < 4; ++e) {
        const double a = corner[e], b = corner[(e + 1) % 4];
        if ((a >= level) == (b >= level)) continue;
        const double w = (level - a) / (b - a);
        crossing.push_back({static_cast<double>(c) + at_x[e] + w * (at_x[(e + 1) % 4] - at_x[e]),
                            static_cast<double>(r) + at_y[e] + w * (at_y[(e + 1) % 4] - at_y[e])});
      }
      const auto join = [&](size_t i, size_t j) {
        out.push_back({crossing[i][0], crossing[i][1], crossing[j][0], crossing[j][1]});
      };
      if (crossing.size() == 2) join(0, 1);
      if (crossing.size() == 4) {
        // Edges 3 and 0 cut off corner 0, edges 0 and 1 corner 1: cut off the corners unlike the
        // middle.
        const double middle = (corner[0] + corner[1] + corner[2] + corner[3]) / 4;
        const bool like_first = (middle >= level) == (corner[0] >= level);
        if (like_first) {
          join(0, 1);
          join(2, 3);
        } else {
          join(3, 0);
          join(1, 2);
        }
      }
    }
  return out;
}

ContourPlot::ContourPlot(ContourOptions options) : options_(std::move(options)) {
  SP_CHECK(options_.x_range.second > options_.x_range.first &&
               options_.y_range.second > options_.y_range.first,
           "contour_plot", "expected ranges that grow");
}

ContourPlot& ContourPlot::regions(const at::Tensor& density, const std::vector<double>& masses,
                                  SvgPlot::Color color) {
  SP_CHECK(density.dim() == 2 && density.size(0) > 1 && density.size(1) > 1, "contour_plot",
           "expected a density [rows, columns], got ", density.sizes());
  const at::Tensor d = density.to(at::kCPU, at::kDouble).contiguous();
  regions_.push_back({d, highest_density_levels(d, masses), color});
  return *this;
}

ContourPlot& ContourPlot::points(const std::vector<double>& x, const std::vector<double>& y,
                                 SvgPlot::Color color, double opacity) {
  SP_CHECK(x.size() == y.size(), "contour_plot", "expected as many x as y");
  points_.push_back({x, y, color, opacity});
  return *this;
}

// White, with every region inside its levels darker by one step; row 0 at high y.
io::Raster ContourPlot::shading(int64_t pixels) const {
  Canvas canvas;
  canvas.raster = {pixels, pixels, 3,
                   std::vector<uint8_t>(static_cast<size_t>(pixels * pixels * 3), 255)};
  for (const Regions& g : regions_) {
    const int64_t rows = g.density.size(0), columns = g.density.size(1);
    const double* d = g.density.data_ptr<double>();
    for (int64_t y = 0; y < pixels; ++y)
      for (int64_t x = 0; x < pixels; ++x) {
        const double side = static_cast<double>(pixels);
        const double u =
            std::clamp((static_cast<double>(x) + 0.5) / side * static_cast<double>(columns) - 0.5,
                       0.0, static_cast<double>(columns - 1) - 1e-9);
        const double v = std::clamp(
            (1 - (static_cast<double>(y) + 0.5) / side) * static_cast<double>(rows) - 0.5, 0.0,
            static_cast<double>(rows - 1) - 1e-9);
        const auto i = static_cast<int64_t>(u), j = static_cast<int64_t>(v);
        const double fu = u - static_cast<double>(i), fv = v - static_cast<double>(j);
        const double value =
            (1 - fv) * ((1 - fu) * d[j * columns + i] + fu * d[j * columns + i + 1]) +
            fv * ((1 - fu) * d[(j + 1) * columns + i] + fu * d[(j + 1) * columns + i + 1]);
        for (const double level : g.levels)
          if (value >= level && level > 0) canvas.blend(x, y, g.color, 0.14);
      }
  }
  return canvas.raster;
}

io::Raster ContourPlot::raster(int64_t pixels) const {
  Canvas canvas{shading(pixels)};
  const double side = static_cast<double>(pixels);
  const auto [x_low, x_high] = options_.x_range;
  const auto [y_low, y_high] = options_.y_range;
  for (const Points& p : points_)
    for (size_t k = 0; k < p.x.size(); ++k) {
      const double x = (p.x[k] - x_low) / (x_high - x_low) * side - 0.5;
      const double y = (y_high - p.y[k]) / (y_high - y_low) * side - 0.5;
      if (!(x > -2 && y > -2 && x < side + 2 && y < side + 2)) continue;
      const double radius = side / 300 * 1.2;
      for (int64_t j = std::lround(y - radius - 1); j <= std::lround(y + radius + 1); ++j)
        for (int64_t i = std::lround(x - radius - 1); i <= std::lround(x + radius + 1); ++i)
          canvas.blend(i, j, p.color,
                       p.opacity * std::clamp(radius + 0.5 -
                                                  std::hypot(static_cast<double>(i) - x,
                                                             static_cast<double>(j) - y),
                                              0.0, 1.0));
    }
  for (const Regions& g : regions_)
    for (const double level : g.levels)
      for (const auto& s : contour_segments(g.density, level)) {
        const double cx = side / static_cast<double>(g.density.size(1)),
                     cy = side / static_cast<double>(g.density.size(0));
        canvas.line((s[0] + 0.5) * cx - 0.5, side - (s[1] + 0.5) * cy - 0.5,
                    (s[2] + 0.5) * cx - 0.5, side - (s[3] + 0.5) * cy - 0.5, side / 300, g.color);
      }
  for (int64_t k = 0; k < pixels; ++k)
    for (const auto& [x, y] :
         {std::pair<int64_t, int64_t>{k, 0}, {k, pixels - 1}, {0, k}, {pixels - 1, k}})
      canvas.blend(x, y, SvgPlot::kGray, 1);
  return canvas.raster;
}

std::string ContourPlot::svg() const {
  const double side = options_.size, left = 52, top = options_.title.empty() ? 8 : 28;
  const double width = left + side + 12, height = top + side + 40;
  const auto [x_low, x_high] = options_.x_range;
  const auto [y_low, y_high] = options_.y_range;
  const auto px = [&, low = x_low, high = x_high](double x) {
    return left + (x - low) / (high - low) * side;
  };
  const auto py = [&, low = y_low, high = y_high](double y) {
    return top + (high - y) / (high - low) * side;
  };
  const auto text = [](double x, double y, const std::string& words, const char* anchor,
                       const std::string& more) {
    return "<text x=\"" + contour_number(x) + "\" y=\"" + contour_number(y) + "\" text-anchor=\"" +
           anchor + "\"" + more + ">" + escape_markup(words) + "</text>";
  };
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + contour_number(width) + " " +
      contour_number(height) + "\" style=\"max-width:" + contour_number(1.4 * width) +
      "px\" role=\"img\" aria-label=\"" +
      escape_markup(options_.description.empty() ? options_.title : options_.description) +
      "\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" "
      "font-size=\"11\" fill=\"#1f2933\">";
  if (!options_.title.empty())
    out += text(left, 18, options_.title, "start", " font-size=\"13\" font-weight=\"600\"");
  out += "<image x=\"" + contour_number(left) + "\" y=\"" + contour_number(top) + "\" width=\"" +
         contour_number(side) + "\" height=\"" + contour_number(side) +
         "\" preserveAspectRatio=\"none\" href=\"" + png_data_uri(shading(2 * options_.size)) +
         "\"/>";

  std::string marks;
  const Ticks tx = linear_ticks(x_low, x_high, 5), ty = linear_ticks(y_low, y_high, 5);
  for (size_t i = 0; i < tx.at.size(); ++i) {
    marks += "M" + contour_number(px(tx.at[i])) + " " + contour_number(top + side) + "v4";
    out += text(px(tx.at[i]), top + side + 16, tx.labels[i], "middle", " fill=\"#52606d\"");
  }
  for (size_t i = 0; i < ty.at.size(); ++i) {
    marks += "M" + contour_number(left) + " " + contour_number(py(ty.at[i])) + "h-4";
    out += text(left - 7, py(ty.at[i]) + 4, ty.labels[i], "end", " fill=\"#52606d\"");
  }
  out += "<path d=\"" + marks + "\" stroke=\"#7b8794\" fill=\"none\"/>";

  for (const Points& p : points_) {
    // A dot is a stroke of no length with round ends.
    std::string dots;
    for (size_t k = 0; k < p.x.size(); ++k) {
      if (!(p.x[k] >= x_low && p.x[k] <= x_high && p.y[k] >= y_low && p.y[k] <= y_high)) continue;
      dots += "M" + contour_number(px(p.x[k])) + " " + contour_number(py(p.y[k])) + "h0";
    }
    out += "<path d=\"" + dots + "\" stroke=\"" + contour_color(p.color) +
           "\" stroke-width=\"2.4\" stroke-linecap=\"round\" fill=\"none\" stroke-opacity=\"" +
           contour_number(p.opacity) + "\"/>";
  }
  for (const Regions& g : regions_) {
    std::string lines;
    const double cx = side / static_cast<double>(g.density.size(1)),
                 cy = side / static_cast<double>(g.density.size(0));
    for (const double level : g.levels)
      for (const auto& s : contour_segments(g.density, level))
        lines += "M" + contour_number(left + (s[0] + 0.5) * cx) + " " +
                 contour_number(top + side - (s[1] + 0.5) * cy) + "L" +
                 contour_number(left + (s[2] + 0.5) * cx) + " " +
                 contour_number(top + side - (s[3] + 0.5) * cy);
    out += "<path d=\"" + lines + "\" stroke=\"" + contour_color(g.color) +
           "\" stroke-width=\"1\" stroke-linecap=\"round\" fill=\"none\"/>";
  }
  out += "<rect x=\"" + contour_number(left) + "\" y=\"" + contour_number(top) + "\" width=\"" +
         contour_number(side) + "\" height=\"" + contour_number(side) +
         "\" fill=\"none\" stroke=\"#7b8794\" stroke-width=\"0.8\"/>";
  out += text(left + side / 2, top + side + 33, options_.x_label, "middle", "");
  out += text(14, top + side / 2, options_.y_label, "middle",
              " transform=\"rotate(-90 14 " + contour_number(top + side / 2) + ")\"");
  return out + "</svg>";
}

}  // namespace scoreprior::report
