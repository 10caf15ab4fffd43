#include "scoreprior/core/rng.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace scoreprior {

TEST(Rng, SameNameSameNumbers) {
  const Rng rng(7);
  EXPECT_TRUE(at::equal(rng.split("a").normal({3, 5}), rng.split("a").normal({3, 5})));
  EXPECT_FALSE(at::equal(rng.split("a").normal({3, 5}), rng.split("b").normal({3, 5})));
  EXPECT_FALSE(at::equal(rng.at(0).normal({3, 5}), rng.at(1).normal({3, 5})));
  EXPECT_FALSE(at::equal(Rng(7).normal({3, 5}), Rng(8).normal({3, 5})));
}

TEST(Rng, RowsDoNotDependOnBatchOrThreads) {
  const Rng rng = Rng(1).split("x");
  const at::Tensor whole = rng.normal({12, 7});
  EXPECT_TRUE(at::equal(whole.slice(0, 8, 12), rng.from_row(8).normal({4, 7})));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = rng.normal({12, 7});
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(whole, one));
}

TEST(Rng, Float32IsRoundedFloat64) {
  const Rng rng(3);
  EXPECT_TRUE(at::equal(rng.normal({4, 9}), rng.normal({4, 9}, at::kDouble).to(at::kFloat)));
}

// Known answers of Philox4x32-10 (Random123 kat_vectors) reach us only through the key schedule of
// Rng, so the generator is tested by moments: each bound is 5 standard errors of the statistic
// under the null.
TEST(Rng, MomentsOverSeeds) {
  const int64_t n = 1 << 18;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const at::Tensor z = Rng(seed).normal({n / 64, 64}, at::kDouble);
    EXPECT_LT(std::abs(z.mean().item<double>()), 5 / std::sqrt(n));
    EXPECT_LT(std::abs(z.square().mean().item<double>() - 1), 5 * std::sqrt(2.0 / n));
    EXPECT_LT(std::abs(z.pow(4).mean().item<double>() - 3), 5 * std::sqrt(96.0 / n));
    const at::Tensor lag = (z.slice(1, 0, 63) * z.slice(1, 1, 64)).mean();
    EXPECT_LT(std::abs(lag.item<double>()), 5 / std::sqrt(n * 63.0 / 64));
    const at::Tensor u = Rng(seed).uniform({n}, at::kDouble);
    EXPECT_LT(std::abs(u.mean().item<double>() - 0.5), 5 * std::sqrt(1.0 / 12 / n));
    EXPECT_LT(std::abs(Rng(seed).rademacher({n}).mean().item<double>()), 5 / std::sqrt(n));
  }
}

TEST(Rng, PermutationIsOne) {
  auto p = Rng(5).permutation(100);
  EXPECT_NE(p, Rng(6).permutation(100));
  std::sort(p.begin(), p.end());
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(p[i], i);
}

}  // namespace scoreprior
