#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

namespace scoreprior::io {

/// Pixels of a TIFF file, [H,W] or [H,W,C]; several pages of one size and type are stacked in
/// front. uint8, uint16 (as int32), uint32 (as int64), float32, float64; strips or tiles, any
/// compression libtiff knows; row 0 is the top. Throws MissingFileError, DataError (palette, 1 or 4
/// bits, mixed pages, rotated orientation, truncated).
at::Tensor read_tiff(const std::filesystem::path& path);
/// [H,W], [H,W,3] or [N,H,W] (pages): uint8 and float32 as they are, float64 as float32.
void write_tiff(const std::filesystem::path& path, const at::Tensor& pixels);

}  // namespace scoreprior::io
