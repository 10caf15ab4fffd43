#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

namespace scoreprior::io {

/// BART's pair NAME.hdr (text, the dimensions) and NAME.cfl (complex64, first dimension fastest).
/// The tensor has the dimensions in BART's order (0 read, 1 phase 1, 2 phase 2, 3 coil, 4 maps,
/// ...), trailing ones dropped: the element (i,j,...) here is (i,j,...) there. `path` may name
/// either file or their stem. Throws MissingFileError, DataError.
at::Tensor read_cfl(const std::filesystem::path& path);
/// Real arrays are written with imaginary part 0; at most 16 dimensions.
void write_cfl(const std::filesystem::path& path, const at::Tensor& array);

/// An array of four dimensions or more in BART's order as images and k-space lie elsewhere here:
/// [coils,x,y], [slices,coils,x,y], or [slices,coils,z,x,y] where z > 1. Arrays of fewer
/// dimensions, and those with any other dimension above 1 (maps, echoes, times), as they are.
at::Tensor from_bart_order(const at::Tensor& array);
/// The inverse, from [coils,H,W], [slices,coils,H,W] or [slices,coils,E2,H,W]: dimension 0, BART's
/// read-out, is H, or W with `read_last`.
at::Tensor to_bart_order(const at::Tensor& array, bool read_last = false);

}  // namespace scoreprior::io
