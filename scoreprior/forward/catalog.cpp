#include "scoreprior/forward/forward_model.h"

#include "scoreprior/core/errors.h"

namespace scoreprior {

#define SP_ENTRY(name, make, help) \
  std::unique_ptr<ForwardModel> make(const Config&, const ForwardContext&);
#include "scoreprior/forward/catalog.def"
#undef SP_ENTRY

Catalog<ForwardModel, const ForwardContext&>& mutable_forward_models() {
  static Catalog<ForwardModel, const ForwardContext&> catalog = [] {
    Catalog<ForwardModel, const ForwardContext&> c("forward model");
#define SP_ENTRY(name, make, help) c.add(#name, help, make);
#include "scoreprior/forward/catalog.def"
#undef SP_ENTRY
    return c;
  }();
  return catalog;
}

const Catalog<ForwardModel, const ForwardContext&>& forward_models() {
  return mutable_forward_models();
}

at::Tensor read_array(const Config& config, const std::string& key, const ArrayReader& reader) {
  const auto path = config.get<std::filesystem::path>(key);
  if (!reader) config.fail(key, "this program reads no array files");
  return reader(path);
}

Shape image_shape(const Config& config, const ForwardContext& context, int64_t default_size) {
  const bool known = !context.image_shape.empty();
  const auto size = config.get<int64_t>("image_size", known ? context.image_shape[1] : default_size,
                                        "side of the image [pixels]");
  const auto channels =
      config.get<int64_t>("channels", known ? context.image_shape[0] : 1, "channels of the image");
  if (size < 1) config.fail("image_size", "image_size must be at least 1");
  if (channels < 1) config.fail("channels", "channels must be at least 1");
  if (!known) return {channels, size, size};
  if (size != context.image_shape[1])
    config.fail("image_size",
                "image_size differs from the image " + to_string(context.image_shape));
  if (channels != context.image_shape[0])
    config.fail("channels", "channels differ from the image " + to_string(context.image_shape));
  return context.image_shape;
}

}  // namespace scoreprior
