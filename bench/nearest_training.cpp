// Does a model repeat its training images? For every draw, the nearest of the first N training
// images (L2, over whole images) against the nearest for as many held-out test images: memorised
// draws would be much nearer.
//   nearest_training samples.npy N [pairs.png]
// pairs.png: the eight draws that come nearest, each above its training image.
#include <ATen/ATen.h>

#include <iostream>

#include "scoreprior/core/runtime.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/report/colormap.h"

namespace scoreprior {
namespace {

struct Nearest {
  at::Tensor distance, index;
  explicit Nearest(int64_t n) : distance(at::full({n}, 1e30)), index(at::zeros({n}, at::kLong)) {}
  void see(const at::Tensor& images, const at::Tensor& candidates, int64_t first) {
    const auto [d, i] = at::cdist(images, candidates).min(1);
    index = at::where(d < distance, i + first, index);
    distance = at::minimum(distance, d);
  }
  void print(const char* what) const {
    std::cout << what << ": median " << distance.median().item<double>() << ", smallest "
              << distance.min().item<double>() << "\n";
  }
};

}  // namespace
}  // namespace scoreprior

int main(int argc, char** argv) {
  using namespace scoreprior;
  keep_freed_memory();
  set_threads(0);
  if (argc < 2) {
    std::cerr << "nearest_training samples.npy [N [pairs.png]]\n";
    return 64;
  }
  const at::Tensor images = io::read_npy(argv[1]), draws = images.flatten(1);
  const int64_t n = argc > 2 ? std::stoll(argv[2]) : 20000, count = draws.size(0);
  const Config config;
  const auto train = datasets().make(config, "blackhole", "train");
  const auto test = datasets().make(config, "blackhole", "test");
  std::vector<int64_t> indices;
  for (int64_t k = 0; k < count; ++k) indices.push_back(k);
  const at::Tensor held_out = test->batch(indices, Rng(0)).flatten(1);
  Nearest near_draws(count), near_test(count);
  for (int64_t first = 0; first < n; first += 2000) {
    std::vector<int64_t> chunk;
    for (int64_t k = first; k < std::min(n, first + 2000); ++k) chunk.push_back(k);
    const at::Tensor candidates = train->batch(chunk, Rng(0)).flatten(1);
    near_draws.see(draws, candidates, first);
    near_test.see(held_out, candidates, first);
  }
  near_draws.print("nearest training image of draws    ");
  near_test.print("nearest training image of test set ");
  if (argc > 3) {
    const at::Tensor closest =
        near_draws.distance.argsort().slice(0, 0, std::min<int64_t>(8, count));
    std::vector<int64_t> theirs;
    for (int64_t k = 0; k < closest.size(0); ++k)
      theirs.push_back(near_draws.index[closest[k].item<int64_t>()].item<int64_t>());
    const at::Tensor pairs =
        at::cat({images.index_select(0, closest).to(at::kFloat), train->batch(theirs, Rng(0))});
    const auto scale = report::common_scale(pairs.unbind(0), report::Colormap::kAfmhot);
    io::write_png(argv[3], report::image_grid(pairs, scale, closest.size(0), 3));
  }
}
