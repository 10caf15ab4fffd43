#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/pipeline/array_file.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {

/// x -> y; y -> adjoint, inverse; both -> vjp = d <y, A(x)> / dx, the adjoint of the model's
/// derivative at x. Measurements are [B,M].
io::Arrays eval_forward(const EvalRequest& request) {
  const Config table = request.config.table("forward");
  ForwardContext context{request.dtype, request.device, read_array_file};
  if (request.has("x") && !table.has("image_size")) {
    const auto sizes = request.input("x").sizes();
    if (sizes.size() == 4) context.image_shape = {sizes[1], sizes[2], sizes[3]};
  }
  const std::unique_ptr<ForwardModel> model = forward_models().make(table, "identity", context);
  io::Arrays out;
  if (request.has("x")) out["y"] = model->apply(request.input("x")).flatten(1);
  if (request.has("y")) {
    const at::Tensor given = request.input("y");
    const Shape shape = model->output_shape();
    if (given.dim() < 1 || given.numel() != given.size(0) * numel(shape))
      throw DataError("y holds " + to_string(Shape(given.sizes().begin(), given.sizes().end())) +
                      ", the forward model gives [B," + std::to_string(numel(shape)) + "]");
    const at::Tensor y = given.reshape(batched(given.size(0), shape));
    if (auto a = model->adjoint(y)) out["adjoint"] = *a;
    if (auto a = model->naive_inverse(y)) out["inverse"] = *a;
    if (request.has("x") && request.wants("vjp")) {
      at::AutoGradMode enable(true);
      const at::Tensor x = request.input("x").detach().clone().requires_grad_(true);
      const at::Tensor a = model->apply(x);
      if (a.sizes() != y.sizes()) throw DataError("x and y hold different numbers of images");
      out["vjp"] = torch::autograd::grad({(a * y).sum()}, {x})[0];
    }
  }
  if (out.empty()) throw UsageError("this evaluation needs --in x=FILE.npy or --in y=FILE.npy");
  return out;
}

}  // namespace scoreprior
