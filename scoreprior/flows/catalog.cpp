#include "scoreprior/flows/flow.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) std::unique_ptr<Flow> make(const Config&, const FlowContext&);
#include "scoreprior/flows/catalog.def"
#undef SP_ENTRY

Catalog<Flow, const FlowContext&>& mutable_flows() {
  static Catalog<Flow, const FlowContext&> all = [] {
    Catalog<Flow, const FlowContext&> c("flow");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/flows/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return all;
}

const Catalog<Flow, const FlowContext&>& flows() { return mutable_flows(); }

}  // namespace scoreprior
