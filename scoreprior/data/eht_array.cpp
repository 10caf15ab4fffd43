#include "scoreprior/data/eht_array.h"

#include <cmath>
#include <set>
#include <sstream>

#include "scoreprior/core/config.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior {

std::vector<Site> array_sites(const std::string& name) {
  if (name == "eht2017")
    return {{"PV", 5088967.9, -301681.6, 3825015.8, 3600, 3600},
            {"AZ", -1828796.2, -5054406.8, 3427865.2, 14400, 14400},
            {"SM", -5464523.4, -2493147.08, 2150611.75, 5600, 6500},
            {"LM", -768713.9637, -5988541.7982, 2063275.9472, 3600, 3600},
            {"AA", 2225061.164, -5440057.37, -2481681.15, 70, 70},
            {"SP", 0.01, 0.01, -6359609.7, 16900, 16900},
            {"AP", 2225039.53, -5441197.63, -2479303.36, 4900, 4900},
            {"JC", -5464584.68, -2493001.17, 2150653.98, 10000, 10000}};
  const std::string near = did_you_mean(name, array_names());
  throw ConfigError({}, "unknown array \"" + name + "\"" +
                            (near.empty() ? " (known: eht2017; or name a text file in array_file)"
                                          : "; did you mean \"" + near + "\"?"));
}

std::vector<std::string> array_names() { return {"eht2017"}; }

std::vector<Site> read_array(const std::filesystem::path& path) {
  std::istringstream in(io::read_text(path));
  std::vector<Site> sites;
  std::set<std::string> names;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    std::istringstream words(line);
    Site s;
    if (!(words >> s.name) || s.name[0] == '#') continue;
    if (!(words >> s.x >> s.y >> s.z >> s.sefd_r >> s.sefd_l))
      throw DataError(where + "expected NAME X Y Z SEFD_R SEFD_L");
    const double radius = std::sqrt(s.x * s.x + s.y * s.y + s.z * s.z);
    if (!(radius > 6.2e6 && radius < 6.5e6))
      throw DataError(where + "the site " + s.name +
                      " is not on the Earth (geocentric metres expected)");
    if (!(s.sefd_r > 0 && s.sefd_l > 0))
      throw DataError(where + "the SEFD of " + s.name + " is not positive");
    if (!names.insert(s.name).second)
      throw DataError(where + "the site " + s.name + " appears twice");
    sites.push_back(s);
  }
  if (sites.size() < 2) throw DataError(path.string() + ": an array needs at least two sites");
  return sites;
}

}  // namespace scoreprior
