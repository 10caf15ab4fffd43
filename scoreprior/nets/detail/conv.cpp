#include "scoreprior/nets/detail/conv.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/nets/detail/kernels.h"
#include "scoreprior/nets/detail/layers.h"
#include "scoreprior/nets/detail/winograd.h"
#include "scoreprior/nets/double_backward.h"

namespace scoreprior::nets {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Below this many tiles the transformed weights, four times the plain ones, are most of the
// traffic.
constexpr int64_t kFewestTiles = 12;

bool winograd_applies(const at::Tensor& x, const at::Tensor& w, int64_t stride, int64_t padding) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) return false;
  if (DoubleBackwardScope::active() && w.requires_grad()) return false;
  const int64_t H = x.size(2), W = x.size(3);
  return stride == 1 && padding == 1 && w.size(2) == 3 && w.size(3) == 3 && w.size(0) % 16 == 0 &&
         w.size(1) % 16 == 0 && H % 4 == 0 && W % 4 == 0 &&
         x.size(0) * (H / 4) * (W / 4) >= kFewestTiles;
}

at::Tensor sum_over_pixels(const at::Tensor& g) {
  const int64_t B = g.size(0), C = g.size(1), P = g.size(2) * g.size(3);
  at::Tensor rows = at::zeros({B, C}, g.options().dtype(at::kDouble));
  const float* gp = g.data_ptr<float>();
  double* rp = rows.data_ptr<double>();
  const std::vector<float> zero(static_cast<size_t>(C), 0.f);
  at::parallel_for(0, B, 1, [&](int64_t b0, int64_t b1) {
    std::vector<double> square(static_cast<size_t>(C));
    for (int64_t b = b0; b < b1; ++b)
      kernels::channel_moments(gp + b * P * C, P, C, zero.data(), rp + b * C, square.data());
  });
  return rows.sum(0).to(g.scalar_type());
}

// The convolution or (transposed) its adjoint; linear in x, so each is the other's derivative.
at::Tensor pack_weights(const at::Tensor& weight, bool transposed) {
  const at::Tensor w = weight.contiguous();
  at::Tensor packed = at::empty({winograd::packed_size(w.size(1), w.size(0))}, w.options());
  winograd::pack(w.data_ptr<float>(), w.size(1), w.size(0), transposed, packed.data_ptr<float>());
  return packed;
}

struct WinogradConv : torch::autograd::Function<WinogradConv> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, bool transposed,
                            std::shared_ptr<PackedWeights> cache) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["cache"] = at::IValue::make_capsule(c10::make_intrusive<Holder>(cache));
    ctx->saved_data["transposed"] = transposed;
    const int64_t O = weight.size(0), I = weight.size(1);
    const int64_t in = transposed ? O : I, out = transposed ? I : O;
    const at::Tensor packed =
        cache ? cache->get(weight, transposed) : pack_weights(weight, transposed);
    at::Tensor y = at::empty({x.size(0), out, x.size(2), x.size(3)}, x.options(),
                             at::MemoryFormat::ChannelsLast);
    winograd::convolve({x.size(0), x.size(2), x.size(3)}, x.data_ptr<float>(), in,
                       packed.data_ptr<float>(), out,
                       bias.numel() ? bias.data_ptr<float>() : nullptr, y.data_ptr<float>());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const bool transposed = ctx->saved_data["transposed"].toBool();
    const at::Tensor g = channels_last(grads[0]);
    variable_list out(5);
    if (ctx->needs_input_grad(0)) {
      const auto holder = ctx->saved_data["cache"].toCapsule();
      out[0] = WinogradConv::apply(g, weight, at::empty({0}, g.options()), !transposed,
                                   static_cast<const Holder*>(holder.get())->cache);
    }
    if (ctx->needs_input_grad(1)) {
      SP_CHECK(!at::GradMode::is_enabled() && !transposed, "conv2d",
               "create_graph needs a DoubleBackwardScope around the forward pass");
      out[1] = at::empty(weight.sizes(), weight.options());
      winograd::weight_gradient({x.size(0), x.size(2), x.size(3)}, x.data_ptr<float>(),
                                weight.size(1), g.data_ptr<float>(), weight.size(0),
                                out[1].data_ptr<float>());
    }
    if (ctx->needs_input_grad(2)) out[2] = sum_over_pixels(g);
    return out;
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<PackedWeights> c) : cache(std::move(c)) {}
    std::shared_ptr<PackedWeights> cache;
  };
};

// The image's own channels into the network. Its rounding is what every later layer starts from,
// so it is summed in double; 9 to 36 terms a value are a small part of the work.
bool few_channels_apply(const at::Tensor& x, const at::Tensor& w, int64_t stride, int64_t padding) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && stride == 1 && padding == 1 &&
         w.size(2) == 3 && w.size(3) == 3 && w.size(1) <= kernels::kFewChannels &&
         w.size(0) % 8 == 0;
}

