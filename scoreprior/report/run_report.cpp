#include "scoreprior/report/run_report.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/png.h"
#include "scoreprior/report/image_figure.h"
#include "scoreprior/report/svg_plot.h"

namespace scoreprior::report {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShownSamples = 16;
constexpr int64_t kShownData = 3000;
constexpr int64_t kFilePixels =
    512;  // PNG files beside the page have at least this many pixels a side

std::string percent(double part) {
  return number_text(100 * part, part > 0 && part < 0.01 ? 2 : 3) + " %";
}

std::string counted(int64_t n, const std::string& singular) {
  return std::to_string(n) + " " + singular + (n == 1 ? "" : "s");
}

/// Value below which a share q of the sorted finite numbers lies, linear between them.
double quantile_of(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double at = q * double(sorted.size() - 1);
  const auto i = static_cast<size_t>(at);
  if (i + 1 >= sorted.size()) return sorted.back();
  return sorted[i] + (at - double(i)) * (sorted[i + 1] - sorted[i]);
}

std::vector<double> sorted_finite(const std::vector<double>& values) {
  std::vector<double> v;
  for (const double x : values)
    if (std::isfinite(x)) v.push_back(x);
  std::sort(v.begin(), v.end());
  return v;
}

// File names of images: "Dirty image" -> "dirty_image".
std::string file_stem(const std::string& name) {
  std::string stem;
  for (const char c : name) {
    const auto u = static_cast<unsigned char>(c);
    if (std::isalnum(u) && u < 128)
      stem += static_cast<char>(std::tolower(u));
    else if (!stem.empty() && stem.back() != '_')
      stem += '_';
  }
  while (!stem.empty() && stem.back() == '_') stem.pop_back();
  return stem.empty() ? "image" : stem;
}

std::string sentence_case(std::string s) {
  if (!s.empty() && static_cast<unsigned char>(s[0]) < 128)
    s[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(s[0])));
  return s;
}

// What a name means to a reader of the page.
std::string image_title(const std::string& name) {
  if (name == "mean") return "Posterior mean";
  if (name == "std") return "Standard deviation";
  return sentence_case(name);
}

std::string chi2_text(double v) {
  if (!(v < 100)) return number_text(v);
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", v);
  return text;
}

std::string listed(const std::vector<std::string>& words) {
  std::string s;
  for (size_t i = 0; i < words.size(); ++i)
    s += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
  return s;
}

at::Tensor spread_rows(const at::Tensor& x, int64_t most) {
  const int64_t n = x.size(0);
  if (n <= most) return x;
  at::Tensor index = at::empty({most}, at::kLong);
  for (int64_t i = 0; i < most; ++i) index[i] = i * n / most;
  return x.index_select(0, index);
}

const NamedImage* image_called(const RunReport& report, const std::string& name) {
  for (const auto& image : report.images)
    if (file_stem(image.name) == name && image.image.defined()) return &image;
  return nullptr;
}

