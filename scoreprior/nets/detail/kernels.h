#pragma once
/// Loops over channels-last float32 images, [pixels][channels]. Compiled for several instruction sets and chosen at
/// run time; no torch in here.

#include <cstdint>

namespace scoreprior::nets {

enum class Act { kIdentity, kSwish, kElu, kRelu, kLrelu };

namespace kernels {

/// Element j of image b is dropped when hash(seed_b, j) < threshold; kept ones are multiplied by scale.
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

/// y = act(a[c] x + b[c]), then dropout; `first` is the index of the first pixel (for the dropout counter).
void affine_act(Act act, const float* x, int64_t pixels, int64_t channels, const float* a,
                const float* b, const Dropout& dropout, int64_t first, float* y);

/// d = act'(a x + b) g (and dropout), s1[c] += sum d, s2[c] += sum d (x - mean[c]).
void affine_act_backward(Act act, const float* x, const float* g, int64_t pixels, int64_t channels,
                         const float* a, const float* b, const float* mean, const Dropout& dropout,
                         int64_t first, float* d, double* s1, double* s2);

/// d = p[c] d + q[c] (x - mean[c]) + r[c]
void affine_combine(const float* x, int64_t pixels, int64_t channels, const float* mean,
                    const float* p, const float* q, const float* r, float* d);

/// y = (a + b) scale
void add_scale(const float* a, const float* b, int64_t n, float scale, float* y);

/// m[j] = 0 or dropout.scale for elements first + j of an image
void dropout_mask(const Dropout& dropout, int64_t first, int64_t n, float* m);

}  // namespace kernels
}  // namespace scoreprior::nets
