#include "scoreprior/nets/double_backward.h"

namespace scoreprior {
namespace {
thread_local int double_backward_depth = 0;
}  // namespace

DoubleBackwardScope::DoubleBackwardScope() { ++double_backward_depth; }
DoubleBackwardScope::~DoubleBackwardScope() { --double_backward_depth; }
bool DoubleBackwardScope::active() { return double_backward_depth > 0; }

}  // namespace scoreprior
