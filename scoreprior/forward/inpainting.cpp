/// inpainting: some pixels seen, the others not.
///   y = x at the pixels where the mask is 1, row by row, C fastest; the unseen are left out
///   Shapes [B,C,H,W] -> [B,K*C] for K seen pixels; linear, A A^T = 1; units of the image
///   naive inverse: unseen pixels take the mean of the seen ones, channel by channel
/// Masks: `box` hides a rectangle, `random` shows each pixel with probability `seen`, `file` is
/// [H,W], 0 = unseen, anything else = seen. Channels share the mask.

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct InpaintingOptions {
  std::string mask = "box";
  int64_t box_height = -1, box_width = -1, box_top = -1, box_left = -1, mask_seed = 0;
  double seen = 0.3;
  template <class F>
  void fields(F&& f) {
    f("mask", mask, "box, random or file");
    f("box_height", box_height, "rows hidden [pixels]; -1 = half the image");
    f("box_width", box_width, "columns hidden [pixels]; -1 = half the image");
    f("box_top", box_top, "first hidden row; -1 = the box is centred");
    f("box_left", box_left, "first hidden column; -1 = the box is centred");
    f("seen", seen, "random: probability that a pixel is seen");
    f("mask_seed", mask_seed, "random: seed of the mask");
  }
};

class Inpainting final : public ForwardModel {
 public:
  Inpainting(Shape shape, const at::Tensor& mask, const ForwardContext& context)
      : shape_(std::move(shape)),
        seen_(mask.ne(0).flatten().nonzero().flatten().to(context.device)) {}
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {seen_.size(0) * shape_[0]}; }
  bool linear() const override { return true; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("inpainting", "x", x, shape_);
    return x.flatten(2).index_select(2, seen_).permute({0, 2, 1}).flatten(1);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    check_batched("inpainting", "y", y, output_shape());
    return placed(y, at::zeros({y.size(0), shape_[0], shape_[1] * shape_[2]}, y.options()));
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("inpainting", "y", y, output_shape());
    const at::Tensor mean = pixels(y).mean({2}, true);
    return placed(y, mean.expand({-1, -1, shape_[1] * shape_[2]}).contiguous());
  }

 private:
  at::Tensor pixels(const at::Tensor& y) const {  // [B,C,K]
    return y.reshape({y.size(0), -1, shape_[0]}).permute({0, 2, 1});
  }
  at::Tensor placed(const at::Tensor& y, const at::Tensor& canvas) const {
    return canvas.index_copy(2, seen_, pixels(y)).reshape(batched(y.size(0), shape_));
  }
  Shape shape_;
  at::Tensor seen_;  ///< flat indices of the seen pixels, ascending
};

at::Tensor box_mask(const Config& config, const InpaintingOptions& o, const Shape& shape) {
  const auto side = [&](int64_t given, int64_t n) { return given < 0 ? n / 2 : given; };
  const int64_t height = side(o.box_height, shape[1]), width = side(o.box_width, shape[2]);
  if (height > shape[1]) config.fail("box_height", "box_height exceeds the image");
  if (width > shape[2]) config.fail("box_width", "box_width exceeds the image");
  const int64_t top = o.box_top < 0 ? (shape[1] - height) / 2 : o.box_top;
  const int64_t left = o.box_left < 0 ? (shape[2] - width) / 2 : o.box_left;
  if (top + height > shape[1]) config.fail("box_top", "the box leaves the image");
  if (left + width > shape[2]) config.fail("box_left", "the box leaves the image");
  at::Tensor mask = at::ones({shape[1], shape[2]}, at::kDouble);
  mask.narrow(0, top, height).narrow(1, left, width).fill_(0);
  return mask;
}

}  // namespace

std::unique_ptr<ForwardModel> make_inpainting(const Config& config, const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  const auto o = config.read<InpaintingOptions>();
  config.one_of("mask", "box", {"box", "random", "file"});
  at::Tensor mask;
  if (o.mask == "file") {
    mask = read_array(config, "mask_file", context.read_array).to(at::kDouble);
    if (mask.dim() != 2 || mask.size(0) != shape[1] || mask.size(1) != shape[2])
      config.fail("mask_file", "the mask is not " + to_string({shape[1], shape[2]}));
    if (!at::isfinite(mask).all().item<bool>())
      throw DataError("[inpainting] the mask has entries that are not finite");
  } else if (o.mask == "random") {
    if (!(o.seen > 0 && o.seen <= 1)) config.fail("seen", "seen must be above 0 and at most 1");
    mask = Rng(static_cast<uint64_t>(o.mask_seed))
               .split("inpainting")
               .uniform({shape[1], shape[2]}, at::kDouble)
               .lt(o.seen)
               .to(at::kDouble);
  } else {
    mask = box_mask(config, o, shape);
  }
  if (mask.ne(0).sum().item<int64_t>() == 0) config.fail("mask", "the mask hides every pixel");
  return std::make_unique<Inpainting>(std::move(shape), mask, context);
}

}  // namespace scoreprior
