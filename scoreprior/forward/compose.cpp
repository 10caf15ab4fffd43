/// compose: one model after another.
///   y = second(first(x)), from the tables [forward.first] and [forward.second]
///   `first` must give an image (identity, blur, super_resolution, compose); linear if both are
///   noise and naive inverse are those of `second`, carried back through `first` where it can be

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

class Composition final : public ForwardModel {
 public:
  Composition(std::unique_ptr<ForwardModel> first, std::unique_ptr<ForwardModel> second)
      : first_(std::move(first)), second_(std::move(second)), middle_(first_->output_image()) {}
  Shape input_shape() const override { return first_->input_shape(); }
  Shape output_shape() const override { return second_->output_shape(); }
  Shape output_image() const override { return second_->output_image(); }
  int64_t output_channels() const override { return second_->output_channels(); }
  bool linear() const override { return first_->linear() && second_->linear(); }
  double noise_scale() const override { return second_->noise_scale(); }

  at::Tensor apply(const at::Tensor& x) const override {
    return second_->apply(from_measurement(first_->apply(x), middle_));
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    if (!linear()) return std::nullopt;
    return first_->adjoint(to_measurement(*second_->adjoint(y)));
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    const auto middle = second_->naive_inverse(y);
    return middle ? first_->naive_inverse(to_measurement(*middle)) : std::nullopt;
  }

 private:
  std::unique_ptr<ForwardModel> first_, second_;
  Shape middle_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_compose(const Config& config, const ForwardContext& context) {
  for (const char* key : {"first", "second"})
    if (!config.is_table(key))
      config.fail(key, std::string("compose needs the tables first and second; there is no ") +
                           config.full_name(key));
  ForwardContext inner = context;
  if (inner.image_shape.empty() && (config.has("image_size") || config.has("channels")))
    inner.image_shape = image_shape(config, context);
  auto first = forward_models().make(config.table("first"), "identity", inner);
  inner.image_shape = first->output_image();
  if (inner.image_shape.empty())
    config.table("first").fail("name",
                               "the first model does not give an image that a second could "
                               "look at; exchange the two");
  auto second = forward_models().make(config.table("second"), "identity", inner);
  return std::make_unique<Composition>(std::move(first), std::move(second));
}

}  // namespace scoreprior
