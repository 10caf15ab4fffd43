#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/summary.h"
#include "scoreprior/report/colormap.h"
#include "scoreprior/report/html_page.h"

namespace scoreprior::report {

/// One picture of the comparison panel.
struct NamedImage {
  std::string name;     ///< "mean", "std", "truth", "dirty image", ...; also the PNG's file name
  at::Tensor image;     ///< [H,W] or [C,H,W] as in displayed()
  std::string caption;  ///< a sentence below it, may be empty
  bool common_scale = true;  ///< false: its own range (other units, signed, or far brighter)
  std::optional<Colormap> colormap;                     ///< otherwise the report's
  std::string units;                                    ///< otherwise the report's
  std::optional<std::pair<double, double>> scale = {};  ///< this range, whatever common_scale says
};

/// Reduced chi^2 of one data product; 1 is expected.
struct ChiSquareResult {
  std::string product;
  at::Tensor draws;    ///< [n], one per posterior draw
  int64_t points = 0;  ///< number of data, 0 = unknown
  std::optional<double> mean_image, truth;
};

/// Data against the posterior: the fields of the likelihoods' data fits, and how to draw them.
struct FitResult {
  std::string product, x_label, y_label;
  at::Tensor x, data, sigma;  ///< [M]
  at::Tensor model;           ///< [n,M], one row per draw
  double period = 0;  ///< > 0: angles; differences are taken modulo the period (360 for degrees)
  bool log_y = false;
  bool joined = false;  ///< the model is a curve over x rather than separate points
};

struct Curve {
  std::string title, x_label = "Step", y_label;
  at::Tensor x;                                           ///< [k]; undefined = 1..k
  std::vector<std::pair<std::string, at::Tensor>> lines;  ///< [k] each
  bool log_y = false;
};

/// Curves with a spread over draws, e.g. a radial profile.
struct Profile {
  std::string title, x_label, y_label;
  at::Tensor x;      ///< [k]
  at::Tensor draws;  ///< [n,k]
  at::Tensor truth;  ///< [k] or undefined
};

struct Histogram {
  std::string title, x_label;
  at::Tensor values;  ///< [n]
  std::vector<std::pair<std::string, double>> marks;
};

/// A measured quantity with its draws, e.g. ring diameter.
struct Quantity {
  std::string name, unit;
  at::Tensor draws;  ///< [n], NaN where it could not be measured
  std::optional<double> truth;
};

/// Share of pixels (or ranks) inside central intervals, against their nominal share.
struct Coverage {
  std::string title;
  at::Tensor nominal, empirical;  ///< [k] in [0,1]
  at::Tensor low, high;           ///< [k] expected scatter of a calibrated posterior, or undefined
};

/// A distance to the truth: of the mean image, of every draw, and of the picture that needs no
/// inference.
struct TruthMetric {
  std::string name;   ///< with unit
  at::Tensor draws;   ///< [n]; shown as mean and standard deviation. Undefined or 1: left out
  double mean_image;  ///< of the mean of the draws
  std::optional<double> naive_image = {};
};

/// Everything the page of a run shows; plain data, every part may be empty and is then left out.
struct RunReport {
  std::string title = "Posterior inference", subtitle;
  std::string created;  ///< date and time, as it should be printed
  std::vector<std::pair<std::string, std::string>>
      facts;  ///< "seed" -> "7", "command" -> ..., in this order

  Summary inference;
  bool inference_known = false;  ///< `inference` holds a result
  int64_t draws = 0, invalid_draws = 0;
  std::vector<Statement> statements;  ///< further sentences for the verdict

  Colormap colormap = Colormap::kGray;
  Upscaling upscaling = Upscaling::kNearest;
  std::string units;        ///< of pixel values, e.g. "Jy/pixel"
  double fov_uas = 0;       ///< > 0 for sky images
  double frequency_hz = 0;  ///< > 0 adds brightness temperatures (units must be Jy/pixel)
  std::optional<std::pair<double, double>> scale;  ///< otherwise the common range of the images
  std::vector<NamedImage> images;
  at::Tensor samples;  ///< [n,H,W] or [n,C,H,W]

  std::vector<ChiSquareResult> chi2;
  std::vector<FitResult> fits;
  std::vector<Curve> histories;
  std::vector<Quantity> ring;
  std::vector<Profile> profiles;
  std::vector<Histogram> histograms;
  std::vector<Coverage> coverage;
  std::vector<TruthMetric> metrics;
  std::string metrics_note;  ///< conventions of the metrics, as sentences
  std::vector<Table> tables;
  std::string settings;  ///< the resolved configuration as TOML
};

/// The verdict in plain sentences: did the inference end well, do the draws fit the data, are any
/// of them invalid; then report.statements. chi^2 bounds: the median over draws should be within 1
/// +- 3 sqrt(2/points), widened to [0.5, 1.5] for data whose errors are not known better than that;
/// beyond 3 (or below 0.2) it is bad news.
std::vector<Statement> verdict(const RunReport& report);

/// Writes <folder>/report.html, a PNG per image (its name in lower case with "_") and samples.png;
/// all of them whole or not at all. The folder must exist. Throws CannotCreateError, IoError.
void write_report(const RunReport& report, const std::filesystem::path& folder);

/// A training run: curves, samples as training went on, settings.
struct TrainReport {
  std::string title = "Score model training", subtitle, created;
  std::vector<std::pair<std::string, std::string>> facts;
  std::vector<Statement> statements;
  std::vector<Curve> histories;
  std::vector<std::pair<std::string, at::Tensor>> samples;  ///< "step 1000" -> [n,C,H,W]
  std::optional<std::pair<double, double>> scale;           ///< pixel range of the samples
  Colormap colormap = Colormap::kGray;
  std::vector<Table> tables;
  std::string settings;
};

/// Writes <folder>/report.html; same promises as write_report.
void write_train_report(const TrainReport& report, const std::filesystem::path& folder);

/// n images [n,C,H,W] as one PNG; the range is that of the images unless given. Throws
/// CannotCreateError, IoError.
void write_sample_grid(const at::Tensor& images, const std::filesystem::path& png,
                       Colormap colormap = Colormap::kGray,
                       std::optional<std::pair<double, double>> scale = std::nullopt);

}  // namespace scoreprior::report
