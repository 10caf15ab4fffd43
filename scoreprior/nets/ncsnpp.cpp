/// ncsnpp: the U-net of [Song21] appendix H; ddpm: that of [Ho20], which is the same tree with DDPM
/// blocks, plain resampling, no rescaled skips and 32 groups everywhere. Both on channels-last
/// tensors.
///
///   net(x, label): x [B,C,H,W] -> [B,C,H,W]; label [B] is 999 t for VP and sub-VP, the standard
///   deviation for VE.
///
/// Data in [0,1] enters as 2x - 1 unless `centered`. Time embeddings:
///   positional  sin, cos of label 10000^(-k/(nf/2 - 1)); oscillates with label, so an ODE solver
///   takes tiny steps fourier     sin, cos of 2 pi W label (label_scale = linear) or 2 pi W
///   log(label) (log) smooth      sin, cos of w_k u, w_k = 4 pi (k+1)/(nf/2), u = log(1 +
///   label/embedding_min) scaled to 1 at
///               label = embedding_max: about the log noise level, two periods at most over the
///               whole process. With the VP label 999 t and the defaults 1 and 999, u = log(1 + 999
///               t)/log(1000). For VE set the two to sigma_min and sigma_max.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/nets/detail/conv.h"
#include "scoreprior/nets/detail/layers.h"
#include "scoreprior/nets/detail/parameter_set.h"
#include "scoreprior/nets/detail/resample.h"
#include "scoreprior/nets/score_net.h"

