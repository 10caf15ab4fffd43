#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/pipeline/eval.h"
#include "scoreprior/sde/sde.h"

namespace scoreprior {

io::Arrays eval_sde(const EvalRequest& r) {
  at::NoGradGuard no_grad;
  const Config config = r.config.table("sde");
  const auto sde = make_sde(config);
  const double t0 = config.get<double>("t0", 1e-3, "smallest importance-sampled time");
  if (!(t0 > 0 && t0 < 1)) config.fail("t0", "expected a time in (0,1)");
  io::Arrays out;
  if (r.wants("mean_coeff")) out["mean_coeff"] = sde->mean_coeff(r.input("t"));
  if (r.wants("std")) out["std"] = sde->std(r.input("t"));
  if (r.wants("diffusion")) out["diffusion"] = sde->diffusion(r.input("t"));
  if (r.wants("drift")) out["drift"] = sde->drift(r.input("x"), r.input("t"));
  if (r.wants("rev_drift"))
    out["rev_drift"] = sde->reverse_drift(r.input("x"), r.input("t"), r.input("score"));
  if (r.wants("pf_drift"))
    out["pf_drift"] = sde->probability_flow_drift(r.input("x"), r.input("t"), r.input("score"));
  if (r.wants("prior_logp")) out["prior_logp"] = sde->prior_log_prob(r.input("z"));
  if ((r.wants("iw_time") || r.wants("iw_Z")) && !sde->has_importance())
    config.fail("type", "importance-sampled times exist for vp and subvp only");
  if (r.wants("iw_time")) out["iw_time"] = sde->importance_time(r.input("u"), t0);
  if (r.wants("iw_Z")) out["iw_Z"] = at::full({}, sde->importance_norm(t0), at::kDouble);
  return out;
}

}  // namespace scoreprior
