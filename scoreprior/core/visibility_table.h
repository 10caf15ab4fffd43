#pragma once
#include <complex>
#include <cstdint>
#include <string>
#include <vector>

namespace scoreprior {

struct Site {
  std::string name;
  double x = 0, y = 0, z = 0;     ///< geocentric position [m]
  double sefd_r = 0, sefd_l = 0;  ///< system equivalent flux density [Jy], 0 = unknown
};

/// One row per (time, baseline); Stokes I. Baseline t1-t2 is (r1 - r2)/lambda and t1 stands before
/// t2 in `sites`; rows are sorted by time, name of t1, tint, name of t2 (the ehtim order).
struct VisibilityRow {
  double time = 0;            ///< [h] UTC since mjd
  double tint = 0;            ///< integration time [s]
  int32_t t1 = 0, t2 = 0;     ///< indices into sites
  double tau1 = 0, tau2 = 0;  ///< zenith opacities
  double u = 0, v = 0;        ///< [wavelengths]
  std::complex<double> vis;   ///< [Jy]; V(u,v) = sum I exp(+2 pi i (u x + v y))
  double sigma = 0;           ///< thermal noise of the real and of the imaginary part [Jy]
};

struct VisibilityTable {
  std::string source;
  double ra_hours = 0, dec_deg = 0;
  double rf_hz = 0, bw_hz = 0;
  int64_t mjd = 0;
  std::vector<Site> sites;
  std::vector<VisibilityRow> rows;
};

/// Points every baseline along the site table (t1 before t2: swaps sites and opacities, negates u
/// and v, conjugates vis) and sorts the rows by time, name of t1, tint, name of t2, then opacities
/// and u, v.
void arrange(VisibilityTable& table);

/// New site number k is old site order[k] (a permutation, or a subset that covers every row); then
/// arrange().
void reorder_sites(VisibilityTable& table, const std::vector<int32_t>& order);

/// Most sensitive first: stable ascending sort of the sites by hypot(sefd_r, sefd_l); then
/// arrange().
void sort_sites_by_sefd(VisibilityTable& table);

}  // namespace scoreprior
