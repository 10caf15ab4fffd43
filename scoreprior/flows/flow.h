#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// An invertible map z -> x of R^D with base density N(0, I): a trainable density q.
/// One flat parameter vector with named views into it, so an optimiser sweeps one buffer.
class Flow {
 public:
  virtual ~Flow() = default;
  virtual int64_t dim() const = 0;

  struct Sample {
    at::Tensor x;        ///< [B,D]
    at::Tensor log_det;  ///< [B] log |dx/dz|
  };
  /// Image from latent. train = true uses batch statistics and keeps what backward() needs.
  virtual Sample sample(const at::Tensor& z, bool train) = 0;
  /// Gradient of sum(x_bar * x) + sum(log_det_bar * log_det) of the last sample(z, true) with
  /// respect to the flat parameters, written over flat_grad(). x_bar [B,D], log_det_bar [B].
  virtual void backward(const at::Tensor& x_bar, const at::Tensor& log_det_bar) = 0;

  /// Latent from image: {z, log |dz/dx|}.
  virtual Sample inverse(const at::Tensor& x) const = 0;

  virtual at::Tensor& flat_parameters() = 0;
  virtual at::Tensor& flat_grad() = 0;
  /// Views into the flat parameters, and running statistics; names of the weight files.
  virtual std::map<std::string, at::Tensor> named_tensors() const = 0;
  virtual void load(const std::map<std::string, at::Tensor>& weights, const std::string& file) = 0;
  virtual void initialize(const Rng& rng) = 0;

  /// Sets the statistics that sample(z, false) and inverse() use to the exact ones of the latents z
  /// [N,D], layer by layer. Nothing to do for flows without such statistics.
  virtual void calibrate(const at::Tensor& z) {}
  /// Frozen: sample(z, true) uses those statistics too and leaves them alone, so that the density
  /// being trained is the density being drawn from, and rows of a batch are independent.
  virtual void freeze(bool on) {}
  /// Everything besides the flat parameters that training changes, as one tensor; undefined if
  /// there is nothing.
  virtual at::Tensor flat_statistics() { return {}; }
};

struct FlowContext {
  int64_t dim = 0;  ///< 0: the table's own `dim`
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  Shape event = {};  ///< [C,H,W] of the image where it is known
};

/// name = realnvp | gaussian_diagonal | gaussian_low_rank | gaussian_markov
const Catalog<Flow, const FlowContext&>& flows();
Catalog<Flow, const FlowContext&>& mutable_flows();

/// log q(x) = log N(z; 0, I) - log_det, [B].
at::Tensor base_log_prob(const at::Tensor& z);

}  // namespace scoreprior
