#pragma once
#include <filesystem>
#include <string>

namespace scoreprior {

/// A description of a file by its content: any file of data_file.h with its convention and the
/// doctor's remarks, safetensors (models), run folder.
std::string describe_file(const std::filesystem::path& path, bool json);

}  // namespace scoreprior
