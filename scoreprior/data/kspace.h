#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// Keys of [data] beside `kspace`.
struct KSpaceOptions {
  std::string array;
  int64_t slice = -1;
  double scale = 1;
  template <class F>
  void fields(F&& f) {
    f("array", array, "which array of the k-space file, where it holds several");
    f("slice", slice, "which slice of the k-space file, from 0; -1 = the middle one");
    f("scale", scale,
      "factor on the k-space; 0 = that which makes the largest pixel of the zero-filled image 1");
  }
};

/// One slice of Cartesian k-space on the grid of the images, k = 0 at index n/2.
struct KSpaceSlice {
  at::Tensor kspace;    ///< complex128 [coils,H,W]; zero where nothing was measured
  at::Tensor sampled;   ///< float64 [H,W]: 1 where it was measured, else 0
  double sigma = 0;     ///< noise level of one complex number in these units; 0 = the file has none
  std::string summary;  ///< what was taken of the file, for people
};

/// The file `kspace` of the table [data]: fastMRI or ISMRMRD (.h5, .mrd), BART (.cfl), or arrays
/// [H,W], [coils,H,W] or [slices,coils,H,W] in .npy, .npz, .mat or plain .h5, beside which may
/// stand `mask` or `sampled` ([H,W], or [W] for columns) and `sigma` (a number).
///
/// What was measured is what the file's mask says, else where any coil is not zero. It is brought
/// to the size of the images, `image` {C,H,W}, in two steps:
///   field of view  the central `crop` = [rows, columns] pixels of the image of the k-space;
///   without
///                  it those of the file's header (fastMRI and ISMRMRD), else all. Only an axis
///                  along which every line was measured can be cut; where the header's crop meets
///                  another, that axis stays whole and the other is cut to the same shape of field.
///   resolution     the centre of the k-space, of the images' size, times sqrt(pixels left/pixels)
///                  so that pixel values stay.
/// then multiplied by `scale`; sigma with it. MissingFileError; DataError for what holds no such
/// k-space; ConfigError for a slice or crop that is not there, or pixels that would not be square.
KSpaceSlice load_kspace(const Config& data, const Shape& image);

}  // namespace scoreprior
