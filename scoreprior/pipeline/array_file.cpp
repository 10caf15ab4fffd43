#include "scoreprior/pipeline/array_file.h"

#include <ATen/ATen.h>

#include <string>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/pipeline/data_file.h"

namespace scoreprior {

at::Tensor read_array_file(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  fs::path file = path;
  std::string wanted;
  const std::string text = path.string();
  const size_t colon = text.rfind(':');
  if (colon != std::string::npos && !fs::exists(path) && fs::exists(text.substr(0, colon))) {
    file = text.substr(0, colon);
    wanted = text.substr(colon + 1);
  }
  if (!is_data_file(file)) return io::read_npy(file);
  const DataFile d = read_data_file(file);
  auto found = d.arrays.end();
  if (!wanted.empty())
    found = d.arrays.find(wanted);
  else if (d.arrays.size() == 1)
    found = d.arrays.begin();
  else if (d.sky)
    found = d.arrays.find("pixels");
  if (found == d.arrays.end()) {
    std::string names;
    for (const auto& [name, a] : d.arrays) names += (names.empty() ? "" : ", ") + name;
    throw DataError(file.string() + (wanted.empty()
                                         ? ": holds several arrays; name one as " + file.string() +
                                               ":NAME (" + names + ")"
                                         : ": no array \"" + wanted + "\" (" + names + ")"));
  }
  at::Tensor a = found->second;
  if (d.kind.rfind("BART", 0) == 0) return io::from_bart_order(a);
  if (d.kind.rfind("PNG", 0) == 0 || d.kind.rfind("TIFF", 0) == 0) {
    if (a.dim() == 3 && a.size(2) <= 4) a = a.permute({2, 0, 1});
    if (a.scalar_type() == at::kByte) a = a.to(at::kDouble) / 255;
  }
  return a.contiguous();
}

}  // namespace scoreprior
