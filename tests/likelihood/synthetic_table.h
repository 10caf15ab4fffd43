#pragma once
#include <cmath>
#include <complex>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/core/visibility_table.h"

namespace scoreprior::testing {

/// `scans` snapshots of an array of `sites` telescopes with tracks like the Earth's; visibilities
/// of an off-centre Gaussian of `flux` [Jy] and standard deviation `width_rad`, noise-free, with
/// sigma = flux / `snr` on every row.
inline VisibilityTable synthetic_table(int sites = 6, int scans = 4, double snr = 1e3,
                                       double flux = 0.6, double width_uas = 15) {
  VisibilityTable table;
  const double uas = M_PI / (180.0 * 3600e6);
  const std::vector<double> position = Rng(11).split("sites").normals(3 * sites);
  for (int i = 0; i < sites; ++i) {
    Site site;
    site.name = std::string(1, static_cast<char>('A' + i));
    table.sites.push_back(site);
  }
  const double width = width_uas * uas, x0 = 8 * uas, y0 = -5 * uas, dec = 0.22;
  for (int t = 0; t < scans; ++t)
    for (int a = 0; a < sites; ++a)
      for (int b = a + 1; b < sites; ++b) {
        const double hour = 0.3 * t, angle = 0.2 * hour;
        const auto difference = [&](int k) {
          return 2.5e9 * (position[3 * a + k] - position[3 * b + k]);
        };
        VisibilityRow row;
        row.time = hour;
        row.tint = 10;
        row.t1 = a, row.t2 = b;
        const double x = difference(0), y = difference(1), z = difference(2);
        row.u = std::cos(angle) * y + std::sin(angle) * x;
        row.v = -(std::cos(angle) * x - std::sin(angle) * y) * std::sin(dec) + z * std::cos(dec);
        row.vis = flux *
                  std::exp(-2 * M_PI * M_PI * width * width * (row.u * row.u + row.v * row.v)) *
                  std::polar(1.0, 2 * M_PI * (row.u * x0 + row.v * y0));
        row.sigma = flux / snr;
        table.rows.push_back(row);
      }
  return table;
}

/// vis + sigma (n1 + i n2) on every row.
inline VisibilityTable with_noise(VisibilityTable table, const Rng& rng) {
  const std::vector<double> n = rng.normals(2 * static_cast<int64_t>(table.rows.size()));
  for (size_t k = 0; k < table.rows.size(); ++k)
    table.rows[k].vis += table.rows[k].sigma * std::complex<double>(n[2 * k], n[2 * k + 1]);
  return table;
}

}  // namespace scoreprior::testing
