#pragma once
#include <filesystem>

#include "scoreprior/core/observer.h"
#include "scoreprior/diffusion/sampler.h"
#include "scoreprior/pipeline/session.h"

namespace scoreprior {

struct SampleRequest {
  std::filesystem::path model, folder = "samples";
  int64_t count = 64;
  uint64_t seed = 0;
  SamplerOptions sampler;
};

/// Draws from a model: folder/samples.npy [n,C,H,W] in the model's own range and
/// folder/samples.png.
void sample(const SampleRequest& request, const Session& session, Observer& observer);

}  // namespace scoreprior
