#include "scoreprior/nets/detail/kernels.h"

#include <algorithm>

#include "scoreprior/nets/detail/simd.h"

namespace scoreprior::nets::kernels {
namespace {

using simd::kWidth;
using simd::V;
using simd::VD;
using simd::VI;
using simd::VU;

constexpr int64_t kFlush = 128;  // pixels summed in float32 before the double sum takes over

template <Act A>
SP_INLINE V activate(V u) {
  if constexpr (A == Act::kSwish) return u / (1.f + simd::exp(-u));
  if constexpr (A == Act::kElu) return u > simd::splat(0.f) ? u : simd::exp(u) - 1.f;
  if constexpr (A == Act::kRelu) return u > simd::splat(0.f) ? u : simd::splat(0.f);
  if constexpr (A == Act::kLrelu) return u > simd::splat(0.f) ? u : u * 0.2f;
  return u;
}
template <Act A>
SP_INLINE V slope(V u) {
  if constexpr (A == Act::kSwish) {
    const V s = 1.f / (1.f + simd::exp(-u));
    return s * (1.f + u * (1.f - s));
  }
  if constexpr (A == Act::kElu) return u > simd::splat(0.f) ? simd::splat(1.f) : simd::exp(u);
  if constexpr (A == Act::kRelu) return u > simd::splat(0.f) ? simd::splat(1.f) : simd::splat(0.f);
  if constexpr (A == Act::kLrelu)
    return u > simd::splat(0.f) ? simd::splat(1.f) : simd::splat(0.2f);
  return simd::splat(1.f);
}

template <Act A>
SP_INLINE V curvature(V u) {
  if constexpr (A == Act::kSwish) {
    const V s = 1.f / (1.f + simd::exp(-u));
    return s * (1.f - s) * (2.f + u * (1.f - 2.f * s));
  }
  if constexpr (A == Act::kElu) return u > simd::splat(0.f) ? simd::splat(0.f) : simd::exp(u);
  return V{};
}

// Two rounds of a 32-bit finaliser over counter and key; decides one element each.
SP_INLINE V keep(const Dropout& d, uint32_t counter) {
  VU h = (VU{0, 1, 2, 3, 4, 5, 6, 7} + counter) * 0x9E3779B1u;
  h ^= static_cast<uint32_t>(d.seed);
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= h >> 15;
  h += static_cast<uint32_t>(d.seed >> 32);
  h *= 0x846CA68Bu;
  h ^= h >> 16;
  h *= 0x9E3779B1u;
  h ^= h >> 15;
  const VI kept = (h >= (VU{} + d.threshold));
  const V s = simd::splat(d.scale);
  VI bits;
  std::memcpy(&bits, &s, sizeof bits);
  bits &= kept;
  V m;
  std::memcpy(&m, &bits, sizeof m);
  return m;
}

template <Act A, bool Drop>
SP_INLINE void affine_act_loop(const float* x, int64_t pixels, int64_t channels, const float* a,
                               const float* b, const Dropout& dropout, int64_t first, float* y) {
  const int64_t whole = channels / kWidth * kWidth;
  const int rest = static_cast<int>(channels - whole);
  for (int64_t p = 0; p < pixels; ++p) {
    const float* xp = x + p * channels;
    float* yp = y + p * channels;
    const uint32_t counter = static_cast<uint32_t>((first + p) * channels);
    for (int64_t c = 0; c < whole; c += kWidth) {
      V u = activate<A>(simd::load(xp + c) * simd::load(a + c) + simd::load(b + c));
      if constexpr (Drop) u = u * keep(dropout, counter + static_cast<uint32_t>(c));
      simd::store(yp + c, u);
    }
    if (rest) {
      const int64_t c = whole;
      V u = activate<A>(simd::load_some(xp + c, rest) * simd::load_some(a + c, rest) +
                        simd::load_some(b + c, rest));
      if constexpr (Drop) u = u * keep(dropout, counter + static_cast<uint32_t>(c));
      simd::store_some(yp + c, u, rest);
    }
  }
}

template <Act A, bool Drop>
SP_INLINE void affine_act_backward_loop(const float* x, const float* g, int64_t pixels,
                                        int64_t channels, const float* a, const float* b,
                                        const float* mean, const Dropout& dropout, int64_t first,
                                        float* d, double* s1, double* s2) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(kWidth, channels - c));
    const bool full = n == kWidth;
    const V av = full ? simd::load(a + c) : simd::load_some(a + c, n);
    const V bv = full ? simd::load(b + c) : simd::load_some(b + c, n);
    const V mv = full ? simd::load(mean + c) : simd::load_some(mean + c, n);
    for (int64_t p0 = 0; p0 < pixels; p0 += kFlush) {
      V t1{}, t2{};
      const int64_t p1 = std::min(pixels, p0 + kFlush);
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t at = p * channels + c;
        const V xv = full ? simd::load(x + at) : simd::load_some(x + at, n);
        const V gv = full ? simd::load(g + at) : simd::load_some(g + at, n);
        V dv = gv * slope<A>(xv * av + bv);
        if constexpr (Drop)
          dv = dv * keep(dropout, static_cast<uint32_t>((first + p) * channels + c));
        t1 += dv;
        t2 += dv * (xv - mv);
        if (full)
          simd::store(d + at, dv);
        else
          simd::store_some(d + at, dv, n);
      }
      for (int j = 0; j < n; ++j) {
        s1[c + j] += t1[j];
        s2[c + j] += t2[j];
      }
    }
  }
}

