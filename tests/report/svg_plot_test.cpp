#include "scoreprior/report/svg_plot.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace scoreprior::report {

TEST(Ticks, AreRoundAndInside) {
  const Ticks t = linear_ticks(-0.3, 10.2, 5);
  EXPECT_EQ(t.at, (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(t.labels.front(), "0");
  EXPECT_EQ(t.labels.back(), "10");
  const Ticks fine = linear_ticks(0.90, 1.12, 5);
  for (const auto& label : fine.labels) EXPECT_EQ(label.size(), 4u) << label;
  const Ticks small = linear_ticks(0, 4.1e-5, 4);
  EXPECT_EQ(small.exponent, -5);
  EXPECT_EQ(small.labels.back(), "4");
  EXPECT_TRUE(linear_ticks(1, 1).at.empty());
  EXPECT_TRUE(linear_ticks(0, std::numeric_limits<double>::infinity()).at.empty());
}

TEST(Ticks, LogAxesNameDecades) {
  const Ticks t = log_ticks(0.02, 3e5, 6);
  std::vector<std::string> named;
  for (size_t i = 0; i < t.at.size(); ++i) {
    EXPECT_GE(t.at[i], 0.02 * (1 - 1e-9));
    EXPECT_LE(t.at[i], 3e5 * (1 + 1e-9));
    if (!t.labels[i].empty()) named.push_back(t.labels[i]);
  }
  EXPECT_GE(named.size(), 3u);
  EXPECT_EQ(named.front(), "0.1");
  const Ticks narrow = log_ticks(1.1, 1.4, 5);
  EXPECT_GE(narrow.at.size(), 3u) << "less than an octave still has numbers";
  EXPECT_TRUE(log_ticks(-1, 1).at.empty());
}

TEST(NumberText, IsShortAndPlain) {
  EXPECT_EQ(number_text(0.012345), "0.0123");
  EXPECT_EQ(number_text(1.2e-7), "1.2e-7");
  EXPECT_EQ(number_text(12345), "12345");
  EXPECT_EQ(number_text(1.03), "1.03");
  EXPECT_EQ(number_text(0), "0");
  EXPECT_EQ(number_text(-2e9), "-2e9");
  EXPECT_EQ(number_text(0.9999), "1.00");
  EXPECT_EQ(number_text(NAN), "not a number");
}

TEST(SvgPlot, SurvivesAnyNumbers) {
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               inf = std::numeric_limits<double>::infinity();
  for (const bool log : {false, true}) {
    PlotOptions o;
    o.title = "a < b & \"c\"";
    o.log_x = o.log_y = log;
    SvgPlot plot(o);
    plot.line({0, 1, 2, nan}, {1, nan, inf, 3}, SvgPlot::kBlue, "x")
        .points({-1, 1, 2}, {0, 1e300, -1e300}, {nan, 1, inf}, SvgPlot::kRed, "y")
        .band({0, 1, 2}, {nan, 0, 0}, {1, 1, inf}, SvgPlot::kGray)
        .intervals({1}, {0}, {2}, SvgPlot::kGreen)
        .histogram({nan, 2, 2, 2}, SvgPlot::kPurple)
        .histogram({}, SvgPlot::kPurple)
        .vertical(nan, SvgPlot::kBlack);
    const std::string svg = plot.svg();
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
  }
  EXPECT_FALSE(SvgPlot({}).svg().empty());
  EXPECT_THROW(SvgPlot({}).line({1, 2}, {1}, SvgPlot::kBlue), std::invalid_argument);
}

TEST(SvgPlot, ThinsLongLinesButKeepsSpikes) {
  std::vector<double> x, y;
  for (int i = 0; i < 200000; ++i) {
    x.push_back(i);
    y.push_back(i == 123456 ? 100 : std::sin(i * 0.01));
  }
  PlotOptions o;
  o.y_range = {-2, 100};
  const std::string svg = SvgPlot(o).line(x, y, SvgPlot::kBlue).svg();
  EXPECT_LT(svg.size(), 60000u);
  EXPECT_NE(svg.find(" 0L"), std::string::npos) << "the spike reaches the top of the frame";
}

TEST(EscapeMarkup, LeavesNothingActive) {
  EXPECT_EQ(escape_markup("<script>\x01&"), "&lt;script&gt;&amp;");
  EXPECT_EQ(escape_markup("µas χ²"), "µas χ²");
}

}  // namespace scoreprior::report
