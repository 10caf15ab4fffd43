#include <alloca.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>

#include "apps/cli.h"

namespace {

// Threads that wait must sleep: spinning ones starve every other program of a shared machine.
// libgomp reads its setting from the environment before main() begins, so the program starts itself
// once more with it, and does so before the libraries' own initialisation, which would cost that
// time twice. What the user has set stays.
void wait_without_spinning(int, char** argv, char** environment) {
  size_t n = 0;
  for (; environment[n]; ++n)
    for (const char* set : {"OMP_WAIT_POLICY=", "GOMP_SPINCOUNT="})
      if (std::strncmp(environment[n], set, std::strlen(set)) == 0) return;
  char self[4096];
  const ssize_t length = ::readlink("/proc/self/exe", self, sizeof self - 1);
  if (length <= 0) return;
  self[length] = 0;
  static char passive[] = "OMP_WAIT_POLICY=passive";
  char** more = static_cast<char**>(alloca((n + 2) * sizeof(char*)));
  std::memcpy(more, environment, n * sizeof(char*));
  more[n] = passive;
  more[n + 1] = nullptr;
  ::execve(self, argv, more);  // on failure the program goes on as it is
}

__attribute__((section(".preinit_array"),
               used)) void (*const before_libraries)(int, char**, char**) = wait_without_spinning;

}  // namespace

int main(int argc, char** argv) { return scoreprior::run_cli(argc, argv); }
