#include "scoreprior/infer/inference.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) \
  std::unique_ptr<Inference> make(const Config&, const InferenceContext&);
#include "scoreprior/infer/catalog.def"
#undef SP_ENTRY

Catalog<Inference, const InferenceContext&>& mutable_inferences() {
  static Catalog<Inference, const InferenceContext&> all = [] {
    Catalog<Inference, const InferenceContext&> c("inference method");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/infer/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return all;
}

const Catalog<Inference, const InferenceContext&>& inferences() { return mutable_inferences(); }

}  // namespace scoreprior
