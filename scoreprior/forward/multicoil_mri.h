#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/kspace_model.h"
#include "scoreprior/forward/linear_function.h"

namespace scoreprior {

/// Magnetic resonance imaging with several receive coils:
///
///   Y_j = mask * F(S_j * x),  F the centred orthonormal FFT, zero frequency at (H/2, W/2)
///
/// x [B,1,H,W] is a real image, [B,2,H,W] the real and imaginary part of a complex one. y
/// [B,2*K*coils]: real then imaginary halves, each the K sampled points row by row with the coil
/// fastest. Points outside the mask are not part of y, so chi^2 counts measured numbers only.
/// Linear; norm at most 1 when sum |S|^2 <= 1 and the mask holds zeros and ones.
/// A stated noise level is that of the complex number: each real entry has noise/sqrt(2).
/// Cost: one complex FFT per coil and image, along the second axis of the lines with samples only;
/// the centring is folded into the maps and the samples' places.
class MulticoilMri final : public ForwardModel, public KSpaceModel, private LinearMap {
 public:
  /// channels 1 or 2; maps complex [coils,H,W]; mask [H,W], weights, zero = not sampled.
  MulticoilMri(int64_t channels, const at::Tensor& maps, const at::Tensor& mask,
               const ForwardContext& context);
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override;
  int64_t output_channels() const override { return coils_; }
  bool linear() const override { return true; }
  double noise_scale() const override { return M_SQRT1_2; }
  at::Tensor apply(const at::Tensor& x) const override;
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override;
  /// Sum over coils of conj(S_j) times the zero-filled inverse FFT, over sum |S_j|^2 where that is
  /// not 0 (SENSE combination).
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override;

  int64_t coils() const override { return coils_; }
  at::Tensor measurement(const at::Tensor& kspace) const override;
  /// Back from y, complex [B,coils,H,W], zeros where not sampled.
  at::Tensor kspace(const at::Tensor& y) const;
  const at::Tensor& maps() const { return maps_; }

 private:
  at::Tensor product(const at::Tensor& x) const override;
  at::Tensor transposed_product(const at::Tensor& y) const override;
  at::Tensor complex_of(const at::Tensor& y) const;  ///< [B,coils,K]
  struct Piece {
    int64_t image, images, coil, coils;  ///< first and number of each
  };
  /// Every piece of the coil images of a batch; those of an image in the order of its coils.
  void in_pieces(int64_t batch, const std::function<void(const Piece&)>& work) const;

  Shape shape_;
  int64_t coils_;
  at::Tensor maps_;            ///< [coils,H,W] as given
  at::Tensor sampled_;         ///< flat indices of the sampled points, ascending
  int64_t first_axis_ = 3;     ///< of [B,coils,H,W], that of the FFT that comes first
  at::Tensor lines_;           ///< indices along it with any sample; undefined = all
  at::Tensor place_;           ///< [K] flat indices of the sampled points among those lines
  at::Tensor rolled_maps_;     ///< with the centre of the image first
  at::Tensor conjugate_maps_;  ///< their conjugates, for complex images
  at::Tensor weights_;         ///< [K] of the mask; undefined = all 1
  at::Tensor inverse_power_;   ///< [H,W] 1 / sum |S|^2
};

}  // namespace scoreprior