std::string curve_svg(const Curve& curve) {
  PlotOptions o;
  o.title = curve.title;
  o.x_label = curve.x_label;
  o.y_label = curve.y_label;
  o.log_y = curve.log_y;
  std::vector<double> all;
  for (const auto& [name, y] : curve.lines)
    for (const double v : to_numbers(y))
      if (std::isfinite(v)) all.push_back(v);
  std::sort(all.begin(), all.end());
  std::string cut;
  if (!curve.log_y && all.size() >= 50) {
    // A first value of 1e6 must not flatten all that follows.
    const double low = quantile_of(all, 0.02), high = quantile_of(all, 0.98);
    if (high > low && all.back() - all.front() > 6 * (high - low)) {
      const double pad = 0.25 * (high - low);
      o.y_range = {std::max(all.front(), low - pad), std::min(all.back(), high + pad)};
      cut = " (axis cut; the full range is " + number_text(all.front()) + " to " +
            number_text(all.back()) + ")";
      o.title += cut;
    }
  }
  o.description = curve.title + " against " + curve.x_label;
  SvgPlot plot(o);
  constexpr SvgPlot::Color kColors[] = {SvgPlot::kBlue, SvgPlot::kOrange, SvgPlot::kGreen,
                                        SvgPlot::kRed,  SvgPlot::kPurple, SvgPlot::kGray,
                                        SvgPlot::kBlack};
  size_t k = 0;
  for (const auto& [name, values] : curve.lines) {
    const std::vector<double> y = to_numbers(values);
    std::vector<double> x = to_numbers(curve.x);
    if (x.size() != y.size()) {
      SP_CHECK(x.empty(), "report", "expected as many steps as values of ", name, ", got ",
               x.size(), " and ", y.size());
      for (size_t i = 0; i < y.size(); ++i) x.push_back(double(i + 1));
    }
    const auto color = kColors[k++ % 7];
    const std::string label = curve.lines.size() > 1 ? name : "";
    if (y.size() < 400) {
      plot.line(x, y, color, label);
      continue;
    }
    // Long, noisy curves: the values pale, their centred running mean (about 1 % of the length) on
    // top.
    plot.line(x, y, color, "", 0.8, false, curve.lines.size() > 1 ? 0.2 : 0.3);
    const size_t n = y.size(), half = std::max<size_t>(2, n / 200);
    std::vector<double> sum(n + 1, 0), count(n + 1, 0);
    std::vector<double> mean(n, std::numeric_limits<double>::quiet_NaN());
    for (size_t i = 0; i < n; ++i) {
      const bool finite = std::isfinite(y[i]);
      sum[i + 1] = sum[i] + (finite ? y[i] : 0);
      count[i + 1] = count[i] + finite;
    }
    for (size_t i = 0; i < n; ++i) {
      const size_t from = i - std::min(i, half), to = std::min(n, i + half + 1);
      if (count[to] > count[from]) mean[i] = (sum[to] - sum[from]) / (count[to] - count[from]);
    }
    plot.line(x, mean, color, label.empty() ? "running mean" : label);
  }
  return plot.svg();
}

struct FitFigures {
  std::string fit, residuals, caption;
};

FitFigures fit_figures(const FitResult& f) {
  const std::vector<double> all_x = to_numbers(f.x), all_data = to_numbers(f.data);
  std::vector<double> all_sigma = to_numbers(f.sigma);
  const auto points = static_cast<int64_t>(all_data.size());
  if (all_sigma.size() == 1 && points != 1) all_sigma.assign(all_data.size(), all_sigma[0]);
  SP_CHECK(static_cast<int64_t>(all_x.size()) == points &&
               (all_sigma.empty() || static_cast<int64_t>(all_sigma.size()) == points) &&
               (!f.model.defined() || (f.model.dim() == 2 && f.model.size(1) == points)),
           "report", "fit of ", f.product, ": expected x, sigma [", points, "] and model [n,",
           points, "], got ", all_x.size(), ", ", all_sigma.size(), " and ",
           f.model.defined() ? f.model.sizes() : at::IntArrayRef());

  std::vector<int64_t> order(static_cast<size_t>(points));
  for (int64_t i = 0; i < points; ++i) order[size_t(i)] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return all_x[size_t(a)] < all_x[size_t(b)]; });
  const int64_t stride = (points + kShownData - 1) / kShownData;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < points; i += std::max<int64_t>(stride, 1))
    kept.push_back(order[size_t(i)]);

  std::vector<double> x, data, sigma, low95, low68, median, high68, high95, residual;
  at::Tensor model;
  if (f.model.defined() && f.model.size(0) > 0 && !kept.empty())
    model = f.model.detach()
                .cpu()
                .to(at::kDouble)
                .index_select(1, at::tensor(kept, at::kLong))
                .t()
                .contiguous();
  const int64_t draws = model.defined() ? model.size(1) : 0;
  for (size_t k = 0; k < kept.size(); ++k) {
    const auto i = static_cast<size_t>(kept[k]);
    x.push_back(all_x[i]);
    data.push_back(all_data[i]);
    if (!all_sigma.empty()) sigma.push_back(all_sigma[i]);
    if (draws == 0) continue;
    std::vector<double> v;
    for (int64_t d = 0; d < draws; ++d) {
      double m = model.data_ptr<double>()[int64_t(k) * draws + d];
      if (f.period > 0) m = all_data[i] + std::remainder(m - all_data[i], f.period);
      v.push_back(m);
    }
    v = sorted_finite(v);
    low95.push_back(quantile_of(v, 0.025));
    low68.push_back(quantile_of(v, 0.16));
    median.push_back(quantile_of(v, 0.5));
    high68.push_back(quantile_of(v, 0.84));
    high95.push_back(quantile_of(v, 0.975));
    if (!sigma.empty()) residual.push_back((data.back() - median.back()) / sigma.back());
  }

  FitFigures out;
  PlotOptions o;
  o.title = sentence_case(f.product);
  o.x_label = f.x_label;
  o.y_label = f.y_label;
  o.log_y = f.log_y;
  o.description = sentence_case(f.product) + ": " + counted(points, "measurement") +
                  " with error bars and the posterior's predictions against " + f.x_label;
  SvgPlot plot(o);
  if (draws > 0 && f.joined) {
    plot.band(x, low95, high95, SvgPlot::kOrange, "95 % of draws", 0.22)
        .band(x, low68, high68, SvgPlot::kOrange, "68 %", 0.35)
        .line(x, median, SvgPlot::kOrange, "median");
  }
  plot.points(x, data, sigma, SvgPlot::kBlue, sigma.empty() ? "data" : "data ± 1 σ");
  if (draws > 0 && !f.joined) {
    plot.intervals(x, low95, high95, SvgPlot::kOrange, "95 % of draws", 0.55);
  }
  out.fit = plot.svg();

  if (!residual.empty()) {
    double most = 4;
    const std::vector<double> finite = sorted_finite(residual);
    if (!finite.empty())
      most = std::max({most, 1.1 * std::abs(finite.front()), 1.1 * std::abs(finite.back())});
    PlotOptions r;
    r.title = "Residuals";
    r.x_label = f.x_label;
    r.y_label = "(data − median) / σ";
    r.y_range = {-most, most};
    int64_t within = 0;
    for (const double v : finite) within += std::abs(v) <= 2;
    r.description = "Residuals of " + f.product + " in units of the noise; " +
                    (finite.empty() ? std::string("none is finite")
                                    : percent(double(within) / double(finite.size())) +
                                          " lie within two standard deviations");
    SvgPlot residuals(r);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double first = x.empty() ? nan : x.front(), last = x.empty() ? nan : x.back();
    residuals.band({first, last}, {-2, -2}, {2, 2}, SvgPlot::kGray, "± 2 σ", 0.16)
        .line({first, last}, {0, 0}, SvgPlot::kGray, "", 1)
        .points(x, residual, {}, SvgPlot::kBlue);
    out.residuals = residuals.svg();
    if (!finite.empty())
      out.caption = percent(double(within) / double(finite.size())) +
                    " of the residuals lie within 2 σ; about 95 % are expected.";
  }
  if (stride > 1)
    out.caption += std::string(out.caption.empty() ? "" : " ") + "Every " + std::to_string(stride) +
                   "th of " + std::to_string(points) + " points is drawn.";
  return out;
}

