#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

#include "scoreprior/io/npy.h"

namespace scoreprior::io {

/// The numeric arrays of a MATLAB file (version 4, 5 or 7.3), real or complex, by name; the element
/// (i,j,...) of the tensor is MATLAB's (i+1,j+1,...). Logical arrays are bool, uint16 and wider
/// unsigned integers the next signed type. Structures, cells, text and sparse arrays are left out.
/// Throws MissingFileError, DataError.
Arrays read_mat(const std::filesystem::path& path);
/// Version 5, packed; vectors become rows, as MATLAB has no array of fewer than two dimensions.
void write_mat(const std::filesystem::path& path, const Arrays& arrays);

}  // namespace scoreprior::io
