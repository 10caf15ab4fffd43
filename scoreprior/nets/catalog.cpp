#include "scoreprior/nets/score_net.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) std::unique_ptr<ScoreNet> make(const Config&);
#include "scoreprior/nets/catalog.def"
#undef SP_ENTRY

Catalog<ScoreNet>& mutable_score_nets() {
  static Catalog<ScoreNet> catalog = [] {
    Catalog<ScoreNet> c("score network");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/nets/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return catalog;
}

const Catalog<ScoreNet>& score_nets() { return mutable_score_nets(); }

}  // namespace scoreprior