struct FewChannelConv : torch::autograd::Function<FewChannelConv> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    ctx->save_for_backward({x, weight});
    const int64_t batch = x.size(0), in = x.size(1), height = x.size(2), width = x.size(3),
                  out = weight.size(0);
    const at::Tensor pixels = x.permute({0, 2, 3, 1}).contiguous();
    const at::Tensor taps = weight.permute({2, 3, 1, 0}).to(at::kDouble).contiguous();
    at::Tensor y =
        at::empty({batch, out, height, width}, x.options(), at::MemoryFormat::ChannelsLast);
    const float *from = pixels.data_ptr<float>(),
                *shift = bias.numel() ? bias.data_ptr<float>() : nullptr;
    const double* w = taps.data_ptr<double>();
    float* to = y.data_ptr<float>();
    at::parallel_for(0, batch * height, 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* rows[3];
        for (int64_t i = 0; i < 3; ++i) {
          const int64_t row = r % height + i - 1;
          rows[i] = row >= 0 && row < height ? from + (r + i - 1) * width * in : nullptr;
        }
        kernels::few_channel_row(rows, width, in, w, shift, out, to + r * width * out);
      }
    });
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [x_bar, weight_bar, bias_bar] = at::convolution_backward(
        channels_last(grads[0]), saved[0], saved[1], at::IntArrayRef{saved[1].size(0)}, {1, 1},
        {1, 1}, {1, 1}, false, {0, 0}, 1,
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)});
    return {x_bar, weight_bar, bias_bar};
  }
};

// Rounds the value here and the gradient on its way back.
at::Tensor round_to_bfloat16(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); }

bool has_bfloat16_units(const at::Tensor& x) {
  if (!x.is_cpu()) return true;
#if defined(__x86_64__)
  static const bool units = __builtin_cpu_supports("avx512bf16");
  return units;
#else
  return false;
#endif
}

// The bias is added in float32, after the rounding.
at::Tensor bfloat16_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         int64_t stride, int64_t padding, PackedWeights& packed) {
  const at::Tensor shift = bias.view({1, -1, 1, 1});
  if (has_bfloat16_units(x))
    return channels_last(at::conv2d(x.to(at::kBFloat16), weight.to(at::kBFloat16), {},
                                    {stride, stride}, {padding, padding})
                             .to(at::kFloat)) +
           shift;
  const at::Tensor zero = at::zeros({weight.size(0)}, weight.options().requires_grad(false));
  return round_to_bfloat16(conv2d(round_to_bfloat16(x), packed.rounded(weight), zero, stride,
                                  padding, packed.of_rounded())) +
         shift;
}

}  // namespace

void PackedWeights::forget_other_weights(const at::Tensor& weight) {
  if (data_ == weight.data_ptr() && version_ == weight._version()) return;
  packed_[0] = packed_[1] = rounded_weight_ = at::Tensor();
  data_ = weight.data_ptr();
  version_ = static_cast<uint32_t>(weight._version());
}

at::Tensor PackedWeights::rounded(const at::Tensor& weight) {
  if (weight.requires_grad()) return round_to_bfloat16(weight);
  const std::lock_guard<std::mutex> lock(mutex_);
  forget_other_weights(weight);
  if (!rounded_weight_.defined()) rounded_weight_ = round_to_bfloat16(weight);
  return rounded_weight_;
}

at::Tensor PackedWeights::get(const at::Tensor& weight, bool transposed) {
  if (weight.requires_grad()) return pack_weights(weight, transposed);
  const std::lock_guard<std::mutex> lock(mutex_);
  forget_other_weights(weight);
  at::Tensor& packed = packed_[transposed];
  if (!packed.defined()) packed = pack_weights(weight, transposed);
  return packed;
}

void PackedWeights::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  packed_[0] = packed_[1] = rounded_weight_ = at::Tensor();
  if (rounded_) rounded_->clear();
}

at::Tensor conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  int64_t stride, int64_t padding, const std::shared_ptr<PackedWeights>& packed) {
  if (packed && packed->bfloat16() && x.scalar_type() == at::kFloat)
    return bfloat16_conv(x, weight, bias, stride, padding, *packed);
  if (winograd_applies(x, weight, stride, padding))
    return WinogradConv::apply(channels_last(x), weight, bias, false, packed);
  if (few_channels_apply(x, weight, stride, padding)) return FewChannelConv::apply(x, weight, bias);
  return channels_last(at::conv2d(x, weight, bias, {stride, stride}, {padding, padding}));
}

}  // namespace scoreprior::nets
