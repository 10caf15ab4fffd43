#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include "scoreprior/pipeline/run.h"

namespace scoreprior {

/// 2d and denoise: see demo_cases.h.
/// blackhole: simulates an EHT observation of an image the shipped prior never saw, then runs the
/// posterior. `adjust` applies the user's overrides to the run's configuration. Throws UsageError
/// for an unknown name.
RunOutcome demo(const std::string& name, const std::filesystem::path& folder,
                const std::string& command_line, const std::function<Config(Config)>& adjust,
                Observer& observer);

}  // namespace scoreprior
