#pragma once
/// Reading by a library that was not written for hostile files (HDF5, NetCDF, MAT, TIFF): it runs
/// in a child process of limited memory and time. A crash, an endless loop or an absurd allocation
/// there is a DataError here; the arrays come back through shared pages and are not copied.
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "scoreprior/core/shape.h"

namespace scoreprior::io::detail {

/// Where the child puts what it reads. Only plain memory may be touched there: no tensor operation.
class FindingsWriter {
 public:
  explicit FindingsWriter(int file) : file_(file) {}
  ~FindingsWriter() { release(); }
  FindingsWriter(const FindingsWriter&) = delete;
  FindingsWriter& operator=(const FindingsWriter&) = delete;

  /// Room for the values of an array in C order, zero; valid until the next call.
  void* array(const std::string& name, at::ScalarType type, const Shape& shape);
  void text(const std::string& name, const std::string& value);
  void error(const std::string& message);
  void end();

 private:
  size_t record(uint32_t kind, uint32_t type, const std::string& name, const Shape& shape,
                uint64_t bytes);
  void release();
  int file_;
  size_t offset_ = 0;
  void* mapped_ = nullptr;
  size_t mapped_bytes_ = 0;
};

struct Findings {
  std::map<std::string, at::Tensor> arrays;
  std::map<std::string, std::string> texts;
};

/// Runs `read` in a child process. What it throws as DataError is thrown here with its message;
/// a crash is DataError "<path>: damaged: ...". MissingFileError unless the file exists.
Findings read_guarded(const std::filesystem::path& path, const std::string& kind,
                      const std::function<void(FindingsWriter&)>& read);

/// HDF5 (below NetCDF and MAT 7.3 too) is not safe for threads in Debian's build: whoever writes
/// with it holds this lock, and a child is never started in between.
std::mutex& hdf5_mutex();

/// DataError unless an array of that shape can come from `stored` bytes; deflate, the strongest
/// packing in these formats, gains a factor of 1032 at most.
void require_plausible(const std::string& name, const Shape& shape, size_t item_bytes,
                       uint64_t stored);

}  // namespace scoreprior::io::detail
