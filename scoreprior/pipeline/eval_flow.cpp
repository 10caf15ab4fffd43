#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/flows/realnvp.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {
namespace {

std::vector<std::vector<int64_t>> read_flow_orders(const Config& flow, int64_t n_flow,
                                                   int64_t dim) {
  const auto path = flow.maybe<std::filesystem::path>("orders");
  if (!path) return {};
  const at::Tensor all = io::read_npy(*path).to(at::kLong).contiguous();
  if (all.dim() != 2 || all.size(0) != n_flow || all.size(1) != dim)
    throw DataError(path->string() + ": expected [" + std::to_string(n_flow) + "," +
                    std::to_string(dim) + "] permutations");
  const at::Tensor sorted = std::get<0>(all.sort(1));
  if (!at::equal(sorted, at::arange(dim, at::kLong).expand_as(sorted)))
    throw DataError(path->string() + ": every row must be a permutation of 0.." +
                    std::to_string(dim - 1));
  std::vector<std::vector<int64_t>> orders;
  for (int64_t k = 0; k < n_flow; ++k)
    orders.emplace_back(all.data_ptr<int64_t>() + k * dim, all.data_ptr<int64_t>() + (k + 1) * dim);
  return orders;
}

// RealNVP as the reference computes it unless the table says otherwise: no bound on the normalised
// activations.
std::unique_ptr<Flow> eval_flow_model(const Config& flow, const EvalRequest& request) {
  if (flow.get<std::string>("name", "realnvp") != "realnvp")
    return flows().make(flow, "realnvp", FlowContext{0, request.dtype, request.device});
  RealNvpOptions options;
  options.norm_clip = 0;
  options = flow.read<RealNvpOptions>(options);
  if (options.dim < 2) flow.fail("dim", "dim must be at least 2");
  if (options.n_flow < 1) flow.fail("n_flow", "n_flow must be at least 1");
  if (!(options.seqfrac > 0)) flow.fail("seqfrac", "seqfrac must be positive");
  return std::make_unique<RealNvp>(options, request.dtype,
                                   read_flow_orders(flow, options.n_flow, options.dim));
}

}  // namespace

io::Arrays eval_flow(const EvalRequest& request) {
  const Config table = request.config.table("flow");
  const std::unique_ptr<Flow> flow = eval_flow_model(table, request);
  const bool train = table.one_of("mode", "eval", {"eval", "train"}) == "train";
  if (const auto path = table.maybe<std::filesystem::path>("weights"))
    flow->load(io::read_safetensors(*path).tensors, path->string());
  io::Arrays out;
  if (request.has("z")) {
    const at::Tensor z = request.input("z");
    const Flow::Sample s = flow->sample(z, train);
    out["x"] = s.x;
    out["logdet"] = s.log_det;
    out["log_q"] = base_log_prob(z.to(s.x.device())) - s.log_det;
  }
  if (request.has("x")) {
    if (train)
      table.fail("mode", "the way from x to z uses the running statistics: mode = \"eval\"");
    const Flow::Sample s = flow->inverse(request.input("x"));
    out["z"] = s.x;
    out["logdet_forward"] = s.log_det;
  }
  if (out.empty()) throw UsageError("eval flow needs --in z=FILE.npy or --in x=FILE.npy");
  return out;
}

}  // namespace scoreprior
