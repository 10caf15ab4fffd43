#include "scoreprior/pipeline/run.h"

#include <ATen/ATen.h>

#include <chrono>
#include <optional>

#include "scoreprior/core/errors.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/posterior_report.h"
#include "scoreprior/pipeline/problem.h"
#include "scoreprior/pipeline/run_folder.h"
#include "scoreprior/pipeline/warm_start.h"

namespace scoreprior {
namespace {

// What finished draws leave behind for `report`: name -> array.
io::Arrays history_arrays(const Draws& draws) {
  io::Arrays a(draws.history.begin(), draws.history.end());
  if (draws.log_q.defined()) a["log_q"] = draws.log_q;
  return a;
}

std::string sentence(const Summary& s) {
  std::string all =
      "the inference ended as \"" + std::string(to_string(s.status)) + "\": " + s.message;
  for (const auto& warning : s.warnings) all += "; " + warning;
  return all;
}

}  // namespace

RunOutcome run(const Config& config, const RunRequest& request, Observer& observer) {
  const auto start = std::chrono::steady_clock::now();
  const Session session = make_session(config.table("run"));
  const Rng rng(config.get<uint64_t>("seed", 0, "seed of every random choice"));
  const auto title = config.get<std::string>("title", "Posterior inference", "title of the report");
  const auto prior = load_prior(config, session);
  const Measurement data = load_measurement(config, prior->event_shape(), session);
  const auto method = inferences().make(config.table("infer"), "dpi",
                                        InferenceContext{session.dtype, session.device});
  const auto flow_of = first_flow(config);
  const ReportOptions report = read_report_options(config, data.sky.has_value());
  skip_simulation_tables(config);
  config.require_all_used();
  const auto kspace = data.observation.notes.find("kspace");
  if (kspace != data.observation.notes.end()) observer.note(kspace->second);

  RunFolder folder(request.folder, config);
  if (folder.finished()) {
    observer.note(folder.path().string() + " is finished; its report is " +
                  folder.file("report.html").string());
    Summary before;
    read_facts(folder.path(), before);
    return {before.status, folder.file("report.html"), sentence(before)};
  }
  std::optional<WarmStart> warm;
  if (flow_of) warm.emplace(folder, *flow_of, config.table("infer").get<int64_t>("steps", 0));
  Draws draws = method->run({*prior, *data.likelihood}, rng.split("infer"), observer,
                            warm ? static_cast<StateStore&>(*warm) : folder);
  if (draws.summary.status == Status::kInterrupted) {
    observer.note("stopped; the same command goes on from the checkpoint in " +
                  folder.path().string());
    return {Status::kInterrupted, {}};
  }
  add_diagnostics("prior", *prior, draws.summary);
  io::write_npz(folder.file("history.npz"), history_arrays(draws));
  io::write_npy(folder.file("draws.npy"), draws.x);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const RunFacts facts{title,           request.command_line, folder.run_id(),
                       seconds.count(), config.to_toml(),     report};
  write_posterior(draws, data, facts, folder.path(), observer);
  observer.note("report: " + folder.file("report.html").string());
  return {draws.summary.status, folder.file("report.html"), sentence(draws.summary)};
}

void rebuild_report(const std::filesystem::path& path, Observer& observer) {
  if (!std::filesystem::exists(path / "summary.json"))
    throw MissingFileError(path.string() + " is not a finished run folder (no summary.json)");
  const Config config = io::read_toml(path / "config.toml");
  Draws draws;
  draws.x = io::read_npy(path / "draws.npy");
  if (draws.x.dim() != 4)
    throw DataError((path / "draws.npy").string() + ": expected draws [N,C,H,W]");
  for (auto& [name, a] : io::read_npz(path / "history.npz")) {
    if (name == "log_q")
      draws.log_q = a;
    else
      draws.history[name] = a;
  }
  Session session = make_session("cpu", "");
  const Measurement data =
      load_measurement(config, {draws.x.size(1), draws.x.size(2), draws.x.size(3)}, session);
  RunFacts facts = read_facts(path, draws.summary);
  facts.title = config.get<std::string>("title", "Posterior inference");
  facts.report = read_report_options(config, data.sky.has_value());
  facts.settings = config.to_toml();
  write_posterior(draws, data, facts, path, observer);
  observer.note("report: " + (path / "report.html").string());
}

}  // namespace scoreprior
