#pragma once
/// The data products of interferometry as functions of the model visibilities. Each gives its
/// misfit
///   L = -log p(data | model) + const        [nats],  chi^2 = 2 L / N,
/// its derivative by hand, and its residuals; N counts real numbers (a visibility is two).

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>

#include "scoreprior/core/visibility_table.h"
#include "scoreprior/likelihood/closures.h"

namespace scoreprior {

/// Model visibilities [M,B] [Jy] and what the products share.
struct ModelVisibilities {
  at::Tensor re, im;
  at::Tensor power;      ///< |V|^2
  at::Tensor inverse;    ///< 1/max(|V|^2, e^2) with e = 1e-6 sigma: keeps gradients finite where a
                         ///< model visibility is 0
  at::Tensor amplitude;  ///< |V|
  at::Tensor phase;      ///< arg V
  at::Tensor log_amplitude;  ///< ln|V|, continued below e by ln e + (|V|^2/e^2 - 1)/2 (once
                             ///< differentiable)
};
/// floor2 = e^2, [M,1].
ModelVisibilities model_visibilities(at::Tensor re, at::Tensor im, const at::Tensor& floor2);
/// e^2 of every row, [M,1].
at::Tensor visibility_floor(const VisibilityTable& table, at::ScalarType dtype, at::Device device);

/// dL by what L was computed from; undefined parts are zero.
struct VisibilityGradient {
  at::Tensor re, im, phase, log_amplitude;  ///< [M,B]
  /// this += weight * other
  void add(const VisibilityGradient& other, double weight);
  /// (dL/dRe V, dL/dIm V).
  std::pair<at::Tensor, at::Tensor> parts(const ModelVisibilities& model) const;
};

class DataProduct {
 public:
  struct Misfit {
    at::Tensor value;  ///< [B]
    VisibilityGradient gradient;
  };

  virtual ~DataProduct() = default;
  virtual int64_t size() const = 0;  ///< N
  virtual Misfit misfit(const ModelVisibilities& model, bool gradient) const = 0;
  /// 2 L / N, [B], unless a product says otherwise.
  virtual at::Tensor reduced_chi2(const ModelVisibilities& model) const;
  /// [N,B] with sum of squares 2 L.
  virtual at::Tensor residuals(const ModelVisibilities& model) const = 0;
  /// d residuals / d (Re V, Im V), each [B,N,M] or [1,N,M] where it does not depend on the model.
  /// The 1 - cos form is taken at small residuals, where it is quadratic.
  virtual std::pair<at::Tensor, at::Tensor> residual_slopes(
      const ModelVisibilities& model) const = 0;
  /// log p(data | model) = log_constant() - L.
  virtual double log_constant() const = 0;
};

/// L = sum |d-m|^2 / (2 s^2), N = 2M.
std::unique_ptr<DataProduct> make_visibility_product(const VisibilityTable& table,
                                                     at::ScalarType dtype, at::Device device);
/// L = sum (A-|m|)^2 / (2 s^2) with A debiased with a floor at s.
std::unique_ptr<DataProduct> make_amplitude_product(const VisibilityTable& table,
                                                    at::ScalarType dtype, at::Device device);

/// Closures. With d, m the data and model closures of one time stamp, T and s' its transform and
/// sigmas:
///   exact        phases: r = wrap(d - m); amplitudes: r = d - m;      L = r^T C^-1 r / 2
///   ehtim        phases: L = sum (1 - cos(T d - T m))/s'^2, m wrapped; amplitudes: r = d - m with
///   d debiased, as exact independent  phases: L = sum (1 - cos(d - m))/s^2; amplitudes: L = sum
///   (d-m)^2 / (2 s^2)
/// The 1 - cos form is a von Mises law of concentration 1/s^2; its constant is that law's.
class ClosureProduct : public DataProduct {
 public:
  virtual const ClosureSet& set() const = 0;
  /// Model closures [K,B] in the order of the set, phases wrapped [rad].
  virtual at::Tensor model(const ModelVisibilities& model) const = 0;
};
std::unique_ptr<ClosureProduct> make_closure_product(const VisibilityTable& table, ClosureKind kind,
                                                     ClosureCovariance covariance,
                                                     at::ScalarType dtype, at::Device device);

}  // namespace scoreprior