namespace scoreprior {
namespace nets {
namespace {

struct UnetOptions {
  int64_t image_size = 32;
  int64_t channels = 1;
  bool centered = false;
  int64_t nf = 32;
  std::vector<int64_t> ch_mult{1, 2, 2, 2};
  int64_t num_res_blocks = 1;
  std::vector<int64_t> attn_resolutions{16};
  double dropout = 0;
  std::string nonlinearity = "swish";
  std::string normalization = "GroupNorm";
  std::string resblock_type = "biggan";
  bool resamp_with_conv = true;
  bool conditional = true;
  bool fir = true;
  std::vector<double> fir_kernel{1, 3, 3, 1};
  bool skip_rescale = true;
  std::string progressive = "none";
  std::string progressive_input = "residual";
  std::string progressive_combine = "sum";
  std::string embedding_type = "smooth";
  double embedding_min = 1;
  double embedding_max = 999;
  double fourier_scale = 16;
  bool trainable_embedding = false;
  std::string label_scale = "auto";
  double init_scale = 0;
  bool scale_by_sigma = false;

  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("channels", channels, "image channels");
    f("centered", centered, "data are in [-1,1]; otherwise [0,1], mapped to 2x-1 inside");
    f("nf", nf, "channels at full resolution");
    f("ch_mult", ch_mult,
      "channels of each level in units of nf; each level halves the resolution");
    f("num_res_blocks", num_res_blocks, "residual blocks per level on the way down");
    f("attn_resolutions", attn_resolutions, "image sides at which attention follows a block");
    f("dropout", dropout, "dropout rate in residual blocks while training");
    f("nonlinearity", nonlinearity, "swish | elu | relu | lrelu");
    f("normalization", normalization, "GroupNorm");
    f("resblock_type", resblock_type, "biggan | ddpm (ncsnpp only)");
    f("resamp_with_conv", resamp_with_conv, "ddpm blocks: resampling learns a 3x3 convolution");
    f("conditional", conditional, "the network sees the time label");
    f("fir", fir, "resample with a FIR filter (ncsnpp only)");
    f("fir_kernel", fir_kernel, "four taps of the FIR filter, normalised by their sum");
    f("skip_rescale", skip_rescale, "divide residual sums by sqrt(2) (ncsnpp only)");
    f("progressive", progressive, "output pyramid: none | output_skip | residual (ncsnpp only)");
    f("progressive_input", progressive_input,
      "input pyramid: none | input_skip | residual (ncsnpp only)");
    f("progressive_combine", progressive_combine, "input_skip joins by sum | cat");
    f("embedding_type", embedding_type, "of the time label: smooth | positional | fourier");
    f("embedding_min", embedding_min, "smooth: label of the least noise (VP 1, VE sigma_min)");
    f("embedding_max", embedding_max, "smooth: label of the most noise (VP 999, VE sigma_max)");
    f("fourier_scale", fourier_scale, "fourier: standard deviation of the frequencies");
    f("trainable_embedding", trainable_embedding, "false: fourier frequencies are fixed");
    f("label_scale", label_scale,
      "fourier: linear | log label; auto is log exactly with scale_by_sigma");
    f("init_scale", init_scale, "initial variance scale of last convolutions; 0 means 1e-10");
    f("scale_by_sigma", scale_by_sigma, "divide the output by the label (VE)");
  }
};

void check_word(const Config& c, const char* key, const std::string& value,
                std::initializer_list<const char*> allowed) {
  std::string list;
  for (const char* a : allowed) {
    if (value == a) return;
    list += (list.empty() ? "" : ", ") + std::string(a);
  }
  c.fail(key, "unknown value \"" + value + "\" (known: " + list + ")");
}

UnetOptions read_options(const Config& c) {
  const UnetOptions o = c.read<UnetOptions>();
  check_word(c, "nonlinearity", o.nonlinearity, {"swish", "elu", "relu", "lrelu"});
  check_word(c, "normalization", o.normalization, {"GroupNorm"});
  check_word(c, "resblock_type", o.resblock_type, {"biggan", "ddpm"});
  check_word(c, "progressive", o.progressive, {"none", "output_skip", "residual"});
  check_word(c, "progressive_input", o.progressive_input, {"none", "input_skip", "residual"});
  check_word(c, "progressive_combine", o.progressive_combine, {"sum", "cat"});
  check_word(c, "embedding_type", o.embedding_type, {"smooth", "positional", "fourier"});
  check_word(c, "label_scale", o.label_scale, {"auto", "linear", "log"});
  if (o.trainable_embedding) c.fail("trainable_embedding", "only fixed frequencies are known");
  if (o.channels < 1) c.fail("channels", "must be positive");
  if (o.nf < 4 || o.nf % 4) c.fail("nf", "must be a positive multiple of 4");
  if (o.ch_mult.empty()) c.fail("ch_mult", "must name at least one level");
  for (int64_t m : o.ch_mult)
    if (m < 1) c.fail("ch_mult", "must be positive");
  if (o.num_res_blocks < 1) c.fail("num_res_blocks", "must be positive");
  const int64_t factor = int64_t{1} << (o.ch_mult.size() - 1);
  if (o.image_size < factor || o.image_size % factor)
    c.fail("image_size", "must be a multiple of " + std::to_string(factor) +
                             ", one halving per level of ch_mult");
  if (!(o.dropout >= 0 && o.dropout < 1)) c.fail("dropout", "must be in [0,1)");
  if (o.fir_kernel.size() != 4) c.fail("fir_kernel", "needs four taps");
  if (o.init_scale < 0) c.fail("init_scale", "must not be negative");
  if (!(o.embedding_min > 0 && o.embedding_max > o.embedding_min))
    c.fail("embedding_max", "needs 0 < embedding_min < embedding_max");
  return o;
}

Act act_of(const std::string& name) {
  if (name == "elu") return Act::kElu;
  if (name == "relu") return Act::kRelu;
  if (name == "lrelu") return Act::kLrelu;
  return Act::kSwish;
}

// Group counts: min(C/4, 32) in ncsnpp, always 32 in ddpm.
int64_t group_count(const Config& config, bool ddpm, int64_t channels) {
  const int64_t groups = ddpm ? 32 : std::max<int64_t>(std::min<int64_t>(channels / 4, 32), 1);
  if (channels % groups)
    config.fail("nf", std::to_string(channels) + " channels do not split into " +
                          std::to_string(groups) + " groups");
  return groups;
}

struct Conv {
  at::Tensor weight, bias;
  std::shared_ptr<PackedWeights> packed;
  at::Tensor operator()(const at::Tensor& x) const { return (*this)(x, bias); }
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& other_bias) const {
    return conv2d(x, weight, other_bias, 1, weight.size(2) / 2, packed);
  }
};

struct Dense {  // weight [out,in], or [in,out] for a NIN
  at::Tensor weight, bias;
};

// Everything a layer needs to name, size and start its tensors.
struct Builder {
  const Config& config;
  const UnetOptions& options;
  bool ddpm;
  Act act;
  ParameterSet& set;
  std::vector<std::shared_ptr<PackedWeights>>& packed;

