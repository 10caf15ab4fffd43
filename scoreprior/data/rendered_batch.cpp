#include "scoreprior/data/rendered_batch.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "scoreprior/core/errors.h"

namespace scoreprior {

at::Tensor rendered_batch(const char* set, const std::vector<int64_t>& indices, const Shape& image,
                          const std::function<void(int64_t index, float* pixels)>& render) {
  const auto n = static_cast<int64_t>(indices.size());
  for (const int64_t index : indices)
    SP_CHECK(index >= 0, set, "expected an index >= 0, got ", index);
  at::Tensor out = at::empty(batched(n, image), at::kFloat);
  float* data = out.data_ptr<float>();
  const int64_t pixels = numel(image);
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) render(indices[i], data + i * pixels);
  });
  return out;
}

}  // namespace scoreprior