SP_INLINE V load_n(const float* p, int n) {
  return n == kWidth ? simd::load(p) : simd::load_some(p, n);
}
SP_INLINE void store_n(float* p, const V& v, int n) {
  if (n == kWidth)
    simd::store(p, v);
  else
    simd::store_some(p, v, n);
}

template <Act A, bool Drop>
SP_INLINE void second_sums_loop(const float* x, const float* g, const float* w, int64_t pixels,
                                int64_t channels, const float* a, const float* b, const float* mean,
                                const Dropout& dropout, int64_t first, double* s1, double* s2,
                                double* t1, double* t2) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(kWidth, channels - c));
    const V av = load_n(a + c, n), bv = load_n(b + c, n), mv = load_n(mean + c, n);
    for (int64_t p0 = 0; p0 < pixels; p0 += kFlush) {
      V a1{}, a2{}, b1{}, b2{};
      const int64_t p1 = std::min(pixels, p0 + kFlush);
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t at = p * channels + c;
        const V xv = load_n(x + at, n), wv = load_n(w + at, n);
        V dv = load_n(g + at, n) * slope<A>(xv * av + bv);
        if constexpr (Drop)
          dv = dv * keep(dropout, static_cast<uint32_t>((first + p) * channels + c));
        a1 += wv;
        a2 += wv * (xv - mv);
        b1 += dv;
        b2 += dv * (xv - mv);
      }
      for (int j = 0; j < n; ++j) {
        s1[c + j] += a1[j];
        s2[c + j] += a2[j];
        t1[c + j] += b1[j];
        t2[c + j] += b2[j];
      }
    }
  }
}

template <Act A, bool Drop>
SP_INLINE void second_loop(const float* x, const float* g, const float* w, int64_t pixels,
                           int64_t channels, const float* a, const float* b, const float* mean,
                           const float* gamma, const float* p_, const float* q_, const float* r_,
                           const float* e1_, const float* e2_, const Dropout& dropout,
                           int64_t first, float* dg, float* d, double* s1, double* s2, double* s3) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(kWidth, channels - c));
    const V av = load_n(a + c, n), bv = load_n(b + c, n), mv = load_n(mean + c, n),
            gv = load_n(gamma + c, n), pv = load_n(p_ + c, n), qv = load_n(q_ + c, n),
            rv = load_n(r_ + c, n), e1 = load_n(e1_ + c, n), e2 = load_n(e2_ + c, n);
    for (int64_t p0 = 0; p0 < pixels; p0 += kFlush) {
      V a1{}, a2{}, a3{};
      const int64_t p1 = std::min(pixels, p0 + kFlush);
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t at = p * channels + c;
        const V xv = load_n(x + at, n), wv = load_n(w + at, n), u = xv * av + bv;
        const V s = (pv * wv + qv * (xv - mv) + rv) * gv;  // gamma times the tangent
        V cot = load_n(g + at, n), fp = slope<A>(u);
        if constexpr (Drop) {
          const V m = keep(dropout, static_cast<uint32_t>((first + p) * channels + c));
          cot = cot * m;
          store_n(dg + at, fp * s * m, n);
        } else {
          store_n(dg + at, fp * s, n);
        }
        const V dv = cot * curvature<A>(u) * gv * s + e1 * (cot * fp) + e2 * wv;
        store_n(d + at, dv, n);
        a1 += dv;
        a2 += dv * (xv - mv);
        a3 += cot * fp * s;
      }
      for (int j = 0; j < n; ++j) {
        s1[c + j] += a1[j];
        s2[c + j] += a2[j];
        s3[c + j] += a3[j];
      }
    }
  }
}

}  // namespace

