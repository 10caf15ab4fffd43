#include "scoreprior/report/svg_plot.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "scoreprior/core/errors.h"

namespace scoreprior::report {
namespace {

constexpr double kFontSize = 12;
constexpr double kCharacterWidth = 6.8;  // of the page's sans-serif at kFontSize, a little generous
constexpr const char* kPalette[] = {"#2b6cb0", "#d97706", "#2f855a", "#c53030",
                                    "#6b46c1", "#8a94a3", "#1f2933"};

std::string coordinate(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", v);
  std::string s = text;
  if (s.size() > 2 && s.compare(s.size() - 2, 2, ".0") == 0) s.resize(s.size() - 2);
  return s == "-0" ? "0" : s;
}

double text_width(const std::string& text) {
  return kCharacterWidth * double(std::count_if(text.begin(), text.end(), [](char c) {
           return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
         }));
}

// Lines of words, each no wider than `width` unless one word is; bold titles are a little wider
// than text_width says.
std::vector<std::string> wrap_text(const std::string& text, double width) {
  std::vector<std::string> lines;
  for (size_t from = 0; from < text.size();) {
    const size_t end = std::min(text.find(' ', from), text.size());
    const std::string word = text.substr(from, end - from);
    if (!lines.empty() && 1.25 * text_width(lines.back() + " " + word) <= width)
      lines.back() += " " + word;
    else if (!word.empty())
      lines.push_back(word);
    from = end + 1;
  }
  return lines;
}

std::string with_minus_sign(std::string s) {
  if (!s.empty() && s[0] == '-') s.replace(0, 1, "−");
  return s;
}

std::string superscript(int n) {
  static const char* digits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string s = n < 0 ? "⁻" : "";
  for (const char c : std::to_string(std::abs(n))) s += digits[c - '0'];
  return s;
}

std::string fixed(double v, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, v);
  return text;
}

std::string svg_text(double x, double y, const std::string& text, const char* anchor,
                     const std::string& more = "") {
  return "<text x=\"" + coordinate(x) + "\" y=\"" + coordinate(y) + "\" text-anchor=\"" + anchor +
         "\"" + more + ">" + escape_markup(text) + "</text>";
}

// Buckets of consecutive points keep their first, lowest, highest and last: the drawn line is
// unchanged.
void thin_line(std::vector<double>& x, std::vector<double>& y, size_t most) {
  const size_t n = x.size();
  if (n <= most) return;
  const size_t buckets = std::max<size_t>(1, most / 4);
  std::vector<double> tx, ty;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t from = b * n / buckets, to = (b + 1) * n / buckets;
    size_t low = from, high = from;
    bool gap = false;
    for (size_t i = from; i < to; ++i) {
      if (!std::isfinite(y[i])) gap = true;
      if (!(y[low] <= y[i]) && std::isfinite(y[i])) low = i;
      if (!(y[high] >= y[i]) && std::isfinite(y[i])) high = i;
    }
    std::vector<size_t> keep{from, low, high, to - 1};
    std::sort(keep.begin(), keep.end());
    keep.erase(std::unique(keep.begin(), keep.end()), keep.end());
    for (size_t i : keep) {
      tx.push_back(x[i]);
      ty.push_back(y[i]);
    }
    if (gap) {
      tx.push_back(x[to - 1]);
      ty.push_back(std::numeric_limits<double>::quiet_NaN());
    }
  }
  x = std::move(tx);
  y = std::move(ty);
}

struct PlotRange {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool log = false;
  void take(double v) {
    if (!std::isfinite(v) || (log && v <= 0)) return;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  void finish(const std::optional<std::pair<double, double>>& wanted, double pad) {
    if (wanted && wanted->first < wanted->second && (!log || wanted->first > 0)) {
      low = wanted->first;
      high = wanted->second;
      return;
    }
    if (low > high) low = log ? 0.1 : 0, high = 1;
    if (log) {
      const double a = std::log10(low), b = std::log10(high);
      const double extra = b > a ? pad * (b - a) : 0.3;
      low = std::pow(10, a - extra);
      high = std::pow(10, b + extra);
    } else {
      const double extra = high > low ? pad * (high - low) : (low != 0 ? 0.1 * std::abs(low) : 1);
      low -= extra;
      high += extra;
    }
  }
  /// 0 at low, 1 at high.
  double part(double v) const {
    if (log) return (std::log10(v) - std::log10(low)) / (std::log10(high) - std::log10(low));
    return (v - low) / (high - low);
  }
};

}  // namespace

