#include "scoreprior/priors/prior.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) \
  std::unique_ptr<LogDensity> make(const Config&, const PriorContext&);
#include "scoreprior/priors/catalog.def"
#undef SP_ENTRY

Catalog<LogDensity, const PriorContext&>& mutable_priors() {
  static Catalog<LogDensity, const PriorContext&> catalog = [] {
    Catalog<LogDensity, const PriorContext&> c("prior");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/priors/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return catalog;
}

const Catalog<LogDensity, const PriorContext&>& priors() { return mutable_priors(); }

}  // namespace scoreprior
