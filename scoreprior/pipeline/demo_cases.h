#pragma once
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/pipeline/run.h"

namespace scoreprior {

/// What `scoreprior demo NAME` hands to a demo.
struct DemoRequest {
  std::filesystem::path folder;
  std::string command_line;
  std::function<Config(Config)> adjust;  ///< applies the user's overrides to the configuration
};

/// A file that comes with the program. Throws MissingFileError.
std::filesystem::path shipped_file(const std::filesystem::path& relative);

/// The numbers and warnings of an inference, for one method of a demo's summary.json.
inline void add_inference(const Summary& inference, nlohmann::ordered_json& method) {
  for (const auto& [name, value] : inference.numbers)
    if (name.rfind("prior.", 0) == 0) method["numbers"][name] = value;
  method["warnings"] = inference.warnings;
}

/// 2d: a mixture of Gaussians seen through one number, whose posterior is known in closed form,
/// against DPI with the exact and the ELBO prior, importance resampling and Laplace's
/// approximation.
RunOutcome demo_2d(const DemoRequest& request, Observer& observer);

/// denoise: a colour image of the test split of the shipped dead-leaves prior in noise of sigma
/// 0.2; the exact and the ELBO prior side by side.
RunOutcome demo_denoise(const DemoRequest& request, Observer& observer);

}  // namespace scoreprior
