#pragma once
/// Process-wide settings a program makes once at its start; the library itself never calls them.
#include <cstdint>
#include <string>

namespace scoreprior {

/// Keep freed memory instead of giving pages back to the kernel: page faults are up to 78 % of the
/// time of a small network otherwise. First thing in main().
void keep_freed_memory();

/// Use `threads` threads for libtorch and OpenMP; 0 = every core this process may run on. Returns
/// the number set.
int set_threads(int threads);

}  // namespace scoreprior
