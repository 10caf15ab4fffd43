#pragma once
#include <filesystem>
#include <string>

#include "scoreprior/core/draws.h"
#include "scoreprior/core/observer.h"
#include "scoreprior/pipeline/problem.h"

namespace scoreprior {

/// How a run was called; part of summary.json.
struct RunFacts {
  std::string title, command_line, run_id;
  double seconds = 0;
  std::string settings;  ///< the resolved configuration, TOML
};

/// Everything a finished run leaves in its folder besides the draws themselves: mean, std, truth
/// and naive images
/// (.npy, .png; .fits for the sky), draws.nc, report.html, and last of all summary.json, whose
/// presence says that the run is finished. The last sentences of the verdict also go to the
/// observer.
void write_posterior(const Draws& draws, const Measurement& data, const RunFacts& facts,
                     const std::filesystem::path& folder, Observer& observer);

/// Facts and inference summary of a finished run, from its summary.json.
RunFacts read_facts(const std::filesystem::path& folder, Summary& inference);

}  // namespace scoreprior
