#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "scoreprior/diffusion/score_model.h"

namespace scoreprior {

/// Masks [colours,event...] that share the pixels out evenly: pixel (c,y,x) has the colour (x + a y
/// + d c) mod colours, a and d chosen so that pixels of one colour are far apart. +-1 probes on one
/// colour each sum to an unbiased trace whose variance is that of the Jacobian's entries between
/// pixels of one colour alone [Tang12]: small where these fall off with distance.
at::Tensor colour_masks(const Shape& event, int64_t colours);

/// Network rows that went through a forward pass, a vector-Jacobian product, and the derivative of
/// such a product.
struct NetworkWork {
  int64_t forwards = 0, vjps = 0, second_order = 0;
};

/// Score and weighted trace of its Jacobian J = ds/dx with fixed probes,
///
///   trace(x,t) = sum_i weight_i e_i . J e_i,
///
/// from one network forward and one vector-Jacobian product per probe. All D unit vectors with
/// weight 1 give the exact trace; n random probes with unit second moments and weight 1/n
/// Hutchinson's unbiased estimate [Hutchinson89].
class ScoreDivergence {
 public:
  /// probes [n,B,event...] or [n,1,event...], weights[n]. max_rows: most network rows (images
  /// times probes) in a call.
  ScoreDivergence(const ScoreModel& model, at::Tensor probes, std::vector<double> weights,
                  int64_t max_rows);
  int64_t probes() const { return probes_.size(0); }

  struct Value {
    at::Tensor score;  ///< like x
    at::Tensor trace;  ///< [A]
    at::Tensor forms;  ///< [A,n], e_i . J e_i
  };
  /// x [A,event...], t [A], rows [A] of the probes' B. graph: differentiable in x.
  Value value(const at::Tensor& x, const at::Tensor& t, const at::Tensor& rows, bool graph) const;
  /// grad_x sum_b [ a_b . s_b + b_b trace_b ] with a [A,event...], b [A]; `score` (optional)
  /// receives s. One forward per max_rows / A probes; b undefined: no trace.
  at::Tensor pullback(const at::Tensor& x, const at::Tensor& t, const at::Tensor& rows,
                      const at::Tensor& a, const at::Tensor& b, at::Tensor* score) const;

  const NetworkWork& work() const { return work_; }

 private:
  // Probes per network row: a few images are repeated to fill a call.
  int64_t repeats(int64_t images, int64_t probes) const;
  at::Tensor some_probes(int64_t first, int64_t count, int64_t padded,
                         const at::Tensor& rows) const;

  const ScoreModel& model_;
  at::Tensor probes_;
  std::vector<double> weights_;
  int64_t max_rows_;
  mutable NetworkWork work_;
};

}  // namespace scoreprior