Table chi2_table(const RunReport& report) {
  Table t;
  t.title = "Reduced χ²";
  t.note = "1 is expected when the model holds and the errors are right.";
  bool mean = false, truth = false, points = false;
  for (const auto& c : report.chi2) {
    mean = mean || c.mean_image;
    truth = truth || c.truth;
    points = points || c.points > 0;
  }
  t.columns = {"Data product"};
  if (points) t.columns.push_back("Points");
  t.columns.insert(t.columns.end(), {"Median of draws", "68 % of draws", "Worst draw"});
  if (mean) t.columns.push_back("Mean image");
  if (truth) t.columns.push_back("True image");
  for (const auto& c : report.chi2) {
    const std::vector<double> v = sorted_finite(to_numbers(c.draws));
    std::vector<std::string> row{c.product};
    if (points) row.push_back(c.points > 0 ? std::to_string(c.points) : "");
    if (v.empty())
      row.insert(row.end(), {"", "", ""});
    else
      row.insert(row.end(),
                 {chi2_text(quantile_of(v, 0.5)),
                  chi2_text(quantile_of(v, 0.16)) + " to " + chi2_text(quantile_of(v, 0.84)),
                  chi2_text(v.back())});
    if (mean) row.push_back(c.mean_image ? chi2_text(*c.mean_image) : "");
    if (truth) row.push_back(c.truth ? chi2_text(*c.truth) : "");
    t.rows.push_back(std::move(row));
  }
  return t;
}

