#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace scoreprior::report {

/// Marks of an axis, shared by plots, images and colour bars.
struct Ticks {
  std::vector<double> at;
  std::vector<std::string> labels;  ///< empty = mark without number
  int exponent = 0;                 ///< labels are values / 10^exponent
};
/// Steps of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them.
Ticks linear_ticks(double low, double high, int count = 5);
/// Powers of ten inside [low, high] (both positive), thinned to about `count`; over less than one
/// decade, 1-2-5 steps.
Ticks log_ticks(double low, double high, int count = 5);

/// 3 significant digits as people write them: "0.0123", "1.2e-7"; "not a number" for NaN.
std::string number_text(double value, int digits = 3);
/// & < > " as entities, control characters dropped: text fit for HTML and SVG.
std::string escape_markup(const std::string& text);
/// Any tensor as numbers in row-major order.
std::vector<double> to_numbers(const at::Tensor& values);

struct PlotOptions {
  std::string title, x_label, y_label;
  bool log_x = false, log_y = false;
  std::optional<std::pair<double, double>> x_range, y_range;  ///< otherwise from the data
  int width = 460, height = 290;                              ///< of the drawing; pages scale it
  std::string description;  ///< alternative text; otherwise the title
};

/// A small plot as one self-contained <svg>: series are drawn in the order they are added,
/// nonfinite points (and nonpositive ones on log axes) are left out, long lines are thinned to what
/// a screen can show.
class SvgPlot {
 public:
  using Numbers = std::vector<double>;
  explicit SvgPlot(PlotOptions options);

  /// Colours are numbers of the built-in palette, which stays readable for colour-blind people and
  /// in grey.
  enum Color { kBlue, kOrange, kGreen, kRed, kPurple, kGray, kBlack };

  SvgPlot& line(const Numbers& x, const Numbers& y, Color color, const std::string& label = "",
                double width = 1.6, bool dashed = false, double opacity = 1);
  /// Dots; sigma (may be empty) gives error bars of one standard deviation.
  SvgPlot& points(const Numbers& x, const Numbers& y, const Numbers& sigma, Color color,
                  const std::string& label = "");
  /// The region between low and high; a nonfinite edge interrupts it.
  SvgPlot& band(const Numbers& x, const Numbers& low, const Numbers& high, Color color,
                const std::string& label = "", double opacity = 0.2);
  /// A vertical bar from low to high at every x: intervals of points that no curve joins.
  SvgPlot& intervals(const Numbers& x, const Numbers& low, const Numbers& high, Color color,
                     const std::string& label = "", double opacity = 0.3);
  /// Counts of `values` in about sqrt(n) equal bins (of log10 x on a log axis).
  SvgPlot& histogram(const Numbers& values, Color color, const std::string& label = "");
  /// A line across the whole plot.
  SvgPlot& vertical(double x, Color color, const std::string& label = "");
  SvgPlot& horizontal(double y, Color color, const std::string& label = "");

  std::string svg() const;

 private:
  enum class Kind { kLine, kPoints, kBand, kIntervals, kBars, kVertical, kHorizontal };
  struct Series {
    Kind kind;
    Numbers x, y, low, high;
    Color color;
    std::string label;
    double width = 1.6, opacity = 1;
    bool dashed = false;
  };
  PlotOptions options_;
  std::vector<Series> series_;
};

}  // namespace scoreprior::report
