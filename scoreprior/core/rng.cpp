#include "scoreprior/core/rng.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <array>
#include <cmath>
#include <numeric>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

using Block = std::array<uint32_t, 4>;

// Philox4x32 with 10 rounds; key = stream, counter = (block, row).
inline Block philox(uint64_t key, uint64_t row, uint64_t block) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  Block c{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
          static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

inline uint64_t mix(uint64_t z) {  // SplitMix64 finaliser: a bijection with full avalanche
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline double unit53(uint32_t hi, uint32_t lo) {
  return static_cast<double>(((uint64_t{hi} << 32) | lo) >> 11) * 0x1.0p-53;
}

constexpr double kTwoPi = 6.283185307179586476925286766559;

// Element j of a row comes from block j/2; each block gives two 53-bit uniforms or one Box-Muller
// pair.
struct UniformPair {
  void operator()(const Block& b, double* out) const {
    out[0] = unit53(b[0], b[1]);
    out[1] = unit53(b[2], b[3]);
  }
};
struct NormalPair {
  void operator()(const Block& b, double* out) const {
    const double radius = std::sqrt(-2.0 * std::log1p(-unit53(b[0], b[1])));
    const double angle = kTwoPi * unit53(b[2], b[3]);
    out[0] = radius * std::cos(angle);
    out[1] = radius * std::sin(angle);
  }
};
struct SignPair {
  void operator()(const Block& b, double* out) const {
    out[0] = (b[0] >> 31) ? 1.0 : -1.0;
    out[1] = (b[2] >> 31) ? 1.0 : -1.0;
  }
};

template <class Pair, class T>
void fill_rows(uint64_t key, uint64_t row0, int64_t rows, int64_t cols, T* out) {
  const int64_t grain = std::max<int64_t>(1, 2048 / std::max<int64_t>(cols, 1));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const Pair pair;
    double two[2];
    for (int64_t r = begin; r < end; ++r) {
      T* row = out + r * cols;
      for (int64_t j = 0; j < cols; j += 2) {
        pair(philox(key, row0 + static_cast<uint64_t>(r), static_cast<uint64_t>(j / 2)), two);
        row[j] = static_cast<T>(two[0]);
        if (j + 1 < cols) row[j + 1] = static_cast<T>(two[1]);
      }
    }
  });
}

template <class Pair>
at::Tensor draw(uint64_t key, uint64_t row0, at::IntArrayRef shape, at::ScalarType dtype) {
  SP_CHECK(dtype == at::kFloat || dtype == at::kDouble, "rng", "expected float32 or float64");
  at::Tensor out = at::empty(shape, at::TensorOptions().dtype(dtype));
  const int64_t rows = shape.empty() ? 1 : shape[0];
  if (rows == 0 || out.numel() == 0) return out;
  const int64_t cols = out.numel() / rows;
  if (dtype == at::kFloat)
    fill_rows<Pair>(key, row0, rows, cols, out.data_ptr<float>());
  else
    fill_rows<Pair>(key, row0, rows, cols, out.data_ptr<double>());
  return out;
}

}  // namespace

Rng::Rng(uint64_t seed) : key_(mix(seed ^ 0x5C0EE9A10F1A5EEDull)) {}

Rng Rng::split(std::string_view name) const {
  uint64_t h = 0xCBF29CE484222325ull;  // FNV-1a, then mixed with the parent key
  for (unsigned char c : name) h = (h ^ c) * 0x100000001B3ull;
  return Rng(mix(mix(key_ ^ 0x6E616D65ull) ^ h), row_);
}

Rng Rng::at(int64_t index) const {
  return Rng(mix(mix(key_ ^ 0x73746570ull) ^ static_cast<uint64_t>(index)), row_);
}

Rng Rng::from_row(int64_t row) const { return Rng(key_, row_ + static_cast<uint64_t>(row)); }

at::Tensor Rng::normal(at::IntArrayRef shape, at::ScalarType dtype) const {
  return draw<NormalPair>(key_, row_, shape, dtype);
}
at::Tensor Rng::uniform(at::IntArrayRef shape, at::ScalarType dtype) const {
  at::Tensor u = draw<UniformPair>(key_, row_, shape, dtype);
  // Rounding to float32 may give exactly 1.
  if (dtype == at::kFloat) u.clamp_max_(1.0 - 0x1.0p-24);
  return u;
}
at::Tensor Rng::rademacher(at::IntArrayRef shape, at::ScalarType dtype) const {
  return draw<SignPair>(key_, row_, shape, dtype);
}
at::Tensor Rng::integers(int64_t bound, at::IntArrayRef shape) const {
  SP_CHECK(bound > 0, "rng.integers", "expected a positive bound, got ", bound);
  return (draw<UniformPair>(key_, row_, shape, at::kDouble) * static_cast<double>(bound))
      .floor()
      .to(at::kLong);
}

std::vector<double> Rng::uniforms(int64_t n) const {
  std::vector<double> out(n);
  if (n > 0) fill_rows<UniformPair>(key_, row_, 1, n, out.data());
  return out;
}
std::vector<double> Rng::normals(int64_t n) const {
  std::vector<double> out(n);
  if (n > 0) fill_rows<NormalPair>(key_, row_, 1, n, out.data());
  return out;
}

std::vector<int64_t> Rng::permutation(int64_t n) const {
  std::vector<int64_t> p(n);
  std::iota(p.begin(), p.end(), 0);
  const std::vector<double> u = uniforms(n);
  for (int64_t i = n - 1; i > 0; --i)
    std::swap(p[i], p[static_cast<int64_t>(u[i] * static_cast<double>(i + 1))]);
  return p;
}

}  // namespace scoreprior
