#include "scoreprior/likelihood/closures.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

/// A directed baseline of one time stamp.
struct Leg {
  int64_t row = -1;
  int direction = 0;
};

/// The rows of one time stamp by directed site pair.
class ScanBaselines {
 public:
  ScanBaselines(const VisibilityTable& table, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const VisibilityRow& row = table.rows[r];
      sites_.push_back(row.t1);
      sites_.push_back(row.t2);
      if (row.vis == std::complex<double>(0)) continue;
      rows_[{row.t1, row.t2}] = {r, +1};
      rows_[{row.t2, row.t1}] = {r, -1};
    }
    std::sort(sites_.begin(), sites_.end());
    sites_.erase(std::unique(sites_.begin(), sites_.end()), sites_.end());
  }
  const std::vector<int32_t>& sites() const { return sites_; }
  Leg leg(int32_t a, int32_t b) const {
    const auto it = rows_.find({a, b});
    return it == rows_.end() ? Leg{} : it->second;
  }

 private:
  std::vector<int32_t> sites_;
  std::map<std::pair<int32_t, int32_t>, Leg> rows_;
};

template <size_t N>
void add_closure(const VisibilityTable& table, const ScanBaselines& scan, double time,
                 const std::array<int32_t, 4>& site, const std::array<std::pair<int, int>, N>& legs,
                 ClosureKind kind, std::vector<Closure>& out) {
  Closure c;
  c.time = time;
  c.site = site;
  double variance = 0, debiased_variance = 0;
  for (size_t l = 0; l < N; ++l) {
    const Leg leg = scan.leg(site[legs[l].first], site[legs[l].second]);
    if (leg.row < 0) return;
    const VisibilityRow& row = table.rows[leg.row];
    c.row[l] = leg.row;
    c.direction[l] = leg.direction;
    const double amplitude = std::abs(row.vis);
    const double q_raw = row.sigma / amplitude;
    variance += q_raw * q_raw;
    if (kind == ClosureKind::kPhase) {
      c.coefficient[l] = leg.direction;
      c.value += leg.direction * std::arg(row.vis);
      continue;
    }
    c.coefficient[l] = l < 2 ? +1 : -1;
    const double a = amplitude > row.sigma
                         ? std::sqrt(amplitude * amplitude - row.sigma * row.sigma)
                         : row.sigma;
    const double q = row.sigma / a;
    c.value += c.coefficient[l] * std::log(amplitude);
    c.debiased += c.coefficient[l] * (std::log(a) + q * q / 2);
    debiased_variance += q * q;
  }
  if (kind == ClosureKind::kPhase) c.value = std::remainder(c.value, 2 * M_PI);
  c.sigma = std::sqrt(variance);
  c.debiased_sigma = std::sqrt(debiased_variance);
  out.push_back(c);
}

}  // namespace

ClosureSet closures(const VisibilityTable& table, ClosureKind kind) {
  ClosureSet set;
  set.kind = kind;
  set.legs = kind == ClosureKind::kPhase ? 3 : 4;
  const auto rows = static_cast<int64_t>(table.rows.size());
  for (int64_t first = 0, last; first < rows; first = last) {
    const double time = table.rows[first].time;
    for (last = first; last < rows && table.rows[last].time == time;) ++last;
    const ScanBaselines scan(table, first, last);
    const std::vector<int32_t>& s = scan.sites();
    const int n = static_cast<int>(s.size());
    if (kind == ClosureKind::kPhase) {
      for (int i = 1; i < n; ++i)
        for (int j = i + 1; j < n; ++j)
          add_closure<3>(table, scan, time, {s[0], s[i], s[j], 0}, {{{0, 1}, {1, 2}, {2, 0}}}, kind,
                         set.closures);
    } else {
      for (int i = 3; i < n; ++i)
        for (int j = 1; j < i; ++j) {
          const int k = j == i - 1 ? 1 : j + 1;
          add_closure<4>(table, scan, time, {s[0], s[i], s[j], s[k]},
                         {{{0, 1}, {2, 3}, {0, 3}, {1, 2}}}, kind, set.closures);
        }
    }
  }
  return set;
}

ClosureCovariance closure_covariance_from(const std::string& name) {
  if (name == "independent") return ClosureCovariance::kIndependent;
  if (name == "ehtim") return ClosureCovariance::kEhtim;
  SP_CHECK(name == "exact", "closure_covariance", "expected independent, ehtim or exact, got ",
           name);
  return ClosureCovariance::kExact;
}

