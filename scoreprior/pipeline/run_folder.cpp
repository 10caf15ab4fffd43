#include "scoreprior/pipeline/run_folder.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/safetensors.h"

namespace scoreprior {
namespace {

std::string fnv1a_hex(const std::string& text) {
  uint64_t h = 0xCBF29CE484222325ull;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001B3ull;
  std::ostringstream s;
  s << std::hex << h;
  return s.str();
}

}  // namespace

std::string config_hash(const Config& config) {
  std::string text = config.to_toml();
  // Cut out whole, so that runs from before there was this table keep their hash.
  if (const size_t report = text.find("\n[report]\n"); report != std::string::npos)
    text.erase(report, text.find("\n[", report + 1) - report);
  std::istringstream in(text);
  std::string line, kept;
  bool execution = false;
  while (std::getline(in, line)) {
    if (!line.empty() && line[0] == '[') execution = line == "[run]";
    const size_t comment = line.find("  #");
    if (!execution) kept += line.substr(0, line.find_last_not_of(' ', comment) + 1) + "\n";
  }
  return fnv1a_hex(kept);
}

RunFolder::RunFolder(std::filesystem::path folder, const Config& config)
    : folder_(std::move(folder)), config_hash_(scoreprior::config_hash(config)) {
  io::make_folder(folder_);
  const auto identity = file("run.json");
  if (std::filesystem::exists(identity)) {
    const auto j = nlohmann::json::parse(io::read_text(identity), nullptr, false);
    if (!j.is_object() || !j.contains("config_hash") || !j.contains("run_id"))
      throw DataError(identity.string() + ": damaged; remove the folder to start again");
    if (j["config_hash"] != config_hash_)
      throw CannotCreateError("the run folder " + folder_.string() +
                              " belongs to a run with other settings (see its config.toml); choose "
                              "another folder with --out or remove it");
    run_id_ = j["run_id"].get<std::string>();
    return;
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  run_id_ = fnv1a_hex(config_hash_ + std::to_string(now));
  io::write_text(file("config.toml"), config.to_toml());
  io::write_text(identity,
                 nlohmann::json{{"run_id", run_id_}, {"config_hash", config_hash_}}.dump(2));
}

bool RunFolder::finished() const { return std::filesystem::exists(file("summary.json")); }

void RunFolder::save(const std::map<std::string, at::Tensor>& state) {
  io::write_safetensors(file("state.safetensors"),
                        {state, {{"run_id", run_id_}, {"config_hash", config_hash_}}});
}

bool RunFolder::load(std::map<std::string, at::Tensor>& state) const {
  if (!std::filesystem::exists(file("state.safetensors"))) return false;
  io::Safetensors s = io::read_safetensors(file("state.safetensors"));
  if (s.metadata["run_id"] != run_id_)
    throw DataError(file("state.safetensors").string() + ": belongs to another run; remove it");
  state = std::move(s.tensors);
  return true;
}

}  // namespace scoreprior
