#pragma once
/// Counter-based randomness (Philox4x32-10 [Salmon11]): a Rng is a *name*, not a state.
///
/// Drawing never changes a Rng: the same Rng and shape give the same numbers, always. Get fresh
/// numbers by naming them: rng.split("noise"), rng.at(step). Number j of row b is a function of
/// (key, first_row + b, j) only, so draws do not depend on batch size, thread count or resume
/// point, and float32 draws are the rounded float64 draws.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace scoreprior {

class Rng {
 public:
  explicit Rng(uint64_t seed);

  /// The stream called `name` under this one.
  Rng split(std::string_view name) const;
  /// The stream of step (or chain, image, ...) number `index` under this one.
  Rng at(int64_t index) const;
  /// The same stream with its rows numbered from `row`: rng.from_row(8).normal({4,...}) equals
  /// rows 8..11 of rng.normal({12,...}).
  Rng from_row(int64_t row) const;

  /// N(0,1), [rows, ...]; rows are the leading axis.
  at::Tensor normal(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const;
  /// U[0,1).
  at::Tensor uniform(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const;
  /// +1 or -1 with probability 1/2 each.
  at::Tensor rademacher(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const;
  /// Integers in [0, bound).
  at::Tensor integers(int64_t bound, at::IntArrayRef shape) const;
  /// A permutation of 0..n-1, int64.
  std::vector<int64_t> permutation(int64_t n) const;

  /// Scalars: the first n numbers of row 0.
  std::vector<double> uniforms(int64_t n) const;
  std::vector<double> normals(int64_t n) const;

  uint64_t key() const { return key_; }
  /// Number of the first row (from_row); designs that couple rows, e.g. antithetic pairs, need it.
  int64_t row() const { return static_cast<int64_t>(row_); }

 private:
  Rng(uint64_t key, uint64_t row) : key_(key), row_(row) {}
  uint64_t key_;
  uint64_t row_ = 0;
};

}  // namespace scoreprior