Ticks linear_ticks(double low, double high, int count) {
  Ticks ticks;
  if (!(high > low) || !std::isfinite(high - low)) return ticks;
  const double raw = (high - low) / std::max(count, 1);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double m : {5.0, 2.0, 1.0})
    if (std::abs(std::log(m * power / raw)) < std::abs(std::log(step / raw))) step = m * power;
  const auto first = static_cast<long long>(std::ceil(low / step - 1e-9));
  const auto last = static_cast<long long>(std::floor(high / step + 1e-9));
  const double most = std::max(std::abs(double(first)), std::abs(double(last))) * step;
  // Long numbers share a power of ten, which the axis shows once.
  const int magnitude = most > 0 ? static_cast<int>(std::floor(std::log10(most) + 1e-9)) : 0;
  ticks.exponent = magnitude >= 5 || magnitude <= -3 ? magnitude : 0;
  const double unit = std::pow(10, ticks.exponent);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step / unit) + 1e-9)));
  for (long long k = first; k <= last && k - first < 100; ++k) {
    ticks.at.push_back(double(k) * step);
    ticks.labels.push_back(with_minus_sign(fixed(double(k) * step / unit, k == 0 ? 0 : decimals)));
  }
  return ticks;
}

Ticks log_ticks(double low, double high, int count) {
  Ticks ticks;
  if (!(low > 0) || !(high > low) || !std::isfinite(high)) return ticks;
  const int first = static_cast<int>(std::ceil(std::log10(low) - 1e-9));
  const int last = static_cast<int>(std::floor(std::log10(high) + 1e-9));
  const auto label = [](int decade) {
    if (decade >= -3 && decade <= 3) return fixed(std::pow(10, decade), std::max(0, -decade));
    return "10" + superscript(decade);
  };
  if (last - first >= 1) {
    const int stride = std::max(1, (last - first + count) / std::max(count, 1));
    for (int d = first - 1; d <= last; ++d) {
      if (d >= first) {
        const bool named = (d - first) % stride == 0;
        ticks.at.push_back(std::pow(10, d));
        ticks.labels.push_back(named ? label(d) : "");
      }
      if (stride > 1) continue;
      for (int m = 2; m <= 9; ++m) {
        const double v = m * std::pow(10, d);
        if (v < low || v > high) continue;
        ticks.at.push_back(v);
        ticks.labels.push_back("");
      }
    }
    return ticks;
  }
  for (int d = first - 1; d <= last; ++d)
    for (int m = 1; m <= 9; ++m) {
      const double v = m * std::pow(10, d);
      if (v < low * (1 - 1e-9) || v > high * (1 + 1e-9)) continue;
      ticks.at.push_back(v);
      ticks.labels.push_back(m == 1 || m == 2 || m == 5 ? number_text(v) : "");
    }
  // Less than a factor of two or so: a linear axis says more.
  const auto named = std::count_if(ticks.labels.begin(), ticks.labels.end(),
                                   [](const std::string& s) { return !s.empty(); });
  return named >= 2 ? ticks : linear_ticks(low, high, count);
}

std::string number_text(double value, int digits) {
  if (std::isnan(value)) return "not a number";
  if (std::isinf(value)) return value > 0 ? "infinite" : "-infinite";
  if (value == 0) return "0";
  char text[48];
  std::snprintf(text, sizeof text, "%.*e", std::max(digits - 1, 0), value);
  const std::string s = text;
  const size_t e = s.find('e');
  const int exponent = std::atoi(s.c_str() + e + 1);
  if (exponent >= -4 && exponent < 7) return fixed(value, std::max(0, digits - 1 - exponent));
  std::string mantissa = s.substr(0, e);
  if (mantissa.find('.') != std::string::npos) {
    mantissa.erase(mantissa.find_last_not_of('0') + 1);
    if (mantissa.back() == '.') mantissa.pop_back();
  }
  return mantissa + "e" + std::to_string(exponent);
}

std::string escape_markup(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 32 || c == '\n' || c == '\t') out += c;
    }
  return out;
}