std::string histogram_svg(const std::string& title, const std::string& x_label,
                          const std::vector<double>& values,
                          const std::vector<std::pair<std::string, double>>& marks) {
  const std::vector<double> v = sorted_finite(values);
  // A mark far off the draws would squeeze them into one bar: its value is written instead.
  const auto far_off = [&](double x) {
    const double reach = v.empty() ? 0 : 2 * (v.back() - v.front());
    return reach > 0 && (x < v.front() - reach || x > v.back() + reach);
  };
  PlotOptions o;
  o.title = title;
  o.x_label = x_label;
  for (const auto& [name, x] : marks)
    if (far_off(x)) o.x_label += " (" + name + " off the scale: " + number_text(x, 3) + ")";
  o.y_label = "Draws";
  o.height = 245;
  o.width = 360;
  o.description = "Histogram of " + title + " over " + counted(int64_t(v.size()), "draw") +
                  (v.empty() ? "" : ", median " + number_text(quantile_of(v, 0.5)));
  SvgPlot plot(o);
  plot.histogram(v, SvgPlot::kBlue);
  constexpr SvgPlot::Color kMarkColors[] = {SvgPlot::kRed, SvgPlot::kGreen, SvgPlot::kPurple};
  for (size_t i = 0; i < marks.size(); ++i)
    if (!far_off(marks[i].second))
      plot.vertical(marks[i].second, kMarkColors[i % 3], marks[i].first);
  return plot.svg();
}

std::string profile_svg(const Profile& p) {
  const std::vector<double> x = to_numbers(p.x);
  SP_CHECK(p.draws.defined() && p.draws.dim() == 2 && p.draws.size(1) == int64_t(x.size()),
           "report", "profile ", p.title, ": expected draws [n,", x.size(), "], got ",
           p.draws.defined() ? p.draws.sizes() : at::IntArrayRef());
  const at::Tensor columns = p.draws.detach().cpu().to(at::kDouble).t().contiguous();
  const int64_t n = columns.size(1);
  std::vector<double> low95, low68, median, high68, high95;
  for (size_t k = 0; k < x.size(); ++k) {
    const double* row = columns.data_ptr<double>() + int64_t(k) * n;
    const std::vector<double> v = sorted_finite({row, row + n});
    low95.push_back(quantile_of(v, 0.025));
    low68.push_back(quantile_of(v, 0.16));
    median.push_back(quantile_of(v, 0.5));
    high68.push_back(quantile_of(v, 0.84));
    high95.push_back(quantile_of(v, 0.975));
  }
  PlotOptions o;
  o.title = p.title;
  o.x_label = p.x_label;
  o.y_label = p.y_label;
  o.description = p.title + " against " + p.x_label + ": median and spread of the draws";
  SvgPlot plot(o);
  plot.band(x, low95, high95, SvgPlot::kBlue, "95 % of draws", 0.18)
      .band(x, low68, high68, SvgPlot::kBlue, "68 %", 0.3)
      .line(x, median, SvgPlot::kBlue, "median");
  if (p.truth.defined()) plot.line(x, to_numbers(p.truth), SvgPlot::kRed, "truth", 1.6, true);
  return plot.svg();
}

std::string coverage_svg(const Coverage& c) {
  PlotOptions o;
  o.title = c.title.empty() ? "Coverage" : c.title;
  o.x_label = "Nominal share";
  o.y_label = "Share found inside";
  o.x_range = o.y_range = {0, 1};
  o.width = o.height = 330;
  o.description = o.title +
                  ": share of true values inside central intervals against the nominal "
                  "share; a calibrated posterior follows the diagonal";
  SvgPlot plot(o);
  const std::vector<double> x = to_numbers(c.nominal);
  if (c.low.defined() && c.high.defined())
    plot.band(x, to_numbers(c.low), to_numbers(c.high), SvgPlot::kGray, "expected scatter", 0.25);
  plot.line({0, 1}, {0, 1}, SvgPlot::kGray, "calibrated", 1.2, true);
  plot.line(x, to_numbers(c.empirical), SvgPlot::kBlue, "found", 2);
  return plot.svg();
}

Table ring_table(const std::vector<Quantity>& ring) {
  Table t;
  bool truth = false;
  for (const auto& q : ring) truth = truth || q.truth;
  t.columns = {"Quantity", "Median", "68 % interval", "95 % interval", "Draws measured"};
  if (truth) t.columns.push_back("Truth");
  for (const auto& q : ring) {
    const std::vector<double> values = to_numbers(q.draws), v = sorted_finite(values);
    const auto span = [&](double a, double b) {
      return v.empty()
                 ? std::string()
                 : number_text(quantile_of(v, a), 4) + " to " + number_text(quantile_of(v, b), 4);
    };
    std::vector<std::string> row{
        sentence_case(q.name) + (q.unit.empty() ? "" : " [" + q.unit + "]"),
        v.empty() ? "" : number_text(quantile_of(v, 0.5), 4), span(0.16, 0.84), span(0.025, 0.975),
        std::to_string(v.size()) + " of " + std::to_string(values.size())};
    if (truth) row.push_back(q.truth ? number_text(*q.truth, 4) : "");
    t.rows.push_back(std::move(row));
  }
  return t;
}

