#include "scoreprior/forward/linear_function.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace scoreprior {
namespace {

class LinearProduct : public torch::autograd::Function<LinearProduct> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const LinearMap* map, bool transposed) {
    context->saved_data["map"] = reinterpret_cast<int64_t>(map);
    context->saved_data["transposed"] = transposed;
    return transposed ? map->transposed_product(x) : map->product(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list upstream) {
    const auto* map = reinterpret_cast<const LinearMap*>(context->saved_data["map"].toInt());
    const bool transposed = context->saved_data["transposed"].toBool();
    return {apply_linear(*map, upstream[0], !transposed), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor apply_linear(const LinearMap& map, const at::Tensor& x, bool transposed) {
  if (at::GradMode::is_enabled() && x.requires_grad())
    return LinearProduct::apply(x, &map, transposed);
  return transposed ? map.transposed_product(x) : map.product(x);
}

}  // namespace scoreprior
