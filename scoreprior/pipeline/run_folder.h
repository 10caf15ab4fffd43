#pragma once
#include <filesystem>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/infer/inference.h"

namespace scoreprior {

/// The folder of one run. Its `run.json` carries the run id and the hash of the configuration; a
/// folder that belongs to another configuration is refused, so results of different settings never
/// mix.
class RunFolder final : public StateStore {
 public:
  /// Opens or creates. `config` must be resolved (all components made). Throws CannotCreateError
  /// when the folder cannot be written or belongs to another configuration; the sentence says how
  /// to go on.
  RunFolder(std::filesystem::path folder, const Config& config);

  const std::filesystem::path& path() const { return folder_; }
  std::filesystem::path file(const std::string& name) const { return folder_ / name; }
  const std::string& run_id() const { return run_id_; }
  bool finished() const;

  /// `state.safetensors`, written whole or not at all.
  void save(const std::map<std::string, at::Tensor>& state) override;
  bool load(std::map<std::string, at::Tensor>& state) const override;

 private:
  std::filesystem::path folder_;
  std::string run_id_, config_hash_;
};

/// Hash of everything that decides a result: the resolved settings without [run] (threads, device,
/// folders) and [report].
std::string config_hash(const Config& config);

}  // namespace scoreprior
