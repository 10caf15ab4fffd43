#include "scoreprior/diffusion/memory_budget.h"

#include <c10/core/Allocator.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>

namespace scoreprior {
namespace {

constexpr double kShare = 0.5;
constexpr double kResident = 1.7;
constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// "MemAvailable:  123 kB" or "inactive_file 123": the number behind a name in bytes; NaN without.
double field_of(const std::string& file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string key, unit;
    double value = 0;
    if (words >> key >> value && key == name) return words >> unit ? value * 1024 : value;
  }
  return std::nan("");
}

double number_in(const std::string& file) {
  std::ifstream in(file);
  double value = 0;
  return in >> value ? value : std::nan("");  // "max" is no number
}

// What a control group leaves; its page cache can be given back.
double left_in_group(const std::string& folder, const char* limit, const char* usage) {
  const double most = number_in(folder + limit), now = number_in(folder + usage);
  if (!(std::isfinite(most) && std::isfinite(now))) return kUnlimited;
  const double cache = field_of(folder + "memory.stat", "inactive_file");
  return most - now + (std::isfinite(cache) ? cache : 0);
}

double control_group() {
  double least = kUnlimited;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && controllers.find("memory") == std::string::npos) continue;
    // A limit of any group above holds too; inside a container the root is the own group.
    for (std::string path = line.substr(second + 1);;) {
      const std::string folder =
          (unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + path + "/";
      least = std::min(
          least, unified ? left_in_group(folder, "memory.max", "memory.current")
                         : left_in_group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes"));
      const size_t slash = path.rfind('/');
      if (path.size() < 2 || slash == std::string::npos) break;
      path = path.substr(0, slash);
    }
  }
  return least;
}

double address_space() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const double pages = number_in("/proc/self/statm");
  if (!std::isfinite(pages)) return kUnlimited;
  return static_cast<double>(limit.rlim_cur) - pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

double kept_by_malloc() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  return static_cast<double>(::mallinfo2().fordblks);
#else
  return 0;
#endif
}

// libtorch tells the profiler of a thread, and of the threads it hands work to, every allocation.
class Meter final : public c10::MemoryReportingInfoBase {
 public:
  // The types of the totals differ between versions of libtorch: one of the two overrides (and so
  // none says so).
  void reportMemoryUsage(void*, int64_t bytes, int64_t, int64_t, c10::Device) { count(bytes); }
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) { count(bytes); }
  bool memoryProfilingEnabled() const { return true; }
  double peak() const { return static_cast<double>(peak_.load()); }

 private:
  void count(int64_t bytes) {
    const int64_t now = now_.fetch_add(bytes) + bytes;
    int64_t before = peak_.load();
    while (now > before && !peak_.compare_exchange_weak(before, now)) {
    }
  }
  std::atomic<int64_t> now_{0}, peak_{0};
};

}  // namespace

double usable_memory() {
  const double available = field_of("/proc/meminfo", "MemAvailable:");
  const double least = std::min(
      {std::isfinite(available) ? available : kUnlimited, control_group(), address_space()});
  return std::max(least, 0.0) + kept_by_malloc();
}

double memory_budget(double max_mib) {
  return max_mib > 0 ? max_mib * 1024 * 1024 : kShare * usable_memory();
}

double peak_allocation(const std::function<void()>& work) {
  const auto meter = std::make_shared<Meter>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
    work();
  }
  return meter->peak();
}

double resident_bytes(const std::function<void()>& work) {
  work();
  return kResident * peak_allocation(work);
}

Pieces fit_into(double budget, double fixed, double per_image, double per_row, int64_t images,
                int64_t max_rows) {
  const auto whole = [](double v, int64_t low, int64_t high) {
    if (!(v < static_cast<double>(high))) return high;
    return std::max(low, static_cast<int64_t>(std::floor(v)));
  };
  Pieces p;
  const double room = budget - fixed;
  const int64_t most = std::max<int64_t>(1, std::min(images, max_rows));
  const int64_t fit = whole(room / (per_image + per_row), 1, most);
  const int64_t pieces = (std::max<int64_t>(images, 1) + fit - 1) / fit;
  p.images = (std::max<int64_t>(images, 1) + pieces - 1) / pieces;
  p.rows = whole((room - static_cast<double>(p.images) * per_image) / per_row, p.images,
                 std::max(max_rows, p.images));
  p.limited = fit < most;
  return p;
}

}  // namespace scoreprior
