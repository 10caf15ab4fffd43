#include "scoreprior/report/image_figure.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "scoreprior/report/svg_plot.h"

namespace scoreprior::report {
namespace {

constexpr double kMicroarcsecond = 4.84813681109535993589914e-12;  // [rad]
constexpr int64_t kShownPixels = 256;  // embedded pictures have at least this many pixels a side

std::string figure_number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", v);
  return text;
}

std::string figure_text(double x, double y, const std::string& text, const char* anchor,
                        const std::string& more = "") {
  return "<text x=\"" + figure_number(x) + "\" y=\"" + figure_number(y) + "\" text-anchor=\"" +
         anchor + "\"" + more + ">" + escape_markup(text) + "</text>";
}

std::string base64(const std::vector<uint8_t>& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = bytes.size() - i;
    const uint32_t group = uint32_t(bytes[i]) << 16 | (left > 1 ? uint32_t(bytes[i + 1]) << 8 : 0) |
                           (left > 2 ? uint32_t(bytes[i + 2]) : 0);
    out += kDigits[group >> 18];
    out += kDigits[group >> 12 & 63];
    out += left > 1 ? kDigits[group >> 6 & 63] : '=';
    out += left > 2 ? kDigits[group & 63] : '=';
  }
  return out;
}

// "1e-4": one power of ten for a colour bar, as a factor in its label.
std::string power_of_ten(int exponent) {
  if (exponent == 0) return "";
  return "10<tspan baseline-shift=\"super\" font-size=\"8\">" +
         std::string(exponent < 0 ? "−" : "") + std::to_string(std::abs(exponent)) + "</tspan> ";
}

}  // namespace

std::string png_data_uri(const io::Raster& raster) {
  return "data:image/png;base64," + base64(io::encode_png(raster));
}

double kelvin_per_jansky_pixel(double fov_uas, int64_t size, double frequency_hz) {
  constexpr double c = 299792458.0, k = 1.380649e-23, jansky = 1e-26;
  const double pixel = fov_uas * kMicroarcsecond / double(size);
  return c * c * jansky / (2 * k * frequency_hz * frequency_hz * pixel * pixel);
}

