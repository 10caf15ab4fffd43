#include "scoreprior/pipeline/eval.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"

namespace scoreprior {

#define SP_EVAL(name, help) io::Arrays eval_##name(const EvalRequest&);
#include "scoreprior/pipeline/eval.def"
#undef SP_EVAL

const std::vector<EvalComponent>& eval_components() {
  static const std::vector<EvalComponent> all = {
#define SP_EVAL(name, help) {#name, help, eval_##name},
#include "scoreprior/pipeline/eval.def"
#undef SP_EVAL
  };
  return all;
}

at::Tensor EvalRequest::input(const std::string& name) const {
  const auto it = in.find(name);
  if (it == in.end()) throw UsageError("this evaluation needs --in " + name + "=FILE.npy");
  const at::Tensor& a = it->second;
  if (a.is_complex())
    return a.to(device, dtype == at::kDouble ? at::kComplexDouble : at::kComplexFloat);
  return a.to(device, dtype);
}

io::Arrays evaluate(const std::string& component, const EvalRequest& request) {
  std::vector<std::string> known;
  for (const auto& c : eval_components()) {
    known.push_back(c.name);
    if (c.name != component) continue;
    io::Arrays out;
    try {
      out = c.evaluate(request);
    } catch (const std::invalid_argument& e) {  // the arrays are the user's
      throw DataError("eval " + component + ": " + e.what());
    } catch (const c10::Error& e) {
      const std::string why = e.what_without_backtrace();
      throw DataError("eval " + component +
                      ": the arrays do not fit: " + why.substr(0, why.find('\n')));
    }
    request.config.require_all_used();
    for (const auto& name : request.out)
      if (!out.count(name))
        throw UsageError("eval " + component + " has no output \"" + name + "\"");
    return out;
  }
  const std::string near = did_you_mean(component, known);
  throw UsageError("unknown component \"" + component + "\"" +
                   (near.empty() ? "" : "; did you mean \"" + near + "\"?"));
}

}  // namespace scoreprior
