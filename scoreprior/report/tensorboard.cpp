#include "scoreprior/report/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::report {
namespace {

namespace fs = std::filesystem;

template <class T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

// The protocol buffer wire format: a field is its number and type, then its value.
void append_varint(std::string& out, uint64_t v) {
  while (v >= 0x80) {
    out += static_cast<char>(v | 0x80);
    v >>= 7;
  }
  out += static_cast<char>(v);
}
void field_varint(std::string& out, int field, uint64_t v) {
  append_varint(out, uint64_t(field) << 3);
  append_varint(out, v);
}
void field_bytes(std::string& out, int field, const std::string& bytes) {
  append_varint(out, uint64_t(field) << 3 | 2);
  append_varint(out, bytes.size());
  out += bytes;
}
void field_double(std::string& out, int field, double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  append_varint(out, uint64_t(field) << 3 | 1);
  append_little_endian(out, bits);
}
void field_float(std::string& out, int field, float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  append_varint(out, uint64_t(field) << 3 | 5);
  append_little_endian(out, bits);
}

// Event: 1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log.
std::string event_at(int64_t step) {
  using namespace std::chrono;
  std::string event;
  field_double(event, 1, duration<double>(system_clock::now().time_since_epoch()).count());
  if (step != 0) field_varint(event, 2, static_cast<uint64_t>(step));
  return event;
}

// Summary.Value: 1 tag, 2 simple_value, 4 image.
std::string summary_event(int64_t step, const std::string& tag, const std::string& content) {
  std::string value, summary;
  field_bytes(value, 1, tag);
  value += content;
  field_bytes(summary, 1, value);
  std::string event = event_at(step);
  field_bytes(event, 5, summary);
  return event;
}

uint32_t masked_crc(const std::string& bytes) {
  const uint32_t crc = crc32c(bytes.data(), bytes.size());
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

}  // namespace

uint32_t crc32c(const void* data, size_t size) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = c & 1 ? c >> 1 ^ 0x82F63B78u : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  const auto* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) crc = table[(crc ^ p[i]) & 0xFF] ^ crc >> 8;
  return ~crc;
}

TensorBoardWriter::TensorBoardWriter(const fs::path& folder, int64_t resume_step) {
  io::make_folder(folder);
  // TensorBoard reads the files of a folder in the order of their names, which begin with a time.
  constexpr const char* kPrefix = "events.out.tfevents.";
  int64_t time = std::chrono::duration_cast<std::chrono::seconds>(
                     std::chrono::system_clock::now().time_since_epoch())
                     .count();
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kPrefix, 0) != 0) continue;
    const int64_t other = std::strtoll(name.c_str() + std::strlen(kPrefix), nullptr, 10);
    time = std::max(time, other + 1);
  }
  char stamp[32];
  std::snprintf(stamp, sizeof stamp, "%010lld", static_cast<long long>(time));
  path_ = folder / (std::string(kPrefix) + stamp + ".scoreprior." + std::to_string(::getpid()));
  file_ = std::fopen(path_.c_str(), "wbe");
  if (!file_)
    throw CannotCreateError("cannot write " + path_.string() + ": " + std::strerror(errno));
  std::string version = event_at(0);
  field_bytes(version, 3, "brain.Event:2");
  write_event(version);
  if (resume_step >= 0) {
    // SessionLog START (status 1): records of this step and later ones in earlier files are void.
    std::string session;
    field_varint(session, 1, 1);
    std::string event = event_at(resume_step);
    field_bytes(event, 7, session);
    write_event(event);
  }
  flush();
}

TensorBoardWriter::~TensorBoardWriter() {
  if (file_) std::fclose(file_);
}

void TensorBoardWriter::write_event(const std::string& event) {
  std::string length, record;
  append_little_endian(length, static_cast<uint64_t>(event.size()));
  record = length;
  append_little_endian(record, masked_crc(length));
  record += event;
  append_little_endian(record, masked_crc(event));
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size())
    throw IoError("cannot write " + path_.string() + ": " + std::strerror(errno));
}

void TensorBoardWriter::scalar(const std::string& tag, int64_t step, double value) {
  std::string content;
  field_float(content, 2, static_cast<float>(value));
  write_event(summary_event(step, tag, content));
}

void TensorBoardWriter::image(const std::string& tag, int64_t step, const io::Raster& raster) {
  const std::vector<uint8_t> png = io::encode_png(raster);
  std::string picture, content;  // Image: 1 height, 2 width, 3 colorspace, 4 encoded
  field_varint(picture, 1, static_cast<uint64_t>(raster.height));
  field_varint(picture, 2, static_cast<uint64_t>(raster.width));
  field_varint(picture, 3, static_cast<uint64_t>(raster.channels));
  field_bytes(picture, 4, std::string(png.begin(), png.end()));
  field_bytes(content, 4, picture);
  write_event(summary_event(step, tag, content));
}

void TensorBoardWriter::flush() {
  if (std::fflush(file_) != 0)
    throw IoError("cannot write " + path_.string() + ": " + std::strerror(errno));
}

}  // namespace scoreprior::report
