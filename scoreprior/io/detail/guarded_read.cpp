#include "scoreprior/io/detail/guarded_read.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io::detail {
namespace {

constexpr uint64_t kWorkspaceBytes = uint64_t{1} << 30;  // beyond the arrays themselves
constexpr uint64_t kPackingLimit = 1040;
// Processor time of a reader: damaged files can send libhdf5 round in circles.
constexpr uint64_t kSeconds = 4, kBytesPerSecond = 10000000;
constexpr size_t kRecordAlign = 64;
enum RecordKind : uint32_t { kArrayRecord = 1, kTextRecord, kErrorRecord, kEndRecord };

struct RecordHead {
  uint32_t kind = 0, type = 0;
  uint64_t name_bytes = 0, dims = 0, bytes = 0;
};

size_t aligned(size_t n) { return (n + kRecordAlign - 1) / kRecordAlign * kRecordAlign; }

// Address space of this process now.
uint64_t used_address_space() {
  uint64_t pages = 0;
  if (FILE* f = std::fopen("/proc/self/statm", "r")) {
    unsigned long n = 0;
    if (std::fscanf(f, "%lu", &n) == 1) pages = n;
    std::fclose(f);
  }
  return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

void allow_address_space(uint64_t more, bool from_now) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0) return;
  const rlim_t wanted = (from_now ? used_address_space() : limit.rlim_cur) + more;
  limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? wanted : std::min(wanted, limit.rlim_max);
  ::setrlimit(RLIMIT_AS, &limit);
}

void put_all(int file, const void* data, size_t n, size_t at) {
  const char* p = static_cast<const char*>(data);
  while (n > 0) {
    const ssize_t done = ::pwrite(file, p, n, static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw std::bad_alloc();
    p += done, at += static_cast<size_t>(done), n -= static_cast<size_t>(done);
  }
}

struct SharedPages {
  void* data = nullptr;
  size_t bytes = 0;
  ~SharedPages() {
    if (data) ::munmap(data, bytes);
  }
};

void become_reader(uint64_t file_bytes) {
  for (const int s : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGXCPU, SIGTERM, SIGALRM})
    ::signal(s, SIG_DFL);
  ::signal(SIGINT, SIG_IGN);  // Ctrl-C is the parent's business
  const int nowhere = ::open("/dev/null", O_WRONLY);
  if (nowhere >= 0) ::dup2(nowhere, STDERR_FILENO), ::dup2(nowhere, STDOUT_FILENO);
  const rlimit core{0, 0};
  ::setrlimit(RLIMIT_CORE, &core);
  const rlim_t seconds = kSeconds + file_bytes / kBytesPerSecond;
  const rlimit cpu{seconds, seconds + 1};
  ::setrlimit(RLIMIT_CPU, &cpu);
  allow_address_space(kWorkspaceBytes, true);
}

}  // namespace

std::mutex& hdf5_mutex() {
  static std::mutex m;
  return m;
}

void require_plausible(const std::string& name, const Shape& shape, size_t item_bytes,
                       uint64_t stored) {
  uint64_t bytes = item_bytes;
  const uint64_t limit = stored < UINT64_MAX / kPackingLimit ? stored * kPackingLimit : UINT64_MAX;
  bool fits = true, empty = false;
  for (const int64_t d : shape) {
    empty = empty || d == 0;
    fits = fits && d >= 0 && (d == 0 || bytes <= limit / static_cast<uint64_t>(d));
    if (fits && d > 0) bytes *= static_cast<uint64_t>(d);
  }
  if (fits || (empty && *std::min_element(shape.begin(), shape.end()) == 0)) return;
  throw DataError(name + ": damaged or truncated: it announces " + to_string(shape) +
                  " values but holds " + std::to_string(stored) + " bytes");
}

size_t FindingsWriter::record(uint32_t kind, uint32_t type, const std::string& name,
                              const Shape& shape, uint64_t bytes) {
  release();
  const RecordHead head{kind, type, name.size(), shape.size(), bytes};
  const size_t at = offset_;
  put_all(file_, &head, sizeof head, at);
  put_all(file_, shape.data(), shape.size() * sizeof(int64_t), at + sizeof head);
  put_all(file_, name.data(), name.size(), at + sizeof head + shape.size() * sizeof(int64_t));
  const size_t payload = aligned(at + sizeof head + shape.size() * sizeof(int64_t) + name.size());
  offset_ = aligned(payload + bytes);
  if (::ftruncate(file_, static_cast<off_t>(offset_)) != 0) throw std::bad_alloc();
  return payload;
}

