#include "scoreprior/data/dataset.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) \
  std::unique_ptr<Dataset> make(const Config& config, const std::string& split);
#include "scoreprior/data/catalog.def"
#undef SP_ENTRY

Catalog<Dataset, const std::string&>& mutable_datasets() {
  static Catalog<Dataset, const std::string&> catalog = [] {
    Catalog<Dataset, const std::string&> c("data set");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/data/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return catalog;
}

const Catalog<Dataset, const std::string&>& datasets() { return mutable_datasets(); }

}  // namespace scoreprior
