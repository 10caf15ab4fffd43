#include "scoreprior/stats/energy_distance.h"

#include <ATen/ATen.h>

#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior::stats {
namespace {

at::Tensor pooled_distances(const at::Tensor& x, const at::Tensor& y) {
  SP_CHECK(x.dim() >= 1 && y.dim() == x.dim() && x.sizes().slice(1) == y.sizes().slice(1) &&
               x.size(0) >= 2 && y.size(0) >= 2,
           "energy_distance", "expected two samples [N, event...] of at least two draws, got ",
           x.sizes(), " and ", y.sizes());
  const at::Tensor all =
      at::cat({x.reshape({x.size(0), -1}), y.reshape({y.size(0), -1})}).to(at::kDouble);
  // Differences rather than the |a|^2 + |b|^2 - 2ab identity, which cancels for near points.
  return at::cdist(all, all, 2, /*compute_mode: never matmul*/ 2);
}

// From row sums within the first group: s_xx, s_xy, s_yy of the labelling.
double energy_of_sums(double xx, double xy, double yy, double n, double m, bool unbiased) {
  return 2 * xy / (n * m) - xx / (n * (unbiased ? n - 1 : n)) - yy / (m * (unbiased ? m - 1 : m));
}

}  // namespace

double energy_distance(const at::Tensor& x, const at::Tensor& y, bool unbiased) {
  const at::Tensor d = pooled_distances(x, y);
  const int64_t n = x.size(0);
  return energy_of_sums(d.slice(0, 0, n).slice(1, 0, n).sum().item<double>(),
                        d.slice(0, 0, n).slice(1, n).sum().item<double>(),
                        d.slice(0, n).slice(1, n).sum().item<double>(), static_cast<double>(n),
                        static_cast<double>(y.size(0)), unbiased);
}

double energy_test_p_value(const at::Tensor& x, const at::Tensor& y, const Rng& rng,
                           int64_t permutations) {
  const at::Tensor d = pooled_distances(x, y);
  const int64_t n = x.size(0), m = y.size(0);
  const double total = d.sum().item<double>();
  const auto distance = [&](const at::Tensor& first) {  // indicator of group one, [N+M]
    const at::Tensor towards = at::mv(d, first);
    const double xx = at::dot(first, towards).item<double>(), x_all = towards.sum().item<double>();
    const double xy = x_all - xx;
    return energy_of_sums(xx, xy, total - xx - 2 * xy, static_cast<double>(n),
                          static_cast<double>(m), true);
  };
  at::Tensor label = at::zeros({n + m}, at::kDouble);
  label.slice(0, 0, n).fill_(1);
  const double observed = distance(label);
  int64_t beyond = 0;
  for (int64_t k = 0; k < permutations; ++k) {
    const std::vector<int64_t> order = rng.at(k).permutation(n + m);
    beyond += distance(label.index_select(0, at::tensor(order, at::kLong))) >= observed;
  }
  return static_cast<double>(1 + beyond) / static_cast<double>(1 + permutations);
}

}  // namespace scoreprior::stats
