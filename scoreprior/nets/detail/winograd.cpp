#include "scoreprior/nets/detail/winograd.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "scoreprior/nets/detail/micro_kernel.h"
#include "scoreprior/nets/detail/simd.h"

namespace scoreprior::nets::winograd {
namespace {

using micro::kPanel;
using micro::kRowStep;
using simd::kWidth;
using simd::V;

// Tiles in flight: [tile][36][channels], so that a tile is written and read in one stretch.
constexpr int64_t kScratchBytes = 448 << 10;  // of an L2 cache

int64_t tiles_per_block(int64_t in, int64_t out) {
  const int64_t fit = kScratchBytes / (36 * (in + out) * int64_t{sizeof(float)});
  return std::clamp<int64_t>(fit / kRowStep * kRowStep, 2 * kRowStep, 4 * kRowStep);
}

SP_INLINE void input_transform(const V& d0, const V& d1, const V& d2, const V& d3, const V& d4,
                               const V& d5, V* t) {
  const V a = d4 - 4.f * d2, b = d3 - 4.f * d1;
  const V c = d4 - d2, e = 2.f * (d3 - d1);
  t[0] = 4.f * d0 - 5.f * d2 + d4;
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = 4.f * d1 - 5.f * d3 + d5;
}
SP_INLINE void output_transform(const V* m, V* y) {
  const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = b + 2.f * d;
  y[2] = a + 4.f * c;
  y[3] = b + 8.f * d + m[5];
}
// The transpose of output_transform.
SP_INLINE void gradient_transform(const V* y, V* m) {
  const V a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4.f * y[2], d = 2.f * y[1] + 8.f * y[3];
  m[0] = y[0];
  m[1] = a + b;
  m[2] = a - b;
  m[3] = c + d;
  m[4] = c - d;
  m[5] = y[3];
}
SP_INLINE void weight_transform(const V& g0, const V& g1, const V& g2, V* u) {
  const V s = (g0 + g2) * (-1.f / 6), h = g1 * (1.f / 6);
  const V p = g0 * (1.f / 24) + g2 * (1.f / 6), q = g1 * (1.f / 12);
  u[0] = g0 * 0.25f;
  u[1] = s - h;
  u[2] = s + h;
  u[3] = p + q;
  u[4] = p - q;
  u[5] = g2;
}
// The transpose of weight_transform.
SP_INLINE void weight_gradient_transform(const V* u, V* g) {
  const V s = (u[1] + u[2]) * (-1.f / 6), d = u[2] - u[1];
  const V p = u[3] + u[4], q = u[3] - u[4];
  g[0] = u[0] * 0.25f + s + p * (1.f / 24);
  g[1] = d * (1.f / 6) + q * (1.f / 12);
  g[2] = s + p * (1.f / 6) + u[5];
}

struct TileGrid {
  int64_t height, width, across, per_image;
  explicit TileGrid(const Images& i)
      : height(i.height), width(i.width), across(i.width / 4), per_image(i.height / 4 * across) {}
};

SP_SIMD void gather_tile(const TileGrid& grid, const float* x, int64_t channels, int64_t tile,
                         const float* zeros, float* v) {
  const int64_t image = tile / grid.per_image, at = tile % grid.per_image;
  const int64_t row = at / grid.across * 4 - 1, col = at % grid.across * 4 - 1;
  const float* base = x + image * grid.height * grid.width * channels;
  const float* pixel[6][6];
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t r = row + i, c = col + j;
      const bool inside = r >= 0 && r < grid.height && c >= 0 && c < grid.width;
      pixel[i][j] = inside ? base + (r * grid.width + c) * channels : zeros;
    }
  for (int64_t c = 0; c < channels; c += kWidth) {
    V t[6][6];
    for (int j = 0; j < 6; ++j) {
      V col_t[6];
      input_transform(simd::load(pixel[0][j] + c), simd::load(pixel[1][j] + c),
                      simd::load(pixel[2][j] + c), simd::load(pixel[3][j] + c),
                      simd::load(pixel[4][j] + c), simd::load(pixel[5][j] + c), col_t);
      for (int i = 0; i < 6; ++i) t[i][j] = col_t[i];
    }
    for (int i = 0; i < 6; ++i) {
      V row_t[6];
      input_transform(t[i][0], t[i][1], t[i][2], t[i][3], t[i][4], t[i][5], row_t);
      for (int j = 0; j < 6; ++j) simd::store(v + (i * 6 + j) * channels + c, row_t[j]);
    }
  }
}

SP_SIMD void scatter_tile(const TileGrid& grid, const float* m, int64_t channels, int64_t tile,
                          const float* bias, float* y) {
  const int64_t image = tile / grid.per_image, at = tile % grid.per_image;
  float* base =
      y +
      ((image * grid.height + at / grid.across * 4) * grid.width + at % grid.across * 4) * channels;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const V shift = bias ? simd::load(bias + c) : V{};
    V t[4][6];
    for (int j = 0; j < 6; ++j) {
      V col[6], out[4];
      for (int i = 0; i < 6; ++i) col[i] = simd::load(m + (i * 6 + j) * channels + c);
      output_transform(col, out);
      for (int i = 0; i < 4; ++i) t[i][j] = out[i];
    }
    for (int i = 0; i < 4; ++i) {
      V out[4];
      output_transform(t[i], out);
      for (int j = 0; j < 4; ++j)
        simd::store(base + (i * grid.width + j) * channels + c, out[j] + shift);
    }
  }
}

