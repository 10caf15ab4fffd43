#include "scoreprior/pipeline/demo.h"

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/demo_cases.h"
#include "scoreprior/pipeline/simulate.h"

namespace scoreprior {

namespace fs = std::filesystem;

// Beside the installed tree or, for a build, above it.
fs::path shipped_file(const fs::path& relative) {
  std::error_code ec;
  for (fs::path at = fs::read_symlink("/proc/self/exe", ec).parent_path(); !at.empty();
       at = at.parent_path()) {
    for (const fs::path& candidate : {at / relative, at / "share" / "scoreprior" / relative})
      if (fs::exists(candidate)) return candidate;
    if (at == at.root_path()) break;
  }
  throw MissingFileError("the shipped file " + relative.string() +
                         " was not found above the program");
}

namespace {

RunOutcome demo_blackhole(const fs::path& folder, const std::string& command_line,
                          const std::function<Config(Config)>& adjust, Observer& observer) {
  Config config = adjust(io::read_toml(shipped_file("configs/demo_blackhole.toml")));
  const auto seed = config.get<uint64_t>("seed", 0);
  io::make_folder(folder);
  const fs::path simulation = folder / "simulation";
  if (!config.table("truth").has("index"))
    io::apply_override(config, "truth.index=" + std::to_string(seed));
  simulate(config, simulation, observer);
  io::apply_overrides(
      config, {"data.file=\"" + fs::absolute(simulation / "observation.uvfits").string() + "\"",
               "data.truth=\"" + fs::absolute(simulation / "truth.fits").string() + "\""});
  return run(config, {folder, command_line}, observer);
}

}  // namespace

RunOutcome demo(const std::string& name, const fs::path& folder, const std::string& command_line,
                const std::function<Config(Config)>& adjust, Observer& observer) {
  const fs::path where = folder.empty() ? fs::path("runs/demo-" + name) : folder;
  if (name == "blackhole") return demo_blackhole(where, command_line, adjust, observer);
  if (name == "2d") return demo_2d({where, command_line, adjust}, observer);
  if (name == "denoise") return demo_denoise({where, command_line, adjust}, observer);
  throw UsageError("unknown demo \"" + name + "\" (known: 2d, denoise, blackhole)");
}

}  // namespace scoreprior
