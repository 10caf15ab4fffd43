/// Any bytes given to a reader: it must return, or throw scoreprior::Error. Everything else
/// (another exception, a crash, a sanitizer's report, a hang, too much memory) stops libFuzzer.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "sample_files.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

extern const char* const kFuzzedReader;

namespace {

namespace fs = std::filesystem;
using scoreprior::io::testing_files::file_formats;
using scoreprior::io::testing_files::FileFormat;

struct FuzzedFormat {
  FileFormat format;
  fs::path file, mutated;
};

// "idx_gz" is the format "idx.gz"; "cfl_hdr" the second file of the pair "cfl".
const FuzzedFormat& fuzzed_format() {
  static const FuzzedFormat chosen = [] {
    for (const FileFormat& f : file_formats()) {
      std::string name = f.name;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return c == ' ' || c == '.'; }, '_');
      const bool second =
          !f.companion.empty() && name + "_" + f.companion.substr(1) == kFuzzedReader;
      if (name != kFuzzedReader && !second) continue;
      const fs::path folder = fs::temp_directory_path() / ("sp-fuzz-" + std::to_string(::getpid()));
      fs::create_directories(folder);
      FuzzedFormat out{f, folder / ("x" + f.extension), {}};
      out.mutated = second ? folder / ("x" + f.companion) : out.file;
      f.write(out.file);
      return out;
    }
    std::cerr << "no reader is called " << kFuzzedReader << std::endl;
    std::abort();
  }();
  return chosen;
}

}  // namespace

// SP_FUZZ_SEED=FILE writes the valid file there.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const FuzzedFormat& f = fuzzed_format();
  if (const char* seed = std::getenv("SP_FUZZ_SEED"))
    fs::copy_file(f.mutated, seed, fs::copy_options::overwrite_existing);
  std::atexit([] {
    std::error_code ec;
    fs::remove_all(fuzzed_format().file.parent_path(), ec);
  });
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const FuzzedFormat& f = fuzzed_format();
  std::ofstream(f.mutated, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    f.format.read(f.file);
  } catch (const scoreprior::Error&) {
  }
  return 0;
}