std::vector<double> to_numbers(const at::Tensor& values) {
  if (!values.defined()) return {};
  const at::Tensor x = values.detach().cpu().to(at::kDouble).contiguous();
  const double* p = x.data_ptr<double>();
  return {p, p + x.numel()};
}

SvgPlot::SvgPlot(PlotOptions options) : options_(std::move(options)) {}

SvgPlot& SvgPlot::line(const Numbers& x, const Numbers& y, Color color, const std::string& label,
                       double width, bool dashed, double opacity) {
  SP_CHECK(x.size() == y.size(), "SvgPlot::line", "expected as many x as y, got ", x.size(),
           " and ", y.size());
  Series s{Kind::kLine, x, y, {}, {}, color, label};
  s.width = width;
  s.dashed = dashed;
  s.opacity = opacity;
  series_.push_back(std::move(s));
  return *this;
}

SvgPlot& SvgPlot::points(const Numbers& x, const Numbers& y, const Numbers& sigma, Color color,
                         const std::string& label) {
  SP_CHECK(x.size() == y.size() && (sigma.empty() || sigma.size() == x.size()), "SvgPlot::points",
           "expected as many x, y and sigma, got ", x.size(), ", ", y.size(), " and ",
           sigma.size());
  series_.push_back({Kind::kPoints, x, y, sigma, {}, color, label});
  return *this;
}

SvgPlot& SvgPlot::band(const Numbers& x, const Numbers& low, const Numbers& high, Color color,
                       const std::string& label, double opacity) {
  SP_CHECK(x.size() == low.size() && x.size() == high.size(), "SvgPlot::band",
           "expected as many x, low and high, got ", x.size(), ", ", low.size(), " and ",
           high.size());
  Series s{Kind::kBand, x, {}, low, high, color, label};
  s.opacity = opacity;
  series_.push_back(std::move(s));
  return *this;
}

SvgPlot& SvgPlot::intervals(const Numbers& x, const Numbers& low, const Numbers& high, Color color,
                            const std::string& label, double opacity) {
  band(x, low, high, color, label, opacity);
  series_.back().kind = Kind::kIntervals;
  return *this;
}

SvgPlot& SvgPlot::histogram(const Numbers& values, Color color, const std::string& label) {
  Numbers v;
  for (const double x : values) {
    if (!std::isfinite(x) || (options_.log_x && x <= 0)) continue;
    v.push_back(options_.log_x ? std::log10(x) : x);
  }
  if (v.empty()) return *this;
  auto [lowest, highest] = std::minmax_element(v.begin(), v.end());
  double low = *lowest, high = *highest;
  if (!(high > low)) {
    const double half = low != 0 ? 0.05 * std::abs(low) : 0.5;
    low -= half;
    high += half;
  }
  const auto bins = static_cast<size_t>(std::clamp(std::sqrt(double(v.size())), 5.0, 60.0));
  Numbers counts(bins, 0.0), from(bins), to(bins);
  for (const double x : v)
    counts[std::min(bins - 1, static_cast<size_t>((x - low) / (high - low) * double(bins)))] += 1;
  for (size_t b = 0; b < bins; ++b) {
    const auto edge = [&](size_t k) {
      const double e = low + (high - low) * double(k) / double(bins);
      return options_.log_x ? std::pow(10, e) : e;
    };
    from[b] = edge(b);
    to[b] = edge(b + 1);
  }
  Series s{Kind::kBars, from, counts, to, {}, color, label};
  s.opacity = 0.55;
  series_.push_back(std::move(s));
  return *this;
}

SvgPlot& SvgPlot::vertical(double x, Color color, const std::string& label) {
  series_.push_back({Kind::kVertical, {x}, {}, {}, {}, color, label});
  return *this;
}

SvgPlot& SvgPlot::horizontal(double y, Color color, const std::string& label) {
  series_.push_back({Kind::kHorizontal, {}, {y}, {}, {}, color, label});
  return *this;
}

