#pragma once
/// Mistakes are exceptions, numerical outcomes are values (see summary.h).
///
/// An Error carries the exit code of the program, after BSD sysexits:
///   64 usage, 65 bad data (also data for which the computation found no result), 66 missing input,
///   70 internal, 73 cannot create, 74 I/O, 78 configuration.
/// API misuse by C++ callers is std::invalid_argument, raised by SP_CHECK.

#include <sstream>
#include <stdexcept>
#include <string>

namespace scoreprior {

class Error : public std::runtime_error {
 public:
  Error(int exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

/// Wrong command line.
struct UsageError : Error {
  explicit UsageError(const std::string& m) : Error(64, m) {}
};
/// A file or array that cannot be what it should be: truncated, corrupt, wrong shape, NaN.
struct DataError : Error {
  explicit DataError(const std::string& m) : Error(65, m) {}
};
/// An input file that does not exist or cannot be opened.
struct MissingFileError : Error {
  explicit MissingFileError(const std::string& m) : Error(66, m) {}
};
/// An output that cannot be created: unwritable folder, existing run of another configuration.
struct CannotCreateError : Error {
  explicit CannotCreateError(const std::string& m) : Error(73, m) {}
};
/// Writing failed half-way: full disk, I/O error. The previous version of the file is intact.
struct IoError : Error {
  explicit IoError(const std::string& m) : Error(74, m) {}
};

/// Where a configuration value was written; line 0 when it came from the command line or a default.
struct FileLoc {
  std::string file;
  int line = 0;
  std::string str() const;  // "run.toml:7: ", or "" when unknown
};

/// A wrong configuration: unknown key, wrong type, value out of range.
struct ConfigError : Error {
  ConfigError(const FileLoc& loc, const std::string& m) : Error(78, loc.str() + m) {}
};

namespace detail {
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream s;
  (s << ... << args);
  return s.str();
}
}  // namespace detail

/// SP_CHECK(condition, "where", "expected x [B,1,16,16], got ", x.sizes()):
/// throws std::invalid_argument "[where] expected ...".
#define SP_CHECK(condition, where, ...)                                       \
  do {                                                                        \
    if (!(condition))                                                         \
      throw std::invalid_argument(std::string("[") + (where) + "] " +         \
                                  ::scoreprior::detail::concat(__VA_ARGS__)); \
  } while (false)

}  // namespace scoreprior