SP_SIMD void gather_gradient_tile(const TileGrid& grid, const float* g, int64_t channels,
                                  int64_t tile, float* z) {
  const int64_t image = tile / grid.per_image, at = tile % grid.per_image;
  const float* base =
      g +
      ((image * grid.height + at / grid.across * 4) * grid.width + at % grid.across * 4) * channels;
  for (int64_t c = 0; c < channels; c += kWidth) {
    V t[6][4];
    for (int j = 0; j < 4; ++j) {
      V col[4], out[6];
      for (int i = 0; i < 4; ++i) col[i] = simd::load(base + (i * grid.width + j) * channels + c);
      gradient_transform(col, out);
      for (int i = 0; i < 6; ++i) t[i][j] = out[i];
    }
    for (int i = 0; i < 6; ++i) {
      V out[6];
      gradient_transform(t[i], out);
      for (int j = 0; j < 6; ++j) simd::store(z + (i * 6 + j) * channels + c, out[j]);
    }
  }
}

SP_SIMD void pack_panel(const float* weight, int64_t stride_in, int64_t stride_out, bool flip,
                        int64_t in, int64_t out, int64_t n, float* packed) {
  for (int64_t k = 0; k < in; ++k) {
    V g[9], t[6][3];
    for (int j = 0; j < kWidth; ++j) {
      const float* w = weight + k * stride_in + (n + j) * stride_out;
      for (int a = 0; a < 9; ++a) g[flip ? 8 - a : a][j] = w[a];
    }
    for (int b = 0; b < 3; ++b) {
      V col[6];
      weight_transform(g[b], g[3 + b], g[6 + b], col);
      for (int i = 0; i < 6; ++i) t[i][b] = col[i];
    }
    for (int i = 0; i < 6; ++i) {
      V row[6];
      weight_transform(t[i][0], t[i][1], t[i][2], row);
      for (int j = 0; j < 6; ++j)
        simd::store(
            packed + ((i * 6 + j) * out + n / kPanel * kPanel) * in + k * kPanel + n % kPanel,
            row[j]);
    }
  }
}