  Conv conv(const std::string& name, int64_t in, int64_t out, int64_t k = 3, double scale = 1) {
    packed.push_back(std::make_shared<PackedWeights>());
    return {set.parameter(name + ".weight", {out, in, k, k}, {Init::kFanAvg, scale}),
            set.parameter(name + ".bias", {out}, {Init::kZeros}), packed.back()};
  }
  Dense dense(const std::string& name, int64_t in, int64_t out) {
    return {set.parameter(name + ".weight", {out, in}, {Init::kFanAvg, 1}),
            set.parameter(name + ".bias", {out}, {Init::kZeros})};
  }
  Dense nin(const std::string& name, int64_t in, int64_t out, double scale = 0.1) {
    return {set.parameter(name + ".W", {in, out}, {Init::kFanAvg, scale}),
            set.parameter(name + ".b", {out}, {Init::kZeros})};
  }
  NormAct norm(const std::string& name, int64_t channels, Act a) {
    NormAct n;
    n.weight = set.parameter(name + ".weight", {channels}, {Init::kOnes});
    n.bias = set.parameter(name + ".bias", {channels}, {Init::kZeros});
    n.groups = group_count(config, ddpm, channels);
    n.act = a;
    return n;
  }
};

struct Resampler {
  bool fir = true;
  Taps taps{};
  at::Tensor down(const at::Tensor& x) const { return fir ? fir_down(x, taps) : mean_down(x); }
  at::Tensor up(const at::Tensor& x) const { return fir ? fir_up(x, taps) : nearest_up(x); }
  at::Tensor down(const at::Tensor& x, const Conv& c) const {
    if (fir) return conv2d(fir_same(x, taps, 2, 1), c.weight, c.bias, 2, 0, c.packed);
    return conv2d(channels_last(at::constant_pad_nd(x, {0, 1, 0, 1})), c.weight, c.bias, 2, 0,
                  c.packed);
  }
  at::Tensor up(const at::Tensor& x, const Conv& c) const {
    if (!fir) return c(nearest_up(x));
    // Zeros between the pixels, then the kernel as stored: the transposed convolution of the
    // flipped kernel.
    const at::Tensor w = c.weight.flip({2, 3}).transpose(0, 1);
    const at::Tensor y = at::conv_transpose2d(x, w, {}, {2, 2});
    return fir_same(channels_last(y), taps, 1, 2) + c.bias.view({1, -1, 1, 1});
  }
};

enum class Resize { kNone, kUp, kDown };

struct ResBlock {
  std::string name;
  NormAct norm0, norm1;
  Conv conv0, conv1;
  std::optional<Dense> time;
  std::optional<Conv> shortcut_conv;
  std::optional<Dense> shortcut_nin;
  Resize resize = Resize::kNone;
  double scale = 1;

