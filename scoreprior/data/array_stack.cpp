/// array_stack: one .npy or .npz array of images, [N,H,W], [N,C,H,W] or [N,H,W,C]. Bytes are
/// divided by 255, other numbers are multiplied by `scale`.

#include <ATen/ATen.h>

#include "scoreprior/data/transforms.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {
namespace {

struct ArrayStackOptions : ImageTransformOptions {
  std::filesystem::path path;
  std::string array;
  std::string layout = "auto";
  double scale = 1;
  template <class F>
  void fields(F&& f) {
    f("path", path, ".npy or .npz file of images");
    f("array", array, "name inside the .npz; may be left out when there is only one");
    f("layout", layout, "auto, nhw, nchw or nhwc");
    f("scale", scale, "factor on pixels that are not bytes");
    ImageTransformOptions::fields(f);
  }
};

at::Tensor read_stack_array(const ArrayStackOptions& o) {
  if (o.path.extension() != ".npz") return io::read_npy(o.path);
  const io::Arrays arrays = io::read_npz(o.path);
  if (o.array.empty() && arrays.size() == 1) return arrays.begin()->second;
  const auto found = arrays.find(o.array);
  if (found != arrays.end()) return found->second;
  std::string names;
  for (const auto& [name, value] : arrays) names += (names.empty() ? "" : ", ") + name;
  throw DataError(o.path.string() + ": " +
                  (o.array.empty() ? "several arrays, name one by array = ..."
                                   : "no array \"" + o.array + "\"") +
                  " (it holds " + names + ")");
}

// [N,C,H,W] in its own type.
at::Tensor as_channels_first(const at::Tensor& a, const ArrayStackOptions& o) {
  const auto channel_like = [](int64_t n) { return n >= 1 && n <= 4; };
  std::string layout = o.layout;
  if (layout == "auto") {
    if (a.dim() == 3)
      layout = "nhw";
    else if (a.dim() == 4 && channel_like(a.size(1)) != channel_like(a.size(3)))
      layout = channel_like(a.size(1)) ? "nchw" : "nhwc";
  }
  const bool fits = (layout == "nhw" && a.dim() == 3) || (layout == "nchw" && a.dim() == 4) ||
                    (layout == "nhwc" && a.dim() == 4);
  at::Tensor x;
  if (fits) x = layout == "nhw" ? a.unsqueeze(1) : layout == "nchw" ? a : a.permute({0, 3, 1, 2});
  if (!fits || !channel_like(x.size(1)) || x.numel() == 0)
    throw DataError(
        detail::concat(o.path.string(), ": expected images [N,H,W], [N,C,H,W] or [N,H,W,C], got ",
                       to_string(a.sizes().vec()), layout == "auto" ? "; give its layout" : ""));
  return x;
}

class ArrayStack final : public StoredImages {
 public:
  ArrayStack(const ArrayStackOptions& o, const std::string& split, const at::Tensor& stack,
             double factor)
      : StoredImages(o, "images in " + o.path.string(), split,
                     split_members(names(stack.size(0)), o, split), [stack, factor, o](int64_t i) {
                       const at::Tensor image = centre_square(stack[i].to(at::kFloat) * factor);
                       return resize_image(to_channels(image, o.channels), o.image_size,
                                           o.antialias);
                     }) {}

 private:
  static std::vector<std::string> names(int64_t n) {
    std::vector<std::string> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(std::to_string(i));
    return v;
  }
};

}  // namespace

std::unique_ptr<Dataset> make_array_stack(const Config& config, const std::string& split) {
  const auto options = config.read<ArrayStackOptions>();
  check_transforms(config, options);
  config.one_of("layout", "auto", {"auto", "nhw", "nchw", "nhwc"});
  if (options.path.empty())
    config.fail("path", "the data set array_stack needs path, a .npy or .npz file");
  const at::Tensor stack = as_channels_first(read_stack_array(options), options);
  if (stack.is_complex()) throw DataError(options.path.string() + ": complex pixels");
  if (stack.is_floating_point() && !at::isfinite(stack).all().item<bool>())
    throw DataError(options.path.string() + ": a pixel is not finite");
  const double factor = stack.scalar_type() == at::kByte ? 1 / 255.0 : options.scale;
  return std::make_unique<ArrayStack>(options, split, stack, factor);
}

}  // namespace scoreprior
