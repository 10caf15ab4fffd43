#include "scoreprior/report/run_report.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <set>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/png.h"
#include "scoreprior/report/image_figure.h"

namespace scoreprior::report {
namespace {

namespace fs = std::filesystem;

at::Tensor ring(int64_t size, double radius, double width, double angle, double fov) {
  at::Tensor image = at::zeros({size, size}, at::kDouble);
  auto a = image.accessor<double, 2>();
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) {
      const double x = (0.5 - (double(j) + 0.5) / double(size)) * fov;
      const double y = (0.5 - (double(i) + 0.5) / double(size)) * fov;
      const double r = std::hypot(x, y);
      a[i][j] = std::exp(-0.5 * std::pow((r - radius) / width, 2)) *
                (1 + 0.7 * std::cos(std::atan2(x, y) - angle));
    }
  return image * (0.6 / image.sum().item<double>());
}

// A made-up interferometric run with every part of a report.
RunReport synthetic_run() {
  const Rng rng(7);
  RunReport r;
  r.title = "M87*, 2017 April 6";
  r.subtitle = "DPI with a score-based prior, 32 × 32 pixels";
  r.created = "2024-05-01 12:00 UTC";
  r.facts = {{"Command", "scoreprior run m87.toml seed=7"}, {"Seed", "7"}, {"Version", "0.1.0"}};
  r.inference_known = true;
  r.inference.status = Status::kConverged;
  r.inference.message = "the loss changed by less than its noise over 500 steps";
  r.inference.numbers = {
      {"steps", 2000}, {"seconds", 341.2}, {"nfe", 128000}, {"final_loss", -1204.2}};
  r.colormap = Colormap::kAfmhot;
  r.upscaling = Upscaling::kSmooth;
  r.units = "Jy/pixel";
  r.fov_uas = 160;
  r.frequency_hz = 229.07e9;
  const int64_t n = 256, size = 32;
  const auto z = rng.split("radius").normals(3 * n);
  std::vector<at::Tensor> draws;
  for (int64_t i = 0; i < n; ++i)
    draws.push_back(ring(size, 20 + 0.8 * z[size_t(3 * i)], 5 + 0.5 * z[size_t(3 * i + 1)],
                         3.3 + 0.2 * z[size_t(3 * i + 2)], r.fov_uas));
  r.samples = at::stack(draws);
  r.samples[3][4][4] = std::numeric_limits<double>::quiet_NaN();
  r.draws = n;
  r.invalid_draws = 1;
  const at::Tensor valid = at::cat({r.samples.slice(0, 0, 3), r.samples.slice(0, 4)});
  const at::Tensor truth = ring(size, 20.5, 4.6, 3.5, r.fov_uas);
  r.images = {{"mean", valid.mean(0), "", true, {}, "", {}},
              {"std", valid.std(0), "Standard deviation over draws.", false, {}, "", {}},
              {"truth", truth, "", true, {}, "", {}},
              {"dirty image",
               truth + 2e-4 * rng.split("dirty").normal({size, size}, at::kDouble),
               "Naive transform of the data.",
               false,
               {},
               "Jy/beam",
               {}}};
  r.chi2 = {
      {"closure phases", 1.03 + 0.08 * rng.split("c1").normal({n}, at::kDouble), 120, 1.01, 0.98},
      {"log closure amplitudes", 1.74 + 0.1 * rng.split("c2").normal({n}, at::kDouble), 95, 1.69,
       1.02}};
  const int64_t m = 180;
  const at::Tensor base = rng.split("uv").uniform({m}, at::kDouble) * 8;
  const at::Tensor amp = 0.6 * at::exp(-base / 3) * at::cos(base).abs() + 0.02;
  const at::Tensor sigma = at::full({m}, 0.012, at::kDouble) + 0.03 * amp;
  r.fits = {{"visibility amplitudes", "Baseline (Gλ)", "Amplitude (Jy)", base,
             amp + sigma * rng.split("n").normal({m}, at::kDouble), sigma,
             amp + 0.03 * amp * rng.split("m").normal({64, m}, at::kDouble), 0, true, false}};
  const at::Tensor time = at::linspace(0, 8, 120, at::kDouble);
  const at::Tensor phase = 150 * at::sin(time);
  const at::Tensor noise = at::full({120}, 12.0, at::kDouble);
  r.fits.push_back({"closure phases", "Time (h)", "Closure phase (deg)", time,
                    phase + noise * rng.split("p").normal({120}, at::kDouble), noise,
                    phase + 360 + 6 * rng.split("q").normal({64, 120}, at::kDouble), 360, false,
                    true});
  const at::Tensor steps = at::arange(1, 2001, at::TensorOptions(at::kDouble));
  Curve loss;
  loss.title = "Loss";
  loss.y_label = "Nats";
  loss.x = steps;
  loss.lines = {{"loss", -1200 + 3000 * at::exp(-steps / 100) +
                             20 * rng.split("l").normal({2000}, at::kDouble)}};
  Curve terms = loss;
  terms.title = "Terms of the loss";
  terms.log_y = true;
  terms.lines = {{"data", 1 + 3000 * at::exp(-steps / 100)},
                 {"prior", 900 + 2000 * at::exp(-steps / 300)}};
  r.histories = {loss, terms};
  r.ring = {
      {"diameter", "µas", 40 + 1.6 * rng.split("d").normal({n}, at::kDouble), 41.0},
      {"width", "µas", 11.8 + 1.2 * rng.split("w").normal({n}, at::kDouble), 10.8},
      {"orientation angle", "deg", 189 + 11 * rng.split("o").normal({n}, at::kDouble), 200.5}};
  const at::Tensor radius = at::linspace(0, 60, 40, at::kDouble);
  const at::Tensor profile = at::exp(-at::pow((radius - 20) / 7, 2));
  r.profiles = {{"Radial profile", "Radius (µas)", "Brightness / peak", radius,
                 profile * (1 + 0.1 * rng.split("r").normal({n, 1}, at::kDouble)), profile}};
  const at::Tensor nominal = at::linspace(0, 1, 21, at::kDouble);
  r.coverage = {
      {"Pixels of the truth inside central credible intervals (mean above 5 % of its peak)",
       nominal, nominal.pow(1.2), (nominal - 0.06).clamp(0), (nominal + 0.06).clamp(0, 1)}};
  const at::Tensor spread = at::linspace(-1, 1, 21, at::kDouble);  // sd 0.62
  r.metrics = {{"PSNR [dB]", 24.6 + spread, 27.31, 19.2},
               {"SSIM", 0.87 + 0.02 * spread, 0.912, 0.6},
               {"NXCORR", 0.95 + 0.01 * spread, 0.974, {}},
               {"PSNR under a beam of 20 µas FWHM [dB]", 30 + spread, 33.3, {}}};
  r.metrics_note = "Every image was first moved to the truth.";
  r.settings =
      "seed = 7\n\n[prior]\nname = \"score_elbo\"\nweights = \"model.safetensors\"  # <EMA>\n";
  return r;
}

class ReportFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    // SP_REPORT_FOLDER keeps the pages, for looking at them.
    const char* kept = std::getenv("SP_REPORT_FOLDER");
    keep_ = kept != nullptr;
    folder_ = keep_ ? fs::path(kept)
                    : fs::temp_directory_path() / ("sp-report-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override {
    if (!keep_) fs::remove_all(folder_);
  }
  fs::path folder_;
  bool keep_ = false;
};

