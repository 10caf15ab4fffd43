#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/array_file.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {

/// x [B,C,H,W] with one measurement y [M] for all or y [B,M] -> loglik, grad, residuals.
io::Arrays eval_likelihood(const EvalRequest& request) {
  const at::Tensor x = request.input("x");
  if (x.dim() != 4) throw DataError("x must be [B,C,H,W]");
  const at::Tensor y = request.input("y");
  if (y.dim() == 0 || (y.dim() > 1 && y.size(0) != 1 && y.size(0) != x.size(0)))
    throw DataError("y must be [M] or [B,M] with the batch of x");
  const bool shared = y.dim() == 1 || y.size(0) == 1;
  const LikelihoodContext context{{x.size(1), x.size(2), x.size(3)},
                                  request.dtype,
                                  request.device,
                                  request.config.table("forward"),
                                  read_array_file};
  std::vector<at::Tensor> value, gradient, residuals;
  const int64_t groups = shared ? 1 : x.size(0);
  for (int64_t g = 0; g < groups; ++g) {
    Observation data;
    data.y = y.dim() == 1 ? y : y[g];
    if (request.has("sigma")) data.sigma = request.input("sigma");
    const auto likelihood =
        likelihoods().make(request.config.table("likelihood"), "gaussian", data, context);
    const at::Tensor images = shared ? x : x.narrow(0, g, 1);
    auto result = likelihood->value_and_score(images, Rng(0));
    value.push_back(result.first);
    gradient.push_back(result.second);
    residuals.push_back(likelihood->residuals(images));
  }
  return {
      {"loglik", at::cat(value)}, {"grad", at::cat(gradient)}, {"residuals", at::cat(residuals)}};
}

}  // namespace scoreprior
