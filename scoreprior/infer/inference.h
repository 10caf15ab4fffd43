#pragma once
#include <memory>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/draws.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/core/observer.h"

namespace scoreprior {

/// Where a method saves its state; load() gives false when there is nothing to resume from.
/// Named tensors in, named tensors out; the pipeline decides file, atomicity and identity.
class StateStore {
 public:
  virtual ~StateStore() = default;
  virtual void save(const std::map<std::string, at::Tensor>& state) = 0;
  virtual bool load(std::map<std::string, at::Tensor>& state) const = 0;
};

/// Posterior = prior x likelihood, each with a tempering weight that inference may anneal.
struct Target {
  const LogDensity& prior;
  const LogDensity& likelihood;
};

/// A way to draw from a target it knows only as log-densities.
class Inference {
 public:
  virtual ~Inference() = default;
  /// Never throws on numerics: non-finite densities are counted, statuses go to Draws::summary.
  virtual Draws run(const Target& target, const Rng& rng, Observer& observer,
                    StateStore& store) const = 0;
};

struct InferenceContext {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

const Catalog<Inference, const InferenceContext&>& inferences();
Catalog<Inference, const InferenceContext&>& mutable_inferences();

}  // namespace scoreprior