// "27.1 ± 0.6": the mean with as many decimals as show two digits of the spread.
std::string spread_text(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double mean = 0, square = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) square += (v - mean) * (v - mean) / (n - 1);
  const double sd = std::sqrt(square);
  if (!std::isfinite(mean) || !std::isfinite(sd)) return number_text(mean);
  const int decimals =
      sd > 0 ? std::clamp(1 - static_cast<int>(std::floor(std::log10(sd))), 0, 6) : 4;
  char text[64];
  std::snprintf(text, sizeof text, "%.*f ± %.*f", decimals, mean, decimals, sd);
  return text;
}

Table truth_table(const RunReport& report) {
  Table t;
  t.title = "Against the truth";
  bool naive = false;
  size_t draws = 0;
  for (const auto& m : report.metrics) {
    naive = naive || m.naive_image;
    draws = std::max(draws, to_numbers(m.draws).size());
  }
  t.columns = {"Metric", "Mean image"};
  if (draws > 1) t.columns.push_back("Draws");
  if (naive) t.columns.push_back("Without inference");
  for (const auto& m : report.metrics) {
    std::vector<std::string> row{m.name, number_text(m.mean_image, 4)};
    const std::vector<double> values = to_numbers(m.draws);
    if (draws > 1) row.push_back(values.size() > 1 ? spread_text(values) : "");
    if (naive) row.push_back(m.naive_image ? number_text(*m.naive_image, 4) : "");
    t.rows.push_back(std::move(row));
  }
  if (draws > 1)
    t.note = "Draws: mean ± standard deviation over all " + std::to_string(draws) +
             " valid draws, none picked. ";
  t.note += report.metrics_note;
  return t;
}

Table facts_table(const std::vector<std::pair<std::string, std::string>>& facts) {
  Table t;
  for (const auto& [name, value] : facts) t.rows.push_back({name, value});
  return t;
}

}  // namespace

std::vector<Statement> verdict(const RunReport& report) {
  std::vector<Statement> out;
  if (report.inference_known) {
    const Summary& s = report.inference;
    const auto number = [&](const char* key) {
      const auto it = s.numbers.find(key);
      return it == s.numbers.end() ? std::nullopt : std::optional<double>(it->second);
    };
    std::string cost;
    if (const auto steps = number("steps")) cost += " after " + counted(int64_t(*steps), "step");
    if (const auto seconds = number("seconds")) cost += " in " + number_text(*seconds) + " s";
    const std::string why = s.message.empty() ? "" : " (" + s.message + ")";
    switch (s.status) {
      case Status::kConverged:
        out.push_back({Level::kGood, "The inference converged" + cost + why + "."});
        break;
      case Status::kMaxSteps:
        out.push_back(
            {Level::kWarning, "The inference reached its step limit" + cost +
                                  "; look at the convergence curves before trusting the result" +
                                  why + "."});
        break;
      case Status::kInterrupted:
        out.push_back({Level::kWarning, "The inference was interrupted" + cost +
                                            "; the result is that of an unfinished run" + why +
                                            "."});
        break;
      case Status::kDiverged:
        out.push_back({Level::kBad, "The inference diverged" + cost +
                                        "; the draws are not from the posterior" + why + "."});
        break;
      case Status::kFailed:
        out.push_back({Level::kBad, "The inference failed" + cost + why + "."});
        break;
    }
    if (const auto n = number("nonfinite_densities"); n && *n > 0)
      out.push_back({Level::kWarning, "The density was not finite at " +
                                          counted(int64_t(*n), "point") +
                                          "; those moves were rejected."});
  }
  if (report.draws > 0) {
    if (report.invalid_draws == 0) {
      out.push_back({Level::kGood, report.draws == 1 ? "The draw is valid."
                                                     : "All " + std::to_string(report.draws) +
                                                           " draws are valid."});
    } else {
      const double part = double(report.invalid_draws) / double(report.draws);
      out.push_back(
          {part > 0.05 ? Level::kBad : Level::kWarning,
           std::to_string(report.invalid_draws) + " of " + std::to_string(report.draws) +
               " draws (" + percent(part) +
               (report.invalid_draws == 1
                    ? ") is invalid: it holds numbers that are not finite and is left out below."
                    : ") are invalid: they hold numbers that are not finite and are left out "
                      "below.")});
    }
  }
  for (const auto& c : report.chi2) {
    const std::vector<double> v = sorted_finite(to_numbers(c.draws));
    if (v.empty()) {
      out.push_back({Level::kBad, "χ² of " + c.product + " is not finite for any draw."});
      continue;
    }
    const double median = quantile_of(v, 0.5);
    const double scatter = c.points > 0 ? 3 * std::sqrt(2.0 / double(c.points)) : 0;
    const double high = std::max(1.5, 1 + scatter), low = std::min(0.5, 1 - scatter);
    const std::string value = "the median reduced χ² over the draws is " + chi2_text(median) +
                              " (68 % of draws: " + chi2_text(quantile_of(v, 0.16)) + " to " +
                              chi2_text(quantile_of(v, 0.84)) + ")";
    if (median > std::max(3.0, 1 + 2 * scatter))
      out.push_back({Level::kBad, "The draws do not fit " + c.product + ": " + value + "."});
    else if (median > high)
      out.push_back({Level::kWarning, "The draws fit " + c.product +
                                          " less well than the noise allows: " + value + "."});
    else if (median < std::min(0.2, 1 - 2 * scatter))
      out.push_back({Level::kBad, "The draws fit " + c.product +
                                      " far more closely than the noise allows: " + value +
                                      "; the errors may be overstated or the data overfitted."});
    else if (median < low)
      out.push_back({Level::kWarning, "The draws fit " + c.product +
                                          " more closely than the noise suggests: " + value + "."});
    else
      out.push_back({Level::kGood, "The draws fit " + c.product + ": " + value + "."});
  }
  out.insert(out.end(), report.statements.begin(), report.statements.end());
  return out;
}

