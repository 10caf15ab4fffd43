#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <mutex>
#include <string>

#include "scoreprior/core/summary.h"

namespace scoreprior::detail {

/// Adds up what a density's evaluations cost and how they ended. Thread-safe.
class EvaluationLog {
 public:
  /// One evaluation of a batch.
  struct Entry {
    int64_t images = 0;
    int64_t failed = 0;  ///< images that have no value
    Status status = Status::kConverged;
    std::string failure;                       ///< of the worst of them
    std::map<std::string, at::Tensor> values;  ///< [images] each, NaN = not known
    std::map<std::string, double> means;       ///< over the images
  };
  void add(const Entry& entry);

  /// Worst status; numbers: images, failed, NAME_mean and NAME_max of the values (over the images
  /// where they are known), NAME_mean of the means; a warning when images failed. Nothing before
  /// the first entry.
  Summary summary() const;

 private:
  struct Tally {
    double sum = 0, most = 0;
    int64_t count = 0;
    bool each = false;  // single values, which have a largest one
  };
  mutable std::mutex mutex_;
  int64_t images_ = 0, failed_ = 0;
  Status status_ = Status::kConverged;
  std::string failure_;
  std::map<std::string, Tally> tallies_;
};

}  // namespace scoreprior::detail
