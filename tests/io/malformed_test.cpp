#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "sample_files.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"

// Sanitizers map terabytes of address space, so that a limit on it means nothing.
#if defined(__SANITIZE_ADDRESS__)
#define SP_TEST_LIMITS_MEMORY 0
#else
#define SP_TEST_LIMITS_MEMORY 1
#endif

namespace scoreprior::io {
namespace {

namespace fs = std::filesystem;
using testing_files::file_formats;
using testing_files::FileFormat;

constexpr double kSecondsPerFile = 5;
constexpr rlim_t kMemory = rlim_t{1} << 30;  // far beyond what files of a few kB explain

// At least 40 wrong versions of a file, always the same ones.
std::vector<std::string> mutations(const std::string& good) {
  std::mt19937_64 random(20170411);
  const auto below = [&](size_t n) {
    return static_cast<size_t>(random() % std::max<size_t>(n, 1));
  };
  std::vector<std::string> all;
  for (const size_t n : {size_t{0}, size_t{1}, size_t{3}, size_t{4}, size_t{8}, size_t{16}})
    if (n < good.size()) all.push_back(good.substr(0, n));
  for (size_t k = 1; k <= 14; ++k) all.push_back(good.substr(0, good.size() * k / 15));
  all.push_back(good.substr(0, good.size() - 1));
  for (int k = 0; k < 24; ++k) {
    std::string m = good;
    m[below(m.size())] ^= static_cast<char>(1 << below(8));
    all.push_back(m);
  }
  for (int k = 0; k < 8; ++k) {
    std::string m = good;
    for (size_t i = 0; i < 1 + m.size() / 50; ++i) m[below(m.size())] = static_cast<char>(random());
    all.push_back(m);
  }
  // Lengths: huge, the largest positive, zero; in the first bytes, where headers are, and anywhere.
  for (const char* value : {"\xff\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\x7f\x00\x00\x00\x00",
                            "\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\x7f"})
    for (int k = 0; k < 10; ++k) {
      const size_t bytes = k % 2 ? 8 : 4;
      const size_t at = k < 5 ? 4 * static_cast<size_t>(k) : below(good.size());
      std::string m = good;
      if (at + bytes <= m.size()) m.replace(at, bytes, std::string(value, bytes));
      all.push_back(m);
    }
  for (const char* magic : {"PK\x03\x04", "\x89HDF", "\x93NUM", "SIMP", "\x1f\x8b\x08\x00"}) {
    std::string m = good;
    m.replace(0, std::min<size_t>(4, m.size()), std::string(magic, 4));
    all.push_back(m);
  }
  // Numbers written as text.
  std::vector<size_t> digits;
  for (size_t i = 0; i < good.size(); ++i)
    if (good[i] >= '0' && good[i] <= '9' && (i == 0 || good[i - 1] < '0' || good[i - 1] > '9'))
      digits.push_back(i);
  for (const char* number : {"99999999999", "-1", "0", "nan", "18446744073709551616"})
    for (int k = 0; k < 3 && !digits.empty(); ++k) {
      const size_t at = digits[below(digits.size())];
      std::string m = good;
      m.replace(at, 1, number);
      all.push_back(m);
    }
  all.push_back(good + good);
  all.push_back(good + std::string(1000, '\0'));
  std::string reversed(good.rbegin(), good.rend());
  all.push_back(reversed);
  return all;
}

// What is wrong with the outcome of reading one damaged file, or "".
std::string complaint_about(const FileFormat& f, const fs::path& path) {
  const auto start = std::chrono::steady_clock::now();
  std::string wrong;
  try {
    f.read(path);
  } catch (const Error& e) {
    const std::string text = e.what();
    if (e.exit_code() != 65 && !(f.name == "toml" && e.exit_code() == 78))
      wrong = "exit code " + std::to_string(e.exit_code()) + ": " + text;
    else if (text.empty() || text.find('\n') != std::string::npos || text.size() > 600)
      wrong = "not one sentence: \"" + text + "\"";
    else if (text.find(path.stem().string()) == std::string::npos)
      wrong = "does not name the file: " + text;
  } catch (const std::bad_alloc&) {
    wrong = "asks for more than 1 GiB";
  } catch (const std::exception& e) {
    wrong = std::string("leaves with ") + e.what();
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (wrong.empty() && seconds > kSecondsPerFile) wrong = "takes " + std::to_string(seconds) + " s";
  return wrong;
}

void put_bytes(const fs::path& path, const std::string& bytes) {  // without write_text's fsync
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Reads all damaged versions of the file with that extension in a child of limited memory: what is
// wrong, or "".
std::string read_damaged(const FileFormat& f, const std::string& extension) {
  const fs::path folder =
      fs::temp_directory_path() / ("sp-malformed-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const fs::path path = folder / ("sample" + f.extension),
                 mutated = folder / ("sample" + extension);
  f.write(path);
  f.read(path);
  const auto all = mutations(read_text(mutated));
  const fs::path progress = folder / "progress", findings = folder / "findings";
  const pid_t child = ::fork();
  if (child == 0) {
#if SP_TEST_LIMITS_MEMORY
    unsigned long pages = 0;
    if (FILE* statm = std::fopen("/proc/self/statm", "r")) {
      if (std::fscanf(statm, "%lu", &pages) != 1) pages = 0;
      std::fclose(statm);
    }
    const rlim_t now = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
    const rlimit limit{now + kMemory, now + 2 * kMemory}, no_core{0, 0};
    ::setrlimit(RLIMIT_AS, &limit);
    ::setrlimit(RLIMIT_CORE, &no_core);
#endif
    ::alarm(300);
    std::string found;
    for (size_t k = 0; k < all.size(); ++k) {
      put_bytes(progress, std::to_string(k));
      put_bytes(mutated, all[k]);
      const std::string wrong = complaint_about(f, path);
      if (!wrong.empty()) found += "mutation " + std::to_string(k) + " " + wrong + "\n";
    }
    put_bytes(findings, found);
    ::_exit(0);
  }
  int status = 0;
  std::string report;
  if (child < 0 || ::waitpid(child, &status, 0) != child) report = "no child process\n";
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    report += "ends with signal " + std::to_string(WIFSIGNALED(status) ? WTERMSIG(status) : 0) +
              " at mutation " + read_text(progress) + "\n";
  if (fs::exists(findings)) report += read_text(findings);
  fs::remove_all(folder);
  std::printf("  %-12s %-8s %3zu damaged files\n", f.name.c_str(), extension.c_str(), all.size());
  if (all.size() < 40) report += "too few mutations\n";
  return report;
}

TEST(Malformed, EveryReaderAnswersInOneSentence) {
  const char* only = std::getenv("SP_TEST_FORMAT");
  for (const FileFormat& f : file_formats()) {
    if (only && f.name != only) continue;
    EXPECT_EQ(read_damaged(f, f.extension), "") << f.name;
    if (!f.companion.empty()) {
      EXPECT_EQ(read_damaged(f, f.companion), "") << f.name;
    }
  }
}

// The test can fail: readers that crash, ask for too much, or leave with another exception.
TEST(Malformed, BadReadersAreSeen) {
  FileFormat bad{"bad", ".bad", [](const fs::path& p) { put_bytes(p, "good file"); }, nullptr, ""};
  const auto damaged = [](const fs::path& p) { return read_text(p).rfind("good file", 0) != 0; };
  bad.read = [&](const fs::path& p) {
    if (damaged(p)) std::abort();
  };
  EXPECT_NE(read_damaged(bad, ".bad").find("signal 6"), std::string::npos);
#if SP_TEST_LIMITS_MEMORY
  bad.read = [&](const fs::path& p) {
    if (damaged(p)) std::vector<char>(size_t{3} << 30).at(0) = 1;
  };
  EXPECT_NE(read_damaged(bad, ".bad").find("1 GiB"), std::string::npos);
#endif
  bad.read = [&](const fs::path& p) {
    if (damaged(p)) throw std::runtime_error("sample");
  };
  EXPECT_NE(read_damaged(bad, ".bad").find("leaves with"), std::string::npos);
  bad.read = [&](const fs::path& p) {
    if (damaged(p)) throw DataError("two\nlines");
  };
  EXPECT_NE(read_damaged(bad, ".bad").find("not one sentence"), std::string::npos);
}

// A library that goes round in circles is stopped, after seconds of processor time.
TEST(Malformed, EndlessReadersStop) {
  const fs::path file = fs::temp_directory_path() / ("sp-endless-" + std::to_string(::getpid()));
  put_bytes(file, "small");
  std::string message;
  try {
    detail::read_guarded(file, "HDF5", [](detail::FindingsWriter&) {
      for (volatile unsigned turns = 0;; ++turns) {
      }
    });
  } catch (const DataError& e) {
    message = e.what();
  }
  fs::remove(file);
  EXPECT_NE(message.find("reading it as HDF5 does not end"), std::string::npos) << message;
  rusage used{};
  ::getrusage(RUSAGE_CHILDREN, &used);
  EXPECT_GE(used.ru_utime.tv_sec + used.ru_stime.tv_sec, 3);
}

/// A valid UVFITS file and what the reader says of a changed one.
class DamagedTable : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const FileFormat& f : file_formats())
      if (f.name == "uvfits") format_ = &f;
    ASSERT_NE(format_, nullptr);
    file_ = fs::temp_directory_path() / ("sp-table-" + std::to_string(::getpid()));
    format_->write(file_);
    good_ = read_text(file_);
  }
  void TearDown() override { fs::remove(file_); }
  std::string message(const std::string& bytes) const {
    put_bytes(file_, bytes);
    try {
      format_->read(file_);
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  }

  const FileFormat* format_ = nullptr;
  fs::path file_;
  std::string good_;
};

// cfitsio would copy it beyond the end of its buffer.
TEST_F(DamagedTable, ColumnsNeedNamesInQuotes) {
  const size_t card = good_.find("TTYPE2  =");
  for (const size_t from : {10, 9}) {  // with and without the space behind the equals sign
    std::string bad = good_;
    bad.replace(card + from, 80 - from, std::string(80 - from, 'x'));
    EXPECT_NE(message(bad).find("TTYPE2 is no text in quotes"), std::string::npos) << message(bad);
  }
}

// cfitsio would allocate for a number of columns that it never set.
TEST_F(DamagedTable, NeedsWholeNumbersInItsHeader) {
  const size_t table = good_.find("XTENSION= 'BINTABLE'");
  for (const char* key : {"NAXIS2  =", "PCOUNT  =", "TFIELDS ="})
    for (const char* value : {"3INTT", "1.5", "", "T"}) {
      std::string bad = good_, field(20, ' ');
      field.replace(0, std::strlen(value), value);
      bad.replace(bad.find(key, table) + 10, 20, field);
      EXPECT_NE(message(bad).find("a table without a whole number"), std::string::npos)
          << key << value << ": " << message(bad);
    }
}

TEST(Malformed, AbsentFilesAndFoldersAreMissing) {
  for (const FileFormat& f : file_formats()) {
    EXPECT_THROW(f.read(fs::path("no-such-folder") / ("x" + f.extension)), MissingFileError)
        << f.name;
    EXPECT_THROW(f.read(fs::temp_directory_path()), MissingFileError) << f.name;
  }
}

}  // namespace
}  // namespace scoreprior::io
