#include "scoreprior/core/visibility_table.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace scoreprior {

void arrange(VisibilityTable& table) {
  const size_t n = table.sites.size();
  // Rank of each site's name: comparing ranks is comparing names.
  std::vector<int32_t> by_name(n), rank(n);
  for (size_t s = 0; s < n; ++s) by_name[s] = static_cast<int32_t>(s);
  std::stable_sort(by_name.begin(), by_name.end(), [&](int32_t a, int32_t b) {
    return table.sites[static_cast<size_t>(a)].name < table.sites[static_cast<size_t>(b)].name;
  });
  for (size_t k = 0; k < n; ++k) {
    const bool same = k > 0 && table.sites[static_cast<size_t>(by_name[k])].name ==
                                   table.sites[static_cast<size_t>(by_name[k - 1])].name;
    rank[static_cast<size_t>(by_name[k])] =
        same ? rank[static_cast<size_t>(by_name[k - 1])] : static_cast<int32_t>(k);
  }
  for (auto& r : table.rows) {
    if (r.t2 >= r.t1) continue;
    std::swap(r.t1, r.t2);
    std::swap(r.tau1, r.tau2);
    r.u = -r.u;
    r.v = -r.v;
    r.vis = std::conj(r.vis);
  }
  const auto key = [&](const VisibilityRow& r) {
    return std::make_tuple(r.time, rank[static_cast<size_t>(r.t1)], r.tint,
                           rank[static_cast<size_t>(r.t2)], r.tau1, r.tau2, r.u, r.v);
  };
  std::stable_sort(table.rows.begin(), table.rows.end(),
                   [&](const VisibilityRow& a, const VisibilityRow& b) { return key(a) < key(b); });
}

void sort_sites_by_sefd(VisibilityTable& table) {
  const auto noise = [](const Site& s) { return std::hypot(s.sefd_r, s.sefd_l); };
  std::vector<int32_t> order(table.sites.size());
  for (size_t s = 0; s < order.size(); ++s) order[s] = static_cast<int32_t>(s);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return noise(table.sites[static_cast<size_t>(a)]) < noise(table.sites[static_cast<size_t>(b)]);
  });
  reorder_sites(table, order);
}

void reorder_sites(VisibilityTable& table, const std::vector<int32_t>& order) {
  std::vector<Site> sites;
  std::vector<int32_t> place(table.sites.size());
  for (size_t k = 0; k < order.size(); ++k) {
    sites.push_back(table.sites[static_cast<size_t>(order[k])]);
    place[static_cast<size_t>(order[k])] = static_cast<int32_t>(k);
  }
  for (auto& r : table.rows) {
    r.t1 = place[static_cast<size_t>(r.t1)];
    r.t2 = place[static_cast<size_t>(r.t2)];
  }
  table.sites = std::move(sites);
  arrange(table);
}

}  // namespace scoreprior
