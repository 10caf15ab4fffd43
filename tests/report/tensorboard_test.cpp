#include "scoreprior/report/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::report {
namespace {

namespace fs = std::filesystem;

class TensorBoardFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-tensorboard-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

template <class T>
T number_at(const std::string& s, size_t at) {
  T v;
  std::memcpy(&v, s.data() + at, sizeof v);
  return v;
}

// The payloads of a TFRecord file; checks both checksums of every record.
std::vector<std::string> records_of(const fs::path& path) {
  const std::string s = io::read_text(path);
  const auto masked = [](const std::string& bytes) {
    const uint32_t crc = crc32c(bytes.data(), bytes.size());
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  std::vector<std::string> out;
  for (size_t at = 0; at < s.size();) {
    const auto length = number_at<uint64_t>(s, at);
    EXPECT_EQ(number_at<uint32_t>(s, at + 8), masked(s.substr(at, 8)));
    out.push_back(s.substr(at + 12, length));
    EXPECT_EQ(number_at<uint32_t>(s, at + 12 + length), masked(out.back()));
    at += 16 + length;
  }
  return out;
}

}  // namespace

TEST(Crc32c, MatchesThePublishedVectors) {
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);
  const std::string zeros(32, '\0');  // RFC 3720 B.4
  EXPECT_EQ(crc32c(zeros.data(), 32), 0x8A9136AAu);
  EXPECT_EQ(crc32c("", 0), 0u);
}

using TensorBoard = TensorBoardFolder;

TEST_F(TensorBoard, WritesEventsByteForByte) {
  fs::path path;
  {
    TensorBoardWriter w(folder_ / "events");
    w.scalar("loss", 300, 0.5);
    io::Raster r;
    r.width = 2;
    r.height = 1;
    r.channels = 3;
    r.data = {0, 1, 2, 3, 4, 5};
    w.image("samples", 300, r);
    path = w.path();
  }
  const auto records = records_of(path);
  ASSERT_EQ(records.size(), 3u);
  // 1: double wall_time; 3: "brain.Event:2"
  EXPECT_EQ(records[0].substr(0, 1), "\x09");
  EXPECT_EQ(records[0].substr(9),
            "\x1a\x0d"
            "brain.Event:2");
  // 2: step 300 = AC 02; 5: summary { 1: value { 1: "loss", 2: float 0.5 = 00 00 00 3F } }
  EXPECT_EQ(records[1].substr(9),
            std::string("\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f", 18));
  EXPECT_NE(records[2].find("\x89PNG"), std::string::npos);
}

TEST_F(TensorBoard, ResumesInANewFileThatSortsLast) {
  fs::path first, second, third;
  {
    TensorBoardWriter w(folder_);
    w.scalar("loss", 1, 1);
    first = w.path();
  }
  {
    TensorBoardWriter w(folder_, 1);
    second = w.path();
  }
  {
    TensorBoardWriter w(folder_, 7);
    third = w.path();
  }
  EXPECT_LT(first.filename().string(), second.filename().string());
  EXPECT_LT(second.filename().string(), third.filename().string());
  const auto records = records_of(third);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].substr(9),
            std::string("\x10\x07\x3a\x02\x08\x01", 6));  // session_log { status: START }
  EXPECT_THROW(TensorBoardWriter("/proc/nowhere"), CannotCreateError);
}

// TensorBoard's own reader, where there is one.
TEST_F(TensorBoard, TensorBoardReadsIt) {
  const char* named = std::getenv("SP_PYTHON");
  const std::string python = named ? named : "python3";
  if (std::system((python + " -c 'import tensorboard' 2>/dev/null").c_str()) != 0)
    GTEST_SKIP() << "no Python with tensorboard";
  {
    TensorBoardWriter w(folder_ / "e");
    for (int64_t i = 1; i <= 10; ++i) w.scalar("loss", i, 1.0 / double(i));
  }
  {
    TensorBoardWriter w(folder_ / "e", 6);
    io::Raster r;
    r.width = r.height = 4;
    r.channels = 3;
    r.data.assign(48, 100);
    for (int64_t i = 6; i <= 8; ++i) w.scalar("loss", i, 2);
    w.image("samples", 8, r);
  }
  io::write_text(folder_ / "check.py", R"py(
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator(sys.argv[1]); a.Reload()
assert [(e.step, round(e.value, 6)) for e in a.Scalars('loss')] == \
    [(i, round(1 / i, 6)) for i in range(1, 6)] + [(6, 2.0), (7, 2.0), (8, 2.0)], a.Scalars('loss')
i = a.Images('samples')[0]
assert (i.width, i.height, i.step) == (4, 4, 8) and i.encoded_image_string[1:4] == b'PNG'
)py");
  EXPECT_EQ(std::system((python + " " + (folder_ / "check.py").string() + " " +
                         (folder_ / "e").string() + " 2>/dev/null")
                            .c_str()),
            0);
}

}  // namespace scoreprior::report
