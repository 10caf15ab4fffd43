#include "scoreprior/core/shape.h"

#include "scoreprior/core/errors.h"

namespace scoreprior {

std::string to_string(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? "," : "") + std::to_string(shape[i]);
  return s + "]";
}

int64_t numel(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

Shape batched(int64_t batch, const Shape& event) {
  Shape s{batch};
  s.insert(s.end(), event.begin(), event.end());
  return s;
}

void check_batched(const char* where, const char* name, const at::Tensor& x, const Shape& event) {
  const auto sizes = x.sizes();
  const bool ok =
      sizes.size() == event.size() + 1 && std::equal(event.begin(), event.end(), sizes.begin() + 1);
  if (ok) return;
  std::string want = "[B";
  for (int64_t d : event) want += "," + std::to_string(d);
  SP_CHECK(ok, where, "expected ", name, " ", want, "], got ",
           to_string(Shape(sizes.begin(), sizes.end())));
}

at::Tensor sum_event(const at::Tensor& x) { return x.dim() == 1 ? x : x.flatten(1).sum(1); }

at::Tensor expand_like_batch(const at::Tensor& a, const at::Tensor& x) {
  Shape s(x.dim(), 1);
  s[0] = a.size(0);
  return a.reshape(s);
}

}  // namespace scoreprior
