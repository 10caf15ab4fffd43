#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace scoreprior::io {

/// A .safetensors file: named tensors and a string-to-string `__metadata__`.
struct Safetensors {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Throws MissingFileError, DataError (truncated, overlapping or out-of-range offsets, unknown
/// dtype).
Safetensors read_safetensors(const std::filesystem::path& path);
/// Written whole or not at all; tensors in name order, so equal content gives equal bytes.
void write_safetensors(const std::filesystem::path& path, const Safetensors& file);

}  // namespace scoreprior::io
