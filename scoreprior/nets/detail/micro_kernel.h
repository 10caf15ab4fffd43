#pragma once
/// Register-blocked matrix products, instantiated once per instruction set and chosen at run time.

#include <cstdint>
#include <cstring>

#include "scoreprior/nets/detail/simd.h"

namespace scoreprior::nets::micro {

// The right-hand factor lies in panels of 16 columns: [columns/16][depth][16].
constexpr int64_t kPanel = 16;
/// Row counts that are multiples of this fill every kernel's register blocks.
constexpr int64_t kRowStep = 12;

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));

template <class Vec>
SP_INLINE Vec load_as(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class Vec>
SP_INLINE void store_as(float* p, const Vec& v) {
  std::memcpy(p, &v, sizeof v);
}

// c[i] = bias + sum_k a[i][k] b[k], R rows and N vectors wide, in registers of the instruction
// set's own width.
template <class Vec, int R, int N>
SP_INLINE void block(const float* a, int64_t lda, const float* b, int64_t depth, const float* bias,
                     float* c, int64_t ldc) {
  constexpr int64_t lanes = sizeof(Vec) / sizeof(float);
  Vec acc[R][N] = {};
  if (bias)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[i][n] = load_as<Vec>(bias + n * lanes);
  for (int64_t k = 0; k < depth; ++k) {
    Vec bv[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      bv[n] =
          load_as<Vec>(b + n * lanes / kPanel * kPanel * depth + k * kPanel + n * lanes % kPanel);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const float av = a[i * lda + k];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[i][n] += av * bv[n];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store_as(c + i * ldc + n * lanes, acc[i][n]);
}

// Whole blocks of R rows, then the rest in smaller ones.
template <class Vec, int R, int N>
SP_INLINE int64_t row_blocks(int64_t r, const float* a, int64_t lda, const float* b, int64_t depth,
                             int64_t rows, const float* bias, float* c, int64_t ldc) {
  for (; r + R <= rows; r += R)
    block<Vec, R, N>(a + r * lda, lda, b, depth, bias, c + r * ldc, ldc);
  return r;
}
template <class Vec, int R, int N>
SP_INLINE void column_strip(const float* a, int64_t lda, const float* b, int64_t depth,
                            int64_t rows, const float* bias, float* c, int64_t ldc) {
  int64_t r = row_blocks<Vec, R, N>(0, a, lda, b, depth, rows, bias, c, ldc);
  if constexpr (R > 4) r = row_blocks<Vec, 4, N>(r, a, lda, b, depth, rows, bias, c, ldc);
  if constexpr (R > 2) r = row_blocks<Vec, 2, N>(r, a, lda, b, depth, rows, bias, c, ldc);
  row_blocks<Vec, 1, N>(r, a, lda, b, depth, rows, bias, c, ldc);
}
template <class Vec, int R, int N>
SP_INLINE void product_loop(const float* a, int64_t lda, const float* b, int64_t depth,
                            int64_t columns, int64_t rows, const float* bias, float* c,
                            int64_t ldc) {
  constexpr int64_t lanes = sizeof(Vec) / sizeof(float), wide = N * lanes;
  int64_t n = 0;
  for (; n + wide <= columns; n += wide)
    column_strip<Vec, R, N>(a, lda, b + n * depth, depth, rows, bias ? bias + n : nullptr, c + n,
                            ldc);
  if constexpr (wide > kPanel)
    for (; n < columns; n += kPanel)
      column_strip<Vec, R, kPanel / lanes>(a, lda, b + n * depth, depth, rows,
                                           bias ? bias + n : nullptr, c + n, ldc);
}

// c[i][o] += sum_t a[t][i] b[t][o]
template <class Vec, int R, int N>
SP_INLINE void outer_loop(const float* a0, int64_t lda, const float* b0, int64_t ldb, int64_t terms,
                          int64_t rows, int64_t columns, float* c0) {
  constexpr int64_t lanes = sizeof(Vec) / sizeof(float);
  for (int64_t n = 0; n < columns; n += N * lanes)
    for (int64_t i0 = 0; i0 < rows; i0 += R) {
      Vec acc[R][N] = {};
      const float *a = a0 + i0, *b = b0 + n;
      for (int64_t t = 0; t < terms; ++t, a += lda, b += ldb) {
        Vec bv[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) bv[j] = load_as<Vec>(b + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const float av = a[i];
#pragma GCC unroll 8
          for (int j = 0; j < N; ++j) acc[i][j] += av * bv[j];
        }
      }
      float* c = c0 + i0 * columns + n;
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
          float* at = c + i * columns + j * lanes;
          store_as<Vec>(at, load_as<Vec>(at) + acc[i][j]);
        }
    }
}

/// Chosen once for this processor.
struct Kernels {
  /// c[r][n] = bias[n] + sum_k a[r][k] b[k][n]; columns a multiple of 16, b packed in panels, bias
  /// may be null. Repeated `count` times with the three operands moved on by their strides.
  void (*products)(int64_t count, const float* a, int64_t lda, int64_t next_a, const float* b,
                   int64_t next_b, int64_t depth, int64_t columns, int64_t rows, const float* bias,
                   float* c, int64_t ldc, int64_t next_c);
  /// c[i][o] += sum_t a[t][i] b[t][o]; rows (of c) and columns multiples of 16.
  void (*outer)(int64_t count, const float* a, int64_t lda, int64_t next_a, const float* b,
                int64_t ldb, int64_t next_b, int64_t terms, int64_t rows, int64_t columns, float* c,
                int64_t next_c);
};
const Kernels& kernels();

/// b [depth][columns] with the given strides -> panels.
void pack_panels(const float* b, int64_t stride_depth, int64_t stride_column, int64_t depth,
                 int64_t columns, float* packed);

/// Per thread, grows, 64-byte aligned, contents undefined; one user at a time.
float* scratch(int64_t floats);

}  // namespace scoreprior::nets::micro
