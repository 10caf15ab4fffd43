#include "scoreprior/nets/detail/layers.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/nets/detail/micro_kernel.h"
#include "scoreprior/nets/double_backward.h"

namespace scoreprior::nets {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::vector<kernels::Dropout> dropouts(const at::Tensor& seeds, double rate, int64_t batch) {
  std::vector<kernels::Dropout> d(batch);
  if (seeds.numel() == 0) return d;
  const int64_t* s = seeds.data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    d[b] = kernels::make_dropout(rate, static_cast<uint64_t>(s[b]));
  return d;
}

// Images split into chunks of pixels when there are fewer images than threads.
struct Chunks {
  int64_t batch, pixels, per_image, size;
  Chunks(int64_t batch_, int64_t pixels_) : batch(batch_), pixels(pixels_) {
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    per_image = batch >= threads ? 1 : std::min<int64_t>((threads + batch - 1) / batch, 16);
    size = (pixels + per_image - 1) / per_image;
  }
  int64_t first(int64_t k) const { return std::min(k * size, pixels); }
  int64_t count(int64_t k) const { return first(k + 1) - first(k); }

  // before(b,k) for all chunks of an image, then middle(b), then after(b,k).
  template <class Before, class Middle, class After>
  void run(Before&& before, Middle&& middle, After&& after) const {
    if (per_image == 1) {
      at::parallel_for(0, batch, 1, [&](int64_t b0, int64_t b1) {
        for (int64_t b = b0; b < b1; ++b) {
          before(b, 0);
          middle(b);
          after(b, 0);
        }
      });
      return;
    }
    at::parallel_for(0, batch * per_image, 1, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i) before(i / per_image, i % per_image);
    });
    for (int64_t b = 0; b < batch; ++b) middle(b);
    at::parallel_for(0, batch * per_image, 1, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i) after(i / per_image, i % per_image);
    });
  }
};