std::string image_svg(const ImageFigure& f) {
  const at::Tensor x = displayed(f.image);
  const bool rgb = x.dim() == 3;
  const bool bar = f.color_bar && !rgb;
  const bool axes = f.fov_uas > 0;
  const double columns = double(x.size(-1)), rows = double(x.size(-2));

  const double w = 260 * std::min(1.0, columns / rows), h = w * rows / columns;
  const double left = axes ? 46 : 8, right_margin = axes ? 14 : 8;
  const double top = f.title.empty() ? 8 : 28;
  const double axis_room = axes ? 38 : 0;
  const bool kelvin = bar && f.kelvin_per_unit.has_value();
  const double bar_top = top + h + axis_room + (kelvin ? 34 : 12);
  const double width = left + w + right_margin;
  const double height = bar ? bar_top + 10 + 34 : top + h + axis_room + 8;

  std::string description = f.description;
  if (description.empty())
    description = f.title + ": image of " + std::to_string(x.size(-1)) + " by " +
                  std::to_string(x.size(-2)) + " pixels" +
                  (rgb ? ""
                       : ", colours from " + number_text(f.scale.low) + " to " +
                             number_text(f.scale.high) + (f.units.empty() ? "" : " " + f.units));
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " +
                    figure_number(width) + " " + figure_number(height) +
                    "\" style=\"max-width:" + figure_number(1.4 * width) +
                    "px\" role=\"img\" aria-label=\"" + escape_markup(description) +
                    "\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', "
                    "sans-serif\" font-size=\"11\" fill=\"#1f2933\">";
  if (!f.title.empty())
    out += figure_text(left, 18, f.title, "start", " font-size=\"13\" font-weight=\"600\"");

  const io::Raster raster = render(f.image, f.scale, upscale_factor(x, kShownPixels), f.upscaling);
  out += "<image x=\"" + figure_number(left) + "\" y=\"" + figure_number(top) + "\" width=\"" +
         figure_number(w) + "\" height=\"" + figure_number(h) + "\" preserveAspectRatio=\"none\"" +
         (f.upscaling == Upscaling::kNearest ? " style=\"image-rendering:pixelated\"" : "") +
         " href=\"" + png_data_uri(raster) + "\"/>";
  out += "<rect x=\"" + figure_number(left) + "\" y=\"" + figure_number(top) + "\" width=\"" +
         figure_number(w) + "\" height=\"" + figure_number(h) +
         "\" fill=\"none\" stroke=\"#7b8794\" stroke-width=\"0.8\"/>";

  if (axes) {
    const double half_x = f.fov_uas / 2, half_y = half_x * rows / columns;
    std::string marks;
    const Ticks tx = linear_ticks(-half_x, half_x, 7);
    for (size_t i = 0; i < tx.at.size(); ++i) {
      const double px = left + (half_x - tx.at[i]) / (2 * half_x) * w;
      marks += "M" + figure_number(px) + " " + figure_number(top + h) + "v4";
      out += figure_text(px, top + h + 15, tx.labels[i], "middle", " fill=\"#52606d\"");
    }
    const Ticks ty = linear_ticks(-half_y, half_y, 7);
    for (size_t i = 0; i < ty.at.size(); ++i) {
      const double py = top + (half_y - ty.at[i]) / (2 * half_y) * h;
      marks += "M" + figure_number(left) + " " + figure_number(py) + "h-4";
      out += figure_text(left - 6, py + 4, ty.labels[i], "end", " fill=\"#52606d\"");
    }
    out += "<path d=\"" + marks + "\" stroke=\"#7b8794\" fill=\"none\"/>";
    out += figure_text(left + w / 2, top + h + 31, "Relative RA (µas)", "middle");
    const std::string yc = figure_number(top + h / 2);
    out += figure_text(13, top + h / 2, "Relative Dec (µas)", "middle",
                       " transform=\"rotate(-90 13 " + yc + ")\"");
  }

  if (bar) {
    // The bar itself is a row of 256 pixels, so it has exactly the picture's colours.
    io::Raster strip;
    strip.width = 256;
    strip.height = 1;
    strip.channels = 3;
    for (int i = 0; i < 256; ++i) {
      const auto c = color_at(f.scale.map, i / 255.0);
      strip.data.insert(strip.data.end(), c.begin(), c.end());
    }
    out += "<image x=\"" + figure_number(left) + "\" y=\"" + figure_number(bar_top) +
           "\" width=\"" + figure_number(w) +
           "\" height=\"10\" preserveAspectRatio=\"none\" href=\"" + png_data_uri(strip) +
           "\"/><rect x=\"" + figure_number(left) + "\" y=\"" + figure_number(bar_top) +
           "\" width=\"" + figure_number(w) +
           "\" height=\"10\" fill=\"none\" stroke=\"#7b8794\" stroke-width=\"0.8\"/>";
    const auto scale_marks = [&](double unit, double tick_y, double direction, double text_y) {
      const double low = f.scale.low * unit, high = f.scale.high * unit;
      const Ticks t = linear_ticks(low, high, 4);
      std::string marks;
      for (size_t i = 0; i < t.at.size(); ++i) {
        const double px = left + (t.at[i] - low) / (high - low) * w;
        marks += "M" + figure_number(px) + " " + figure_number(tick_y) + "v" +
                 figure_number(3 * direction);
        out += figure_text(px, text_y, t.labels[i], "middle", " font-size=\"10\" fill=\"#52606d\"");
      }
      out += "<path d=\"" + marks + "\" stroke=\"#7b8794\" fill=\"none\"/>";
      return t.exponent;
    };
    const auto bar_label = [&](double y, const std::string& markup) {
      out += "<text x=\"" + figure_number(left + w / 2) + "\" y=\"" + figure_number(y) +
             "\" text-anchor=\"middle\" font-size=\"10\">" + markup + "</text>";
    };
    const int exponent = scale_marks(1, bar_top + 10, 1, bar_top + 23);
    if (exponent != 0 || !f.units.empty())
      bar_label(bar_top + 38, power_of_ten(exponent) + escape_markup(f.units));
    if (kelvin) {
      scale_marks(*f.kelvin_per_unit / 1e9, bar_top, -1, bar_top - 6);
      bar_label(bar_top - 19, "Brightness temperature (" + power_of_ten(9) + "K)");
    }
  }
  return out + "</svg>";
}

}  // namespace scoreprior::report