  ResBlock(Builder& b, const std::string& name_, int64_t in, int64_t out,
           Resize resize_ = Resize::kNone)
      : name(name_), resize(resize_), scale(b.options.skip_rescale ? std::sqrt(0.5) : 1.0) {
    norm0 = b.norm(name + ".norm0", in, b.act);
    conv0 = b.conv(name + ".conv0", in, out);
    if (b.options.conditional) time = b.dense(name + ".temb", 4 * b.options.nf, out);
    norm1 = b.norm(name + ".norm1", out, b.act);
    conv1 = b.conv(name + ".conv1", out, out, 3, b.options.init_scale);
    if (b.options.resblock_type == "biggan") {
      if (in != out || resize != Resize::kNone)
        shortcut_conv = b.conv(name + ".shortcut", in, out, 1);
    } else if (in != out) {
      shortcut_nin = b.nin(name + ".shortcut", in, out);
    }
  }

  at::Tensor operator()(at::Tensor x, const at::Tensor& time_act, const Resampler& resampler,
                        const DropoutPass& dropout) const {
    at::Tensor h;
    std::tie(h, x) = norm0.fork(x);
    // The 1x1 shortcut commutes with resampling but for its bias, so it runs at the lower
    // resolution and its bias joins that of conv1.
    at::Tensor bias = conv1.bias;
    if (resize == Resize::kDown) {
      h = resampler.down(h);
      x = resampler.down(x);
    }
    if (shortcut_conv) {
      x = pixelwise(x, shortcut_conv->weight.flatten(1).t(), at::Tensor());
      bias = bias + shortcut_conv->bias;
    } else if (shortcut_nin) {
      x = pixelwise(x, shortcut_nin->weight, at::Tensor());
      bias = bias + shortcut_nin->bias;
    }
    if (resize == Resize::kUp) {
      h = resampler.up(h);
      x = resampler.up(x);
    }
    h = conv0(h);
    const at::Tensor t = time ? rows_times(time_act, time->weight.t(), time->bias) : at::Tensor();
    h = norm1(h, t, dropout, name);
    h = conv1(h, bias);
    return add_scale(x, h, scale);
  }
};

struct Attention {
  NormAct norm;
  Dense q, k, v, out;
  double scale = 1;

  Attention(Builder& b, const std::string& name, int64_t channels)
      : scale(b.options.skip_rescale ? std::sqrt(0.5) : 1.0) {
    norm = b.norm(name + ".norm", channels, Act::kIdentity);
    q = b.nin(name + ".q", channels, channels);
    k = b.nin(name + ".k", channels, channels);
    v = b.nin(name + ".v", channels, channels);
    out = b.nin(name + ".out", channels, channels, b.options.init_scale);
  }