// "" when every element is closed in order and attributes are quoted; otherwise what is wrong.
std::string markup_error(const std::string& html) {
  std::vector<std::string> open;
  for (size_t i = html.find("<html"); i < html.size();) {
    if (html[i] != '<') {
      ++i;
      continue;
    }
    if (html.compare(i, 7, "<style>") == 0) {
      i = html.find("</style>", i) + 8;
      continue;
    }
    size_t end = i + 1;
    bool quoted = false;
    while (end < html.size() && (quoted || html[end] != '>')) {
      if (html[end] == '"') quoted = !quoted;
      if (html[end] == '<') return "'<' inside a tag at " + html.substr(i, 60);
      ++end;
    }
    if (end == html.size()) return "unclosed tag " + html.substr(i, 60);
    const std::string tag = html.substr(i + 1, end - i - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag[0] == '/') {
      if (open.empty() || "/" + open.back() != tag)
        return "</" + tag + " closes " + (open.empty() ? "nothing" : open.back());
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    i = end + 1;
  }
  return open.empty() ? "" : open.back() + " is never closed";
}

}  // namespace

using Report = ReportFolder;

TEST_F(Report, IsOneCompletePage) {
  const RunReport run = synthetic_run();
  write_report(run, folder_);
  const std::string html = io::read_text(folder_ / "report.html");
  EXPECT_EQ(markup_error(html), "");
  for (const char* outside : {"<script", "<link", "src=\"http", "href=\"http", "url(", "@import"})
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  EXPECT_LT(html.size(), 3'000'000u);
  for (const char* text :
       {"The inference converged after 2000 steps", "1 of 256 draws (0.39 %) is invalid",
        "The draws fit closure phases: the median reduced χ²",
        "fit log closure amplitudes less well than the noise allows", "Relative RA (µas)",
        "Brightness temperature", "Jy/pixel", "# &lt;EMA&gt;", "name=\"viewport\"",
        // The mean image, all draws and the naive image against the truth.
        "<td>PSNR [dB]</td><td>27.31</td><td>24.60 ± 0.62</td><td>19.20</td>",
        "<td>NXCORR</td><td>0.9740</td><td>0.9500 ± 0.0062</td><td></td>",
        "PSNR under a beam of 20 µas FWHM [dB]", "over all 21 valid draws, none picked",
        "Every image was first moved to the truth."})
    EXPECT_NE(html.find(text), std::string::npos) << text;
  for (const char* broken : {"Mnan", "Lnan", " nan", "\"nan", ">nan"})
    EXPECT_EQ(html.find(broken), std::string::npos) << broken;
  for (const char* png :
       {"mean.png", "std.png", "truth.png", "dirty_image.png", "error.png", "samples.png"}) {
    const io::Raster r = io::read_png(folder_ / png);
    EXPECT_GE(r.width, 512) << png;
  }
}

