#pragma once
/// A team of threads for a chain of small dependent stages: one parallel region for the whole pass
/// and a spinning barrier between stages, since hundreds of fork-joins of ~100 us stages would cost
/// more than the stages.
#include <linux/futex.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <new>

namespace scoreprior::detail {

/// Spins for about as long as a stage takes, then sleeps: on a busy machine the partner needs this
/// core to arrive.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : members_(members) {}
  void wait() {
    if (members_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1);
      if (sleepers_.load() > 0) wake();
      return;
    }
    for (int spins = 0; spins < kSpins; ++spins) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      relax();
    }
    sleepers_.fetch_add(1);
    while (phase_.load() == phase) sleep(phase);
    sleepers_.fetch_sub(1);
  }

 private:
  static constexpr int kSpins = 1000;
  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  // A stale wake-up or a missed sleep only costs another look at phase_: the kernel compares it
  // under its own lock.
  void sleep(uint32_t phase) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&phase_), FUTEX_WAIT_PRIVATE, phase, nullptr,
            nullptr, 0);
  }
  void wake() {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&phase_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
            nullptr, 0);
  }

  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

/// A member's share of `n` rows.
struct Share {
  int64_t begin, end;
};

struct Member {
  int index, count;
  SpinBarrier* barrier;
  void sync() const { barrier->wait(); }
  Share share(int64_t n) const { return {n * index / count, n * (index + 1) / count}; }
};

/// Calls work(Member) once on each of at most `threads` threads.
template <class Work>
void run_team(int threads, Work&& work) {
  if (threads <= 1 || omp_in_parallel()) {
    SpinBarrier barrier(1);
    work(Member{0, 1, &barrier});
    return;
  }
  alignas(64) unsigned char storage[sizeof(SpinBarrier)];
  SpinBarrier* barrier = nullptr;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    barrier = new (storage) SpinBarrier(omp_get_num_threads());
    work(Member{omp_get_thread_num(), omp_get_num_threads(), barrier});
  }
}

}  // namespace scoreprior::detail
