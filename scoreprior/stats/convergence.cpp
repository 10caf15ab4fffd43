#include "scoreprior/stats/convergence.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior::stats {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// [event, 2 chains, draws/2] float64; the middle draw of an odd chain is dropped.
at::Tensor split_chains(const at::Tensor& x) {
  SP_CHECK(x.dim() >= 2 && x.size(0) >= 1, "convergence",
           "expected [chains, draws, event...], got ", x.sizes());
  const int64_t chains = x.size(0), draws = x.size(1), half = draws / 2;
  const at::Tensor flat =
      x.to(at::kCPU, at::kDouble).reshape({chains, draws, -1}).permute({2, 0, 1});
  return at::cat({flat.slice(2, 0, half), flat.slice(2, draws - half, draws)}, 1).contiguous();
}

at::Tensor event_shaped(const at::Tensor& x, std::vector<double> values) {
  return at::tensor(values, at::kDouble).view(x.sizes().slice(2));
}

bool all_finite(const double* v, int64_t n) {
  return std::all_of(v, v + n, [](double a) { return std::isfinite(a); });
}

// (Average rank - 3/8) / (n + 1/4), in place.
void rank_normalize(double* v, int64_t n, std::vector<int64_t>& order, std::vector<double>& rank) {
  order.resize(n);
  rank.resize(n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return v[a] < v[b]; });
  for (int64_t i = 0; i < n;) {
    int64_t j = i + 1;
    while (j < n && v[order[j]] == v[order[i]]) ++j;
    for (int64_t k = i; k < j; ++k) rank[order[k]] = 0.5 * static_cast<double>(i + j + 1);
    i = j;
  }
  for (int64_t i = 0; i < n; ++i) v[i] = (rank[i] - 0.375) / (static_cast<double>(n) + 0.25);
}
at::Tensor normal_scores(const at::Tensor& split) {
  at::Tensor z = split.clone();
  std::vector<int64_t> order;
  std::vector<double> rank;
  const int64_t n = z.size(1) * z.size(2);
  for (int64_t e = 0; e < z.size(0); ++e) {
    double* v = z.data_ptr<double>() + e * n;
    // A NaN has no rank; the caller reports the event as NaN.
    if (all_finite(v, n))
      rank_normalize(v, n, order, rank);
    else
      std::fill(v, v + n, 0.5);
  }
  return std::sqrt(2.0) * at::erfinv(2 * z - 1);
}

double median_of(const double* v, int64_t n) {
  std::vector<double> copy(v, v + n);
  if (!all_finite(v, n)) return 0;
  std::nth_element(copy.begin(), copy.begin() + n / 2, copy.end());
  const double upper = copy[n / 2];
  return n % 2 ? upper : 0.5 * (upper + *std::max_element(copy.begin(), copy.begin() + n / 2));
}

bool all_equal(const double* v, int64_t n) {
  return std::all_of(v, v + n, [&](double a) { return a == v[0]; });
}

struct ChainMoments {
  double within = 0, between = 0;  // W and B/n
};
ChainMoments chain_moments(const double* v, int64_t chains, int64_t n) {
  std::vector<double> mean(chains);
  ChainMoments m;
  for (int64_t c = 0; c < chains; ++c) {
    mean[c] = std::accumulate(v + c * n, v + (c + 1) * n, 0.0) / static_cast<double>(n);
    double s = 0;
    for (int64_t i = 0; i < n; ++i) s += (v[c * n + i] - mean[c]) * (v[c * n + i] - mean[c]);
    m.within += s / static_cast<double>(n - 1) / static_cast<double>(chains);
  }
  const double grand = std::accumulate(mean.begin(), mean.end(), 0.0) / static_cast<double>(chains);
  for (const double a : mean)
    m.between += (a - grand) * (a - grand) / static_cast<double>(chains - 1);
  return m;
}

double plain_rhat(const double* v, int64_t chains, int64_t n) {
  if (all_equal(v, chains * n)) return 1;
  const ChainMoments m = chain_moments(v, chains, n);
  const double share = static_cast<double>(n - 1) / static_cast<double>(n);
  return std::sqrt((share * m.within + m.between) / m.within);
}

