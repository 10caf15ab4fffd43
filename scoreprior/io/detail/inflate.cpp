#include "scoreprior/io/detail/inflate.h"

#include <zlib.h>

#include <algorithm>
#include <new>

#include "scoreprior/core/errors.h"

namespace scoreprior::io::detail {
namespace {

struct Inflater {
  z_stream stream{};
  Inflater() {
    if (inflateInit2(&stream, 15 + 16) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream); }
};

constexpr size_t kInflateStep = size_t{1} << 20;

}  // namespace

bool is_gzip(const std::string& bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b';
}

std::string gunzip(const std::string& bytes, const std::string& name, uint64_t limit) {
  Inflater z;
  std::string out;
  size_t at = 0;
  int code = Z_OK;
  z.stream.next_out = nullptr;
  while (true) {
    if (z.stream.avail_in == 0) {
      const size_t n = std::min<size_t>(bytes.size() - at, size_t{1} << 30);
      z.stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data())) + at;
      z.stream.avail_in = static_cast<uInt>(n);
      at += n;
    }
    if (z.stream.avail_in == 0) {
      if (code == Z_STREAM_END) break;
      throw DataError(name + ": truncated: the gzip data end too early");
    }
    if (code == Z_STREAM_END && inflateReset(&z.stream) != Z_OK)
      throw DataError(name + ": damaged gzip data");
    const size_t have = out.size();
    out.resize(have + kInflateStep);
    z.stream.next_out = reinterpret_cast<Bytef*>(out.data()) + have;
    z.stream.avail_out = kInflateStep;
    code = inflate(&z.stream, Z_NO_FLUSH);
    out.resize(have + kInflateStep - z.stream.avail_out);
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
      throw DataError(name + ": damaged gzip data");
    if (limit > 0 && out.size() > limit)
      throw DataError(name + ": damaged: it unpacks to more than the announced " +
                      std::to_string(limit) + " bytes");
  }
  return out;
}

std::string gunzip_first(const std::string& bytes, const std::string& name, size_t count) {
  Inflater z;
  std::string out(count, '\0');
  z.stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  z.stream.avail_in = static_cast<uInt>(std::min<size_t>(bytes.size(), size_t{1} << 20));
  z.stream.next_out = reinterpret_cast<Bytef*>(out.data());
  z.stream.avail_out = static_cast<uInt>(count);
  const int code = inflate(&z.stream, Z_SYNC_FLUSH);
  if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
    throw DataError(name + ": damaged gzip data");
  out.resize(count - z.stream.avail_out);
  return out;
}

std::string gzip(const std::string& bytes) {
  z_stream z{};
  if (deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    throw std::bad_alloc();
  SP_CHECK(bytes.size() < (size_t{1} << 31), "gzip", "expected less than 2 GiB");
  std::string out(deflateBound(&z, bytes.size()), '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  z.avail_in = static_cast<uInt>(bytes.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

}  // namespace scoreprior::io::detail