std::vector<ClosureBlock> closure_blocks(const VisibilityTable& table, const ClosureSet& set,
                                         ClosureCovariance covariance) {
  static const std::array<std::pair<int, int>, 3> kTriangle = {{{0, 1}, {1, 2}, {2, 0}}};
  static const std::array<std::pair<int, int>, 4> kQuadrangle = {{{0, 1}, {2, 3}, {0, 3}, {1, 2}}};
  const bool phase = set.kind == ClosureKind::kPhase;
  const auto& c = set.closures;
  std::vector<ClosureBlock> blocks;
  for (size_t first = 0, last; first < c.size(); first = last) {
    for (last = first; last < c.size() && c[last].time == c[first].time;) ++last;
    ClosureBlock block;
    block.time = c[first].time;
    block.first = static_cast<int64_t>(first);
    block.size = static_cast<int64_t>(last - first);
    const int64_t k = block.size;
    // Column of a leg: the row itself, or the directed pair in eht-imaging's convention.
    std::map<std::pair<int64_t, int64_t>, std::vector<std::pair<int64_t, double>>> columns;
    for (int64_t i = 0; i < k; ++i) {
      const Closure& closure = c[first + i];
      for (int64_t l = 0; l < set.legs; ++l) {
        const VisibilityRow& row = table.rows[closure.row[l]];
        const double q = row.sigma / std::abs(row.vis);
        if (covariance == ClosureCovariance::kEhtim) {
          const auto ends = phase ? kTriangle[l] : kQuadrangle[l];
          const double sign = phase || l < 2 ? 1 : -1;
          columns[{closure.site[ends.first], closure.site[ends.second]}].push_back({i, sign * q});
        } else if (covariance == ClosureCovariance::kExact) {
          columns[{closure.row[l], 0}].push_back({i, closure.coefficient[l] * q});
        } else {
          columns[{i, l}].push_back({i, q});
        }
      }
    }
    block.covariance = at::zeros({k, k}, at::kDouble);
    auto cov = block.covariance.accessor<double, 2>();
    for (const auto& column : columns)
      for (const auto& a : column.second)
        for (const auto& b : column.second) cov[a.first][b.first] += a.second * b.second;
    if (covariance == ClosureCovariance::kIndependent) {
      block.transform = at::eye(k, at::kDouble);
      block.sigma = block.covariance.diagonal().sqrt();
    } else {
      at::Tensor values, vectors;
      std::tie(values, vectors) = at::linalg_eigh(block.covariance);
      block.transform = vectors.t().contiguous();
      block.sigma = values.sqrt();
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

std::vector<double> amplitudes(const VisibilityTable& table, Debias debias) {
  std::vector<double> a;
  a.reserve(table.rows.size());
  for (const VisibilityRow& row : table.rows) {
    const double s2 = row.sigma * row.sigma, excess = std::norm(row.vis) - s2;
    if (debias == Debias::kFloor)
      a.push_back(std::sqrt(std::max(excess, s2)));
    else
      a.push_back(excess > 0 ? std::sqrt(excess) : 0);
  }
  return a;
}

void check_visibilities(const VisibilityTable& table) {
  if (table.rows.empty()) throw DataError("the visibility table has no rows");
  const auto sites = static_cast<int32_t>(table.sites.size());
  for (size_t r = 0; r < table.rows.size(); ++r) {
    const VisibilityRow& row = table.rows[r];
    const std::string where = "visibility row " + std::to_string(r) + ": ";
    if (!std::isfinite(row.vis.real()) || !std::isfinite(row.vis.imag()) || !std::isfinite(row.u) ||
        !std::isfinite(row.v) || !std::isfinite(row.time))
      throw DataError(where + "time, u, v or visibility is not finite");
    if (!(row.sigma > 0) || !std::isfinite(row.sigma))
      throw DataError(where + "sigma must be positive and finite, got " +
                      std::to_string(row.sigma));
    if (row.t1 < 0 || row.t2 < 0 || row.t1 >= sites || row.t2 >= sites || row.t1 == row.t2)
      throw DataError(where + "its two stations are not two sites of the table");
    if (r > 0 && row.time < table.rows[r - 1].time)
      throw DataError(where + "rows are not in time order");
  }
}

}  // namespace scoreprior
