#include "scoreprior/nets/detail/micro_kernel.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace scoreprior::nets::micro {
namespace {

template <class Vec, int R, int N>
SP_INLINE void all_products(int64_t count, const float* a, int64_t lda, int64_t next_a,
                            const float* b, int64_t next_b, int64_t depth, int64_t columns,
                            int64_t rows, const float* bias, float* c, int64_t ldc,
                            int64_t next_c) {
  for (int64_t s = 0; s < count; ++s)
    product_loop<Vec, R, N>(a + s * next_a, lda, b + s * next_b, depth, columns, rows, bias,
                            c + s * next_c, ldc);
}
template <class Vec, int R, int N>
SP_INLINE void all_outer(int64_t count, const float* a, int64_t lda, int64_t next_a, const float* b,
                         int64_t ldb, int64_t next_b, int64_t terms, int64_t rows, int64_t columns,
                         float* c, int64_t next_c) {
  for (int64_t s = 0; s < count; ++s)
    outer_loop<Vec, R, N>(a + s * next_a, lda, b + s * next_b, ldb, terms, rows, columns,
                          c + s * next_c);
}

#define SP_PRODUCTS_ARGS                                                                      \
  int64_t count, const float *a, int64_t lda, int64_t next_a, const float *b, int64_t next_b, \
      int64_t depth, int64_t columns, int64_t rows, const float *bias, float *c, int64_t ldc, \
      int64_t next_c
#define SP_PRODUCTS_PASS \
  count, a, lda, next_a, b, next_b, depth, columns, rows, bias, c, ldc, next_c
#define SP_OUTER_ARGS                                                                      \
  int64_t count, const float *a, int64_t lda, int64_t next_a, const float *b, int64_t ldb, \
      int64_t next_b, int64_t terms, int64_t rows, int64_t columns, float *c, int64_t next_c
#define SP_OUTER_PASS count, a, lda, next_a, b, ldb, next_b, terms, rows, columns, c, next_c

// Register blocks: 16 registers of 4 or 8 floats, 32 of 16.
void products_plain(SP_PRODUCTS_ARGS) { all_products<V4, 3, 4>(SP_PRODUCTS_PASS); }
void outer_plain(SP_OUTER_ARGS) { all_outer<V4, 2, 4>(SP_OUTER_PASS); }
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("arch=x86-64-v3"))) void products_v3(SP_PRODUCTS_ARGS) {
  all_products<V8, 6, 2>(SP_PRODUCTS_PASS);
}
__attribute__((target("arch=x86-64-v3"))) void outer_v3(SP_OUTER_ARGS) {
  all_outer<V8, 4, 2>(SP_OUTER_PASS);
}
__attribute__((target("arch=x86-64-v4"))) void products_v4(SP_PRODUCTS_ARGS) {
  all_products<V16, 12, 2>(SP_PRODUCTS_PASS);
}
__attribute__((target("arch=x86-64-v4"))) void outer_v4(SP_OUTER_ARGS) {
  all_outer<V16, 16, 1>(SP_OUTER_PASS);
}
#endif

Kernels choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return {products_v4, outer_v4};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    return {products_v3, outer_v3};
#endif
  return {products_plain, outer_plain};
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

void pack_panels(const float* b, int64_t stride_depth, int64_t stride_column, int64_t depth,
                 int64_t columns, float* packed) {
  for (int64_t n = 0; n < columns; n += kPanel)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < kPanel; ++j)
        packed[n * depth + k * kPanel + j] = b[k * stride_depth + (n + j) * stride_column];
}

float* scratch(int64_t floats) {
  thread_local std::unique_ptr<float, decltype(&std::free)> data(nullptr, &std::free);
  thread_local int64_t size = 0;
  if (floats > size) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
    size = floats;
  }
  return data.get();
}

}  // namespace scoreprior::nets::micro
