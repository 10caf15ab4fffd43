// A forward model of one's own: y = the mean of every row, times a gain; [H,C] with C fastest.
#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"

class RowMeans final : public scoreprior::ForwardModel {
 public:
  RowMeans(scoreprior::Shape shape, double gain) : shape_(std::move(shape)), gain_(gain) {}
  scoreprior::Shape input_shape() const override { return shape_; }
  scoreprior::Shape output_shape() const override { return {shape_[1] * shape_[0]}; }
  bool linear() const override { return true; }
  at::Tensor apply(const at::Tensor& x) const override {
    scoreprior::check_batched("row_means", "x", x, shape_);
    return x.mean(3).transpose(1, 2).flatten(1) * gain_;
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    const at::Tensor rows = y.view({-1, shape_[1], shape_[0]}).transpose(1, 2).unsqueeze(3);
    return rows.repeat({1, 1, 1, shape_[2]}) * (gain_ / static_cast<double>(shape_[2]));
  }

 private:
  scoreprior::Shape shape_;
  double gain_;
};

inline std::unique_ptr<scoreprior::ForwardModel> make_row_means(
    const scoreprior::Config& config, const scoreprior::ForwardContext& context) {
  const auto gain = config.get<double>("gain", 1.0, "data units per image unit");
  if (!(gain > 0)) config.fail("gain", "gain must be positive");
  return std::make_unique<RowMeans>(scoreprior::image_shape(config, context), gain);
}