// Per image and channel: y = act(a x + b) with a = gamma/sigma, b = beta - a mean; mean is the
// value of x whose normalised value is 0 (group mean less the time bias), deviation = sum over
// pixels of x - mean. d<w, dx> where dx = d<g, y>/dx is the first derivative. With xh the
// normalised value, s = dxh along w and a = g act'(u) gamma: dL/dg = act'(u) gamma s; the cotangent
// of xh is g act''(u) gamma^2 s - inv (a mean(w xh) + w mean(a xh)), and 1/sigma adds -(inv
// <a,s>/n) xh; means over the group of n values.
struct NormActGradFunction : torch::autograd::Function<NormActGradFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& g,
                            const at::Tensor& gamma, const at::Tensor& coef,
                            const at::Tensor& seeds, const at::Tensor& first_derivative,
                            int64_t groups, int64_t act, double rate) {
    ctx->save_for_backward({x, g, gamma, coef, seeds});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["act"] = act;
    ctx->saved_data["rate"] = rate;
    return first_derivative.clone(at::MemoryFormat::ChannelsLast);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    SP_CHECK(!at::GradMode::is_enabled(), "norm", "third derivatives are not there");
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &g = saved[1], &gamma = saved[2], &coef = saved[3];
    const at::Tensor w = channels_last(grads[0]);
    const int64_t B = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
    const int64_t G = ctx->saved_data["groups"].toInt(), per = C / G;
    const auto act = static_cast<Act>(ctx->saved_data["act"].toInt());
    const auto drop = dropouts(saved[4], ctx->saved_data["rate"].toDouble(), B);
    at::Tensor dx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    at::Tensor dg = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    const float *xp = x.data_ptr<float>(), *gp = g.data_ptr<float>(), *wp = w.data_ptr<float>();
    const float *gammap = gamma.data_ptr<float>(), *kp = coef.data_ptr<float>();
    float *dxp = dx.data_ptr<float>(), *dgp = dg.data_ptr<float>();
    at::parallel_for(0, B, 1, [&](int64_t b0, int64_t b1) {
      std::vector<double> sums(7 * C);
      std::vector<float> f(8 * C);
      for (int64_t b = b0; b < b1; ++b) {
        const int64_t at = b * P * C;
        const float *row = kp + b * 5 * C, *mean = row + 2 * C;
        std::fill(sums.begin(), sums.end(), 0.0);
        double* s = sums.data();
        kernels::affine_act_second_sums(act, xp + at, gp + at, wp + at, P, C, row, row + C, mean,
                                        drop[b], 0, s, s + C, s + 2 * C, s + 3 * C);
        std::vector<double> ma(G), mw(G);
        for (int64_t gi = 0; gi < G; ++gi) {
          const double inv = row[4 * C + gi * per], n = double(P * per);
          double w1 = 0, w2 = 0, a2 = 0;
          for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
            w1 += s[c];
            w2 += s[C + c] * inv;
            a2 += gammap[c] * s[3 * C + c] * inv;
          }
          mw[gi] = w2 / n;
          ma[gi] = a2 / n;
          for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
            f[c] = float(inv);
            f[C + c] = float(-inv * inv * mw[gi]);
            f[2 * C + c] = float(-inv * w1 / n);
            f[3 * C + c] = float(-inv * mw[gi] * gammap[c]);
            f[4 * C + c] = float(-inv * ma[gi]);
          }
        }
        kernels::affine_act_second(act, xp + at, gp + at, wp + at, P, C, row, row + C, mean, gammap,
                                   f.data(), f.data() + C, f.data() + 2 * C, f.data() + 3 * C,
                                   f.data() + 4 * C, drop[b], 0, dgp + at, dxp + at, s + 4 * C,
                                   s + 5 * C, s + 6 * C);
        for (int64_t gi = 0; gi < G; ++gi) {
          const double inv = row[4 * C + gi * per], n = double(P * per);
          double q1 = 0, q2 = 0, as = 0;
          for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
            q1 += s[4 * C + c];
            q2 += s[5 * C + c] * inv;
            as += s[6 * C + c];
          }
          for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
            f[5 * C + c] = float(inv);
            f[6 * C + c] = float(-inv * inv * (q2 + as) / n);
            f[7 * C + c] = float(-inv * q1 / n);
          }
        }
        kernels::affine_combine(xp + at, P, C, mean, f.data() + 5 * C, f.data() + 6 * C,
                                f.data() + 7 * C, nullptr, dxp + at);
      }
    });
    variable_list out(9);
    out[0] = dx;
    out[1] = dg;
    return out;
  }
};

