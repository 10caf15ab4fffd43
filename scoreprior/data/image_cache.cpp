#include "scoreprior/data/image_cache.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

// Two hashes, the second of the reversed text, so that one collision is not both.
std::string cache_key(const std::string& identity) {
  const std::string reversed(identity.rbegin(), identity.rend());
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%016llx",
                static_cast<unsigned long long>(Rng(1).split(identity).key()),
                static_cast<unsigned long long>(Rng(2).split(reversed).key()));
  return text;
}

fs::path shard_path(const fs::path& folder, int64_t k) {
  char name[32];
  std::snprintf(name, sizeof name, "shard-%05lld.f32", static_cast<long long>(k));
  return folder / name;
}

}  // namespace

ImageCache::ImageCache(const fs::path& folder, const std::string& what, const std::string& identity,
                       const Shape& shape, int64_t size,
                       const std::function<at::Tensor(int64_t)>& load, int64_t shard_bytes)
    : folder_(folder / cache_key(identity)), shape_(shape), size_(size) {
  image_bytes_ = 4;
  for (const int64_t d : shape) image_bytes_ *= d;
  shard_images_ = std::max<int64_t>(1, shard_bytes / image_bytes_);
  std::error_code ec;
  if (!fs::exists(folder_ / "source.txt", ec)) {
    io::make_folder(folder);
    fill(what, identity, load);
  }
  map();
}

ImageCache::~ImageCache() {
  for (const auto& [data, bytes] : shards_) ::munmap(data, bytes);
}

void ImageCache::fill(const std::string& what, const std::string& identity,
                      const std::function<at::Tensor(int64_t)>& load) const {
  const fs::path temporary = folder_.parent_path() / (".writing-" + std::to_string(::getpid()) +
                                                      "-" + folder_.filename().string());
  std::error_code ec;
  fs::remove_all(temporary, ec);
  try {
    io::make_folder(temporary);
    const Shape batch_shape = batched(0, shape_);
    for (int64_t first = 0, shard = 0; first < size_; first += shard_images_, ++shard) {
      const int64_t count = std::min(shard_images_, size_ - first);
      Shape all = batch_shape;
      all[0] = count;
      at::Tensor images = at::empty(all, at::kFloat);
      at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        const at::NoGradGuard no_grad;
        for (int64_t i = begin; i < end; ++i) images[i].copy_(load(first + i));
      });
      io::write_text(shard_path(temporary, shard),
                     {static_cast<const char*>(images.data_ptr()), images.nbytes()});
    }
    // Last: its presence says that the cache is whole.
    io::write_text(temporary / "source.txt", what + "\n" + identity.substr(0, 100000) + "\n");
    fs::rename(temporary, folder_, ec);
    if (ec && !fs::exists(folder_ / "source.txt"))
      throw CannotCreateError("cannot write the cache " + folder_.string() + ": " + ec.message());
    fs::remove_all(temporary, ec);  // another program was first
  } catch (...) {
    fs::remove_all(temporary, ec);
    throw;
  }
}

void ImageCache::map() {
  for (int64_t first = 0, shard = 0; first < size_; first += shard_images_, ++shard) {
    const size_t bytes = static_cast<size_t>(std::min(shard_images_, size_ - first) * image_bytes_);
    const fs::path path = shard_path(folder_, shard);
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const off_t have = file < 0 ? -1 : ::lseek(file, 0, SEEK_END);
    void* data = have == static_cast<off_t>(bytes)
                     ? ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0)
                     : MAP_FAILED;
    if (file >= 0) ::close(file);
    if (data == MAP_FAILED)
      throw DataError("the cache " + path.string() + " is damaged; delete the folder " +
                      folder_.string());
    shards_.emplace_back(data, bytes);
  }
}

at::Tensor ImageCache::image(int64_t index) const {
  SP_CHECK(index >= 0 && index < size_, "ImageCache", "expected an index below ", size_, ", got ",
           index);
  char* shard = static_cast<char*>(shards_[static_cast<size_t>(index / shard_images_)].first);
  return at::from_blob(shard + index % shard_images_ * image_bytes_, shape_, at::kFloat);
}

}  // namespace scoreprior
