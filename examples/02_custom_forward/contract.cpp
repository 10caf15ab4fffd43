// The installed contract kit: shapes, batches, dot test, linearity and gradient, in both dtypes.
#include "row_means.h"
#include "scoreprior/testing/forward_contract.h"

using namespace scoreprior::testing;
INSTANTIATE_TEST_SUITE_P(Mine, ForwardContract,
                         ::testing::Values(ForwardCase{
                             "row_means", [](auto) {
                               return std::make_unique<RowMeans>(scoreprior::Shape{3, 8, 6}, 2.0);
                             }}));