  at::Tensor operator()(const at::Tensor& x_in) const {
    const int64_t B = x_in.size(0), C = x_in.size(1), H = x_in.size(2), W = x_in.size(3);
    const auto [normed, x] = norm.fork(x_in);
    const at::Tensor h = pixelwise(normed, at::cat({q.weight, k.weight, v.weight}, 1),
                                   at::cat({q.bias, k.bias, v.bias}));
    const at::Tensor a = attention(h.permute({0, 2, 3, 1}).view({B, H * W, 3 * C}));
    const at::Tensor y = rows_times(a.reshape({B * H * W, C}), out.weight, out.bias);
    return add_scale(x, y.view({B, H, W, C}).permute({0, 3, 1, 2}), scale);
  }
};

struct DownLevel {
  std::vector<ResBlock> blocks;
  std::vector<std::optional<Attention>> attention;
  std::optional<ResBlock> down_block;
  std::optional<Conv> down_conv;
  bool down = false;
  std::optional<Conv> pyramid, combine;
};
struct UpLevel {
  std::vector<ResBlock> blocks;
  std::optional<Attention> attention;
  std::optional<NormAct> pyramid_norm;
  std::optional<Conv> pyramid_conv;
  std::optional<ResBlock> up_block;
  std::optional<Conv> up_conv;
};

class Unet final : public ScoreNet {
 public:
  Unet(const Config& config, UnetOptions options, bool ddpm) : options_(std::move(options)) {
    const UnetOptions& o = options_;
    act_ = act_of(o.nonlinearity);
    scale_ = o.skip_rescale ? std::sqrt(0.5) : 1.0;
    resampler_.fir = o.fir;
    double sum = 0;
    for (double t : o.fir_kernel) sum += t;
    for (size_t i = 0; i < 4; ++i) resampler_.taps[i] = o.fir_kernel[i] / sum;

    Builder b{config, options_, ddpm, act_, set_, packed_};
    const int64_t levels = static_cast<int64_t>(o.ch_mult.size());
    const bool input_skip = o.progressive_input == "input_skip";
    const bool input_residual = o.progressive_input == "residual";
    const bool biggan = o.resblock_type == "biggan";
    const auto attends = [&](int64_t level) {
      const int64_t side = o.image_size >> level;
      return std::find(o.attn_resolutions.begin(), o.attn_resolutions.end(), side) !=
             o.attn_resolutions.end();
    };

    if (o.embedding_type == "fourier")
      fourier_ = set_.buffer("fourier.W", {o.nf}, {Init::kNormal, o.fourier_scale});
    if (o.conditional) {
      const int64_t features = o.embedding_type == "fourier" ? 2 * o.nf : o.nf;
      time0_ = b.dense("temb.dense0", features, 4 * o.nf);
      time1_ = b.dense("temb.dense1", 4 * o.nf, 4 * o.nf);
    }
    conv_in_ = b.conv("conv_in", o.channels, o.nf);

    std::vector<int64_t> skips{o.nf};
    int64_t in = o.nf;
    int64_t pyramid = o.channels;
    for (int64_t l = 0; l < levels; ++l) {
      const std::string at = "down." + std::to_string(l);
      const int64_t out = o.nf * o.ch_mult[l];
      DownLevel level;
      for (int64_t i = 0; i < o.num_res_blocks; ++i) {
        level.blocks.emplace_back(b, at + ".block." + std::to_string(i), in, out);
        in = out;
        level.attention.emplace_back();
        if (attends(l)) level.attention.back().emplace(b, at + ".attn." + std::to_string(i), in);
        skips.push_back(in);
      }
      if (l + 1 < levels) {
        level.down = true;
        if (biggan)
          level.down_block.emplace(b, at + ".downsample", in, in, Resize::kDown);
        else if (o.resamp_with_conv)
          level.down_conv = b.conv(at + ".downsample.conv", in, in);
        if (input_skip) {
          level.combine = b.conv(at + ".combine.conv", pyramid, in, 1);
          if (o.progressive_combine == "cat") in *= 2;
        } else if (input_residual) {
          level.pyramid = b.conv(at + ".pyramid.conv", pyramid, in);
          pyramid = in;
        }
        skips.push_back(in);
      }
      down_.push_back(std::move(level));
    }

    mid0_.emplace(b, "mid.block0", in, in);
    mid_attention_.emplace(b, "mid.attn", in);
    mid1_.emplace(b, "mid.block1", in, in);

    for (int64_t l = levels - 1; l >= 0; --l) {
      const std::string at = "up." + std::to_string(l);
      const int64_t out = o.nf * o.ch_mult[l];
      UpLevel level;
      for (int64_t i = 0; i <= o.num_res_blocks; ++i) {
        level.blocks.emplace_back(b, at + ".block." + std::to_string(i), in + skips.back(), out);
        skips.pop_back();
        in = out;
      }
      if (attends(l)) level.attention.emplace(b, at + ".attn", in);
      if (o.progressive == "output_skip") {
        level.pyramid_norm = b.norm(at + ".pyramid.norm", in, act_);
        level.pyramid_conv = b.conv(at + ".pyramid.conv", in, o.channels, 3, o.init_scale);
      } else if (o.progressive == "residual") {
        if (l == levels - 1) level.pyramid_norm = b.norm(at + ".pyramid.norm", in, act_);
        level.pyramid_conv = b.conv(at + ".pyramid.conv", l == levels - 1 ? in : pyramid, in);
        pyramid = in;
      }
      if (l > 0) {
        if (biggan)
          level.up_block.emplace(b, at + ".upsample", in, in, Resize::kUp);
        else if (o.resamp_with_conv)
          level.up_conv = b.conv(at + ".upsample.conv", in, in);
      }
      up_.push_back(std::move(level));
    }
    if (o.progressive != "output_skip") {
      out_norm_ = b.norm("out.norm", in, act_);
      out_conv_ = b.conv("out.conv", in, o.channels, 3, o.init_scale);
    }
    set_.initialize(Rng(0));
  }

