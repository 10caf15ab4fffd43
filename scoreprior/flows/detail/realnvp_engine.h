#pragma once
/// The arithmetic of RealNVP, free of tensors: raw buffers in, raw buffers out. One implementation
/// per instruction set (realnvp_engine.inc), picked when the program runs.
#include <cstdint>
#include <memory>
#include <vector>

namespace scoreprior::detail {

/// Where a coupling (and the actnorm that follows it on the way to the image) keeps its numbers.
struct CouplingSlots {
  int64_t loc, log_scale_inv;
  int64_t dense_weight[2], dense_bias[2], bn_weight[2], bn_bias[2];
  int64_t fc_weight, fc_bias, fc_scale;
  int64_t running_mean[2], running_var[2];  ///< in the statistics buffer
};

struct RealNvpPlan {
  int64_t dim = 0, kept = 0, changed = 0, hidden = 0;  ///< dim = kept + changed
  bool batch_norm = true, softplus = false;
  double bn_eps = 1e-2;
  double norm_clip = 0;                  ///< bound on normalised activations; 0 = none
  std::vector<CouplingSlots> couplings;  ///< in sampling order
  /// source[c][j]: row of coupling c-1's output (of z for c = 0) that is row j of coupling c's
  /// input.
  std::vector<std::vector<int32_t>> source;
  int64_t softplus_slot = 0;
};

template <class T>
class RealNvpEngine {
 public:
  virtual ~RealNvpEngine() = default;

  struct SampleCall {
    const T* parameters;
    T* statistics;  ///< running statistics, updated when batch_statistics
    const T* z;     ///< [batch, dim]
    int64_t batch;
    bool batch_statistics;
    double momentum;  ///< share of the old running value that survives
    bool keep;        ///< keep what backward() needs
    T* x;             ///< [batch, dim]
    T* log_det;       ///< [batch]
  };
  virtual void sample(const SampleCall& call) = 0;

  /// Gradient of the last kept sample, written over `gradient` (padding between parameters is not
  /// touched).
  virtual void backward(const T* parameters, const T* x_bar, int64_t batch, const T* log_det_bar,
                        T* gradient) = 0;

  virtual void inverse(const T* parameters, const T* statistics, const T* x, int64_t batch, T* z,
                       T* log_det) = 0;
};

/// `threads` is asked for on every call, so that it follows the process-wide setting.
template <class T>
std::unique_ptr<RealNvpEngine<T>> make_realnvp_engine(const RealNvpPlan& plan);

}  // namespace scoreprior::detail