struct NormActFunction : torch::autograd::Function<NormActFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const at::Tensor& time_bias, const at::Tensor& gamma,
                               const at::Tensor& beta, const at::Tensor& seeds, int64_t groups,
                               double eps, int64_t act, double rate, bool fork) {
    const int64_t B = x.size(0), C = x.size(1), P = x.size(2) * x.size(3), G = groups;
    const int64_t per = C / G;
    const Chunks chunks(B, P);
    at::Tensor y = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    // rows: a, b, mean, deviation, inverse sigma (repeated per channel)
    at::Tensor coef = at::empty({B, 5, C}, x.options());
    const auto drop = dropouts(seeds, rate, B);
    const float* xp = x.data_ptr<float>();
    float* yp = y.data_ptr<float>();
    float* kp = coef.data_ptr<float>();
    const float* tp = time_bias.numel() ? time_bias.data_ptr<float>() : nullptr;
    const float* gp = gamma.data_ptr<float>();
    const float* bp = beta.data_ptr<float>();
    std::vector<double> moments(B * chunks.per_image * 2 * C, 0.0);
    const auto image_moments = [&](int64_t b, int64_t k) {
      return moments.data() + (b * chunks.per_image + k) * 2 * C;
    };
    chunks.run(
        [&](int64_t b, int64_t k) {
          double* m = image_moments(b, k);
          kernels::channel_moments(xp + (b * P + chunks.first(k)) * C, chunks.count(k), C,
                                   xp + b * P * C, m, m + C);
        },
        [&](int64_t b) {
          double* m = image_moments(b, 0);
          for (int64_t k = 1; k < chunks.per_image; ++k)
            for (int64_t j = 0; j < 2 * C; ++j) m[j] += image_moments(b, k)[j];
          const float* shift = xp + b * P * C;
          float* row = kp + b * 5 * C;
          for (int64_t g = 0; g < G; ++g) {
            double mean = 0;
            for (int64_t c = g * per; c < (g + 1) * per; ++c)
              mean += shift[c] + m[c] / double(P) + (tp ? tp[b * C + c] : 0.f);
            mean /= double(per);
            double var = 0;
            for (int64_t c = g * per; c < (g + 1) * per; ++c) {
              const double d = m[c] / double(P);
              const double off = shift[c] + d + (tp ? tp[b * C + c] : 0.f) - mean;
              var += m[C + c] / double(P) - d * d + off * off;
            }
            const double inv = 1 / std::sqrt(var / double(per) + eps);
            for (int64_t c = g * per; c < (g + 1) * per; ++c) {
              const double centre = mean - (tp ? tp[b * C + c] : 0.f);
              row[c] = float(gp[c] * inv);
              row[C + c] = float(bp[c] - gp[c] * inv * centre);
              row[2 * C + c] = float(centre);
              row[3 * C + c] = float(m[c] + double(P) * (shift[c] - centre));
              row[4 * C + c] = float(inv);
            }
          }
        },
        [&](int64_t b, int64_t k) {
          const float* row = kp + b * 5 * C;
          const int64_t at = (b * P + chunks.first(k)) * C;
          kernels::affine_act(static_cast<Act>(act), xp + at, chunks.count(k), C, row, row + C,
                              drop[b], chunks.first(k), yp + at);
        });
    ctx->save_for_backward({x, gamma, coef, seeds});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["act"] = act;
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["time"] = tp != nullptr;
    if (fork) return {y, x.view_as(x)};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (at::GradMode::is_enabled()) {
      SP_CHECK(!ctx->needs_input_grad(1) && !ctx->needs_input_grad(2) && !ctx->needs_input_grad(3),
               "norm", "create_graph needs a DoubleBackwardScope around the forward pass");
      variable_list first;
      {
        at::NoGradGuard no_grad;
        first = first_derivatives(ctx, grads[0], {});
      }
      const auto saved = ctx->get_saved_variables();
      first[0] = NormActGradFunction::apply(saved[0], channels_last(grads[0]), saved[1], saved[2],
                                            saved[3], first[0], ctx->saved_data["groups"].toInt(),
                                            ctx->saved_data["act"].toInt(),
                                            ctx->saved_data["rate"].toDouble());
      if (grads.size() > 1) first[0] = first[0] + grads[1];
      return first;
    }
    return first_derivatives(ctx, grads[0],
                             grads.size() > 1 ? channels_last(grads[1]) : at::Tensor());
  }

  // `more` [B,C,H,W] or undefined is added to the gradient of x.
  static variable_list first_derivatives(AutogradContext* ctx, const at::Tensor& grad,
                                         const at::Tensor& more) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &gamma = saved[1], &coef = saved[2], &seeds = saved[3];
    const at::Tensor g = channels_last(grad);
    const float* mp = more.defined() ? more.data_ptr<float>() : nullptr;
    const int64_t B = x.size(0), C = x.size(1), P = x.size(2) * x.size(3);
    const int64_t G = ctx->saved_data["groups"].toInt(), per = C / G;
    const auto act = static_cast<Act>(ctx->saved_data["act"].toInt());
    const bool has_time = ctx->saved_data["time"].toBool();
    const bool need_affine = ctx->needs_input_grad(2) || ctx->needs_input_grad(3);
    const Chunks chunks(B, P);
    const auto drop = dropouts(seeds, ctx->saved_data["rate"].toDouble(), B);
    at::Tensor gx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    at::Tensor gt = has_time ? at::empty({B, C}, x.options()) : at::Tensor();
    at::Tensor affine = at::empty({need_affine ? B : 0, 2, C}, x.options());
    std::vector<double> sums(B * chunks.per_image * 2 * C, 0.0);
    std::vector<float> pqr(B * 3 * C);
    const float* xp = x.data_ptr<float>();
    const float* gp = g.data_ptr<float>();
    const float* wp = gamma.data_ptr<float>();
    const float* kp = coef.data_ptr<float>();
    float* dp = gx.data_ptr<float>();
    float* tp = has_time ? gt.data_ptr<float>() : nullptr;
    float* ap = affine.data_ptr<float>();
    const auto image_sums = [&](int64_t b, int64_t k) {
      return sums.data() + (b * chunks.per_image + k) * 2 * C;
    };
    chunks.run(
        [&](int64_t b, int64_t k) {
          const float* row = kp + b * 5 * C;
          const int64_t at = (b * P + chunks.first(k)) * C;
          double* s = image_sums(b, k);
          kernels::affine_act_backward(act, xp + at, gp + at, chunks.count(k), C, row, row + C,
                                       row + 2 * C, drop[b], chunks.first(k), dp + at, s, s + C);
        },
        [&](int64_t b) {
          double* s = image_sums(b, 0);
          for (int64_t k = 1; k < chunks.per_image; ++k)
            for (int64_t j = 0; j < 2 * C; ++j) s[j] += image_sums(b, k)[j];
          const float* row = kp + b * 5 * C;
          float* f = pqr.data() + b * 3 * C;
          for (int64_t gi = 0; gi < G; ++gi) {
            const double inv = row[4 * C + gi * per];
            double m1 = 0, m2 = 0;
            for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
              m1 += wp[c] * s[c];
              m2 += wp[c] * s[C + c] * inv;
            }
            m1 /= double(P * per);
            m2 /= double(P * per);
            for (int64_t c = gi * per; c < (gi + 1) * per; ++c) {
              f[c] = float(inv * wp[c]);
              f[C + c] = float(-inv * inv * m2);
              f[2 * C + c] = float(-inv * m1);
              if (tp)
                tp[b * C + c] = float(inv * wp[c] * s[c] - inv * inv * m2 * row[3 * C + c] -
                                      inv * m1 * double(P));
              if (need_affine) {
                ap[b * 2 * C + c] = float(s[C + c] * inv);
                ap[b * 2 * C + C + c] = float(s[c]);
              }
            }
          }
        },
        [&](int64_t b, int64_t k) {
          const float* row = kp + b * 5 * C;
          const float* f = pqr.data() + b * 3 * C;
          const int64_t at = (b * P + chunks.first(k)) * C;
          kernels::affine_combine(xp + at, chunks.count(k), C, row + 2 * C, f, f + C, f + 2 * C,
                                  mp ? mp + at : nullptr, dp + at);
        });
    variable_list out(10);
    out[0] = gx;
    out[1] = gt;
    if (need_affine) {
      const at::Tensor total = affine.sum(0);
      out[2] = total[0];
      out[3] = total[1];
    }
    return out;
  }
};