SP_SIMD void channel_moments(const float* x, int64_t pixels, int64_t channels, const float* shift,
                             double* sum, double* square) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(kWidth, channels - c));
    const bool full = n == kWidth;
    const V sv = full ? simd::load(shift + c) : simd::load_some(shift + c, n);
    for (int64_t p0 = 0; p0 < pixels; p0 += kFlush) {
      V t1{}, t2{};
      const int64_t p1 = std::min(pixels, p0 + kFlush);
      if (full)
        for (int64_t p = p0; p < p1; ++p) {
          const V v = simd::load(x + p * channels + c) - sv;
          t1 += v;
          t2 += v * v;
        }
      else
        for (int64_t p = p0; p < p1; ++p) {
          const V v = simd::load_some(x + p * channels + c, n) - sv;
          t1 += v;
          t2 += v * v;
        }
      for (int j = 0; j < n; ++j) {
        sum[c + j] += t1[j];
        square[c + j] += t2[j];
      }
    }
  }
}

#define SP_BY_ACT(call)     \
  switch (act) {            \
    case Act::kIdentity:    \
      call(Act::kIdentity); \
      break;                \
    case Act::kSwish:       \
      call(Act::kSwish);    \
      break;                \
    case Act::kElu:         \
      call(Act::kElu);      \
      break;                \
    case Act::kRelu:        \
      call(Act::kRelu);     \
      break;                \
    case Act::kLrelu:       \
      call(Act::kLrelu);    \
      break;                \
  }

SP_SIMD void affine_act(Act act, const float* x, int64_t pixels, int64_t channels, const float* a,
                        const float* b, const Dropout& dropout, int64_t first, float* y) {
#define SP_CALL(A)                                                          \
  if (dropout.threshold)                                                    \
    affine_act_loop<A, true>(x, pixels, channels, a, b, dropout, first, y); \
  else                                                                      \
    affine_act_loop<A, false>(x, pixels, channels, a, b, dropout, first, y)
  SP_BY_ACT(SP_CALL)
#undef SP_CALL
}

SP_SIMD void affine_act_backward(Act act, const float* x, const float* g, int64_t pixels,
                                 int64_t channels, const float* a, const float* b,
                                 const float* mean, const Dropout& dropout, int64_t first, float* d,
                                 double* s1, double* s2) {
#define SP_CALL(A)                                                                                \
  if (dropout.threshold)                                                                          \
    affine_act_backward_loop<A, true>(x, g, pixels, channels, a, b, mean, dropout, first, d, s1,  \
                                      s2);                                                        \
  else                                                                                            \
    affine_act_backward_loop<A, false>(x, g, pixels, channels, a, b, mean, dropout, first, d, s1, \
                                       s2)
  SP_BY_ACT(SP_CALL)
#undef SP_CALL
}

SP_SIMD void affine_act_second_sums(Act act, const float* x, const float* g, const float* w,
                                    int64_t pixels, int64_t channels, const float* a,
                                    const float* b, const float* mean, const Dropout& dropout,
                                    int64_t first, double* s1, double* s2, double* t1, double* t2) {
#define SP_CALL(A)                                                                                \
  if (dropout.threshold)                                                                          \
    second_sums_loop<A, true>(x, g, w, pixels, channels, a, b, mean, dropout, first, s1, s2, t1,  \
                              t2);                                                                \
  else                                                                                            \
    second_sums_loop<A, false>(x, g, w, pixels, channels, a, b, mean, dropout, first, s1, s2, t1, \
                               t2)
  SP_BY_ACT(SP_CALL)
#undef SP_CALL
}