TEST_F(Report, EmptyAndOddRunsStillGiveAPage) {
  const auto folder = folder_ / "odd";  // beside the page that a person may want to keep
  std::filesystem::create_directories(folder);
  write_report({}, folder);
  EXPECT_EQ(markup_error(io::read_text(folder / "report.html")), "");
  RunReport r;
  r.title = "<b>\"&";
  r.samples = at::full({3, 3, 4, 4}, std::numeric_limits<double>::quiet_NaN());
  r.draws = r.invalid_draws = 3;
  r.images = {{"mean", at::zeros({1, 4, 4}), "", true, {}, "", {}},
              {"broken", r.samples[0], "", true, {}, "", {}}};
  r.chi2 = {{"data", at::full({3}, NAN, at::kDouble), 0, {}, {}}};
  r.fits = {{"data", "k", "y", at::zeros({0}), at::zeros({0}), at::zeros({0}), at::zeros({3, 0}), 0,
             false, false}};
  r.histories.resize(1);
  r.histories[0].lines = {{"loss", at::full({500}, NAN)}};
  write_report(r, folder);
  const std::string html = io::read_text(folder / "report.html");
  EXPECT_EQ(markup_error(html), "");
  EXPECT_NE(html.find("not finite for any draw"), std::string::npos);
  EXPECT_THROW(write_report(r, folder / "missing"), CannotCreateError);
}

TEST_F(Report, FarMarksAreWrittenBesideTheHistogram) {
  const auto folder = folder_ / "far_marks";  // beside the page that a person may want to keep
  std::filesystem::create_directories(folder);
  RunReport r;
  r.draws = 32;
  const auto page = [&](double of_mean) {
    r.chi2 = {{"phases", at::linspace(0.9, 1.1, 32, at::kDouble), 100, of_mean, {}}};
    write_report(r, folder);
    return io::read_text(folder / "report.html");
  };
  EXPECT_NE(page(149).find("mean image off the scale: 149"), std::string::npos);
  EXPECT_EQ(page(1.3).find("off the scale"), std::string::npos);
}

