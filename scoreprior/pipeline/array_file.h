#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>

namespace scoreprior {

/// The array that an option names (`mask`, `coil_maps`, `sigma`, ...): FILE, or FILE:NAME where the
/// file holds several. Any file that read_data_file knows; BART's arrays in the order of
/// io::from_bart_order, pictures of bytes as [C,H,W] in [0,1]. MissingFileError, DataError.
at::Tensor read_array_file(const std::filesystem::path& path);

}  // namespace scoreprior
