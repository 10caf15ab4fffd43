#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "scoreprior/core/shape.h"

namespace scoreprior {

/// Images of one data set split at their final size, float32, in shards of at most
/// `shard_bytes` (an image at least) that are mapped into memory: the operating system keeps what
/// is used, any number of programs share it, and an image costs one copy.
///
/// The folder is `folder`/KEY with KEY a 128-bit hash of `identity` (source files and options), so
/// that a changed source or option makes a new one beside the old. It is filled under a temporary
/// name and renamed: a killed or a second program never leaves or sees half a cache.
class ImageCache {
 public:
  /// Fills the cache by load(0..size-1) -> `shape` unless it is there. CannotCreateError, IoError;
  /// DataError when a shard has another size than it should.
  ImageCache(const std::filesystem::path& folder, const std::string& what,
             const std::string& identity, const Shape& shape, int64_t size,
             const std::function<at::Tensor(int64_t)>& load,
             int64_t shard_bytes = int64_t{256} << 20);
  ~ImageCache();
  ImageCache(const ImageCache&) = delete;
  ImageCache& operator=(const ImageCache&) = delete;

  /// Image `index`; the pages behind it are read-only and live as long as this object.
  at::Tensor image(int64_t index) const;
  const std::filesystem::path& folder() const { return folder_; }

 private:
  void fill(const std::string& what, const std::string& identity,
            const std::function<at::Tensor(int64_t)>& load) const;
  void map();

  std::filesystem::path folder_;
  Shape shape_;
  int64_t size_, image_bytes_, shard_images_;
  std::vector<std::pair<void*, size_t>> shards_;
};

}  // namespace scoreprior
