#pragma once
/// A team of threads for a chain of small dependent stages: one parallel region for the whole pass and a spinning
/// barrier between stages, since hundreds of fork-joins of ~100 us stages would cost more than the stages.
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace scoreprior::detail {

class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : members_(members) {}
  void wait() {
    if (members_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // Yield after a while: on a busy machine the partner may need this core to arrive.
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;)
      if (++spins > 4000) sched_yield();
  }

 private:
  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
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
