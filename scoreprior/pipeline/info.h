#pragma once
#include <filesystem>
#include <string>

namespace scoreprior {

/// A description of a file by its content: uvfits, fits, npy, npz, safetensors (models), png, run folder.
std::string describe_file(const std::filesystem::path& path, bool json);

}  // namespace scoreprior
