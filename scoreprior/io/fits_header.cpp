#include "scoreprior/io/fits_header.h"

#include "scoreprior/io/detail/fits_file.h"

namespace scoreprior::io {

std::optional<double> read_fits_number(const std::filesystem::path& path, const std::string& key) {
  return detail::FitsFile::open(path).number(key);
}

}  // namespace scoreprior::io
