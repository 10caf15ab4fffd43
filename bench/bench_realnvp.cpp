// Times RealNVP training steps. As a server (no --once) it answers one workload name a line with
// seconds, so that ratios.py can interleave it with eager PyTorch; --once NAME prints the parts of
// one workload.
//   bench_realnvp [--threads N] [--once realnvp_1024]
// Workloads: realnvp_DIM = forward, backward, clip and Adam, batch 64, 32 flow steps, seqfrac 4;
//            realnvp_DIM_draw = 64 draws.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/flows/realnvp.h"
#include "scoreprior/infer/adam.h"

namespace scoreprior {
namespace {

constexpr int64_t kBatch = 64;

struct RealNvpWork {
  explicit RealNvpWork(int64_t dim)
      : flow(options(dim), at::kFloat), adam(flow.flat_parameters(), clipped()) {
    z = Rng(1).normal({kBatch, dim});
    x_bar = Rng(2).normal({kBatch, dim}) / kBatch;
    log_det_bar = at::full({kBatch}, -1.0 / kBatch, at::kFloat);
  }
  static RealNvpOptions options(int64_t dim) {
    RealNvpOptions o;
    o.dim = dim;
    o.n_flow = 32;
    return o;
  }
  static BufferAdamOptions clipped() {
    BufferAdamOptions o;
    o.clip = 1;
    return o;
  }
  void forward() { flow.sample(z, true); }
  void backward() { flow.backward(x_bar, log_det_bar); }
  void update() { adam.step(flow.flat_parameters(), flow.flat_grad(), 1e-5); }

  RealNvp flow;
  BufferAdam adam;
  at::Tensor z, x_bar, log_det_bar;
};

double timed(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double cpu_timed(const std::function<void()>& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  std::string once;
  int threads = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--threads") threads = std::stoi(argv[i + 1]);
    if (std::string(argv[i]) == "--once") once = argv[i + 1];
  }
  threads = set_threads(threads);
  std::map<int64_t, std::shared_ptr<RealNvpWork>> ready;
  const auto work_for = [&](const std::string& name) {
    const std::string rest = name.substr(name.find('_') + 1);
    auto& w = ready[std::stoll(rest)];
    if (!w) {
      w = std::make_shared<RealNvpWork>(std::stoll(rest));
      w->forward();
      w->backward();
      w->update();
    }
    return w;
  };
  if (!once.empty()) {
    auto w = work_for(once);
    // CPU time too: it says something on a busy machine, where wall time does not.
    double best[3] = {1e9, 1e9, 1e9}, cpu[3] = {1e9, 1e9, 1e9}, step = 1e9;
    const std::function<void()> parts[3] = {[&] { w->forward(); }, [&] { w->backward(); },
                                            [&] { w->update(); }};
    for (int i = 0; i < 15; ++i) {
      double whole = 0;
      for (int k = 0; k < 3; ++k) {
        double t = 0;
        cpu[k] = std::min(cpu[k], cpu_timed([&] { t = timed(parts[k]); }));
        best[k] = std::min(best[k], t);
        whole += t;
      }
      step = std::min(step, whole);
    }
    std::printf(
        "%s threads %d, ms, best of 15: forward %.2f backward %.2f clip+Adam %.2f step %.2f; "
        "CPU %.2f + %.2f + %.2f\n",
        once.c_str(), threads, best[0] * 1e3, best[1] * 1e3, best[2] * 1e3, step * 1e3,
        cpu[0] * 1e3, cpu[1] * 1e3, cpu[2] * 1e3);
    return 0;
  }
  std::string name;
  while (std::getline(std::cin, name)) {
    auto w = work_for(name);
    const bool draw = name.find("_draw") != std::string::npos;
    std::cout << timed([&] {
      if (draw) {
        w->flow.sample(w->z, false);
        return;
      }
      w->forward();
      w->backward();
      w->update();
    }) << std::endl;
  }
}
