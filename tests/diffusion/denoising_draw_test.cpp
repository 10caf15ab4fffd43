#include "scoreprior/diffusion/denoising_draw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

/// Diagonal N(mean, variance) under any process.
class DiagonalScore final : public ScoreModel {
 public:
  DiagonalScore(const std::string& sde, at::Tensor mean, at::Tensor variance)
      : sde_(make_sde(io::parse_toml(sde))), mean_(mean), variance_(variance) {}
  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return {mean_.size(0)}; }
  at::ScalarType dtype() const override { return at::kDouble; }
  at::Device device() const override { return at::kCPU; }
  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override {
    ++calls;
    const at::Tensor a = sde_->mean_coeff(t).unsqueeze(1), s = sde_->std(t).unsqueeze(1);
    return (a * mean_ - x) / (a.square() * variance_ + s.square());
  }
  mutable int64_t calls = 0;

 private:
  std::unique_ptr<Sde> sde_;
  at::Tensor mean_, variance_;
};

const char* const kProcesses[] = {"type = \"vp\"\nbeta_min = 0.1\nbeta_max = 20.0",
                                  "type = \"subvp\"\nbeta_min = 0.1\nbeta_max = 20.0",
                                  "type = \"ve\"\nsigma_min = 0.001\nsigma_max = 20.0"};

// x | noisy is N((m s^2 + v y) / (v + s^2), v s^2 / (v + s^2)). Means and variances of N = 20,000
// draws within five standard errors and the bias of the time steps.
TEST(DenoisingDraw, GaussianConditional) {
  const at::Tensor mean = at::tensor({0.3, -0.5, 1.0}, at::kDouble);
  const at::Tensor variance = at::tensor({0.04, 0.3, 1.0}, at::kDouble);
  const at::Tensor y = at::tensor({0.9, 0.1, -0.4}, at::kDouble);
  const int64_t n = 20000;
  for (const char* process : kProcesses)
    for (const double sigma : {0.2, 1.0}) {
      const DiagonalScore model(process, mean, variance);
      const at::Tensor x = draw_denoised(model, y.expand({n, 3}), sigma, 1e-3, 40, Rng(7));
      const double s2 = sigma * sigma;
      const at::Tensor m = (mean * s2 + variance * y) / (variance + s2);
      const at::Tensor v = variance * s2 / (variance + s2);
      const at::Tensor z = (x.mean(0) - m).abs() / (v / n).sqrt();
      EXPECT_LT(z.max().item<double>(), 5) << process << " sigma " << sigma;
      // First order in the step 1/40.
      const at::Tensor error = (x.var(0) / v - 1).abs();
      EXPECT_LT(error.max().item<double>(), 5 * std::sqrt(2.0 / n) + 1.0 / 40)
          << process << " sigma " << sigma;
    }
}

// Whatever the steps: the spread that x0 | u has of its own is in every step.
TEST(DenoisingDraw, ExactForOneVariance) {
  const DiagonalScore model(kProcesses[0], at::zeros({2}, at::kDouble),
                            at::full({2}, 0.25, at::kDouble));
  const int64_t n = 200000;
  const double exact = 0.25 * 0.25 / 0.5;  // sigma = 0.5
  for (const double steps : {0.2, 1.0, 3.0}) {
    const at::Tensor x =
        draw_denoised(model, at::zeros({n, 2}, at::kDouble), 0.5, 1e-3, steps, Rng(3));
    EXPECT_LT((x.var(0) / exact - 1).abs().max().item<double>(), 5 * std::sqrt(2.0 / n)) << steps;
  }
}

// Of two variances far apart the narrow one gets too little and the wide one too much. The error
// falls more slowly than the step: eight times the steps leave 0.39 of it. In simulation: -20 and
// +5 % at one step per factor e.
TEST(DenoisingDraw, BiasFallsWithTheSteps) {
  const at::Tensor variance = at::tensor({0.01, 1.0}, at::kDouble);
  const DiagonalScore model(kProcesses[0], at::zeros({2}, at::kDouble), variance);
  const int64_t n = 400000;
  const at::Tensor exact = variance * 0.25 / (variance + 0.25);  // sigma = 0.5
  const auto bias = [&](double steps) {
    const at::Tensor x =
        draw_denoised(model, at::zeros({n, 2}, at::kDouble), 0.5, 1e-3, steps, Rng(3));
    return x.var(0) / exact - 1;
  };
  const at::Tensor coarse = bias(1), fine = bias(8);
  EXPECT_GT(coarse.abs().min().item<double>(), 0.03);
  EXPECT_LT(coarse.abs().max().item<double>(), 0.25);
  EXPECT_LT((fine.abs() / coarse.abs()).max().item<double>(), 0.5);
}

TEST(DenoisingDraw, RowsAreIndependentAndCallsAreCounted) {
  const DiagonalScore model(kProcesses[0], at::zeros({2}, at::kDouble), at::ones({2}, at::kDouble));
  const at::Tensor noisy = Rng(1).normal({6, 2}, at::kDouble);
  const at::Tensor whole = draw_denoised(model, noisy, 0.5, 1e-3, 4, Rng(9));
  model.calls = 0;
  const at::Tensor part =
      draw_denoised(model, noisy.slice(0, 2, 5), 0.5, 1e-3, 4, Rng(9).from_row(2));
  EXPECT_TRUE(at::equal(part, whole.slice(0, 2, 5)));
  // ratio at t0 = 1e-3: std/alpha = 0.0105, ln(0.5/0.0105) = 3.9 e-folds
  EXPECT_EQ(model.calls, 2 * (static_cast<int64_t>(std::ceil(4 * std::log(0.5 / 0.01049))) + 1));
  // Below the smallest noise of the process: the last step alone.
  model.calls = 0;
  draw_denoised(model, noisy, 1e-4, 1e-3, 4, Rng(9));
  EXPECT_EQ(model.calls, 2);
  EXPECT_THROW(draw_denoised(model, noisy, 0, 1e-3, 4, Rng(9)), std::invalid_argument);
}

}  // namespace
}  // namespace scoreprior
