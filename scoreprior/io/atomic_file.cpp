#include "scoreprior/io/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "scoreprior/core/errors.h"

namespace scoreprior::io {
namespace fs = std::filesystem;

namespace {

constexpr const char* kWritingPrefix = ".writing-";

// Temporary files of processes that were killed while they wrote.
void remove_stale_temporaries(const fs::path& folder) {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(folder, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kWritingPrefix, 0) != 0) continue;
    const long process = std::strtol(name.c_str() + std::strlen(kWritingPrefix), nullptr, 10);
    if (process > 0 && ::kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH)
      fs::remove(entry.path(), ec);
  }
}

// A device or a pipe, which must be written and not replaced.
bool is_device(const fs::path& path) {
  std::error_code ec;
  return fs::exists(path, ec) && !fs::is_regular_file(path, ec) && !fs::is_directory(path, ec);
}

}  // namespace

void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  if (is_device(path))
    throw CannotCreateError("cannot write " + path.string() + ": it is not a regular file");
  const fs::path folder = path.parent_path().empty() ? fs::path(".") : path.parent_path();
  if (!fs::is_directory(folder))
    throw CannotCreateError("cannot write " + path.string() + ": the folder " + folder.string() +
                            " does not exist");
  // The extension is kept, since some libraries choose the format by it.
  const fs::path temporary =
      folder / (kWritingPrefix + std::to_string(::getpid()) + "-" + path.filename().string());
  std::error_code ignored;
  try {
    write(temporary);
    const int fd = ::open(temporary.c_str(), O_RDONLY);
    if (fd < 0)
      throw CannotCreateError("cannot write " + path.string() + ": " + std::strerror(errno));
    const bool synced = ::fsync(fd) == 0;
    const int error = errno;
    ::close(fd);
    if (!synced) throw IoError("cannot write " + path.string() + ": " + std::strerror(error));
    std::error_code ec;
    fs::rename(temporary, path, ec);
    if (ec) throw CannotCreateError("cannot write " + path.string() + ": " + ec.message());
  } catch (...) {
    fs::remove(temporary, ignored);
    throw;
  }
}

void write_text(const fs::path& path, std::string_view text) {
  const auto write = [&](const fs::path& file) {
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
      throw CannotCreateError("cannot write " + path.string() + ": " + std::strerror(errno));
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const int error = errno;
        ::close(fd);
        throw IoError("cannot write " + path.string() + ": " + std::strerror(error));
      }
      done += static_cast<size_t>(n);
    }
    if (::close(fd) != 0)
      throw IoError("cannot write " + path.string() + ": " + std::strerror(errno));
  };
  if (is_device(path))
    write(path);
  else
    write_atomically(path, write);
}

void require_file(const fs::path& path, const std::string& what) {
  if (path.empty()) throw MissingFileError("no " + what + " was named");
  std::error_code ec;
  if (!fs::exists(path, ec)) throw MissingFileError(what + " " + path.string() + " does not exist");
  if (fs::is_directory(path, ec))
    throw MissingFileError(what + " " + path.string() + " is a folder, not a file");
  if (::access(path.c_str(), R_OK) != 0)
    throw MissingFileError(what + " " + path.string() + " cannot be read: " + std::strerror(errno));
}

std::string read_text(const fs::path& path) {
  require_file(path, "file");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream s;
  s << in.rdbuf();
  if (!in) throw MissingFileError("cannot read " + path.string());
  return s.str();
}

void make_folder(const fs::path& path) {
  std::error_code ec;
  fs::create_directories(path, ec);
  if (!fs::is_directory(path))
    throw CannotCreateError("cannot create the folder " + path.string() +
                            (ec ? ": " + ec.message() : std::string(": a file is in the way")));
  if (::access(path.c_str(), W_OK) != 0)
    throw CannotCreateError("cannot write to the folder " + path.string() + ": " +
                            std::strerror(errno));
  remove_stale_temporaries(path);
}

}  // namespace scoreprior::io