struct AddScaleFunction : torch::autograd::Function<AddScaleFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& a, const at::Tensor& b,
                            double scale) {
    ctx->saved_data["scale"] = scale;
    at::Tensor y = at::empty_like(a, at::MemoryFormat::ChannelsLast);
    const float *ap = a.data_ptr<float>(), *bp = b.data_ptr<float>();
    float* yp = y.data_ptr<float>();
    at::parallel_for(0, a.numel(), 16384, [&](int64_t i, int64_t j) {
      kernels::add_scale(ap + i, bp + i, j - i, static_cast<float>(scale), yp + i);
    });
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const at::Tensor d = g[0] * ctx->saved_data["scale"].toDouble();
    return {d, d, at::Tensor()};
  }
};

// y = x w + b, or (transposed) y = x w^T; linear in x, so each is the other's derivative.
struct RowsTimes : torch::autograd::Function<RowsTimes> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const at::Tensor& b, bool transposed) {
    ctx->save_for_backward({x, w});
    ctx->saved_data["transposed"] = transposed;
    const int64_t P = x.size(0), K = x.size(1), N = transposed ? w.size(0) : w.size(1);
    at::Tensor packed = at::empty({K * N}, x.options());
    micro::pack_panels(w.data_ptr<float>(), transposed ? 1 : N, transposed ? K : 1, K, N,
                       packed.data_ptr<float>());
    at::Tensor y = at::empty({P, N}, x.options());
    const float *xp = x.data_ptr<float>(), *pp = packed.data_ptr<float>();
    const float* bp = b.numel() ? b.data_ptr<float>() : nullptr;
    float* yp = y.data_ptr<float>();
    constexpr int64_t kRows = 8 * micro::kRowStep;
    at::parallel_for(0, (P + kRows - 1) / kRows, 4, [&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c)
        micro::kernels().products(1, xp + c * kRows * K, K, 0, pp, 0, K, N,
                                  std::min(kRows, P - c * kRows), bp, yp + c * kRows * N, N, 0);
    });
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const bool transposed = ctx->saved_data["transposed"].toBool();
    const at::Tensor g = grads[0].contiguous();
    variable_list out(4);
    if (ctx->needs_input_grad(0))
      out[0] = RowsTimes::apply(g, w, at::empty({0}, g.options()), !transposed);
    if (ctx->needs_input_grad(1)) {
      SP_CHECK(!at::GradMode::is_enabled() && !transposed, "dense",
               "create_graph needs a DoubleBackwardScope around the forward pass");
      out[1] = weight_gradient(x, g);
    }
    if (ctx->needs_input_grad(2)) out[2] = g.sum(0);
    return out;
  }

 private:
  static at::Tensor weight_gradient(const at::Tensor& x, const at::Tensor& g) {
    const int64_t P = x.size(0), K = x.size(1), N = g.size(1);
    const int64_t slots = std::min<int64_t>((P + 255) / 256, at::get_num_threads());
    at::Tensor sums = at::zeros({slots, K, N}, x.options());
    const float *xp = x.data_ptr<float>(), *gp = g.data_ptr<float>();
    float* sp = sums.data_ptr<float>();
    at::parallel_for(0, slots, 1, [&](int64_t s0, int64_t s1) {
      for (int64_t s = s0; s < s1; ++s)
        for (int64_t p = s * P / slots; p < (s + 1) * P / slots;) {
          const int64_t count = std::min<int64_t>(256, (s + 1) * P / slots - p);
          micro::kernels().outer(1, xp + p * K, K, 0, gp + p * N, N, 0, count, K, N, sp + s * K * N,
                                 0);
          p += count;
        }
    });
    return slots == 1 ? sums[0] : sums.sum(0);
  }
};

