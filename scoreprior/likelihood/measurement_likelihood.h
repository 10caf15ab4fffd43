#pragma once
/// What every likelihood of a measurement vector y [M] through a forward model shares.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/likelihood/likelihood.h"

namespace scoreprior {

/// The forward model that a context asks for and the numbers that were measured through it.
struct MeasuredVector {
  std::unique_ptr<ForwardModel> forward;
  at::Tensor y;  ///< [M] float64 on the CPU, finite
};
/// DataError "[where] ..." when the observation has no y, another length, or values that are not
/// finite.
MeasuredVector measured_vector(const char* where, const Observation& data,
                               const LikelihoodContext& context);

/// The numbers of `key`: one number, or an array of one or M entries from the file it names or from
/// the observation's own array; `fallback` when there is neither. [1] or [M], float64, finite.
at::Tensor measured_numbers(const char* where, const Config& config, const std::string& key,
                            const Observation& data, const LikelihoodContext& context,
                            int64_t entries, double fallback, const std::string& help);

class MeasurementLikelihood : public Likelihood {
 public:
  MeasurementLikelihood(MeasuredVector measured, const LikelihoodContext& context);
  Shape event_shape() const override { return forward_->input_shape(); }
  at::Tensor naive_image() const override;
  std::vector<DataFit> data_fits(const at::Tensor& x) const override;

 protected:
  const ForwardModel& forward_model() const { return *forward_; }
  const at::Tensor& measurement() const { return y_; }                                   ///< [1,M]
  at::Tensor clean(const at::Tensor& x) const { return forward_->apply(x).flatten(1); }  ///< [B,M]
  /// A^T v of a linear model, v [B,M] -> [B,C,H,W].
  at::Tensor transposed(const at::Tensor& v) const;
  /// The matrix of a linear model, [M,D].
  at::Tensor matrix() const;
  /// [M] expected numbers under x [1,C,H,W] and the spread of the measured ones, for plots.
  virtual at::Tensor expected(const at::Tensor& x) const { return clean(x); }
  virtual at::Tensor spread() const = 0;
  /// y [M] of an observation in the shape the forward model gives, with the image it is of.
  Observation observed(const at::Tensor& y, const at::Tensor& x) const;

 private:
  std::unique_ptr<ForwardModel> forward_;
  at::Tensor y_;
};

}  // namespace scoreprior
