#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {

/// One call of `scoreprior eval`: a component evaluated on named arrays, the contract other
/// programs rely on.
struct EvalRequest {
  Config config;              ///< the whole configuration file
  io::Arrays in;              ///< inputs by name, as read
  std::set<std::string> out;  ///< wanted outputs
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  /// What the caller should know of a result that is there all the same.
  std::function<void(const std::string&)> note = [](const std::string&) {};

  /// Input `name` cast to dtype (real) on device. Throws UsageError when it was not given.
  at::Tensor input(const std::string& name) const;
  bool has(const std::string& name) const { return in.count(name) > 0; }
  bool wants(const std::string& name) const { return out.count(name) > 0; }
};

struct EvalComponent {
  std::string name, help;
  io::Arrays (*evaluate)(const EvalRequest&);
};
const std::vector<EvalComponent>& eval_components();

/// Runs the component and checks that every wanted output came back. Throws UsageError for unknown
/// names.
io::Arrays evaluate(const std::string& component, const EvalRequest& request);

}  // namespace scoreprior
