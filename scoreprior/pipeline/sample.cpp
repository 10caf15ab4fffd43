#include "scoreprior/pipeline/sample.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/report/run_report.h"

namespace scoreprior {

void sample(const SampleRequest& request, const Session& session, Observer& observer) {
  if (request.count < 1) throw UsageError("expected a positive --count");
  io::require_file(request.model, "model");
  Config table;
  auto node = std::make_shared<ConfigNode>();
  node->value = request.model.string();
  table.set("weights", node);
  const auto model = make_score_model(table, session.dtype, session.device);
  io::make_folder(request.folder);
  const at::Tensor x = sample_score_model(*model, request.sampler, request.count,
                                          Rng(request.seed).split("sample"), observer);
  io::write_npy(request.folder / "samples.npy", x);
  const bool centered = model->range() == "centered";
  report::write_sample_grid(x, request.folder / "samples.png", report::Colormap::kGray,
                            std::make_pair(centered ? -1.0 : 0.0, 1.0));
  observer.note("samples: " + (request.folder / "samples.png").string());
}

}  // namespace scoreprior
