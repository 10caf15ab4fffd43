#pragma once
#include <filesystem>
#include <string>

#include "scoreprior/core/draws.h"
#include "scoreprior/core/observer.h"
#include "scoreprior/pipeline/problem.h"

namespace scoreprior {

/// [report]
struct ReportOptions {
  double beam_uas = 0;
  template <class F>
  void fields(F&& f) {
    f("beam_uas", beam_uas,
      "of sky images with a truth: width of the beam of the blurred PSNR [micro-arcsec], 0 = the "
      "nominal resolution, one over the longest baseline");
  }
};

/// ConfigError for a beam that is not a width, or that no image of the sky is there to be seen
/// with.
ReportOptions read_report_options(const Config& config, bool sky);

/// How a run was called; part of summary.json.
struct RunFacts {
  std::string title, command_line, run_id;
  double seconds = 0;
  std::string settings;  ///< the resolved configuration, TOML
  ReportOptions report;
};

/// Everything a finished run leaves in its folder besides the draws themselves: mean, std, truth
/// and naive images
/// (.npy, .png; .fits for the sky), draws.nc, report.html, and last of all summary.json, whose
/// presence says that the run is finished. The last sentences of the verdict also go to the
/// observer.
void write_posterior(const Draws& draws, const Measurement& data, const RunFacts& facts,
                     const std::filesystem::path& folder, Observer& observer);

/// Facts and inference summary of a finished run, from its summary.json.
RunFacts read_facts(const std::filesystem::path& folder, Summary& inference);

}  // namespace scoreprior