TEST(Verdict, GradesStatusAndFit) {
  RunReport r;
  r.inference_known = true;
  r.chi2 = {{"data", at::full({10}, 1.0, at::kDouble), 100, {}, {}}};
  const auto level = [&](Status status, double chi2, int64_t points) {
    r.inference.status = status;
    r.chi2[0].draws = at::full({10}, chi2, at::kDouble);
    r.chi2[0].points = points;
    const auto v = verdict(r);
    return std::make_pair(v.at(0).level, v.at(1).level);
  };
  EXPECT_EQ(level(Status::kConverged, 1.1, 100), std::make_pair(Level::kGood, Level::kGood));
  EXPECT_EQ(level(Status::kMaxSteps, 1.8, 1000), std::make_pair(Level::kWarning, Level::kWarning));
  EXPECT_EQ(level(Status::kDiverged, 40, 100), std::make_pair(Level::kBad, Level::kBad));
  EXPECT_EQ(level(Status::kInterrupted, 0.3, 100),
            std::make_pair(Level::kWarning, Level::kWarning));
  EXPECT_EQ(level(Status::kFailed, 0.01, 1000), std::make_pair(Level::kBad, Level::kBad));
  // 5 data scatter by sqrt(2/5): 1.8 is within three standard deviations.
  EXPECT_EQ(level(Status::kConverged, 1.8, 5).second, Level::kGood);
}

TEST_F(Report, TrainingPageAndGrid) {
  TrainReport t;
  t.subtitle = "NCSN++ on 8 × 8 digits";
  t.statements = {{Level::kGood, "Training finished: 2000 of 2000 steps."}};
  Curve c;
  c.title = "Loss";
  c.lines = {{"train", at::rand({2000}, at::kDouble) + 1},
             {"held out", at::rand({2000}, at::kDouble) + 1.2}};
  t.histories = {c};
  t.samples = {{"step 1000", at::rand({16, 1, 8, 8})}, {"step 2000", at::rand({16, 3, 8, 8})}};
  const fs::path folder = folder_ / "train";
  fs::create_directories(folder);
  write_train_report(t, folder);
  EXPECT_EQ(markup_error(io::read_text(folder / "report.html")), "");
  write_sample_grid(at::rand({5, 1, 8, 8}), folder / "grid.png");
  EXPECT_GT(io::read_png(folder / "grid.png").width, 3 * 64);
}

TEST(BrightnessTemperature, FollowsRayleighJeans) {
  // 1 Jy over a solid angle of (20 uas)^2 at 230 GHz: T = 1e-26 c^2 / (2 k nu^2 Omega), worked out
  // by hand: Omega = (20 * 4.8481368e-12)^2 = 9.4017e-21 sr; 8.9875518e-10 / (2 * 1.380649e-23
  // * 5.29e22 * 9.4017e-21).
  EXPECT_NEAR(kelvin_per_jansky_pixel(640, 32, 230e9) / 6.5444e10, 1, 1e-3);
}

TEST(ImageSvg, RightAscensionGrowsToTheLeft) {
  ImageFigure f;
  f.title = "mean";
  f.image = at::rand({16, 16}, at::kDouble);
  f.fov_uas = 100;
  const std::string svg = image_svg(f);
  const auto x_of = [&](const std::string& label) {
    const auto end = svg.find("\" y=", svg.rfind("<text x=", svg.find(">" + label + "<")));
    const auto start = svg.rfind('"', end - 1) + 1;
    return std::stod(svg.substr(start, end - start));
  };
  EXPECT_LT(x_of("40"), x_of("0"));
  EXPECT_LT(x_of("0"), x_of("−40"));
  EXPECT_NE(svg.find("role=\"img\" aria-label=\"mean: image of 16 by 16 pixels"),
            std::string::npos);
}

}  // namespace scoreprior::report