void write_report(const RunReport& report, const fs::path& folder) {
  std::vector<NamedImage> images;
  for (const auto& image : report.images)
    if (image.image.defined()) images.push_back(image);

  // What the truth allows to say: where the mean is wrong, and whether the spread knows it.
  const NamedImage* truth = image_called(report, "truth");
  const NamedImage* mean = image_called(report, "mean");
  const NamedImage* spread = image_called(report, "std");
  if (truth && mean && truth->image.sizes() == mean->image.sizes() && !truth->image.is_complex()) {
    const at::Tensor t = displayed(truth->image), m = displayed(mean->image);
    if (t.dim() == 2) {
      const at::Tensor error = m - t;
      images.push_back({"error", error, "Mean − truth.", false, Colormap::kDiverging, "", {}});
      if (spread && spread->image.sizes() == mean->image.sizes() && spread->image.size(0) != 2) {
        const at::Tensor s = displayed(spread->image);
        const at::Tensor z = at::where(s > 0, error / s, at::zeros_like(error));
        const double one = at::le(z.abs(), 1).to(at::kDouble).mean().item<double>();
        const double two = at::le(z.abs(), 2).to(at::kDouble).mean().item<double>();
        images.push_back(
            {"error in standard deviations", z,
             "(Mean − truth) / standard deviation. " + percent(one) +
                 " of pixels are within 1 and " + percent(two) +
                 " within 2 standard deviations (68 % and 95 % for a calibrated Gaussian).",
             false, Colormap::kDiverging, "σ", std::make_pair(-4.0, 4.0)});
      }
    }
  }

  at::Tensor samples, numbers;  // the valid draws, and which they are
  if (report.samples.defined() && report.samples.dim() >= 3) {
    samples = report.samples.detach().cpu();
    numbers = at::nonzero(at::isfinite(samples).reshape({samples.size(0), -1}).all(1)).flatten();
    samples = numbers.numel() > 0 ? samples.index_select(0, numbers) : at::Tensor();
  }

  std::vector<at::Tensor> shared;
  std::vector<std::string> shared_names;
  for (const auto& image : images) {
    if (!image.common_scale || image.scale) continue;
    shared.push_back(image.image);
    shared_names.push_back(image.name);
  }
  if (samples.defined() && shared.empty())
    for (const auto& s : spread_rows(samples, kShownSamples).unbind(0)) shared.push_back(s);
  ColorScale common = common_scale(shared, report.colormap);
  if (report.scale) common = {report.colormap, report.scale->first, report.scale->second};
  const auto scale_of = [&](const NamedImage& image) {
    const Colormap map = image.colormap.value_or(report.colormap);
    if (image.scale) return ColorScale{map, image.scale->first, image.scale->second};
    if (image.common_scale) return ColorScale{map, common.low, common.high};
    return common_scale({image.image}, map);
  };

  HtmlPage page(report.title, report.subtitle +
                                  (report.subtitle.empty() || report.created.empty() ? "" : " · ") +
                                  report.created);
  page.section("Verdict").statements(verdict(report));

  if (!images.empty()) {
    page.section("Images", shared.size() < 2 ? ""
                           : shared.size() == images.size()
                               ? "All images share one colour scale."
                               : sentence_case(listed(shared_names)) +
                                     " share one colour scale; the others have their own.");
    page.begin_grid(3, 270);
    for (const auto& image : images) {
      ImageFigure f;
      f.title = image_title(image.name);
      f.image = image.image;
      f.scale = scale_of(image);
      f.upscaling = report.upscaling;
      f.fov_uas = report.fov_uas;
      f.units = image.units.empty() ? report.units : image.units;
      if (report.frequency_hz > 0 && report.fov_uas > 0 && f.units == "Jy/pixel" &&
          f.scale.map != Colormap::kDiverging)
        f.kelvin_per_unit =
            kelvin_per_jansky_pixel(report.fov_uas, image.image.size(-1), report.frequency_hz);
      page.figure(image_svg(f), image.caption);
    }
    page.end_grid();
  }

  if (samples.defined()) {
    const at::Tensor shown = spread_rows(samples, kShownSamples);
    const at::Tensor shown_numbers = spread_rows(numbers, kShownSamples);
    page.section("Posterior draws", std::to_string(shown.size(0)) + " of " +
                                        counted(samples.size(0), "valid draw") +
                                        ", on one colour scale.");
    page.begin_grid(8, 100);
    for (int64_t i = 0; i < shown.size(0); ++i) {
      const std::string name = "Draw " + std::to_string(shown_numbers[i].item<int64_t>() + 1);
      const io::Raster raster =
          render(shown[i], common, upscale_factor(shown[i], 192), report.upscaling);
      page.figure("<img src=\"" + png_data_uri(raster) + "\" alt=\"" + name + "\" width=\"" +
                      std::to_string(raster.width) + "\" height=\"" +
                      std::to_string(raster.height) + "\"/>",
                  name);
    }
    page.end_grid();
  }

  if (!report.chi2.empty() || !report.fits.empty()) {
    page.section("Fit to the data");
    if (!report.chi2.empty()) {
      page.table(chi2_table(report));
      page.begin_grid(3, 300);
      for (const auto& c : report.chi2) {
        const std::vector<double> v = to_numbers(c.draws);
        if (v.size() < 8) continue;
        std::vector<std::pair<std::string, double>> marks;
        if (c.mean_image) marks.emplace_back("mean image", *c.mean_image);
        if (c.truth) marks.emplace_back("true image", *c.truth);
        page.figure(histogram_svg("χ² of " + c.product, "Reduced χ²", v, marks));
      }
      page.end_grid();
    }
    for (const auto& f : report.fits) {
      const FitFigures figures = fit_figures(f);
      page.begin_grid(2, 400).figure(figures.fit);
      if (!figures.residuals.empty()) page.figure(figures.residuals, figures.caption);
      page.end_grid();
    }
  }

  if (!report.histories.empty()) {
    page.section("Convergence");
    page.begin_grid(2, 400);
    for (const auto& curve : report.histories) page.figure(curve_svg(curve));
    page.end_grid();
  }

  if (!report.ring.empty()) {
    page.section("Ring geometry", "Measured on every draw; intervals are central.");
    page.table(ring_table(report.ring));
    page.begin_grid(3, 300);
    for (const auto& q : report.ring) {
      const std::vector<double> v = to_numbers(q.draws);
      if (sorted_finite(v).size() < 8) continue;
      std::vector<std::pair<std::string, double>> marks;
      if (q.truth) marks.emplace_back("truth", *q.truth);
      const std::string name = sentence_case(q.name);
      page.figure(
          histogram_svg(name, q.unit.empty() ? name : name + " (" + q.unit + ")", v, marks));
    }
    page.end_grid();
  }

  if (!report.profiles.empty() || !report.histograms.empty() || !report.coverage.empty()) {
    page.section("Further plots");
    page.begin_grid(2, 400);
    for (const auto& p : report.profiles) page.figure(profile_svg(p));
    for (const auto& h : report.histograms)
      page.figure(histogram_svg(h.title, h.x_label, to_numbers(h.values), h.marks));
    for (const auto& c : report.coverage) page.figure(coverage_svg(c));
    page.end_grid();
  }

  if (!report.metrics.empty() || !report.tables.empty() || !report.inference.numbers.empty()) {
    page.section("Numbers").begin_grid(3, 320);
    if (!report.metrics.empty()) page.table(truth_table(report));
    for (const auto& t : report.tables) page.table(t);
    if (report.inference_known && !report.inference.numbers.empty()) {
      Table t;
      t.title = "Inference";
      t.columns = {"Quantity", "Value"};
      for (const auto& [name, value] : report.inference.numbers)
        t.rows.push_back({name, value == std::floor(value) && std::abs(value) < 1e15
                                    ? std::to_string(static_cast<long long>(value))
                                    : number_text(value, 4)});
      page.table(t);
    }
    page.end_grid();
  }

  if (!report.facts.empty() || !report.settings.empty()) {
    page.section("Settings",
                 report.settings.empty()
                     ? ""
                     : "The resolved configuration; run again with this file to repeat the run.");
    if (!report.facts.empty()) page.table(facts_table(report.facts));
    if (!report.settings.empty()) page.preformatted(report.settings);
  }

  for (const auto& image : images)
    io::write_png(folder / (file_stem(image.name) + ".png"),
                  render(image.image, scale_of(image), upscale_factor(image.image, kFilePixels),
                         report.upscaling));
  if (samples.defined()) {
    const at::Tensor most = spread_rows(samples, 64);
    io::write_png(folder / "samples.png",
                  image_grid(most, common, 0, upscale_factor(most[0], 128)));
  }
  io::write_text(folder / "report.html", page.html());
}

