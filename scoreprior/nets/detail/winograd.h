#pragma once
/// 3x3 convolution, stride 1, zero padding 1, on channels-last float32 images by Winograd's minimal
/// filtering F(4x4, 3x3) [Lavin16]: 36 products per 16 outputs instead of 144. Rounding is two to
/// three times that of the direct sum. Sides are multiples of 4, channel counts multiples of 16.

#include <cstdint>

namespace scoreprior::nets::winograd {

struct Images {
  int64_t batch, height, width;
  int64_t tiles() const { return batch * (height / 4) * (width / 4); }
};

/// Number of floats of packed weights.
inline int64_t packed_size(int64_t in, int64_t out) { return 36 * in * out; }

/// weight [out,in,3,3] -> packed. `transposed`: the weights of the adjoint, which maps `out`
/// channels to `in`.
void pack(const float* weight, int64_t in, int64_t out, bool transposed, float* packed);

/// y [.., out] = x [.., in] * packed + bias (null: none).
void convolve(const Images& images, const float* x, int64_t in, const float* packed, int64_t out,
              const float* bias, float* y);

/// gw [out,in,3,3] = derivative of <g, conv(x)> in the weights.
void weight_gradient(const Images& images, const float* x, int64_t in, const float* g, int64_t out,
                     float* gw);

}  // namespace scoreprior::nets::winograd
