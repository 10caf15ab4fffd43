#include "scoreprior/core/log_density.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

namespace scoreprior {

std::pair<at::Tensor, at::Tensor> LogDensity::value_and_score(const at::Tensor& x,
                                                              const Rng& rng) const {
  at::AutoGradMode on(true);
  at::Tensor leaf = x.detach().requires_grad_(true);
  at::Tensor value = log_prob(leaf, rng);
  at::Tensor score = torch::autograd::grad({value.sum()}, {leaf})[0];
  return {value.detach(), score};
}

std::vector<std::pair<std::string, at::Tensor>> LogDensity::terms(const at::Tensor& x,
                                                                  const Rng& rng) const {
  return {{"log_prob", log_prob(x, rng)}};
}

void add_diagnostics(const std::string& name, const LogDensity& density, Summary& summary) {
  const Summary found = density.diagnostics();
  for (const auto& [key, value] : found.numbers) summary.numbers[name + "." + key] = value;
  for (const auto& warning : found.warnings) summary.warnings.push_back(name + ": " + warning);
}

}  // namespace scoreprior
