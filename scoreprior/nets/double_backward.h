#pragma once

namespace scoreprior {

/// While one lives on this thread, networks build their graph from operations that autograd can
/// differentiate twice (divergences, Jacobians of scores with create_graph). Outside it, float32
/// CPU networks use fused layers with hand-written first derivatives, whose backward pass refuses
/// create_graph with std::invalid_argument. float64 networks are always twice differentiable. Open
/// it around forward().
class DoubleBackwardScope {
 public:
  DoubleBackwardScope();
  ~DoubleBackwardScope();
  DoubleBackwardScope(const DoubleBackwardScope&) = delete;
  DoubleBackwardScope& operator=(const DoubleBackwardScope&) = delete;

  static bool active();
};

}  // namespace scoreprior
