#include "scoreprior/stats/energy_distance.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace scoreprior::stats {
namespace {

TEST(EnergyDistance, ClosedForms) {
  const at::Tensor x = at::tensor({0.0, 2.0}, at::kDouble).unsqueeze(1);
  const at::Tensor y = at::tensor({1.0, 5.0}, at::kDouble).unsqueeze(1);
  // Cross distances 1, 5, 1, 3: mean 2.5; within 2 and 4.
  EXPECT_NEAR(energy_distance(x, y), 5 - 2 - 4, 1e-12);
  EXPECT_NEAR(energy_distance(x, y, false), 5 - 1 - 2, 1e-12);
  EXPECT_NEAR(energy_distance(x, x, false), 0, 1e-12);
}

TEST(EnergyDistance, OfShiftedGaussians) {
  // 1-D: 2 E|N(d,2)| - 2 E|N(0,2)|.
  const double d = 0.7, s = std::sqrt(2.0);
  const double folded = s * std::sqrt(2 / M_PI) * std::exp(-d * d / 4) + d * std::erf(d / 2);
  const double exact = 2 * folded - 4 / std::sqrt(M_PI);
  const at::Tensor x = Rng(1).normal({2000, 1}, at::kDouble),
                   y = Rng(2).normal({2000, 1}, at::kDouble) + d;
  EXPECT_NEAR(energy_distance(x, y), exact, 0.04);  // about 4 standard errors
}

TEST(EnergyTest, TellsLawsApart) {
  const at::Tensor x = Rng(3).normal({150, 1, 3, 3});
  EXPECT_LT(energy_test_p_value(x, Rng(4).normal({150, 1, 3, 3}) + 0.4, Rng(5)), 0.011);
  EXPECT_GT(energy_test_p_value(x, Rng(4).normal({150, 1, 3, 3}), Rng(5)), 0.01);
}

TEST(EnergyTest, PValuesAreUniformUnderTheNull) {
  double small = 0, mean = 0;
  const int trials = 100;
  for (int k = 0; k < trials; ++k) {
    const at::Tensor x = Rng(100 + k).normal({30, 2}), y = Rng(500 + k).normal({40, 2});
    const double p = energy_test_p_value(x, y, Rng(k), 39);
    small += p <= 0.1;
    mean += p / trials;
  }
  EXPECT_NEAR(mean, 0.5125, 4 * 0.29 / std::sqrt(trials));  // uniform on 1/40 .. 1
  EXPECT_LT(small, 10 + 4 * 3);
}

}  // namespace
}  // namespace scoreprior::stats
