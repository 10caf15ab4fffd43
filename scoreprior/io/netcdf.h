#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace scoreprior::io {

struct NetcdfVariable {
  at::Tensor values;                              ///< float64, float32, int64, int32, uint8 or bool
  std::vector<std::string> dims;                  ///< one name per axis of values
  std::map<std::string, std::string> attributes;  ///< "units", "long_name", ...
};

/// A group of variables over shared, named dimensions.
struct NetcdfGroup {
  std::map<std::string, NetcdfVariable> variables;
  std::map<std::string, std::string> attributes;
};

/// Inference results in the ArviZ InferenceData schema: NetCDF4 groups "posterior", "sample_stats",
/// "observed_data", "log_likelihood", ...; variables of the sample groups begin with the dimensions
/// chain, draw.
struct InferenceData {
  std::map<std::string, NetcdfGroup> groups;
  std::map<std::string, std::string> attributes;  ///< of the file: inference_library, ...
};

/// Writes the file whole or not at all. Every dimension without a variable of its own name gets
/// one, 0..n-1; every group gets `created_at` (now, UTC) and the file's attributes unless it has
/// its own. Large variables are compressed. Throws CannotCreateError, IoError;
/// std::invalid_argument for a dimension of two lengths, or complex values (store real and
/// imaginary parts under two names).
void write_netcdf(const std::filesystem::path& path, const InferenceData& data);

/// Everything write_netcdf can write. Throws MissingFileError, DataError.
InferenceData read_netcdf(const std::filesystem::path& path);

}  // namespace scoreprior::io
