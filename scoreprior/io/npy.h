#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace scoreprior::io {

using Arrays = std::map<std::string, at::Tensor>;

/// NumPy .npy, little endian, C order (Fortran order is read and transposed): bool, u1, i1-i8, f4,
/// f8, c8, c16. Throws MissingFileError, DataError ("x.npy: truncated: ...").
at::Tensor read_npy(const std::filesystem::path& path);
/// float16/bfloat16 are written as float32. Written whole or not at all.
void write_npy(const std::filesystem::path& path, const at::Tensor& array);

/// .npz: a zip of .npy files; names without the extension.
Arrays read_npz(const std::filesystem::path& path);
void write_npz(const std::filesystem::path& path, const Arrays& arrays);

/// "float64", "complex64", ...: what NumPy calls the type.
std::string numpy_type_name(at::ScalarType type);

/// The bytes of one .npy file, and back (`name` is used in messages).
std::string to_npy_bytes(const at::Tensor& array);
at::Tensor from_npy_bytes(const char* data, size_t size, const std::string& name);

}  // namespace scoreprior::io
