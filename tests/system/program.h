#pragma once
/// The built program as a user runs it: spawned, its exit code and what it printed.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace scoreprior {

struct Spawn {
  std::vector<std::string> arguments;
  std::filesystem::path folder;  ///< working folder; also holds what was printed
  int64_t largest_file = 0;      ///< bytes a file may grow to (as on a full disk); 0 = no limit
  double signal_after = -1;      ///< seconds until `signal` is sent; < 0 = never
  int signal = SIGKILL;
  std::function<bool()> armed = [] { return true; };  ///< those seconds begin when this is true
};

struct Outcome {
  int code = -1;   ///< exit code, -1 when a signal ended it
  int signal = 0;  ///< that signal
  double seconds = 0;
  std::string out, err;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream s;
  s << in.rdbuf();
  return s.str();
}

/// No test of this folder takes longer; a hanging program must not hang ctest.
constexpr double kPatienceSeconds = 120;

inline Outcome spawn(const Spawn& s) {
  const auto out = s.folder / "printed.out", err = s.folder / "printed.err";
  std::vector<const char*> argv{SP_PROGRAM};
  for (const auto& a : s.arguments) argv.push_back(a.c_str());
  argv.push_back(nullptr);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error(std::string("fork: ") + std::strerror(errno));
  if (child == 0) {
    const int o = ::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int e = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (o < 0 || e < 0 || ::dup2(o, 1) < 0 || ::dup2(e, 2) < 0 || ::chdir(s.folder.c_str()) != 0)
      ::_exit(126);
    if (s.largest_file > 0) {
      const rlimit limit{static_cast<rlim_t>(s.largest_file), static_cast<rlim_t>(s.largest_file)};
      ::signal(SIGXFSZ, SIG_IGN);  // write() then fails with EFBIG
      if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(126);
    }
    ::execv(SP_PROGRAM, const_cast<char* const*>(argv.data()));
    ::_exit(127);
  }
  Outcome result;
  bool sent = s.signal_after < 0;
  double armed_at = -1;
  for (int status = 0;;) {
    const pid_t done = ::waitpid(child, &status, WNOHANG);
    if (done == child) {
      if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
      if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
      break;
    }
    if (!sent && armed_at < 0 && s.armed()) armed_at = elapsed();
    if (!sent && armed_at >= 0 && elapsed() >= armed_at + s.signal_after) {
      ::kill(child, s.signal);
      sent = true;
    }
    if (elapsed() > kPatienceSeconds) ::kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  result.seconds = elapsed();
  result.out = slurp(out);
  result.err = slurp(err);
  return result;
}

/// Every regular file below a folder with its bytes, but for what spawn() itself writes.
inline std::map<std::string, std::string> files_below(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  if (!std::filesystem::exists(folder)) return files;
  for (const auto& e : std::filesystem::recursive_directory_iterator(folder))
    if (e.is_regular_file() && e.path().filename().string().rfind("printed.", 0) != 0)
      files[std::filesystem::relative(e.path(), folder).string()] = slurp(e.path());
  return files;
}

/// Names of half-written files, which only a process that still runs may leave.
inline std::set<std::string> temporaries_below(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& [name, bytes] : files_below(folder))
    if (name.find(".writing-") != std::string::npos) names.insert(name);
  return names;
}

/// A folder of this test's own, removed with it unless the test failed.
inline std::filesystem::path fresh_folder(const std::string& name) {
  const auto folder =
      std::filesystem::temp_directory_path() / (name + "_" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace scoreprior
