#include "scoreprior/io/tfrecord.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/inflate.h"

namespace scoreprior::io {
namespace {

// Eight tables: eight bytes a step ("slicing-by-8").
using CrcTables = std::array<std::array<uint32_t, 256>, 8>;
const CrcTables& crc_tables() {
  static const CrcTables tables = [] {
    CrcTables t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = c & 1 ? c >> 1 ^ 0x82F63B78u : c >> 1;
      t[0][i] = c;
    }
    for (size_t s = 1; s < 8; ++s)
      for (size_t i = 0; i < 256; ++i) t[s][i] = t[s - 1][i] >> 8 ^ t[0][t[s - 1][i] & 255];
    return t;
  }();
  return tables;
}

uint32_t masked_crc(std::string_view data) {
  const uint32_t c = crc32c(data);
  return (c >> 15 | c << 17) + 0xa282ead8u;
}

template <class T>
T little(const char* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// A protocol-buffer message, field by field.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}
  bool more() const { return !rest_.empty(); }
  uint64_t varint() {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const unsigned char b = static_cast<unsigned char>(take(1)[0]);
      v |= static_cast<uint64_t>(b & 127) << shift;
      if (b < 128) return v;
    }
    fail();
  }
  std::string_view take(uint64_t n) {
    if (n > rest_.size()) fail();
    const std::string_view part = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return part;
  }
  std::string_view length_delimited() { return take(varint()); }
  void skip(uint32_t wire) {
    if (wire == 0)
      varint();
    else if (wire == 1)
      take(8);
    else if (wire == 2)
      length_delimited();
    else if (wire == 5)
      take(4);
    else
      fail();
  }
  [[noreturn]] void fail() const {
    throw DataError(name_ + ": damaged: not a tf.train.Example message");
  }

 private:
  std::string_view rest_;
  const std::string& name_;
};

ExampleFeature parse_feature(std::string_view bytes, const std::string& name) {
  ExampleFeature out;
  ProtoReader feature(bytes, name);
  while (feature.more()) {
    const uint64_t tag = feature.varint();
    const uint64_t kind = tag >> 3;
    if ((tag & 7) != 2 || kind < 1 || kind > 3) {
      feature.skip(tag & 7);
      continue;
    }
    ProtoReader list(feature.length_delimited(), name);
    while (list.more()) {
      const uint64_t item = list.varint();
      const uint32_t wire = item & 7;
      if (item >> 3 != 1) {
        list.skip(wire);
      } else if (kind == 1 && wire == 2) {
        out.bytes.emplace_back(list.length_delimited());
      } else if (kind == 2 && wire == 2) {  // packed
        const std::string_view packed = list.length_delimited();
        if (packed.size() % 4 != 0) list.fail();
        const size_t have = out.floats.size();
        out.floats.resize(have + packed.size() / 4);
        if (!packed.empty()) std::memcpy(out.floats.data() + have, packed.data(), packed.size());
      } else if (kind == 2 && wire == 5) {
        out.floats.push_back(little<float>(list.take(4).data()));
      } else if (kind == 3 && wire == 2) {  // packed
        ProtoReader packed(list.length_delimited(), name);
        while (packed.more()) out.ints.push_back(static_cast<int64_t>(packed.varint()));
      } else if (kind == 3 && wire == 0) {
        out.ints.push_back(static_cast<int64_t>(list.varint()));
      } else {
        list.fail();
      }
    }
  }
  return out;
}

void put_varint(std::string& out, uint64_t v) {
  for (; v > 127; v >>= 7) out += static_cast<char>(v | 128);
  out += static_cast<char>(v);
}