SP_SIMD void affine_act_second(Act act, const float* x, const float* g, const float* w,
                               int64_t pixels, int64_t channels, const float* a, const float* b,
                               const float* mean, const float* gamma, const float* p,
                               const float* q, const float* r, const float* e1, const float* e2,
                               const Dropout& dropout, int64_t first, float* dg, float* d,
                               double* s1, double* s2, double* s3) {
#define SP_CALL(A)                                                                                \
  if (dropout.threshold)                                                                          \
    second_loop<A, true>(x, g, w, pixels, channels, a, b, mean, gamma, p, q, r, e1, e2, dropout,  \
                         first, dg, d, s1, s2, s3);                                               \
  else                                                                                            \
    second_loop<A, false>(x, g, w, pixels, channels, a, b, mean, gamma, p, q, r, e1, e2, dropout, \
                          first, dg, d, s1, s2, s3)
  SP_BY_ACT(SP_CALL)
#undef SP_CALL
}
#undef SP_BY_ACT

SP_SIMD void affine_combine(const float* x, int64_t pixels, int64_t channels, const float* mean,
                            const float* p, const float* q, const float* r, const float* more,
                            float* d) {
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < channels; c += kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(kWidth, channels - c));
      const int64_t at = i * channels + c;
      V v = load_n(p + c, n) * load_n(d + at, n) +
            load_n(q + c, n) * (load_n(x + at, n) - load_n(mean + c, n)) + load_n(r + c, n);
      if (more) v = v + load_n(more + at, n);
      store_n(d + at, v, n);
    }
}

SP_SIMD void few_channel_row(const float* const rows[3], int64_t width, int64_t in,
                             const double* weight, const float* bias, int64_t out, float* y) {
  for (int64_t col = 0; col < width; ++col) {
    double value[9 * kFewChannels];
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t j = 0; j < 3; ++j)
        for (int64_t c = 0; c < in; ++c) {
          const int64_t from = col + j - 1;
          const bool inside = rows[i] && from >= 0 && from < width;
          value[(i * 3 + j) * in + c] = inside ? rows[i][from * in + c] : 0;
        }
    for (int64_t o = 0; o < out; o += kWidth) {
      VD sum{};
      if (bias) sum = __builtin_convertvector(simd::load(bias + o), VD);
      for (int64_t k = 0; k < 9 * in; ++k) {
        VD w;
        std::memcpy(&w, weight + k * out + o, sizeof w);
        sum += w * value[k];
      }
      simd::store(y + col * out + o, __builtin_convertvector(sum, V));
    }
  }
}

SP_SIMD void add_scale(const float* a, const float* b, int64_t n, float scale, float* y) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth)
    simd::store(y + j, (simd::load(a + j) + simd::load(b + j)) * scale);
  for (; j < n; ++j) y[j] = (a[j] + b[j]) * scale;
}

SP_SIMD void dropout_mask(const Dropout& dropout, int64_t first, int64_t n, float* m) {
  for (int64_t j = 0; j < n; j += kWidth) {
    const V v = keep(dropout, static_cast<uint32_t>(first + j));
    if (j + kWidth <= n)
      simd::store(m + j, v);
    else
      simd::store_some(m + j, v, static_cast<int>(n - j));
  }
}

SP_SIMD void softmax_rows(float* s, int64_t rows, int64_t n, float scale) {
  for (int64_t r = 0; r < rows; ++r) {
    float* p = s + r * n;
    V top = simd::load(p);
    for (int64_t j = kWidth; j < n; j += kWidth) {
      const V v = simd::load(p + j);
      top = v > top ? v : top;
    }
    float largest = top[0];
    for (int j = 1; j < kWidth; ++j) largest = std::max(largest, top[j]);
    V sum{};
    for (int64_t j = 0; j < n; j += kWidth) {
      const V e = simd::exp((simd::load(p + j) - largest) * scale);
      simd::store(p + j, e);
      sum += e;
    }
    float total = 0;
    for (int j = 0; j < kWidth; ++j) total += sum[j];
    const float inverse = 1 / total;
    for (int64_t j = 0; j < n; j += kWidth) simd::store(p + j, simd::load(p + j) * inverse);
  }
}

SP_SIMD void softmax_rows_backward(const float* p, int64_t rows, int64_t n, float scale, float* d) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* pr = p + r * n;
    float* dr = d + r * n;
    V sum{};
    for (int64_t j = 0; j < n; j += kWidth) sum += simd::load(pr + j) * simd::load(dr + j);
    float total = 0;
    for (int j = 0; j < kWidth; ++j) total += sum[j];
    for (int64_t j = 0; j < n; j += kWidth)
      simd::store(dr + j, simd::load(pr + j) * (simd::load(dr + j) - total) * scale);
  }
}

}  // namespace scoreprior::nets::kernels
