#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace scoreprior {

struct BufferAdamOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip = 0;  ///< bound on the gradient's Euclidean norm; 0 = none
  double ema = 0;   ///< decay of the running average of the parameters; 0 = none

  template <class F>
  void fields(F&& f) {
    f("adam_beta1", beta1, "decay of Adam's first moment");
    f("adam_beta2", beta2, "decay of Adam's second moment");
    f("adam_eps", eps, "added to Adam's denominator");
    f("grad_clip", clip, "bound on the norm of the whole gradient; 0 = none");
    f("ema", ema,
      "decay of the running average of the parameters, used for the draws; 0 = last parameters");
  }
};

/// Adam on one flat buffer, clipping and averaging included, in one sweep over memory:
///   g <- g c / max(|g| + 1e-6, c),  m, v as usual, bias-corrected,  p -= lr m / (sqrt(v) + eps).
/// CPU, contiguous float32 or float64. Sums run in fixed pieces: the result does not depend on the
/// thread count.
class BufferAdam {
 public:
  BufferAdam(const at::Tensor& parameters, const BufferAdamOptions& options);

  /// One update; returns the norm of the gradient before clipping. With a norm that is not finite
  /// nothing changes.
  double step(at::Tensor& parameters, const at::Tensor& gradient, double learning_rate);

  /// The averaged parameters (bias-corrected); the parameters themselves when there is no average
  /// yet.
  at::Tensor averaged(const at::Tensor& parameters) const;
  /// Forget what was averaged so far.
  void restart_average();

  int64_t steps() const { return steps_; }
  /// The state: [m, v, average] and {steps, averaged steps}; both may be written back.
  at::Tensor& first() { return m_; }
  at::Tensor& second() { return v_; }
  at::Tensor& average() { return average_; }
  int64_t averaged_steps() const { return averaged_steps_; }
  void set_steps(int64_t steps, int64_t averaged_steps) {
    steps_ = steps;
    averaged_steps_ = averaged_steps;
  }

 private:
  BufferAdamOptions options_;
  int64_t steps_ = 0, averaged_steps_ = 0;
  at::Tensor m_, v_, average_;
};

}  // namespace scoreprior