// Geyer's initial monotone sequence over the autocorrelation pooled across chains, [Vehtari21] eq.
// 10-11.
double plain_ess(const double* v, const double* autocovariance, int64_t chains, int64_t n) {
  const double total = static_cast<double>(chains * n);
  if (all_equal(v, chains * n)) return total;
  const ChainMoments m = chain_moments(v, chains, n);
  const double size = static_cast<double>(n);
  const double variance = m.within * (size - 1) / size + m.between;
  const auto rho = [&](int64_t lag) {
    double mean = 0;
    for (int64_t c = 0; c < chains; ++c)
      mean += autocovariance[c * n + lag] / static_cast<double>(chains);
    return 1 - (m.within - mean) / variance;
  };
  double even = 1, odd = rho(1), pair = even + odd, sum = 0, last = pair;
  int64_t lag = 0;
  double tail = 0;
  while (true) {
    sum += pair;
    last = pair;
    lag += 2;
    if (lag + 1 >= n) break;
    even = rho(lag);
    odd = rho(lag + 1);
    pair = even + odd;
    if (!(pair > 0)) {
      tail = std::max(even, 0.0);
      break;
    }
    pair = std::min(pair, last);
  }
  // The first even autocorrelation past the sequence halves the bias of antithetic chains.
  const double tau = std::max(-1 + 2 * sum + tail, 1 / std::log10(total));
  return total / tau;
}

// Biased autocovariances about each chain's mean, [event, chains, n].
at::Tensor chain_autocovariance(const at::Tensor& split) {
  const int64_t n = split.size(2);
  int64_t padded = 1;
  while (padded < 2 * n) padded *= 2;
  const at::Tensor waves = at::fft_rfft(split - split.mean(2, true), padded, 2);
  const at::Tensor power = at::real(waves).square() + at::imag(waves).square();
  return (at::fft_irfft(power.to(at::kComplexDouble), padded, 2).slice(2, 0, n) /
          static_cast<double>(n))
      .contiguous();
}

std::vector<double> ess_of(const at::Tensor& split, const at::Tensor& original) {
  const int64_t events = split.size(0), chains = split.size(1), n = split.size(2);
  std::vector<double> out(events, kNan);
  if (n < 2) return out;
  constexpr int64_t kBlock = 256;  // events at a time bound the FFT's memory
  for (int64_t start = 0; start < events; start += kBlock) {
    const int64_t stop = std::min(events, start + kBlock);
    const at::Tensor block = split.slice(0, start, stop).contiguous();
    const at::Tensor covariance = chain_autocovariance(block);
    for (int64_t e = start; e < stop; ++e)
      if (all_finite(original.data_ptr<double>() + e * chains * n, chains * n))
        out[e] = plain_ess(block.data_ptr<double>() + (e - start) * chains * n,
                           covariance.data_ptr<double>() + (e - start) * chains * n, chains, n);
  }
  return out;
}

}  // namespace

at::Tensor rhat(const at::Tensor& x) {
  const at::Tensor split = split_chains(x);
  const int64_t events = split.size(0), chains = split.size(1), n = split.size(2), all = chains * n;
  std::vector<double> out(events, kNan);
  if (n < 2) return event_shaped(x, out);
  at::Tensor folded = split.clone();
  for (int64_t e = 0; e < events; ++e) {
    double* v = folded.data_ptr<double>() + e * all;
    const double median = median_of(v, all);
    for (int64_t i = 0; i < all; ++i) v[i] = std::abs(v[i] - median);
  }
  const at::Tensor bulk = normal_scores(split), tail = normal_scores(folded);
  for (int64_t e = 0; e < events; ++e)
    if (all_finite(split.data_ptr<double>() + e * all, all))
      out[e] = std::max(plain_rhat(bulk.data_ptr<double>() + e * all, chains, n),
                        plain_rhat(tail.data_ptr<double>() + e * all, chains, n));
  return event_shaped(x, out);
}

at::Tensor ess_bulk(const at::Tensor& x) {
  const at::Tensor split = split_chains(x);
  return event_shaped(x, ess_of(normal_scores(split), split));
}

at::Tensor ess_mean(const at::Tensor& x) {
  const at::Tensor split = split_chains(x);
  return event_shaped(x, ess_of(split, split));
}

at::Tensor ess_tail(const at::Tensor& x) {
  const at::Tensor split = split_chains(x);
  // The quantile is that of all draws, the middle one of an odd chain included.
  const at::Tensor flat =
      x.to(at::kCPU, at::kDouble).reshape({x.size(0) * x.size(1), -1}).t().contiguous();
  std::vector<at::Tensor> sizes;
  for (const double p : {0.05, 0.95}) {
    const at::Tensor bound = at::quantile(flat, p, 1, true).unsqueeze(2);
    sizes.push_back(event_shaped(x, ess_of((split <= bound).to(at::kDouble).contiguous(), split)));
  }
  return at::minimum(sizes[0], sizes[1]);
}

at::Tensor mcse_mean(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kCPU, at::kDouble).flatten(0, 1);
  return flat.std(at::IntArrayRef({0}), /*unbiased=*/true) / at::sqrt(ess_mean(x));
}

}  // namespace scoreprior::stats
