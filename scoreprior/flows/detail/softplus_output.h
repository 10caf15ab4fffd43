#pragma once
#include <ATen/ATen.h>

#include <cmath>

namespace scoreprior::detail {

/// The last, optional map of a flow to positive pixels: x = softplus(u), log dx/du = log
/// sigmoid(u).
class SoftplusOutput {
 public:
  explicit SoftplusOutput(bool on) : on_(on) {}

  /// u [B,D] and log|du/dz| [B] become x and log|dx/dz|.
  void apply(at::Tensor& u, at::Tensor& log_det) const {
    if (!on_) return;
    log_det = log_det + at::log_sigmoid(u).sum(1);
    u = at::softplus(u, 1, 50);
  }
  /// The gradients of x [B,D] and log|dx/dz| [B] give the gradient of u.
  at::Tensor backward(const at::Tensor& u, const at::Tensor& x_bar,
                      const at::Tensor& log_det_bar) const {
    if (!on_) return x_bar;
    const at::Tensor s = at::sigmoid(u);
    return x_bar * s + log_det_bar.unsqueeze(1) * (1 - s);
  }
  /// x [B,D] becomes u; log|du/dx| is added to log_det [B].
  void invert(at::Tensor& x, at::Tensor& log_det) const {
    if (!on_) return;
    x = x + at::log(-at::expm1(-x));
    log_det = log_det - at::log_sigmoid(x).sum(1);
  }
  /// Mean and standard deviation of u that give those of x, to first order.
  void unmap(double& mean, double& std) const {
    if (!on_ || mean <= 0) return;
    std /= -std::expm1(-mean);  // slope of softplus where it equals mean
    mean += std::log(-std::expm1(-mean));
  }

 private:
  bool on_;
};

}  // namespace scoreprior::detail