  Shape image_shape() const override {
    return {options_.channels, options_.image_size, options_.image_size};
  }
  std::map<std::string, at::Tensor> parameters() const override { return set_.parameters(); }
  std::map<std::string, at::Tensor> buffers() const override { return set_.buffers(); }
  void initialize(const Rng& rng) override {
    set_.initialize(rng);
    parameters_changed();
  }
  void to(at::ScalarType dtype, at::Device device) override {
    set_.to(dtype, device);
    parameters_changed();
  }
  void freeze() override { set_.freeze(); }
  void use_bfloat16_convolutions() override {
    for (const auto& p : packed_) p->use_bfloat16();
  }
  void parameters_changed() override {
    for (const auto& p : packed_) p->clear();
  }

  at::Tensor forward(const at::Tensor& x_in, const at::Tensor& label,
                     const Rng* dropout_rng) const override {
    check_batched("score_net", "x", x_in, image_shape());
    SP_CHECK(label.dim() == 1 && label.size(0) == x_in.size(0), "score_net", "expected label [",
             x_in.size(0), "], got ", to_string(label.sizes().vec()));
    const UnetOptions& o = options_;
    const DropoutPass dropout{dropout_rng, o.dropout};
    const at::Tensor time = o.conditional ? time_features(label, x_in) : at::Tensor();

    const at::Tensor x = channels_last(o.centered ? x_in : x_in * 2 - 1);
    at::Tensor pyramid = x;
    std::vector<at::Tensor> skips{conv_in_(x)};
    at::Tensor h;
    for (const DownLevel& level : down_) {
      for (size_t i = 0; i < level.blocks.size(); ++i) {
        h = level.blocks[i](skips.back(), time, resampler_, dropout);
        if (level.attention[i]) h = (*level.attention[i])(h);
        skips.push_back(h);
      }
      if (!level.down) continue;
      h = skips.back();
      if (level.down_block)
        h = (*level.down_block)(h, time, resampler_, dropout);
      else
        h = level.down_conv ? resampler_.down(h, *level.down_conv) : resampler_.down(h);
      if (level.combine) {
        pyramid = resampler_.down(pyramid);
        const at::Tensor p =
            pixelwise(pyramid, level.combine->weight.flatten(1).t(), level.combine->bias);
        h = o.progressive_combine == "cat" ? channels_last(at::cat({p, h}, 1)) : add_scale(p, h, 1);
      } else if (level.pyramid) {
        pyramid = add_scale(resampler_.down(pyramid, *level.pyramid), h, scale_);
        h = pyramid;
      }
      skips.push_back(h);
    }

    h = (*mid0_)(skips.back(), time, resampler_, dropout);
    h = (*mid_attention_)(h);
    h = (*mid1_)(h, time, resampler_, dropout);

    at::Tensor out;
    for (size_t n = 0; n < up_.size(); ++n) {
      const UpLevel& level = up_[n];
      for (const ResBlock& block : level.blocks) {
        h = block(channels_last(at::cat({h, skips.back()}, 1)), time, resampler_, dropout);
        skips.pop_back();
      }
      if (level.attention) h = (*level.attention)(h);
      if (o.progressive == "output_skip") {
        const at::Tensor p = (*level.pyramid_conv)((*level.pyramid_norm)(h));
        out = n == 0 ? p : add_scale(resampler_.up(out), p, 1);
      } else if (o.progressive == "residual") {
        if (n == 0) {
          out = (*level.pyramid_conv)((*level.pyramid_norm)(h));
        } else {
          out = add_scale(resampler_.up(out, *level.pyramid_conv), h, scale_);
          h = out;
        }
      }
      if (n + 1 == up_.size()) break;
      if (level.up_block)
        h = (*level.up_block)(h, time, resampler_, dropout);
      else
        h = level.up_conv ? resampler_.up(h, *level.up_conv) : resampler_.up(h);
    }
    if (o.progressive != "output_skip") out = (*out_conv_)((*out_norm_)(h));
    if (o.scale_by_sigma) out = out / label.to(out.scalar_type()).view({-1, 1, 1, 1});
    return out.contiguous();
  }

