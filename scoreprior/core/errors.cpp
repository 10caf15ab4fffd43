#include "scoreprior/core/errors.h"

namespace scoreprior {

std::string FileLoc::str() const {
  if (file.empty()) return "";
  return line > 0 ? file + ":" + std::to_string(line) + ": " : file + ": ";
}

}  // namespace scoreprior
