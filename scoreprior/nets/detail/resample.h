#pragma once
#include <ATen/core/Tensor.h>

#include <array>

namespace scoreprior::nets {

using Taps = std::array<double, 4>;

/// Separable linear resampling of channels-last images, zero outside the frame; any number of
/// derivatives (the adjoint is a resampling too). FIR taps are the normalised 1-D kernel, applied
/// as a convolution [Zhang19, Karras20]. n -> n/2: pad (1,1), keep every second sample.
at::Tensor fir_down(const at::Tensor& x, const Taps& taps);
/// n -> 2n: insert zeros, pad (2,1), gain 2 per axis.
at::Tensor fir_up(const at::Tensor& x, const Taps& taps);
/// n -> n + 2 pad - 3 without a change of rate, times gain per axis.
at::Tensor fir_same(const at::Tensor& x, const Taps& taps, int64_t pad, double gain);
/// n -> n/2: mean of 2x2 pixels.
at::Tensor mean_down(const at::Tensor& x);
/// n -> 2n: nearest neighbour.
at::Tensor nearest_up(const at::Tensor& x);

}  // namespace scoreprior::nets
