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

}  // namespace scoreprior::io
