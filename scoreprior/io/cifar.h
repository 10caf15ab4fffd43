#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

namespace scoreprior::io {

/// One batch file of CIFAR-10 ("binary version"): records of a label byte and 3 x 32 x 32 bytes,
/// red, green, blue planes, rows from the top.
struct CifarBatch {
  at::Tensor images;  ///< [N,3,32,32] uint8
  at::Tensor labels;  ///< [N] uint8, 0 to 9
};
/// Throws MissingFileError, DataError (not whole records, a label above 9).
CifarBatch read_cifar10(const std::filesystem::path& path);
void write_cifar10(const std::filesystem::path& path, const CifarBatch& batch);

}  // namespace scoreprior::io
