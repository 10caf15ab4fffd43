#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace scoreprior {

struct AdamOptions {
  double lr = 2e-4;
  int64_t warmup = 1000;
  std::string schedule = "constant";
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double clip = 1.0;
  double ema_rate = 0.9999;
  bool ema_warmup = true;
  template <class F>
  void fields(F&& f) {
    f("lr", lr, "learning rate after the warm-up");
    f("warmup", warmup, "steps of linear warm-up from 0");
    f("schedule", schedule, "constant | cosine (to 0 at the last step)");
    f("beta1", beta1, "Adam: decay of the mean gradient");
    f("beta2", beta2, "Adam: decay of the mean squared gradient");
    f("epsilon", epsilon, "Adam: added to the root mean square");
    f("clip", clip, "largest L2 norm of the whole gradient; 0 = no clipping");
    f("ema_rate", ema_rate, "decay of the moving average of the weights");
    f("ema_warmup", ema_warmup,
      "average over a growing window at first: decay min(ema_rate, (1+n)/(10+n))");
  }
};

/// Learning rate of step `step` (counted from 0, so the first is 0 with a warm-up) of `total`.
double learning_rate(const AdamOptions& options, int64_t step, int64_t total);

/// Adam [Kingma15] with clipping by the global norm, g min(1, clip/(|g| + clip_offset)), and a
/// moving average of the weights, as one pass over one flat buffer: every parameter (and its
/// gradient) becomes a view of it.
///
/// The average is a true one, a <- r a + (1-r) p, starting at the initial weights. (The reference's
/// `params_ema` is r p_old + (1-r) p_new, which averages two steps only; its checkpoints hold
/// that.) Results do not depend on the number of threads.
class FlatAdam {
 public:
  /// `parameters` stay alive and are changed in place. Throws std::invalid_argument unless they
  /// share type and device.
  explicit FlatAdam(const std::map<std::string, at::Tensor>& parameters);

  void zero_grad();
  struct Outcome {
    double grad_norm = 0;
    bool applied = false;  ///< false: the gradient was not finite and nothing changed
  };
  /// One update from the gradients that backward() left in the parameters.
  Outcome step(const AdamOptions& options, double lr, double clip_offset = 0);

  /// Exchanges the weights and their moving average, bit by bit; twice is the identity.
  void swap_average();
  /// The moving average by parameter name (copies).
  std::map<std::string, at::Tensor> average() const;

  int64_t updates() const { return updates_; }
  int64_t size() const { return count_; }  ///< number of parameters

  /// Everything a resumed training needs: "weights", "adam_mean", "adam_square", "average" (flat),
  /// "updates".
  std::map<std::string, at::Tensor> state() const;
  /// Throws DataError naming `file` when the state is of another network.
  void load_state(const std::map<std::string, at::Tensor>& state, const std::string& file);

 private:
  struct Slot {
    std::string name;
    at::Tensor parameter, gradient;
    int64_t offset;
  };
  double gradient_norm() const;

  std::vector<Slot> slots_;
  at::Tensor weights_, gradient_, mean_, square_, average_;
  int64_t updates_ = 0, count_ = 0;
};

}  // namespace scoreprior