std::string SvgPlot::svg() const {
  const double width = options_.width, height = options_.height;

  PlotRange rx, ry;
  rx.log = options_.log_x;
  ry.log = options_.log_y;
  bool bars = false;
  for (const Series& s : series_) {
    for (const double x : s.x) rx.take(x);
    if (s.kind == Kind::kBars) {
      bars = true;
      for (const double x : s.low) rx.take(x);
      for (const double y : s.y) ry.take(y);
      if (!ry.log) ry.take(0);
      continue;
    }
    for (const double y : s.y) ry.take(y);
    if (s.kind == Kind::kPoints && !s.low.empty()) {
      // Bars of a few very noisy points must not squeeze the others.
      Numbers sorted;
      for (const double e : s.low)
        if (std::isfinite(e)) sorted.push_back(e);
      if (sorted.empty()) continue;
      std::nth_element(sorted.begin(), sorted.begin() + std::ptrdiff_t(sorted.size() / 2),
                       sorted.end());
      const double cap = 3 * sorted[sorted.size() / 2];
      for (size_t i = 0; i < s.y.size(); ++i) {
        const double e = std::isfinite(s.low[i]) ? std::min(s.low[i], cap) : 0;
        if (!ry.log || s.y[i] - e > 0.3 * s.y[i]) ry.take(s.y[i] - e);
        ry.take(s.y[i] + e);
      }
    } else if (s.kind == Kind::kBand || s.kind == Kind::kIntervals) {
      for (const double y : s.low) ry.take(y);
      for (const double y : s.high) ry.take(y);
    }
  }
  const bool from_zero = bars && !ry.log;
  rx.finish(options_.x_range, 0.03);
  ry.finish(options_.y_range, 0.05);
  if (from_zero && !options_.y_range) ry.low = 0;

  const Ticks tx = rx.log ? log_ticks(rx.low, rx.high, 6) : linear_ticks(rx.low, rx.high, 6);
  const Ticks ty = ry.log ? log_ticks(ry.low, ry.high, 5) : linear_ticks(ry.low, ry.high, 5);
  const auto axis_label = [](std::string label, const Ticks& t) {
    if (t.exponent == 0) return label;
    return label + (label.empty() ? "× 10" : "  × 10") + superscript(t.exponent);
  };
  const std::string x_label = axis_label(options_.x_label, tx);
  const std::string y_label = axis_label(options_.y_label, ty);

  double label_width = 0;
  for (const auto& l : ty.labels) label_width = std::max(label_width, text_width(l));
  const double left = 10 + (y_label.empty() ? 0 : 18) + label_width + 6;
  const double right = width - 14;
  const std::vector<std::string> title = wrap_text(options_.title, right - left);
  double top = 8 + 17 * double(title.size()) + (title.empty() ? 0 : 3);

  // The legend flows above the plot, where it can hide nothing.
  std::string legend;
  double lx = left, ly = top + 8;
  for (const Series& s : series_) {
    if (s.label.empty()) continue;
    const double need = 22 + text_width(s.label) + 14;
    if (lx > left && lx + need > right) {
      lx = left;
      ly += 17;
    }
    const std::string color = kPalette[s.color];
    if (s.kind == Kind::kPoints)
      legend += "<circle cx=\"" + coordinate(lx + 8) + "\" cy=\"" + coordinate(ly) +
                "\" r=\"2.8\" fill=\"" + color + "\"/>";
    else if (s.kind == Kind::kBand || s.kind == Kind::kBars || s.kind == Kind::kIntervals)
      legend += "<rect x=\"" + coordinate(lx) + "\" y=\"" + coordinate(ly - 5) +
                "\" width=\"16\" height=\"10\" fill=\"" + color + "\" fill-opacity=\"" +
                number_text(s.opacity, 2) + "\"/>";
    else
      legend += "<path d=\"M" + coordinate(lx) + " " + coordinate(ly) + "h16\" stroke=\"" + color +
                "\" stroke-width=\"2\"" +
                (s.dashed || s.kind != Kind::kLine ? " stroke-dasharray=\"5 3\"" : "") + "/>";
    legend += svg_text(lx + 21, ly + 4, s.label, "start");
    lx += need;
  }
  if (!legend.empty()) top = ly + 14;
  const double bottom = height - 22 - (x_label.empty() ? 0 : 20);
  const double w = right - left, h = bottom - top;
  const auto px = [&](double x) { return rx.part(x) * w; };
  const auto py = [&](double y) { return (1 - ry.part(y)) * h; };
  const auto drawable = [&](double x, double y) {
    return std::isfinite(x) && std::isfinite(y) && (!rx.log || x > 0) && (!ry.log || y > 0);
  };
  // Far outside the frame nothing is seen, but renderers stumble over huge coordinates.
  const auto tame = [](double v, double extent) { return std::clamp(v, -extent, 2 * extent); };

  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + coordinate(width) + " " +
      coordinate(height) + "\" style=\"max-width:" + coordinate(1.25 * width) +
      "px\" role=\"img\" aria-label=\"" +
      escape_markup(options_.description.empty() ? options_.title : options_.description) +
      "\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', "
      "sans-serif\" font-size=\"12\" fill=\"#1f2933\">";
  for (size_t i = 0; i < title.size(); ++i)
    out += svg_text(left, 18 + 17 * double(i), title[i], "start",
                    " font-size=\"13\" font-weight=\"600\"");
  out += legend;

  std::string grid, marks;
  for (size_t i = 0; i < tx.at.size(); ++i) {
    const double x = left + px(tx.at[i]);
    const bool named = !tx.labels[i].empty();
    if (named) grid += "M" + coordinate(x) + " " + coordinate(top) + "V" + coordinate(bottom);
    marks += "M" + coordinate(x) + " " + coordinate(bottom) + (named ? "v4" : "v2.5");
    if (named) out += svg_text(x, bottom + 17, tx.labels[i], "middle", " fill=\"#52606d\"");
  }
  for (size_t i = 0; i < ty.at.size(); ++i) {
    const double y = top + py(ty.at[i]);
    const bool named = !ty.labels[i].empty();
    if (named) grid += "M" + coordinate(left) + " " + coordinate(y) + "H" + coordinate(right);
    marks += "M" + coordinate(left) + " " + coordinate(y) + (named ? "h-4" : "h-2.5");
    if (named) out += svg_text(left - 7, y + 4, ty.labels[i], "end", " fill=\"#52606d\"");
  }
  out += "<path d=\"" + grid + "\" stroke=\"#e4e7eb\" fill=\"none\"/>";

  out += "<svg x=\"" + coordinate(left) + "\" y=\"" + coordinate(top) + "\" width=\"" +
         coordinate(w) + "\" height=\"" + coordinate(h) + "\" overflow=\"hidden\">";
  for (const Series& s : series_) {
    const std::string color = kPalette[s.color];
    const std::string opacity = number_text(s.opacity, 2);
    switch (s.kind) {
      case Kind::kLine: {
        Numbers x = s.x, y = s.y;
        thin_line(x, y, static_cast<size_t>(4 * width));
        std::string path;
        bool pen_down = false;
        for (size_t i = 0; i < x.size(); ++i) {
          if (!drawable(x[i], y[i])) {
            pen_down = false;
            continue;
          }
          path += (pen_down ? "L" : "M") + coordinate(tame(px(x[i]), w)) + " " +
                  coordinate(tame(py(y[i]), h));
          pen_down = true;
        }
        out += "<path d=\"" + path + "\" fill=\"none\" stroke=\"" + color + "\" stroke-width=\"" +
               number_text(s.width, 2) + "\" stroke-opacity=\"" + opacity +
               "\" stroke-linejoin=\"round\"" + (s.dashed ? " stroke-dasharray=\"5 3\"" : "") +
               "/>";
        break;
      }
      case Kind::kPoints: {
        const double r = s.x.size() > 600 ? 1.4 : s.x.size() > 150 ? 2 : 2.6;
        std::string bars_path, dots;
        for (size_t i = 0; i < s.x.size(); ++i) {
          if (!drawable(s.x[i], s.y[i])) continue;
          const double cx = px(s.x[i]), cy = py(s.y[i]);
          if (!s.low.empty() && std::isfinite(s.low[i]) && s.low[i] > 0) {
            const double below = s.y[i] - s.low[i];
            const double y0 = ry.log && below <= 0 ? h : py(below);
            bars_path += "M" + coordinate(cx) + " " + coordinate(tame(y0, h)) + "V" +
                         coordinate(tame(py(s.y[i] + s.low[i]), h));
          }
          dots += "M" + coordinate(cx) + " " + coordinate(cy) + "h0";
        }
        if (!bars_path.empty())
          out += "<path d=\"" + bars_path + "\" stroke=\"" + color +
                 "\" stroke-opacity=\"0.45\" fill=\"none\"/>";
        // A zero-length stroke with round caps is a dot: one path instead of thousands of elements.
        out += "<path d=\"" + dots + "\" stroke=\"" + color + "\" stroke-width=\"" +
               coordinate(2 * r) + "\" stroke-linecap=\"round\" fill=\"none\"/>";
        break;
      }
      case Kind::kBand: {
        size_t i = 0;
        std::string path;
        const auto ok = [&](size_t k) {
          return drawable(s.x[k], s.high[k]) && std::isfinite(s.low[k]);
        };
        const auto low_y = [&](size_t k) {
          return ry.log && s.low[k] <= 0 ? h : tame(py(s.low[k]), h);
        };
        while (i < s.x.size()) {
          if (!ok(i)) {
            ++i;
            continue;
          }
          size_t end = i;
          while (end < s.x.size() && ok(end)) ++end;
          for (size_t k = i; k < end; ++k)
            path += (k == i ? "M" : "L") + coordinate(px(s.x[k])) + " " +
                    coordinate(tame(py(s.high[k]), h));
          for (size_t k = end; k-- > i;)
            path += "L" + coordinate(px(s.x[k])) + " " + coordinate(low_y(k));
          path += "Z";
          i = end;
        }
        out += "<path d=\"" + path + "\" fill=\"" + color + "\" fill-opacity=\"" + opacity + "\"/>";
        break;
      }
      case Kind::kIntervals: {
        const double bar = std::clamp(0.4 * w / double(std::max<size_t>(s.x.size(), 1)), 1.5, 6.0);
        std::string path;
        for (size_t i = 0; i < s.x.size(); ++i) {
          if (!drawable(s.x[i], s.high[i]) || !std::isfinite(s.low[i])) continue;
          double y0 = ry.log && s.low[i] <= 0 ? h : tame(py(s.low[i]), h);
          double y1 = tame(py(s.high[i]), h);
          if (y0 - y1 < 1) y0 += 0.5, y1 -= 0.5;  // a sharp prediction is still a mark
          path += "M" + coordinate(px(s.x[i])) + " " + coordinate(y0) + "V" + coordinate(y1);
        }
        out += "<path d=\"" + path + "\" stroke=\"" + color + "\" stroke-opacity=\"" + opacity +
               "\" stroke-width=\"" + coordinate(bar) + "\" fill=\"none\"/>";
        break;
      }
      case Kind::kBars: {
        std::string path;
        for (size_t i = 0; i < s.x.size(); ++i) {
          if (!(s.y[i] > 0)) continue;
          path += "M" + coordinate(px(s.x[i])) + " " + coordinate(h) + "V" +
                  coordinate(py(s.y[i])) + "H" + coordinate(px(s.low[i])) + "V" + coordinate(h) +
                  "Z";
        }
        out += "<path d=\"" + path + "\" fill=\"" + color + "\" fill-opacity=\"" + opacity +
               "\" stroke=\"#fff\" stroke-width=\"0.8\"/>";
        break;
      }
      case Kind::kVertical:
        if (std::isfinite(s.x[0]) && (!rx.log || s.x[0] > 0))
          out += "<path d=\"M" + coordinate(tame(px(s.x[0]), w)) + " 0V" + coordinate(h) +
                 "\" stroke=\"" + color + "\" stroke-width=\"1.5\" stroke-dasharray=\"5 3\"/>";
        break;
      case Kind::kHorizontal:
        if (std::isfinite(s.y[0]) && (!ry.log || s.y[0] > 0))
          out += "<path d=\"M0 " + coordinate(tame(py(s.y[0]), h)) + "H" + coordinate(w) +
                 "\" stroke=\"" + color + "\" stroke-width=\"1.5\" stroke-dasharray=\"5 3\"/>";
        break;
    }
  }
  out += "</svg>";

  out += "<path d=\"M" + coordinate(left) + " " + coordinate(top) + "V" + coordinate(bottom) + "H" +
         coordinate(right) + marks + "\" stroke=\"#7b8794\" fill=\"none\"/>";
  if (!x_label.empty()) out += svg_text((left + right) / 2, height - 6, x_label, "middle");
  if (!y_label.empty()) {
    const double yc = (top + bottom) / 2;
    out +=
        svg_text(15, yc, y_label, "middle", " transform=\"rotate(-90 15 " + coordinate(yc) + ")\"");
  }
  return out + "</svg>";
}

}  // namespace scoreprior::report
