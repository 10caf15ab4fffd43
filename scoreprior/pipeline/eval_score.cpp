#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/diffusion/score_model.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {

io::Arrays eval_score(const EvalRequest& r) {
  const auto model = make_score_model(r.config.table("score"), r.dtype, r.device);
  const at::Tensor x = r.input("x"), t = r.input("t");
  if (x.dim() < 2 || t.dim() != 1 || t.size(0) != x.size(0))
    throw DataError("eval score: expected x [B,C,H,W] and t [B], got " +
                    to_string(x.sizes().vec()) + " and " + to_string(t.sizes().vec()));
  io::Arrays out;
  if (const auto* network = dynamic_cast<const NetworkScore*>(model.get())) {
    check_model_images("the network", network->event_shape(), "",
                       Shape(x.sizes().begin() + 1, x.sizes().end()), "");
    at::NoGradGuard no_grad;
    if (r.wants("net_out")) out["net_out"] = network->net_output(x, t);
  }
  if (r.wants("grad")) {
    at::AutoGradMode on(true);
    const at::Tensor leaf = x.detach().requires_grad_(true);
    const at::Tensor score = model->score(leaf, t);
    out["score"] = score.detach();
    out["grad"] = torch::autograd::grad({(score * r.input("v")).sum()}, {leaf})[0];
  } else if (r.wants("score")) {
    at::NoGradGuard no_grad;
    out["score"] = model->score(x, t);
  }
  return out;
}

}  // namespace scoreprior