SP_SIMD void unpack_gradient(const float* u, int64_t in, int64_t out, int64_t i, float* gw) {
  for (int64_t n = 0; n < out; n += kWidth) {
    V t[3][6];
    for (int b = 0; b < 6; ++b) {
      V col[6], g[3];
      for (int a = 0; a < 6; ++a) col[a] = simd::load(u + ((a * 6 + b) * in + i) * out + n);
      weight_gradient_transform(col, g);
      for (int a = 0; a < 3; ++a) t[a][b] = g[a];
    }
    for (int a = 0; a < 3; ++a) {
      V g[3];
      weight_gradient_transform(t[a], g);
      for (int b = 0; b < 3; ++b)
        for (int j = 0; j < kWidth; ++j) gw[((n + j) * in + i) * 9 + a * 3 + b] = g[b][j];
    }
  }
}

}  // namespace

void pack(const float* weight, int64_t in, int64_t out, bool transposed, float* packed) {
  const int64_t k = transposed ? out : in, n = transposed ? in : out;
  const int64_t stride_in = transposed ? in * 9 : 9, stride_out = transposed ? 9 : in * 9;
  at::parallel_for(0, n / kWidth, 1, [&](int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p)
      pack_panel(weight, stride_in, stride_out, transposed, k, n, p * kWidth, packed);
  });
}

void convolve(const Images& images, const float* x, int64_t in, const float* packed, int64_t out,
              const float* bias, float* y) {
  const TileGrid grid(images);
  const int64_t tiles = images.tiles(), block = tiles_per_block(in, out);
  at::parallel_for(0, (tiles + block - 1) / block, 1, [&](int64_t b0, int64_t b1) {
    float* zeros = micro::scratch(in + 36 * block * (in + out));
    std::fill_n(zeros, in, 0.f);
    float *v = zeros + in, *m = v + 36 * block * in;
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t first = b * block, count = std::min(block, tiles - first);
      for (int64_t t = 0; t < count; ++t)
        gather_tile(grid, x, in, first + t, zeros, v + t * 36 * in);
      micro::kernels().products(36, v, 36 * in, in, packed, in * out, in, out, count, nullptr, m,
                                36 * out, out);
      for (int64_t t = 0; t < count; ++t)
        scatter_tile(grid, m + t * 36 * out, out, first + t, bias, y);
    }
  });
}

void weight_gradient(const Images& images, const float* x, int64_t in, const float* g, int64_t out,
                     float* gw) {
  const TileGrid grid(images);
  const int64_t tiles = images.tiles(), block = tiles_per_block(in, out);
  const int64_t blocks = (tiles + block - 1) / block;
  const int64_t slots =
      std::min<int64_t>(blocks, at::in_parallel_region() ? 1 : at::get_num_threads());
  const int64_t size = packed_size(in, out);
  std::vector<float> sums(static_cast<size_t>(slots * size), 0.f);
  at::parallel_for(0, slots, 1, [&](int64_t s0, int64_t s1) {
    float* zeros = micro::scratch(in + 36 * block * (in + out));
    std::fill_n(zeros, in, 0.f);
    float *v = zeros + in, *z = v + 36 * block * in;
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t b = s * blocks / slots; b < (s + 1) * blocks / slots; ++b) {
        const int64_t first = b * block, count = std::min(block, tiles - first);
        for (int64_t t = 0; t < count; ++t) {
          gather_tile(grid, x, in, first + t, zeros, v + t * 36 * in);
          gather_gradient_tile(grid, g, out, first + t, z + t * 36 * out);
        }
        micro::kernels().outer(36, v, 36 * in, in, z, 36 * out, out, count, in, out,
                               sums.data() + s * size, in * out);
      }
  });
  for (int64_t s = 1; s < slots; ++s) {
    const float* other = sums.data() + s * size;
    for (int64_t j = 0; j < size; ++j) sums[static_cast<size_t>(j)] += other[j];
  }
  at::parallel_for(0, in, 8, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) unpack_gradient(sums.data(), in, out, i, gw);
  });
}

}  // namespace scoreprior::nets::winograd
