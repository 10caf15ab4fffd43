#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/core/summary.h"

namespace scoreprior {

/// A log-density over images, batched over the leading axis; may be unnormalised.
/// Prior, likelihood and posterior are all LogDensity; inference sees nothing else.
///   Shapes  x [B, event...] -> [B]      Units  nats      Differentiable in x by autograd
class LogDensity {
 public:
  virtual ~LogDensity() = default;

  virtual Shape event_shape() const = 0;

  /// log p(x), [B]. Stochastic estimators draw from rng (row b of the batch = row b of rng) and are
  /// unbiased or documented lower bounds; exact densities ignore it.
  virtual at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const = 0;

  /// (log p(x) [B], grad_x log p(x) [B, event...]), both detached. Default: reverse mode through
  /// log_prob. Override where value and gradient share work that autograd would not see.
  virtual std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                            const Rng& rng) const;

  /// Named parts of the last word on x for reports, e.g. {"prior", [B]}, {"cphase", [B]}; their
  /// weighted sum is log_prob. Default: {{"log_prob", log_prob(x)}}.
  virtual std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                                const Rng& rng) const;

  /// What the evaluations of this object so far cost and how they ended: the worst status, numbers
  /// and warnings; no message. Of an estimator that cannot fail and costs nothing worth counting:
  /// nothing. Thread-safe.
  virtual Summary diagnostics() const { return {Status::kConverged, "", {}, {}}; }
};

/// Adds a density's diagnostics to a summary: its numbers as NAME.number, its warnings as "NAME:
/// warning". The summary's own status stays.
void add_diagnostics(const std::string& name, const LogDensity& density, Summary& summary);

}  // namespace scoreprior
