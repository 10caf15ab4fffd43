#pragma once
#include <ATen/ATen.h>

#include <map>
#include <string>

#include "scoreprior/infer/inference.h"
#include "scoreprior/pipeline/run_folder.h"

namespace scoreprior {

/// The state of a variational run that begins where another one ended: its flow, a fresh optimiser.
/// `steps` are those of the new run; both flows have the same settings.
class WarmStart final : public StateStore {
 public:
  WarmStart(RunFolder& own, const RunFolder& before, int64_t steps)
      : own_(own), before_(before), steps_(steps) {}
  void save(const std::map<std::string, at::Tensor>& state) override { own_.save(state); }
  bool load(std::map<std::string, at::Tensor>& state) const override {
    if (own_.load(state)) return true;
    std::map<std::string, at::Tensor> end;
    if (!before_.load(end)) return false;
    for (const auto& [name, values] : end) {
      if (name == "counters")
        state[name] = at::tensor({0, 0, 0, 0, 0, static_cast<int>(steps_)}, at::kLong);
      else if (name.rfind("curve_", 0) == 0)
        state[name] = at::zeros({0}, at::kDouble);
      else if (name == "adam_m" || name == "adam_v")
        state[name] = at::zeros_like(values);
      else
        state[name] = values;
    }
    // The averaged parameters are those its draws were made with.
    if (const auto average = end.find("average"); average != end.end())
      state["parameters"] = average->second.clone();
    return true;
  }

 private:
  RunFolder& own_;
  const RunFolder& before_;
  int64_t steps_;
};

}  // namespace scoreprior
