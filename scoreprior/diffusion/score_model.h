#pragma once
#include <ATen/core/Tensor.h>

#include <atomic>
#include <memory>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/sde/sde.h"

namespace scoreprior {

/// s(x,t) = grad_x log p_t(x) together with the process it belongs to.
class ScoreModel {
 public:
  virtual ~ScoreModel() = default;
  virtual const Sde& sde() const = 0;
  virtual Shape event_shape() const = 0;
  /// [B, event...], differentiable in x, in x's dtype; t [B] may be float64 beside a float32 x.
  virtual at::Tensor score(const at::Tensor& x, const at::Tensor& t) const = 0;
  virtual at::ScalarType dtype() const = 0;
  virtual at::Device device() const = 0;
  /// Pixel range of the images it describes: "unit" [0,1], "centered" [-1,1], or "" when any will
  /// do.
  virtual std::string range() const { return ""; }

  /// Bytes a network row takes at its peak in a forward pass, one with a vector-Jacobian product,
  /// and one with the derivative of the product: written by those who measured them
  /// (diffusion/memory_budget.h), 0 = not known yet.
  struct RowBytes {
    std::atomic<double> forward{0}, product{0}, second_order{0};
  };
  RowBytes& row_bytes() const { return row_bytes_; }

 private:
  mutable RowBytes row_bytes_;
};

/// score = net_to_score(t) net(x, label(t)): a network of one process [Song21].
class NetworkScore final : public ScoreModel {
 public:
  NetworkScore(std::unique_ptr<ScoreNet> net, std::unique_ptr<Sde> sde, at::ScalarType dtype,
               at::Device device, std::string range);
  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return net_->image_shape(); }
  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override;
  at::ScalarType dtype() const override { return dtype_; }
  at::Device device() const override { return device_; }
  std::string range() const override { return range_; }

  ScoreNet& net() { return *net_; }
  const ScoreNet& net() const { return *net_; }
  /// What the network itself returns; `dropout` as in ScoreNet::forward.
  at::Tensor net_output(const at::Tensor& x, const at::Tensor& t,
                        const Rng* dropout = nullptr) const;

 private:
  std::unique_ptr<ScoreNet> net_;
  std::unique_ptr<Sde> sde_;
  at::ScalarType dtype_;
  at::Device device_;
  std::string range_;
};

/// From a table with either `weights` (safetensors; [.net] and [.sde] unless the file's own
/// metadata has them) or an analytic `name` = gaussian (mean, cov | sigma) | mixture (weights,
/// means, covs | sigmas) with [.sde]. Analytic scores are those of the diffused law: mixture of
/// N(alpha m_k, alpha^2 C_k + std^2 I). `mean` is a .npy file or, with `shape`, one number for all
/// pixels; `shape` also reshapes a flat mean. They take x of any shape with that many pixels.
/// `bfloat16 = true` lets a network's convolutions run in that precision.
/// Throws MissingFileError, DataError (weights that do not fit the network, damaged file),
/// ConfigError.
std::unique_ptr<ScoreModel> make_score_model(const Config& config, at::ScalarType dtype,
                                             at::Device device);

}  // namespace scoreprior
