#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>

#include "scoreprior/core/observer.h"

namespace scoreprior::report {

/// metrics.jsonl: one JSON object per line, {"step": 100, "loss": 0.25, ...}; nonfinite numbers are
/// null.
class MetricsLog {
 public:
  /// keep_through < 0 starts an empty file. Otherwise records of later steps, and a last line cut
  /// short by a kill, are removed first and new records follow. Throws CannotCreateError.
  explicit MetricsLog(const std::filesystem::path& path, int64_t keep_through = -1);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// Appends a line and hands it to the operating system. Throws IoError.
  void append(int64_t step, const Metrics& metrics);

 private:
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
};

}  // namespace scoreprior::report
