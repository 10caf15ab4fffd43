#include "scoreprior/nets/score_net.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

std::string shape_text(const at::Tensor& t) { return to_string(Shape(t.sizes().vec())); }

}  // namespace

void ScoreNet::load(const std::map<std::string, at::Tensor>& weights, const std::string& file) {
  std::map<std::string, at::Tensor> own = parameters();
  for (auto& b : buffers()) own.insert(b);
  for (const auto& [name, target] : own) {
    const auto found = weights.find(name);
    if (found == weights.end()) throw DataError(file + ": tensor \"" + name + "\" is missing");
    if (found->second.sizes() != target.sizes())
      throw DataError(file + ": tensor \"" + name + "\" is " + shape_text(found->second) +
                      ", the network has " + shape_text(target));
  }
  for (const auto& [name, value] : weights)
    if (value.is_floating_point() && !at::isfinite(value).all().item<bool>())
      throw DataError(file + ": tensor \"" + name + "\" has values that are not finite");
  for (const auto& [name, value] : weights)
    if (!own.count(name))
      throw DataError(file + ": tensor \"" + name + "\" " + shape_text(value) +
                      " does not belong to this network");
  at::NoGradGuard no_grad;
  for (auto& [name, target] : own) target.copy_(weights.at(name));
  parameters_changed();
}

}  // namespace scoreprior
