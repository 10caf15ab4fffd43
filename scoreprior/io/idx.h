#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

namespace scoreprior::io {

/// IDX (MNIST and its family): big-endian u1, i1, i2, i4, f4, f8 of any rank; a gzip file is
/// unpacked. Throws MissingFileError, DataError (not IDX, truncated, longer than announced).
at::Tensor read_idx(const std::filesystem::path& path);
/// `.gz` at the end of the name packs the file.
void write_idx(const std::filesystem::path& path, const at::Tensor& array);

}  // namespace scoreprior::io