void put_field(std::string& out, uint32_t field, std::string_view bytes) {
  put_varint(out, field << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

constexpr size_t kRecordFrame = 8 + 4;

}  // namespace

uint32_t crc32c(std::string_view data) {
  const CrcTables& t = crc_tables();
  uint32_t c = ~0u;
  const char* p = data.data();
  size_t n = data.size();
  for (; n >= 8; n -= 8, p += 8) {
    const uint64_t v = little<uint64_t>(p) ^ c;
    c = t[7][v & 255] ^ t[6][v >> 8 & 255] ^ t[5][v >> 16 & 255] ^ t[4][v >> 24 & 255] ^
        t[3][v >> 32 & 255] ^ t[2][v >> 40 & 255] ^ t[1][v >> 48 & 255] ^ t[0][v >> 56];
  }
  for (; n > 0; --n, ++p) c = c >> 8 ^ t[0][(c ^ static_cast<unsigned char>(*p)) & 255];
  return ~c;
}

Example parse_example(std::string_view message, const std::string& name) {
  Example out;
  ProtoReader example(message, name);
  while (example.more()) {
    const uint64_t tag = example.varint();
    if (tag != (1 << 3 | 2)) {
      example.skip(tag & 7);
      continue;
    }
    ProtoReader features(example.length_delimited(), name);
    while (features.more()) {
      const uint64_t entry_tag = features.varint();
      if (entry_tag != (1 << 3 | 2)) {
        features.skip(entry_tag & 7);
        continue;
      }
      ProtoReader entry(features.length_delimited(), name);
      std::string key;
      ExampleFeature value;
      while (entry.more()) {
        const uint64_t part = entry.varint();
        if (part == (1 << 3 | 2))
          key = entry.length_delimited();
        else if (part == (2 << 3 | 2))
          value = parse_feature(entry.length_delimited(), name);
        else
          entry.skip(part & 7);
      }
      out[key] = std::move(value);
    }
  }
  return out;
}

std::string serialize_example(const Example& example) {
  std::string features;
  for (const auto& [key, f] : example) {
    std::string list;
    uint32_t kind = 1;
    if (!f.floats.empty()) {
      kind = 2;
      put_field(list, 1, {reinterpret_cast<const char*>(f.floats.data()), 4 * f.floats.size()});
    } else if (!f.ints.empty()) {
      kind = 3;
      std::string packed;
      for (const int64_t v : f.ints) put_varint(packed, static_cast<uint64_t>(v));
      put_field(list, 1, packed);
    } else {
      for (const auto& b : f.bytes) put_field(list, 1, b);
    }
    std::string feature, entry;
    put_field(feature, kind, list);
    put_field(entry, 1, key);
    put_field(entry, 2, feature);
    put_field(features, 1, entry);
  }
  std::string out;
  put_field(out, 1, features);
  return out;
}

TfrecordFile::TfrecordFile(const std::filesystem::path& path) : name_(path.string()) {
  require_file(path, "TFRecord file");
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw MissingFileError("cannot read " + name_ + ": " + std::strerror(errno));
  char magic[2] = {0, 0};
  const bool packed = ::pread(file, magic, 2, 0) == 2 && detail::is_gzip(std::string(magic, 2));
  const off_t size = ::lseek(file, 0, SEEK_END);
  if (!packed && size > 0) {
    void* pages = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, file, 0);
    if (pages != MAP_FAILED) {
      data_ = static_cast<const char*>(pages);
      bytes_ = static_cast<size_t>(size);
      mapped_ = true;
    }
  }
  ::close(file);
  if (!mapped_) {
    unpacked_ = read_text(path);
    if (packed) unpacked_ = detail::gunzip(unpacked_, name_);
    data_ = unpacked_.data();
    bytes_ = unpacked_.size();
  }
  const auto fail = [&](const std::string& what) {
    const std::string message =
        name_ + ": record " + std::to_string(records_.size()) + " is " + what;
    if (mapped_) ::munmap(const_cast<char*>(data_), bytes_);
    throw DataError(message);
  };
  for (uint64_t at = 0; at < bytes_;) {
    if (bytes_ - at < kRecordFrame) fail("truncated");
    const uint64_t length = little<uint64_t>(data_ + at);
    if (little<uint32_t>(data_ + at + 8) != masked_crc({data_ + at, 8}))
      fail("damaged, or this is not a TFRecord file (the checksum of its length is wrong)");
    if (bytes_ - at - kRecordFrame < 4 || length > bytes_ - at - kRecordFrame - 4)
      fail("truncated");
    records_.emplace_back(at + kRecordFrame, length);
    at += kRecordFrame + length + 4;
  }
  if (records_.empty()) fail("missing: the file is empty");
}

TfrecordFile::TfrecordFile(TfrecordFile&& o) noexcept
    : name_(std::move(o.name_)),
      unpacked_(std::move(o.unpacked_)),
      data_(o.mapped_ ? o.data_ : unpacked_.data()),
      bytes_(o.bytes_),
      mapped_(o.mapped_),
      records_(std::move(o.records_)) {
  o.mapped_ = false;
}

TfrecordFile::~TfrecordFile() {
  if (mapped_) ::munmap(const_cast<char*>(data_), bytes_);
}

std::string_view TfrecordFile::record(int64_t index) const {
  const auto [at, length] = records_.at(static_cast<size_t>(index));
  const std::string_view data(data_ + at, length);
  if (little<uint32_t>(data_ + at + length) != masked_crc(data))
    throw DataError(name_ + ": record " + std::to_string(index) +
                    " is damaged (the checksum of its data is wrong)");
  return data;
}

Example TfrecordFile::example(int64_t index) const {
  return parse_example(record(index), name_ + ": record " + std::to_string(index));
}

void write_tfrecord(const std::filesystem::path& path, const std::vector<std::string>& records,
                    bool gzip) {
  std::string out;
  const auto put = [&](const auto& v) { out.append(reinterpret_cast<const char*>(&v), sizeof v); };
  for (const auto& r : records) {
    const uint64_t length = r.size();
    put(length);
    put(masked_crc({reinterpret_cast<const char*>(&length), 8}));
    out += r;
    put(masked_crc(r));
  }
  write_text(path, gzip ? detail::gzip(out) : out);
}

}  // namespace scoreprior::io
