#pragma once
#include <cstdint>
#include <filesystem>
#include <vector>

namespace scoreprior::io {

/// 8-bit pixels, row-major, 1 (grey), 3 (RGB) or 4 (RGBA) channels.
struct Raster {
  int64_t width = 0, height = 0, channels = 3;
  std::vector<uint8_t> data;
};
/// Throws MissingFileError, DataError. 16-bit and palette files are converted.
Raster read_png(const std::filesystem::path& path);
void write_png(const std::filesystem::path& path, const Raster& image);
/// The file's bytes, for pages that carry their pictures inside.
std::vector<uint8_t> encode_png(const Raster& image);

}  // namespace scoreprior::io