 private:
  // act(temb) [B, 4 nf]; every block starts from it. Phases are formed in double: 2 pi W 999
  // reaches 1e5.
  at::Tensor time_features(const at::Tensor& label, const at::Tensor& x) const {
    const UnetOptions& o = options_;
    const at::TensorOptions wide = x.options().dtype(at::kDouble);
    const at::Tensor l = label.to(wide).unsqueeze(1);
    const int64_t half = o.nf / 2;
    at::Tensor phase;
    if (o.embedding_type == "fourier") {
      const bool log = o.label_scale == "log" || (o.label_scale == "auto" && o.scale_by_sigma);
      phase = (log ? at::log(l) : l) * (fourier_.to(at::kDouble) * (2 * M_PI)).unsqueeze(0);
    } else if (o.embedding_type == "positional") {
      const double rate = -std::log(10000.0) / std::max<double>(double(half - 1), 1);
      phase = l * at::exp(at::arange(half, wide) * rate).unsqueeze(0);
    } else {
      const at::Tensor u =
          at::log1p(l / o.embedding_min) / std::log1p(o.embedding_max / o.embedding_min);
      phase = u * ((at::arange(half, wide) + 1) * (4 * M_PI / double(half))).unsqueeze(0);
    }
    const at::Tensor features =
        at::cat({at::sin(phase), at::cos(phase)}, 1).to(time0_->weight.scalar_type());
    const at::Tensor t0 = activate(rows_times(features, time0_->weight.t(), time0_->bias), act_);
    return activate(rows_times(t0, time1_->weight.t(), time1_->bias), act_);
  }

  UnetOptions options_;
  Act act_;
  double scale_ = 1;
  Resampler resampler_;
  ParameterSet set_;
  std::vector<std::shared_ptr<PackedWeights>> packed_;
  at::Tensor fourier_;
  std::optional<Dense> time0_, time1_;
  Conv conv_in_;
  std::vector<DownLevel> down_;
  std::optional<ResBlock> mid0_, mid1_;
  std::optional<Attention> mid_attention_;
  std::vector<UpLevel> up_;
  std::optional<NormAct> out_norm_;
  std::optional<Conv> out_conv_;
};

}  // namespace
}  // namespace nets

std::unique_ptr<ScoreNet> make_ncsnpp(const Config& config) {
  return std::make_unique<nets::Unet>(config, nets::read_options(config), false);
}

std::unique_ptr<ScoreNet> make_ddpm(const Config& config) {
  nets::UnetOptions o = nets::read_options(config);
  o.resblock_type = "ddpm";
  o.fir = false;
  o.skip_rescale = false;
  o.progressive = "none";
  o.progressive_input = "none";
  o.scale_by_sigma = false;
  return std::make_unique<nets::Unet>(config, o, true);
}

}  // namespace scoreprior
