#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "scoreprior/core/shape.h"
#include "scoreprior/io/npy.h"

namespace scoreprior::io {

/// The content of an HDF5 file: arrays of numbers, and texts. Names are paths without the leading
/// slash ("kspace", "group/images"). Texts are string data sets, and string or scalar numeric
/// attributes as "name@attribute" ("@attribute" of the file itself).
struct Hdf5 {
  Arrays arrays;
  std::map<std::string, std::string> texts;
};

struct Hdf5Array {
  Shape shape;
  std::string type;  ///< "float32", "complex64", ... of the tensor it is read as; or "text"
};

/// The arrays of a file without their values, and its texts.
std::map<std::string, Hdf5Array> list_hdf5(const std::filesystem::path& path);

/// The data sets `names` (DataError for one that is absent), or everything. Pairs of floats named
/// r, i or real, imag are complex; HDF5 booleans of h5py are bool, float16 is read as float32,
/// unsigned integers of 2 bytes and more as the next signed type. Links to other files, virtual
/// data sets and types without a tensor are left out. MissingFileError, DataError.
Hdf5 read_hdf5(const std::filesystem::path& path, const std::vector<std::string>& names = {});

/// Entries first, ..., first + count - 1 of the leading axis of one data set.
at::Tensor read_hdf5_rows(const std::filesystem::path& path, const std::string& name, int64_t first,
                          int64_t count);

/// Written whole or not at all; groups are made as the names ask; complex as pairs r, i (h5py).
/// Texts of a name without "@" become scalar strings, others attributes. Packed by deflate.
void write_hdf5(const std::filesystem::path& path, const Hdf5& content);

}  // namespace scoreprior::io
