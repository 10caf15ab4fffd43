#pragma once

namespace scoreprior {

/// The whole program: arguments, signals, exit codes. A program with components of its own adds
/// them to the catalogues and then returns run_cli(argc, argv).
///
/// Exit codes: 0 done, 64 usage, 65 bad data, 66 missing input, 70 internal, 71 out of memory, 73
/// cannot create, 74 I/O, 75 interrupted but resumable, 78 configuration.
int run_cli(int argc, char** argv);

}  // namespace scoreprior
