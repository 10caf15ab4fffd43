#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/io/png.h"
#include "scoreprior/report/svg_plot.h"

namespace scoreprior::report {

/// The levels whose super-level sets hold these shares of the mass of a density on a regular grid
/// (highest-density regions), one per mass. Values >= 0 of any normalisation.
std::vector<double> highest_density_levels(const at::Tensor& density,
                                           const std::vector<double>& masses);

/// Segments (x0, y0, x1, y1) of the line where values [rows, columns] cross `level`, by marching
/// squares, in units of cells: value [r, c] lies at (c, r). Saddles are cut by the mean of their
/// corners; cells with a nonfinite corner are left out.
std::vector<std::array<double, 4>> contour_segments(const at::Tensor& values, double level);

struct ContourOptions {
  std::string title, x_label, y_label;
  std::pair<double, double> x_range{-1, 1}, y_range{-1, 1};
  int size = 300;           ///< of the square drawing; pages scale it
  std::string description;  ///< alternative text; otherwise the title
};

/// Densities of two variables as highest-density regions, and draws as dots; as one <svg> or,
/// without text, as pixels.
class ContourPlot {
 public:
  explicit ContourPlot(ContourOptions options);

  /// density [rows, columns] at the centres of a regular grid over the ranges, row 0 at low y. The
  /// regions of these masses are shaded and outlined.
  ContourPlot& regions(const at::Tensor& density, const std::vector<double>& masses,
                       SvgPlot::Color color);
  ContourPlot& points(const std::vector<double>& x, const std::vector<double>& y,
                      SvgPlot::Color color, double opacity = 0.35);

  std::string svg() const;
  io::Raster raster(int64_t pixels) const;

 private:
  struct Regions {
    at::Tensor density;
    std::vector<double> levels;
    SvgPlot::Color color;
  };
  struct Points {
    std::vector<double> x, y;
    SvgPlot::Color color;
    double opacity;
  };
  io::Raster shading(int64_t pixels) const;

  ContourOptions options_;
  std::vector<Regions> regions_;
  std::vector<Points> points_;
};

}  // namespace scoreprior::report
