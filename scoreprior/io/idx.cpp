#include "scoreprior/io/idx.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/inflate.h"

namespace scoreprior::io {
namespace {

struct IdxType {
  unsigned char code;
  at::ScalarType type;
};
constexpr IdxType kIdxTypes[] = {{0x08, at::kByte}, {0x09, at::kChar},  {0x0B, at::kShort},
                                 {0x0C, at::kInt},  {0x0D, at::kFloat}, {0x0E, at::kDouble}};

constexpr size_t kIdxMaxRank = 16, kIdxHeaderBytes = 4 + 4 * kIdxMaxRank;

struct IdxHeader {
  at::ScalarType type = at::kByte;
  Shape shape;
  uint64_t count = 1;
  size_t bytes = 0;
};

IdxHeader parse_idx_header(const std::string& bytes, const std::string& name) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (bytes.size() < 4 || byte(0) != 0 || byte(1) != 0) throw DataError(name + ": not an IDX file");
  const IdxType* type = nullptr;
  for (const auto& t : kIdxTypes)
    if (t.code == byte(2)) type = &t;
  if (!type)
    throw DataError(name + ": not an IDX file (unknown element type " + std::to_string(byte(2)) +
                    ")");
  IdxHeader h;
  h.type = type->type;
  const size_t rank = byte(3);
  h.bytes = 4 + 4 * rank;
  if (rank == 0 || rank > kIdxMaxRank || bytes.size() < h.bytes)
    throw DataError(name + ": damaged IDX header (rank " + std::to_string(rank) + ")");
  for (size_t k = 0; k < rank; ++k) {
    uint64_t d = 0;
    for (size_t b = 0; b < 4; ++b) d = d << 8 | byte(4 + 4 * k + b);
    if (d != 0 && h.count > (uint64_t{1} << 56) / d)
      throw DataError(name + ": damaged IDX header: impossibly many elements");
    h.shape.push_back(static_cast<int64_t>(d));
    h.count *= d;
  }
  return h;
}

void swap_items(char* data, size_t count, size_t item) {
  if (item == 1) return;
  for (size_t i = 0; i < count; ++i) std::reverse(data + i * item, data + (i + 1) * item);
}

}  // namespace

at::Tensor read_idx(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::string bytes = read_text(path);
  const bool packed = detail::is_gzip(bytes);
  // The header first: it bounds what a packed file may unpack to.
  const IdxHeader h =
      parse_idx_header(packed ? detail::gunzip_first(bytes, name, kIdxHeaderBytes) : bytes, name);
  const uint64_t item = at::elementSize(h.type), wanted = h.bytes + h.count * item;
  if (packed) bytes = detail::gunzip(bytes, name, wanted);
  if (bytes.size() != wanted)
    throw DataError(name + ": truncated or damaged: the header announces " +
                    std::to_string(h.count) + " elements, the file holds " +
                    std::to_string((bytes.size() - h.bytes) / item));
  at::Tensor out = at::empty(h.shape, at::TensorOptions(h.type));
  if (h.count > 0) {
    std::memcpy(out.data_ptr(), bytes.data() + h.bytes, h.count * item);
    swap_items(static_cast<char*>(out.data_ptr()), h.count, item);
  }
  return out;
}

void write_idx(const std::filesystem::path& path, const at::Tensor& array) {
  const at::Tensor a = array.detach().to(at::kCPU).contiguous();
  const IdxType* type = nullptr;
  for (const auto& t : kIdxTypes)
    if (t.type == a.scalar_type()) type = &t;
  SP_CHECK(type && a.dim() >= 1 && a.dim() <= 16, "write_idx",
           "expected u1, i1, i2, i4, f4 or f8 of rank 1 to 16");
  std::string bytes = {'\0', '\0', static_cast<char>(type->code), static_cast<char>(a.dim())};
  for (const int64_t d : a.sizes())
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(d >> shift & 255);
  std::string data(static_cast<const char*>(a.data_ptr()), a.nbytes());
  swap_items(data.data(), static_cast<size_t>(a.numel()), a.element_size());
  bytes += data;
  write_text(path, path.extension() == ".gz" ? detail::gzip(bytes) : bytes);
}

}  // namespace scoreprior::io
