#include "scoreprior/forward/contract.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace scoreprior {
namespace {

/// y = x, off by a relative `error` wherever more than one image is looked at.
class Rounded final : public ForwardModel {
 public:
  explicit Rounded(double error, int64_t channels = 2) : error_(error), channels_(channels) {}
  Shape input_shape() const override { return {2, 3, 4}; }
  Shape output_shape() const override { return {24}; }
  int64_t output_channels() const override { return channels_; }
  bool linear() const override { return true; }
  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("rounded", "x", x, input_shape());
    return x.flatten(1) * (x.size(0) > 1 ? 1 + error_ : 1.0);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    return y.reshape({-1, 2, 3, 4});
  }

 private:
  double error_;
  int64_t channels_;
};

std::string broken(const ForwardModel& model, at::ScalarType dtype) {
  std::string names;
  for (const ContractFinding& f : check_contract(model, dtype, at::kCPU, Rng(1)))
    if (!f.kept()) names += f.name + ";";
  return names;
}

// A correct operator rounds; in double by up to 1e-12, as contract.h promises.
TEST(Contract, ForgivesRoundingAndNoMore) {
  EXPECT_EQ(broken(Rounded(0), at::kDouble), "");
  EXPECT_EQ(broken(Rounded(0), at::kFloat), "");
  EXPECT_EQ(broken(Rounded(8e-13), at::kDouble), "");
  EXPECT_EQ(broken(Rounded(2e-12), at::kDouble), "batch;gradient;");
  EXPECT_EQ(broken(Rounded(8e-6), at::kFloat), "");
  EXPECT_EQ(broken(Rounded(2e-5), at::kFloat), "batch;gradient;");
}

TEST(Contract, ChannelsDivideTheMeasurement) {
  EXPECT_EQ(broken(Rounded(0, 5), at::kDouble), "shapes;");
  EXPECT_EQ(broken(Rounded(0, 0), at::kDouble), "shapes;");
}

}  // namespace
}  // namespace scoreprior
