#include "scoreprior/io/cfl.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

constexpr size_t kBartDims = 16;

// NAME of NAME.cfl, NAME.hdr or NAME; a dot inside the name is part of it.
std::filesystem::path cfl_file(const std::filesystem::path& path, const char* extension) {
  std::filesystem::path p = path;
  if (p.extension() == ".cfl" || p.extension() == ".hdr") p.replace_extension();
  return p += extension;
}

std::vector<int64_t> reversed_axes(int64_t rank) {
  std::vector<int64_t> axes;
  for (int64_t k = rank; k-- > 0;) axes.push_back(k);
  return axes;
}

}  // namespace

at::Tensor read_cfl(const std::filesystem::path& path) {
  const auto header = cfl_file(path, ".hdr"), values = cfl_file(path, ".cfl");
  std::istringstream in(read_text(header));
  Shape dims;
  bool found = false;
  for (std::string line; !found && std::getline(in, line);) {
    if (line.rfind("# Dimensions", 0) != 0) continue;
    found = true;
    std::getline(in, line);
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const bool digits = !word.empty() && word.size() <= 12 &&
                          word.find_first_not_of("0123456789") == std::string::npos;
      const int64_t d = digits ? std::stoll(word) : 0;
      if (d < 1 || dims.size() == 64)
        throw DataError(header.string() + ": damaged: the dimensions \"" + line.substr(0, 60) +
                        "\" are not positive numbers");
      dims.push_back(d);
    }
  }
  if (dims.empty()) throw DataError(header.string() + ": no line \"# Dimensions\" with numbers");
  while (dims.size() > 1 && dims.back() == 1) dims.pop_back();

  require_file(values, "file");
  std::error_code ec;
  const uint64_t size = std::filesystem::file_size(values, ec);
  uint64_t count = 1;
  for (const int64_t d : dims) {
    if (count > UINT64_MAX / 8 / static_cast<uint64_t>(d))
      throw DataError(header.string() + ": damaged: impossibly many values");
    count *= static_cast<uint64_t>(d);
  }
  if (size != count * 8)
    throw DataError(values.string() + ": truncated or damaged: " + to_string(dims) +
                    " complex values are " + std::to_string(count * 8) + " bytes, the file has " +
                    std::to_string(size));
  const std::string bytes = read_text(values);
  if (bytes.size() != size) throw DataError(values.string() + ": truncated");
  Shape stored = dims;
  std::reverse(stored.begin(), stored.end());
  at::Tensor out = at::empty(stored, at::TensorOptions(at::kComplexFloat));
  std::memcpy(out.data_ptr(), bytes.data(), bytes.size());
  return out.permute(reversed_axes(out.dim())).contiguous();
}

void write_cfl(const std::filesystem::path& path, const at::Tensor& array) {
  SP_CHECK(array.dim() <= static_cast<int64_t>(kBartDims) && array.numel() > 0, "write_cfl",
           "expected at most 16 dimensions and a value, got ", array.sizes());
  const at::Tensor a = array.detach()
                           .to(at::kCPU, at::kComplexFloat)
                           .resolve_conj()
                           .permute(reversed_axes(array.dim()))
                           .contiguous();
  std::string text = "# Dimensions\n";
  for (size_t k = 0; k < kBartDims; ++k)
    text += std::to_string(
                k < static_cast<size_t>(array.dim()) ? array.size(static_cast<int64_t>(k)) : 1) +
            " ";
  write_text(cfl_file(path, ".cfl"), {static_cast<const char*>(a.data_ptr()), a.nbytes()});
  write_text(cfl_file(path, ".hdr"), text + "\n");
}

}  // namespace scoreprior::io
