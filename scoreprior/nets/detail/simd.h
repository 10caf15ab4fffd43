#pragma once
/// Vectors of 8 floats through the compiler's own extension: one register from AVX2 on.
/// Functions marked SP_SIMD are compiled for each set; everything they call here is inlined into
/// them.

#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define SP_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SP_SIMD
#endif
#define SP_INLINE inline __attribute__((always_inline))

namespace scoreprior::nets::simd {

typedef float V __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));
typedef uint32_t VU __attribute__((vector_size(32)));
typedef double VD __attribute__((vector_size(64)));  // 8 of them
constexpr int kWidth = 8;

SP_INLINE V splat(float s) { return V{} + s; }
SP_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SP_INLINE void store(float* p, const V& v) { std::memcpy(p, &v, sizeof v); }
/// The first n of 8, zero beyond.
SP_INLINE V load_some(const float* p, int n) {
  V v{};
  for (int j = 0; j < n; ++j) v[j] = p[j];
  return v;
}
SP_INLINE void store_some(float* p, const V& v, int n) {
  for (int j = 0; j < n; ++j) p[j] = v[j];
}

/// e^x to about 1 unit in the last place on [-87, 88], clamped beyond (Cody-Waite reduction, degree
/// 6).
SP_INLINE V exp(V x) {
  x = x < splat(-87.f) ? splat(-87.f) : x;
  x = x > splat(88.f) ? splat(88.f) : x;
  const V magic = splat(12582912.f);
  const V n = (x * 1.44269504088896341f + magic) - magic;
  V f = x - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.f;
  const VI bits = (__builtin_convertvector(n, VI) + 127) << 23;
  V two_n;
  std::memcpy(&two_n, &bits, sizeof two_n);
  return p * two_n;
}

}  // namespace scoreprior::nets::simd
