#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

#include "scoreprior/io/png.h"

namespace scoreprior::report {

/// Writes a TensorBoard event file: TFRecords (length, masked CRC-32C, Event protocol buffer) of
/// scalars and images. Each writer makes a new file that sorts after those already in the folder,
/// so a resumed run goes on where it was.
class TensorBoardWriter {
 public:
  /// Creates the folder if needed. resume_step >= 0: TensorBoard drops earlier records from that
  /// step on, which a killed run wrote after its last checkpoint. Throws CannotCreateError.
  explicit TensorBoardWriter(const std::filesystem::path& folder, int64_t resume_step = -1);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  void scalar(const std::string& tag, int64_t step, double value);
  void image(const std::string& tag, int64_t step, const io::Raster& image);
  /// Throws IoError when the disk is full; so may scalar and image.
  void flush();

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_event(const std::string& event);
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
};

/// CRC-32C (Castagnoli) of a byte string; "123456789" gives 0xE3069283.
uint32_t crc32c(const void* data, size_t size);

}  // namespace scoreprior::report
