#pragma once
/// The contract of a forward model as GoogleTest cases. Include it in one source file of a test
/// program and name the models:
///
///   using namespace scoreprior::testing;
///   INSTANTIATE_TEST_SUITE_P(Mine, ForwardContract, ::testing::Values(ForwardCase{
///       "box_blur", [](at::ScalarType t) { return std::make_unique<BoxBlur>(8, t); }}));
///
/// Each model is made and checked in float64 and in float32; see check_contract for what is held
/// against what.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "scoreprior/forward/contract.h"
#include "scoreprior/forward/forward_model.h"

namespace scoreprior::testing {

struct ForwardCase {
  std::string label;
  std::function<std::unique_ptr<ForwardModel>(at::ScalarType)> make;
  ContractOptions options = {};
};
inline std::ostream& operator<<(std::ostream& out, const ForwardCase& c) { return out << c.label; }

class ForwardContract : public ::testing::TestWithParam<ForwardCase> {};

TEST_P(ForwardContract, KeepsItsPromises) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto model = GetParam().make(dtype);
    ASSERT_NE(model, nullptr);
    for (const ContractFinding& f :
         check_contract(*model, dtype, at::kCPU, Rng(1), GetParam().options))
      EXPECT_LE(f.error, f.limit) << (dtype == at::kDouble ? "float64, " : "float32, ") << f.name
                                  << ": " << f.text;
  }
}

}  // namespace scoreprior::testing
