// Does a model repeat its training images? For every draw, the nearest of the first N training images (L2, over whole
// images) against the nearest for as many held-out test images: memorised draws would be much nearer.
//   nearest_training samples.npy N
#include <ATen/ATen.h>

#include <iostream>

#include "scoreprior/core/runtime.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/io/npy.h"

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  set_threads(0);
  const at::Tensor draws = io::read_npy(argv[1]).flatten(1);
  const int64_t n = argc > 2 ? std::stoll(argv[2]) : 20000;
  const Config config;
  const auto train = datasets().make(config, "blackhole", "train");
  const auto test = datasets().make(config, "blackhole", "test");
  std::vector<int64_t> indices(static_cast<size_t>(draws.size(0)));
  for (size_t k = 0; k < indices.size(); ++k) indices[k] = static_cast<int64_t>(k);
  const at::Tensor held_out = test->batch(indices, Rng(0)).flatten(1);
  at::Tensor near_draws = at::full({draws.size(0)}, 1e30), near_test = near_draws.clone();
  for (int64_t first = 0; first < n; first += 2000) {
    std::vector<int64_t> chunk;
    for (int64_t k = first; k < std::min(n, first + 2000); ++k) chunk.push_back(k);
    const at::Tensor images = train->batch(chunk, Rng(0)).flatten(1);
    near_draws = at::minimum(near_draws, at::cdist(draws, images).amin(1));
    near_test = at::minimum(near_test, at::cdist(held_out, images).amin(1));
  }
  const auto print = [](const char* what, const at::Tensor& d) {
    std::cout << what << ": median " << d.median().item<double>() << ", smallest " << d.min().item<double>() << "\n";
  };
  print("nearest training image of draws    ", near_draws);
  print("nearest training image of test set ", near_test);
}