// One image after the other on each thread; the weights of softmax are kept for the backward pass.
struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv) {
    const int64_t B = qkv.size(0), N = qkv.size(1), C = qkv.size(2) / 3;
    at::Tensor weights = at::empty({B, N, N}, qkv.options());
    at::Tensor y = at::empty({B, N, C}, qkv.options());
    const float* in = qkv.data_ptr<float>();
    float *wp = weights.data_ptr<float>(), *yp = y.data_ptr<float>();
    const auto scale = static_cast<float>(1 / std::sqrt(double(C)));
    at::parallel_for(0, B, 1, [&](int64_t b0, int64_t b1) {
      float* packed = micro::scratch(N * C);
      for (int64_t b = b0; b < b1; ++b) {
        const float* q = in + b * N * 3 * C;
        float *p = wp + b * N * N, *out = yp + b * N * C;
        micro::pack_panels(q + C, 1, 3 * C, C, N, packed);
        micro::kernels().products(1, q, 3 * C, 0, packed, 0, C, N, N, nullptr, p, N, 0);
        kernels::softmax_rows(p, N, N, scale);
        micro::pack_panels(q + 2 * C, 3 * C, 1, N, C, packed);
        micro::kernels().products(1, p, N, 0, packed, 0, N, C, N, nullptr, out, C, 0);
      }
    });
    ctx->save_for_backward({qkv, weights});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    SP_CHECK(!at::GradMode::is_enabled(), "attention",
             "create_graph needs a DoubleBackwardScope around the forward pass");
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &qkv = saved[0], &weights = saved[1];
    const at::Tensor g = grads[0].contiguous();
    const int64_t B = qkv.size(0), N = qkv.size(1), C = qkv.size(2) / 3;
    at::Tensor d = at::empty({B, N, 3 * C}, qkv.options());
    const float *in = qkv.data_ptr<float>(), *wp = weights.data_ptr<float>();
    const float* gp = g.data_ptr<float>();
    float* dp = d.data_ptr<float>();
    const auto scale = static_cast<float>(1 / std::sqrt(double(C)));
    at::parallel_for(0, B, 1, [&](int64_t b0, int64_t b1) {
      float* packed = micro::scratch(2 * N * C + N * N);
      float *sum = packed + N * C, *ds = sum + N * C;
      const auto put = [&](int64_t b, int64_t part) {
        for (int64_t r = 0; r < N; ++r)
          std::copy_n(sum + r * C, C, dp + (b * N + r) * 3 * C + part * C);
      };
      for (int64_t b = b0; b < b1; ++b) {
        const float *q = in + b * N * 3 * C, *p = wp + b * N * N, *go = gp + b * N * C;
        std::fill_n(sum, N * C, 0.f);
        micro::kernels().outer(1, p, N, 0, go, C, 0, N, N, C, sum, 0);
        put(b, 2);
        micro::pack_panels(q + 2 * C, 1, 3 * C, C, N, packed);
        micro::kernels().products(1, go, C, 0, packed, 0, C, N, N, nullptr, ds, N, 0);
        kernels::softmax_rows_backward(p, N, N, scale, ds);
        micro::pack_panels(q + C, 3 * C, 1, N, C, packed);
        micro::kernels().products(1, ds, N, 0, packed, 0, N, C, N, nullptr, dp + b * N * 3 * C,
                                  3 * C, 0);
        std::fill_n(sum, N * C, 0.f);
        micro::kernels().outer(1, ds, N, 0, q, 3 * C, 0, N, N, C, sum, 0);
        put(b, 1);
      }
    });
    return {d};
  }
};

