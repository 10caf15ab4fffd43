#include "scoreprior/priors/detail/evaluation_log.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "scoreprior/core/errors.h"

namespace scoreprior::detail {

void EvaluationLog::add(const Entry& entry) {
  const std::lock_guard<std::mutex> lock(mutex_);
  images_ += entry.images;
  failed_ += entry.failed;
  if (entry.status > status_) {
    status_ = entry.status;
    failure_ = entry.failure;
  }
  for (const auto& [name, values] : entry.values) {
    if (!values.defined()) continue;
    const at::Tensor known = values.masked_select(at::isfinite(values)).to(at::kDouble);
    if (known.numel() == 0) continue;
    Tally& t = tallies_[name];
    const double most = known.max().item<double>();
    t.most = t.count == 0 ? most : std::max(t.most, most);
    t.sum += known.sum().item<double>();
    t.count += known.numel();
    t.each = true;
  }
  for (const auto& [name, mean] : entry.means) {
    Tally& t = tallies_[name];
    t.sum += mean * static_cast<double>(entry.images);
    t.count += entry.images;
  }
}

Summary EvaluationLog::summary() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Summary s{status_, "", {}, {}};
  if (images_ == 0) return s;
  s.numbers["images"] = static_cast<double>(images_);
  s.numbers["failed"] = static_cast<double>(failed_);
  for (const auto& [name, t] : tallies_) {
    s.numbers[name + "_mean"] = t.sum / static_cast<double>(t.count);
    if (t.each) s.numbers[name + "_max"] = t.most;
  }
  if (failed_ > 0)
    s.warnings.push_back(
        concat("log p had no value in ", failed_, " of ", images_, " evaluations: ", failure_));
  return s;
}

}  // namespace scoreprior::detail
