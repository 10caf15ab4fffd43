#pragma once
/// Sensitivities of receive coils: complex128 [coils,H,W], sum over coils |S|^2 = 1 where they are
/// not zero.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace scoreprior {

/// Coils evenly on a circle of radius 1.5 half fields of view about the image: |S| falls as
/// 1/distance, the phase is the direction towards the coil; one coil is uniform. Normalised.
at::Tensor simulated_coil_maps(int64_t coils, int64_t height, int64_t width);

struct CoilCalibration {
  int64_t region = 24;      ///< side of the fully sampled square at zero frequency
  int64_t kernel = 6;       ///< side of the patches that are assumed to span a small space
  double threshold = 0.03;  ///< singular values kept, relative to the largest
  double crop = 0.8;        ///< eigenvalue below which a pixel is taken for empty: maps 0 there
};

/// ESPIRiT with one map [Uecker14]: the patches of a calibration region span a small space; maps
/// are the eigenvectors, pixel by pixel, of the projection onto it, which has eigenvalue 1 where
/// the object is. Their phase is that which makes the principal virtual coil real. kspace complex
/// [coils,H,W], centred. DataError when the region is empty, or has points that are zero in every
/// coil, which the patches would take for measured: the sentence names the side that is sampled.
at::Tensor estimated_coil_maps(const at::Tensor& kspace, const CoilCalibration& options);

/// The maps times exp(i phi), phi the phase of the image that they combine from the region (under a
/// Hann window): what is left to estimate is then a real image, as far as the phase is smooth.
at::Tensor with_object_phase(const at::Tensor& maps, const at::Tensor& kspace, int64_t region);

}  // namespace scoreprior
