#pragma once
// What the studies of posteriors share: notes to stdout, and the state of one run of inference as
// the start of others.
#include <ATen/ATen.h>

#include <cstdio>
#include <map>
#include <string>

#include "scoreprior/infer/inference.h"

namespace scoreprior {

class PrintedNotes final : public Observer {
 public:
  void note(const std::string& sentence) override { std::printf("  %s\n", sentence.c_str()); }
};

class KeptState final : public StateStore {
 public:
  void save(const std::map<std::string, at::Tensor>& state) override { end_ = state; }
  bool load(std::map<std::string, at::Tensor>& state) const override {
    state = start_;
    return !start_.empty();
  }
  /// As the last run left it.
  const std::map<std::string, at::Tensor>& end() const { return end_; }
  /// Lets the next run of so many steps begin with the flow of `state` and a fresh optimiser.
  void start_from(const std::map<std::string, at::Tensor>& state, int64_t steps) {
    start_ = state;
    for (auto& [name, values] : start_) {
      if (name == "counters")
        values = at::tensor({int64_t{0}, int64_t{0}, int64_t{0}, int64_t{0}, int64_t{0}, steps},
                            at::kLong);
      else if (name.rfind("curve_", 0) == 0)
        values = at::zeros({0}, at::kDouble);
      else if (name == "adam_m" || name == "adam_v")
        values = at::zeros_like(values);
    }
  }

 private:
  std::map<std::string, at::Tensor> start_, end_;
};

}  // namespace scoreprior
