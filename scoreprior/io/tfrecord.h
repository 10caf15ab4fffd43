#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace scoreprior::io {

/// One named feature of a tf.train.Example: exactly one of the three lists is filled.
struct ExampleFeature {
  std::vector<std::string> bytes;
  std::vector<float> floats;
  std::vector<int64_t> ints;
};
using Example = std::map<std::string, ExampleFeature>;

/// The protocol-buffer message tf.train.Example, and back. DataError "<name>: ...".
Example parse_example(std::string_view message, const std::string& name);
std::string serialize_example(const Example& example);

/// A TFRecord file: length, masked CRC32C of the length, data, masked CRC32C of the data. A file
/// packed by TensorFlow's GZIP option is unpacked in memory, any other is mapped.
class TfrecordFile {
 public:
  /// Finds all records and checks the checksums of their lengths. MissingFileError, DataError.
  explicit TfrecordFile(const std::filesystem::path& path);
  ~TfrecordFile();
  TfrecordFile(TfrecordFile&&) noexcept;
  TfrecordFile& operator=(TfrecordFile&&) = delete;

  int64_t size() const { return static_cast<int64_t>(records_.size()); }
  /// The bytes of a record; DataError when their checksum is wrong.
  std::string_view record(int64_t index) const;
  Example example(int64_t index) const;

 private:
  std::string name_, unpacked_;
  const char* data_ = nullptr;
  size_t bytes_ = 0;
  bool mapped_ = false;
  std::vector<std::pair<uint64_t, uint64_t>> records_;  // offset and length of the data
};

void write_tfrecord(const std::filesystem::path& path, const std::vector<std::string>& records,
                    bool gzip = false);

/// CRC-32C (Castagnoli).
uint32_t crc32c(std::string_view data);

}  // namespace scoreprior::io
