#pragma once
#include <map>
#include <string>
#include <vector>

namespace scoreprior {

/// How a computation ended, after Ceres: a value, never an exception and never silent.
enum class Status { kConverged, kMaxSteps, kInterrupted, kDiverged, kFailed };

inline const char* to_string(Status s) {
  switch (s) {
    case Status::kConverged:
      return "converged";
    case Status::kMaxSteps:
      return "step limit reached";
    case Status::kInterrupted:
      return "interrupted";
    case Status::kDiverged:
      return "diverged";
    case Status::kFailed:
      return "failed";
  }
  return "unknown";
}

struct Summary {
  Status status = Status::kFailed;
  std::string message = "the computation was not run";
  /// Named facts: "steps", "nfe", "seconds", "invalid_draws", "nonfinite_densities", ...
  std::map<std::string, double> numbers;
  /// What a reader must know beside the status: one sentence each.
  std::vector<std::string> warnings = {};
};

}  // namespace scoreprior
