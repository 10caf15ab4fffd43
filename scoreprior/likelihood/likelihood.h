#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/log_density.h"
#include "scoreprior/core/observation.h"
#include "scoreprior/forward/forward_model.h"

namespace scoreprior {

/// Reduced chi^2 per data product, each [B]: {"chi2_cphase", ...}. Conventions are the product's
/// own and documented there.
using ChiSquares = std::vector<std::pair<std::string, at::Tensor>>;

/// Points of one data product for data-fit plots.
struct DataFit {
  std::string product, x_label, y_label;
  at::Tensor x, data, sigma;  ///< [M]
  at::Tensor model;           ///< [B,M]
};

/// log p(y | x) as a density in x with y fixed.
class Likelihood : public LogDensity {
 public:
  /// [B,M] residuals in units of sigma.
  virtual at::Tensor residuals(const at::Tensor& x) const = 0;
  virtual ChiSquares chi2(const at::Tensor& x) const = 0;
  /// A new observation of the images x [1,C,H,W] with fresh noise.
  virtual Observation simulate(const at::Tensor& x, const Rng& rng) const = 0;
  /// [1,C,H,W] naive picture of the data (zero-filled inverse, dirty image), undefined if there is
  /// none.
  virtual at::Tensor naive_image() const { return {}; }
  virtual std::vector<DataFit> data_fits(const at::Tensor& x) const { return {}; }
};

struct LikelihoodContext {
  Shape image_shape;  ///< {C,H,W} of the unknown image
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  Config forward;               ///< the [forward] table
  ArrayReader read_array = {};  ///< reads the files that [likelihood] and [forward] name
};

const Catalog<Likelihood, const Observation&, const LikelihoodContext&>& likelihoods();
Catalog<Likelihood, const Observation&, const LikelihoodContext&>& mutable_likelihoods();

}  // namespace scoreprior
