#pragma once
#include <string>

#include "scoreprior/core/visibility_table.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior::testing {

/// The visibility table behind the arrays `prefix`obs_* (or pre_*) of a reference case.
inline VisibilityTable golden_table(const GoldenCase& g, const std::string& prefix = "obs_") {
  VisibilityTable table;
  std::ifstream in(g.folder() / (prefix + "tarr.json"));
  nlohmann::json sites;
  in >> sites;
  const at::Tensor xyz = g.array(prefix + "tarr_xyz", at::kDouble);
  for (size_t i = 0; i < sites.at("site").size(); ++i) {
    Site site;
    site.name = sites["site"][i].get<std::string>();
    site.x = xyz[i][0].item<double>();
    site.y = xyz[i][1].item<double>();
    site.z = xyz[i][2].item<double>();
    table.sites.push_back(site);
  }
  const at::Tensor time = g.array(prefix + "time"), tint = g.array(prefix + "tint"),
                   u = g.array(prefix + "u"), v = g.array(prefix + "v"),
                   sigma = g.array(prefix + "sigma"), t1 = g.array(prefix + "t1_index"),
                   t2 = g.array(prefix + "t2_index"), vis = g.array(prefix + "vis");
  for (int64_t k = 0; k < time.size(0); ++k) {
    VisibilityRow row;
    row.time = time.data_ptr<double>()[k];
    row.tint = tint.data_ptr<double>()[k];
    row.u = u.data_ptr<double>()[k];
    row.v = v.data_ptr<double>()[k];
    row.sigma = sigma.data_ptr<double>()[k];
    row.t1 = static_cast<int32_t>(t1.data_ptr<int64_t>()[k]);
    row.t2 = static_cast<int32_t>(t2.data_ptr<int64_t>()[k]);
    const auto value = vis.data_ptr<c10::complex<double>>()[k];
    row.vis = {value.real(), value.imag()};
    table.rows.push_back(row);
  }
  return table;
}

}  // namespace scoreprior::testing
