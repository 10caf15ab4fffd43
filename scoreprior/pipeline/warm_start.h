#pragma once
#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "scoreprior/core/errors.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/pipeline/run_folder.h"

namespace scoreprior {

/// The state of a variational run that begins where another one ended: its flow, a fresh optimiser.
/// `before` is the folder of the other run, finished or not; `steps` are those of the new one; both
/// flows have the same settings. MissingFileError where `before` holds no state.
class WarmStart final : public StateStore {
 public:
  WarmStart(RunFolder& own, const std::filesystem::path& before, int64_t steps)
      : own_(own), file_(before / "state.safetensors"), steps_(steps) {
    if (!std::filesystem::exists(file_))
      throw MissingFileError(before.string() +
                             " is no folder of a variational run (no state.safetensors)");
  }
  void save(const std::map<std::string, at::Tensor>& state) override { own_.save(state); }
  bool load(std::map<std::string, at::Tensor>& state) const override {
    if (own_.load(state)) return true;
    const auto end = io::read_safetensors(file_).tensors;
    if (!end.count("parameters") || !end.count("adam_m"))
      throw DataError(file_.string() + ": is not the state of a flow");
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
  std::filesystem::path file_;
  int64_t steps_;
};

}  // namespace scoreprior
