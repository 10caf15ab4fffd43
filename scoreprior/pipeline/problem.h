#pragma once
#include <filesystem>
#include <memory>
#include <optional>

#include "scoreprior/core/config.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/core/observation.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/session.h"

namespace scoreprior {

/// [image], for priors that fit images of any size.
struct ImageOptions {
  int64_t size = 0;
  int64_t channels = 1;
  template <class F>
  void fields(F&& f) {
    f("size", size, "side of the image [pixels], 0 = that of the prior's model");
    f("channels", channels, "image channels");
  }
};

/// How pixel values of a sky image become Jy/pixel, and how large the sky is.
struct Sky {
  double fov_uas = 0;
  double jy_per_unit = 1;       ///< image value x this = Jy/pixel
  bool position_known = false;  ///< by the data, as calibrated phases know it
};

/// The data and their likelihood, from the tables [image], [data], [forward] and [likelihood].
struct Measurement {
  Observation observation;
  std::unique_ptr<Likelihood> likelihood;
  ArrayReader read_array;  ///< reads the files that [likelihood] and [forward] name
  at::Tensor truth;        ///< [C,H,W] in the units of x, if [data] names one
  std::optional<Sky> sky;  ///< interferometry
};

/// The prior from [prior]; its image shape is that of its model, else [image] size and channels.
std::unique_ptr<LogDensity> load_prior(const Config& config, const Session& session);

/// `shape` {C,H,W} is the prior's. Throws DataError when data and images do not fit, ConfigError
/// when the field of view is not the one the prior's model file was trained on, MissingFileError
/// for absent data, with the command that makes them where the file also configures `simulate`.
Measurement load_measurement(const Config& config, const Shape& shape, const Session& session);

/// The run folder that `start_from` names: a DPI run begins with its flow. ConfigError for another
/// method, which has none.
std::optional<std::filesystem::path> first_flow(const Config& config);

/// Marks [truth] and [observe] as read: they are for `simulate`, which the same file may configure.
void skip_simulation_tables(const Config& config);

}  // namespace scoreprior
