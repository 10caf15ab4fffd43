#include "scoreprior/stats/draw_summary.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"

namespace scoreprior::stats {
namespace {

void check_draws_and_truth(const char* where, const at::Tensor& draws, const at::Tensor& truth) {
  SP_CHECK(draws.dim() >= 1 && draws.size(0) >= 1 && truth.sizes() == draws.sizes().slice(1), where,
           "expected draws [N, event...] and truth [event...], got ", draws.sizes(), " and ",
           truth.sizes());
}

at::Tensor sorted_quantile(const at::Tensor& sorted, double probability) {
  const int64_t n = sorted.size(0);
  const double place = std::min(std::max((static_cast<double>(n) + 1) * probability - 1, 0.0),
                                static_cast<double>(n - 1));
  const int64_t below = static_cast<int64_t>(std::floor(place + 1e-9));
  const double part = std::max(0.0, place - static_cast<double>(below));
  if (part < 1e-9 || below + 1 >= n) return sorted[below];
  return sorted[below] * (1 - part) + sorted[below + 1] * part;
}

}  // namespace

at::Tensor draw_quantiles(const at::Tensor& draws, const std::vector<double>& probabilities) {
  SP_CHECK(draws.dim() >= 1 && draws.size(0) >= 1, "draw_quantiles",
           "expected draws [N, event...], got ", draws.sizes());
  const at::Tensor sorted = std::get<0>(draws.to(at::kDouble).sort(0));
  std::vector<at::Tensor> rows;
  for (const double p : probabilities) {
    SP_CHECK(p >= 0 && p <= 1, "draw_quantiles", "expected probabilities in [0,1], got ", p);
    rows.push_back(sorted_quantile(sorted, p));
  }
  return at::stack(rows);
}

PixelSummary summarize_pixels(const at::Tensor& draws, const std::vector<double>& probabilities) {
  const at::Tensor x = draws.to(at::kDouble);
  PixelSummary summary;
  summary.mean = x.mean(at::IntArrayRef({0}));
  summary.std =
      x.size(0) > 1 ? x.std(at::IntArrayRef({0}), /*unbiased=*/true) : at::zeros_like(summary.mean);
  summary.quantiles = draw_quantiles(x, probabilities);
  return summary;
}

at::Tensor bright_mask(const at::Tensor& mean, double fraction) {
  return mean > fraction * mean.max();
}

std::vector<double> coverage(const at::Tensor& draws, const at::Tensor& truth,
                             const std::vector<double>& levels, const at::Tensor& mask) {
  check_draws_and_truth("coverage", draws, truth);
  SP_CHECK(!mask.defined() || mask.sizes() == truth.sizes(), "coverage",
           "expected a mask of the truth's shape");
  const at::Tensor sorted = std::get<0>(draws.to(at::kDouble).sort(0));
  const at::Tensor y = truth.to(at::kDouble);
  std::vector<double> covered;
  for (const double level : levels) {
    SP_CHECK(level > 0 && level < 1, "coverage", "expected levels in (0,1), got ", level);
    const at::Tensor inside = at::logical_and(y >= sorted_quantile(sorted, 0.5 * (1 - level)),
                                              y <= sorted_quantile(sorted, 0.5 * (1 + level)));
    const at::Tensor chosen = mask.defined() ? inside.masked_select(mask) : inside;
    covered.push_back(chosen.numel() ? chosen.to(at::kDouble).mean().item<double>()
                                     : std::numeric_limits<double>::quiet_NaN());
  }
  return covered;
}

at::Tensor ranks(const at::Tensor& draws, const at::Tensor& truth) {
  check_draws_and_truth("ranks", draws, truth);
  const at::Tensor y = truth.unsqueeze(0);
  return (draws < y).sum(0) + at::floor_divide((draws == y).sum(0), 2);
}

UniformityTest rank_uniformity(const at::Tensor& values, int64_t draws, int64_t bins) {
  const at::Tensor v = values.flatten().to(at::kLong).contiguous();
  SP_CHECK(v.numel() > 0 && bins >= 2 && bins <= draws + 1, "rank_uniformity",
           "expected ranks and between 2 and draws + 1 bins");
  const int64_t* rank = v.data_ptr<int64_t>();
  std::vector<double> count(bins, 0), width(bins, 0);
  const auto bin_of = [&](int64_t r) { return r * bins / (draws + 1); };
  for (int64_t r = 0; r <= draws; ++r)
    width[bin_of(r)] += 1;  // bins differ by one rank when bins !| draws + 1
  for (int64_t i = 0; i < v.numel(); ++i) {
    SP_CHECK(rank[i] >= 0 && rank[i] <= draws, "rank_uniformity", "expected ranks in 0..", draws,
             ", got ", rank[i]);
    count[bin_of(rank[i])] += 1;
  }
  UniformityTest test;
  for (int64_t b = 0; b < bins; ++b) {
    const double expected =
        static_cast<double>(v.numel()) * width[b] / static_cast<double>(draws + 1);
    test.statistic += (count[b] - expected) * (count[b] - expected) / expected;
  }
  test.p_value = at::igammac(at::full({}, 0.5 * static_cast<double>(bins - 1), at::kDouble),
                             at::full({}, 0.5 * test.statistic, at::kDouble))
                     .item<double>();
  return test;
}

at::Tensor tarp_fractions(const at::Tensor& draws, const at::Tensor& truths,
                          const at::Tensor& references) {
  SP_CHECK(draws.dim() == 3 && truths.dim() == 2 && references.sizes() == truths.sizes() &&
               truths.size(0) == draws.size(0) && truths.size(1) == draws.size(2),
           "tarp_fractions", "expected draws [T,N,D], truths and references [T,D], got ",
           draws.sizes(), ", ", truths.sizes(), ", ", references.sizes());
  const at::Tensor own = (truths - references).square().sum(1, true);
  const at::Tensor others = (draws - references.unsqueeze(1)).square().sum(2);
  return (others < own).to(at::kDouble).mean(1);
}

UniformityTest ks_uniform(const at::Tensor& values) {
  const at::Tensor sorted = std::get<0>(values.flatten().to(at::kDouble).sort()).contiguous();
  const int64_t n = sorted.numel();
  SP_CHECK(n > 0, "ks_uniform", "expected at least one value");
  const double* v = sorted.data_ptr<double>();
  UniformityTest test;
  for (int64_t i = 0; i < n; ++i)
    test.statistic =
        std::max({test.statistic, static_cast<double>(i + 1) / static_cast<double>(n) - v[i],
                  v[i] - static_cast<double>(i) / static_cast<double>(n)});
  const double root = std::sqrt(static_cast<double>(n));
  const double x = (root + 0.12 + 0.11 / root) * test.statistic;  // Stephens' finite-n argument
  double p = 0;
  for (int k = 1; k <= 100; ++k) p += (k % 2 ? 2 : -2) * std::exp(-2 * k * k * x * x);
  test.p_value = x < 0.3 ? 1 : std::min(std::max(p, 0.0), 1.0);
  return test;
}

}  // namespace scoreprior::stats