void FindingsWriter::release() {
  if (mapped_) ::munmap(mapped_, mapped_bytes_);
  mapped_ = nullptr;
}

void* FindingsWriter::array(const std::string& name, at::ScalarType type, const Shape& shape) {
  uint64_t bytes = at::elementSize(type);
  for (const int64_t d : shape) bytes *= static_cast<uint64_t>(d);
  const size_t payload = record(kArrayRecord, static_cast<uint32_t>(type), name, shape, bytes);
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE)), first = payload / page * page;
  mapped_bytes_ = payload - first + std::max<uint64_t>(bytes, 1);
  allow_address_space(mapped_bytes_ + page, false);
  mapped_ = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_,
                   static_cast<off_t>(first));
  if (mapped_ == MAP_FAILED) {
    mapped_ = nullptr;
    throw std::bad_alloc();
  }
  return static_cast<char*>(mapped_) + (payload - first);
}

void FindingsWriter::text(const std::string& name, const std::string& value) {
  put_all(file_, value.data(), value.size(), record(kTextRecord, 0, name, {}, value.size()));
}

void FindingsWriter::error(const std::string& message) {
  put_all(file_, message.data(), message.size(), record(kErrorRecord, 0, "", {}, message.size()));
}

void FindingsWriter::end() { record(kEndRecord, 0, "", {}, 0); }

Findings read_guarded(const std::filesystem::path& path, const std::string& kind,
                      const std::function<void(FindingsWriter&)>& read) {
  require_file(path, kind + " file");
  std::error_code ec;
  const uint64_t file_bytes = std::filesystem::file_size(path, ec);
  const int shared = ::memfd_create("scoreprior", MFD_CLOEXEC);
  if (shared < 0) throw IoError("cannot read " + path.string() + ": " + std::strerror(errno));
  pid_t child;
  {
    const std::lock_guard<std::mutex> lock(hdf5_mutex());
    child = ::fork();
  }
  if (child < 0) {
    const int error = errno;
    ::close(shared);
    throw IoError("cannot read " + path.string() + ": no process: " + std::strerror(error));
  }
  if (child == 0) {
    become_reader(file_bytes);
    int code = 0;
    {
      FindingsWriter out(shared);
      try {
        try {
          read(out);
          out.end();
        } catch (const Error& e) {
          out.error(e.what());
        } catch (const std::bad_alloc&) {
          out.error(path.string() +
                    ": damaged: reading it asks for more memory than its size explains");
        } catch (const std::exception& e) {
          out.error(path.string() + ": unreadable: " + e.what());
        }
      } catch (...) {
        code = 1;
      }
    }
    ::_exit(code);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  auto pages = std::make_shared<SharedPages>();
  const off_t size = ::lseek(shared, 0, SEEK_END);
  if (size > 0) {
    pages->bytes = static_cast<size_t>(size);
    pages->data = ::mmap(nullptr, pages->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, shared, 0);
    if (pages->data == MAP_FAILED) pages->data = nullptr;
  }
  ::close(shared);

  Findings found;
  const char* const base = static_cast<const char*>(pages->data);
  size_t at = 0;
  bool complete = false;
  while (base && !complete && pages->bytes - at >= sizeof(RecordHead)) {
    RecordHead head;
    std::memcpy(&head, base + at, sizeof head);
    const size_t left = pages->bytes - at - sizeof head;
    if (head.dims > 64 || head.name_bytes > left || head.dims * 8 > left - head.name_bytes) break;
    Shape shape(head.dims);
    if (head.dims > 0) std::memcpy(shape.data(), base + at + sizeof head, head.dims * 8);
    const std::string name(base + at + sizeof head + head.dims * 8, head.name_bytes);
    const size_t payload = aligned(at + sizeof head + head.dims * 8 + head.name_bytes);
    if (payload > pages->bytes || head.bytes > pages->bytes - payload) break;
    if (head.kind == kErrorRecord) throw DataError(std::string(base + payload, head.bytes));
    if (head.kind == kTextRecord) found.texts[name] = std::string(base + payload, head.bytes);
    if (head.kind == kArrayRecord)
      found.arrays[name] = at::from_blob(
          const_cast<char*>(base) + payload, shape, [pages](void*) {},
          at::TensorOptions(static_cast<at::ScalarType>(head.type)));
    complete = head.kind == kEndRecord;
    at = aligned(payload + head.bytes);
  }
  if (complete) return found;
  const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  throw DataError(path.string() + ": damaged: reading it as " + kind +
                  (signal == SIGXCPU || signal == SIGKILL ? " does not end" : " fails half-way"));
}

}  // namespace scoreprior::io::detail