at::Tensor draw_seeds(const DropoutPass& dropout, const std::string& layer, int64_t batch) {
  if (!dropout.active()) return at::empty({0}, at::kLong);
  return (dropout.rng->split(layer).uniform({batch, 1}, at::kDouble) * 9007199254740992.0)
      .flatten()
      .to(at::kLong);
}

at::Tensor mask_tensor(const at::Tensor& seeds, double rate, const at::Tensor& like) {
  const auto drop = dropouts(seeds, rate, like.size(0));
  at::Tensor mask = at::empty(like.sizes(), at::TensorOptions().dtype(at::kFloat),
                              at::MemoryFormat::ChannelsLast);
  const int64_t n = mask.numel() / std::max<int64_t>(mask.size(0), 1);
  float* m = mask.data_ptr<float>();
  at::parallel_for(0, like.size(0), 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      // one pixel at a time: the fused kernel counts channels in blocks that restart at each pixel
      const int64_t C = like.size(1);
      for (int64_t p = 0; p < n / C; ++p)
        kernels::dropout_mask(drop[b], p * C, C, m + b * n + p * C);
    }
  });
  return mask.to(like.options());
}

}  // namespace

bool use_fused(const at::Tensor& x, bool twice_differentiable) {
  return x.is_cpu() && x.scalar_type() == at::kFloat &&
         (twice_differentiable || !DoubleBackwardScope::active());
}

