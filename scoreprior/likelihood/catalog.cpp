#include "scoreprior/likelihood/likelihood.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) \
  std::unique_ptr<Likelihood> make(const Config&, const Observation&, const LikelihoodContext&);
#include "scoreprior/likelihood/catalog.def"
#undef SP_ENTRY

Catalog<Likelihood, const Observation&, const LikelihoodContext&>& mutable_likelihoods() {
  static Catalog<Likelihood, const Observation&, const LikelihoodContext&> catalog = [] {
    Catalog<Likelihood, const Observation&, const LikelihoodContext&> c("likelihood");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/likelihood/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return catalog;
}

const Catalog<Likelihood, const Observation&, const LikelihoodContext&>& likelihoods() {
  return mutable_likelihoods();
}

}  // namespace scoreprior