void write_train_report(const TrainReport& report, const fs::path& folder) {
  HtmlPage page(report.title, report.subtitle +
                                  (report.subtitle.empty() || report.created.empty() ? "" : " · ") +
                                  report.created);
  if (!report.statements.empty()) page.section("Verdict").statements(report.statements);
  if (!report.histories.empty()) {
    page.section("Training curves");
    page.begin_grid(2, 400);
    for (const auto& curve : report.histories) page.figure(curve_svg(curve));
    page.end_grid();
  }
  if (!report.samples.empty()) {
    page.section("Samples", "Drawn from the model.");
    page.begin_grid(2, 330);
    for (const auto& [name, images] : report.samples) {
      if (!images.defined() || images.size(0) == 0) continue;
      const at::Tensor shown = spread_rows(images.detach().cpu(), 64);
      ColorScale scale = common_scale(shown.unbind(0), report.colormap);
      if (report.scale) scale = {report.colormap, report.scale->first, report.scale->second};
      const io::Raster raster = image_grid(shown, scale, 0, upscale_factor(shown[0], 64));
      page.figure("<img src=\"" + png_data_uri(raster) + "\" alt=\"" +
                      escape_markup(std::to_string(shown.size(0)) + " samples, " + name) +
                      "\" width=\"" + std::to_string(raster.width) + "\" height=\"" +
                      std::to_string(raster.height) + "\"/>",
                  sentence_case(name));
    }
    page.end_grid();
  }
  if (!report.tables.empty()) {
    page.section("Numbers").begin_grid(3, 320);
    for (const auto& t : report.tables) page.table(t);
    page.end_grid();
  }
  if (!report.facts.empty() || !report.settings.empty()) {
    page.section("Settings");
    if (!report.facts.empty()) page.table(facts_table(report.facts));
    if (!report.settings.empty()) page.preformatted(report.settings);
  }
  io::write_text(folder / "report.html", page.html());
}

void write_sample_grid(const at::Tensor& images, const fs::path& png, Colormap colormap,
                       std::optional<std::pair<double, double>> scale) {
  const at::Tensor x = images.detach().cpu();
  SP_CHECK(x.dim() == 3 || x.dim() == 4, "write_sample_grid", "expected images [n,C,H,W], got ",
           x.sizes());
  SP_CHECK(x.size(0) > 0, "write_sample_grid", "expected at least one image");
  ColorScale s = common_scale(x.unbind(0), colormap);
  if (scale) s = {colormap, scale->first, scale->second};
  io::write_png(png, image_grid(x, s, 0, upscale_factor(x[0], 64)));
}

}  // namespace scoreprior::report
