#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/pipeline/eval.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {

io::Arrays eval_prior(const EvalRequest& r) {
  const at::Tensor x = r.input("x");
  if (x.dim() < 2)
    throw DataError("eval prior: expected x [B,C,H,W], got " + to_string(x.sizes().vec()));
  PriorContext context;
  context.image_shape = Shape(x.sizes().begin() + 1, x.sizes().end());
  context.dtype = r.dtype;
  context.device = r.device;
  context.read_array = io::read_npy;
  const auto prior = priors().make(r.config.table("prior"), "score_elbo", context);
  const Rng rng = Rng(static_cast<uint64_t>(r.config.get<int64_t>("seed", 0))).split("eval.prior");
  io::Arrays out;
  if (r.wants("grad")) {
    std::tie(out["logp"], out["grad"]) = prior->value_and_score(x, rng);
  } else {
    at::NoGradGuard off;
    out["logp"] = prior->log_prob(x, rng);
  }
  return out;
}

}  // namespace scoreprior
