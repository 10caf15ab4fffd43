#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// Forward diffusion dx = f(x,t) dt + g(t) dw on t in [0,1] with x_t | x_0 ~ N(alpha(t) x_0,
/// std(t)^2 I) [Song21]. Every t is [B]; coefficients come back as [B] in t's dtype, drifts in the
/// shape of x.
class Sde {
 public:
  virtual ~Sde() = default;
  virtual std::string name() const = 0;

  virtual at::Tensor mean_coeff(const at::Tensor& t) const = 0;  ///< alpha(t)
  virtual at::Tensor std(const at::Tensor& t) const = 0;
  virtual at::Tensor diffusion(const at::Tensor& t) const = 0;  ///< g(t)
  /// f(x,t) = drift_coeff(t) x for every process here.
  virtual at::Tensor drift_coeff(const at::Tensor& t) const = 0;
  /// Standard deviation of the law at t = 1 that stands for the prior.
  virtual double prior_std() const = 0;

  /// The time label a score network is fed: 999 t for VP and sub-VP, std(t) for VE.
  virtual at::Tensor network_label(const at::Tensor& t) const = 0;
  /// score = net_to_score(t) * net: -1/std(t) for VP and sub-VP, 1 for VE.
  virtual at::Tensor net_to_score(const at::Tensor& t) const = 0;

  /// Density of importance-sampled times g^2/std^2 / Z on [t0,1]; VP and sub-VP only (VE:
  /// has_importance() = false).
  virtual bool has_importance() const = 0;
  virtual double importance_norm(double t0) const = 0;  ///< Z
  /// Time at cumulative weight u Z, u in [0,1).
  virtual at::Tensor importance_time(const at::Tensor& u, double t0) const = 0;

  /// Number of steps of the discrete process (1000): step size of discretised samplers.
  virtual int64_t num_scales() const = 0;

  at::Tensor drift(const at::Tensor& x, const at::Tensor& t) const;
  /// f - g^2 s
  at::Tensor reverse_drift(const at::Tensor& x, const at::Tensor& t, const at::Tensor& score) const;
  /// f - g^2 s / 2, the probability-flow drift.
  at::Tensor probability_flow_drift(const at::Tensor& x, const at::Tensor& t,
                                    const at::Tensor& score) const;
  /// log N(z; 0, prior_std^2 I), [B].
  at::Tensor prior_log_prob(const at::Tensor& z) const;
};

/// The family by name; [sde] type = vp | subvp | ve | linear_ve.
std::unique_ptr<Sde> make_sde(const Config& config);

}  // namespace scoreprior
