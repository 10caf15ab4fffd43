#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/sde/sde.h"

namespace scoreprior {

/// s(x,t) = grad_x log p_t(x) together with the process it belongs to.
class ScoreModel {
 public:
  virtual ~ScoreModel() = default;
  virtual const Sde& sde() const = 0;
  virtual Shape event_shape() const = 0;
  /// [B, event...], differentiable in x. Counts one network evaluation.
  virtual at::Tensor score(const at::Tensor& x, const at::Tensor& t) const = 0;
  virtual at::ScalarType dtype() const = 0;
  virtual at::Device device() const = 0;
};

/// From a table with either `weights` (safetensors; [.net] and [.sde] unless the file's own metadata has them) or an
/// analytic `name` = gaussian (mean, cov | sigma) | mixture (weights, means, covs | sigmas) with [.sde].
/// Analytic scores are those of the diffused law: mixture of N(alpha m_k, alpha^2 C_k + std^2 I).
std::unique_ptr<ScoreModel> make_score_model(const Config& config, at::ScalarType dtype,
                                             at::Device device);

}  // namespace scoreprior
