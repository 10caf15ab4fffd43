#pragma once
#include <filesystem>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"
#include "scoreprior/core/summary.h"

namespace scoreprior {

struct RunRequest {
  std::filesystem::path folder;
  std::string command_line;  ///< recorded in summary.json
};

struct RunOutcome {
  Status status = Status::kFailed;
  std::filesystem::path report;
  std::string message = {};  ///< how the inference ended and what to know about it, one sentence
};

/// configuration -> observation -> prior, likelihood -> draws -> summary -> report. Resumes from
/// the folder's last checkpoint; an interrupted run returns kInterrupted and loses nothing. The
/// prior's diagnostics are in the summary as prior.NUMBER and as warnings; those of a resumed run
/// count from where it went on.
RunOutcome run(const Config& config, const RunRequest& request, Observer& observer);

/// report.html again from the draws and settings of a finished run folder.
void rebuild_report(const std::filesystem::path& folder, Observer& observer);

}  // namespace scoreprior
