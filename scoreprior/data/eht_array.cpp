#include "scoreprior/data/eht_array.h"

#include "scoreprior/core/config.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/io/ehtim_text.h"

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
  return io::read_ehtim_array(path);
}

}  // namespace scoreprior
