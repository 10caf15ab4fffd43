#pragma once
/// Loops over channels-last float32 images, [pixels][channels]. Compiled for several instruction
/// sets and chosen at run time; no torch in here.

#include <cstdint>

namespace scoreprior::nets {

enum class Act { kIdentity, kSwish, kElu, kRelu, kLrelu };

namespace kernels {

/// Element j of image b is dropped when hash(seed_b, j) < threshold; kept ones are multiplied by
/// scale.
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  ///< 0: nothing is dropped
  float scale = 1;
};
inline Dropout make_dropout(double p, uint64_t seed) {
  return {seed, static_cast<uint32_t>(p * 4294967296.0), static_cast<float>(1 / (1 - p))};
}

/// sum[c] += sum_p (x - shift), square[c] += sum_p (x - shift)^2 over `pixels` pixels.
void channel_moments(const float* x, int64_t pixels, int64_t channels, const float* shift,
                     double* sum, double* square);

/// y = act(a[c] x + b[c]), then dropout; `first` is the index of the first pixel (for the dropout
/// counter).
void affine_act(Act act, const float* x, int64_t pixels, int64_t channels, const float* a,
                const float* b, const Dropout& dropout, int64_t first, float* y);

/// d = act'(a x + b) g (and dropout), s1[c] += sum d, s2[c] += sum d (x - mean[c]).
void affine_act_backward(Act act, const float* x, const float* g, int64_t pixels, int64_t channels,
                         const float* a, const float* b, const float* mean, const Dropout& dropout,
                         int64_t first, float* d, double* s1, double* s2);

/// d = p[c] d + q[c] (x - mean[c]) + r[c] + more (null: nothing)
void affine_combine(const float* x, int64_t pixels, int64_t channels, const float* mean,
                    const float* p, const float* q, const float* r, const float* more, float* d);

/// Second derivatives of affine_act. s = p[c] w + q[c] (x - mean[c]) + r[c] is the tangent of the
/// normalised value along w,
///   dg = act'(u) gamma s,   d = g act''(u) gamma^2 s + e1[c] g act'(u) + e2[c] w,
/// s1 += d, s2 += d (x - mean), s3 += g act'(u) gamma s. Overwrites dg and d.
void affine_act_second(Act act, const float* x, const float* g, const float* w, int64_t pixels,
                       int64_t channels, const float* a, const float* b, const float* mean,
                       const float* gamma, const float* p, const float* q, const float* r,
                       const float* e1, const float* e2, const Dropout& dropout, int64_t first,
                       float* dg, float* d, double* s1, double* s2, double* s3);
/// s1 += w, s2 += w (x - mean); t1 += g act'(u), t2 += g act'(u) (x - mean).
void affine_act_second_sums(Act act, const float* x, const float* g, const float* w, int64_t pixels,
                            int64_t channels, const float* a, const float* b, const float* mean,
                            const Dropout& dropout, int64_t first, double* s1, double* s2,
                            double* t1, double* t2);

/// One row of a 3x3 convolution of few channels with zero padding, summed in double: y [width,out].
/// rows[i] is row i - 1 of x around it, [width,in], or null outside; weight [3,3,in,out]; `in` at
/// most kFewChannels, `out` a multiple of 8; bias may be null.
constexpr int64_t kFewChannels = 4;
void few_channel_row(const float* const rows[3], int64_t width, int64_t in, const double* weight,
                     const float* bias, int64_t out, float* y);

/// y = (a + b) scale
void add_scale(const float* a, const float* b, int64_t n, float scale, float* y);

/// m[j] = 0 or dropout.scale for elements first + j of an image
void dropout_mask(const Dropout& dropout, int64_t first, int64_t n, float* m);

/// Rows of n become softmax(scale row).
void softmax_rows(float* s, int64_t rows, int64_t n, float scale);
/// d = p (d - sum_row(p d)) scale, row by row.
void softmax_rows_backward(const float* p, int64_t rows, int64_t n, float scale, float* d);

}  // namespace kernels
}  // namespace scoreprior::nets