at::Tensor channels_last(const at::Tensor& x) {
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

at::Tensor activate(const at::Tensor& x, Act act) {
  switch (act) {
    case Act::kSwish:
      return at::silu(x);
    case Act::kElu:
      return at::elu(x);
    case Act::kRelu:
      return at::relu(x);
    case Act::kLrelu:
      return at::leaky_relu(x, 0.2);
    case Act::kIdentity:
      break;
  }
  return x;
}

at::Tensor NormAct::operator()(const at::Tensor& x, const at::Tensor& time_bias,
                               const DropoutPass& dropout, const std::string& layer) const {
  const at::Tensor seeds = draw_seeds(dropout, layer, x.size(0));
  const bool frozen = !weight.requires_grad() && !bias.requires_grad() &&
                      !(time_bias.defined() && time_bias.requires_grad());
  if (use_fused(x, frozen))
    return NormActFunction::apply(
        channels_last(x),
        time_bias.defined() ? time_bias.contiguous() : at::empty({0}, x.options()), weight, bias,
        seeds, groups, eps, static_cast<int64_t>(act), dropout.rate, false)[0];
  at::Tensor h = time_bias.defined() ? x + time_bias.unsqueeze(-1).unsqueeze(-1) : x;
  h = activate(at::group_norm(h, groups, weight, bias, eps), act);
  return dropout.active() ? h * mask_tensor(seeds, dropout.rate, h) : h;
}

std::pair<at::Tensor, at::Tensor> NormAct::fork(const at::Tensor& x) const {
  if (!use_fused(x, false)) return {(*this)(x), x};
  const at::Tensor none = at::empty({0}, x.options());
  const auto out =
      NormActFunction::apply(channels_last(x), none, weight, bias, at::empty({0}, at::kLong),
                             groups, eps, static_cast<int64_t>(act), 0.0, true);
  return {out[0], out[1]};
}

at::Tensor add_scale(const at::Tensor& a, const at::Tensor& b, double scale) {
  if (use_fused(a, true)) return AddScaleFunction::apply(channels_last(a), channels_last(b), scale);
  const at::Tensor sum = a + b;
  return scale == 1 ? sum : sum * scale;
}

at::Tensor attention(const at::Tensor& qkv) {
  const int64_t C = qkv.size(2) / 3;
  if (use_fused(qkv, false) && C % 16 == 0 && qkv.size(1) % 16 == 0)
    return AttentionFunction::apply(qkv.contiguous());
  const at::Tensor q = qkv.narrow(2, 0, C), k = qkv.narrow(2, C, C), v = qkv.narrow(2, 2 * C, C);
  const at::Tensor w = at::softmax(at::bmm(q * (1 / std::sqrt(double(C))), k.transpose(1, 2)), -1);
  return at::bmm(w, v);
}

at::Tensor rows_times(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
  if (use_fused(x, !w.requires_grad()) && w.size(0) % 16 == 0 && w.size(1) % 16 == 0)
    return RowsTimes::apply(x.contiguous(), w.contiguous(),
                            b.defined() ? b : at::empty({0}, x.options()), false);
  return b.defined() ? at::addmm(b, x, w) : at::mm(x, w);
}

at::Tensor pixelwise(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const at::Tensor rows = channels_last(x).permute({0, 2, 3, 1}).reshape({B * H * W, C});
  return rows_times(rows, w, b).view({B, H, W, w.size(1)}).permute({0, 3, 1, 2});
}

}  // namespace scoreprior::nets
