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
constexpr int64_t kBartSlice = 13;

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

at::Tensor from_bart_order(const at::Tensor& a) {
  if (a.dim() < 4) return a;
  at::Tensor x = a;
  while (x.dim() < static_cast<int64_t>(kBartSlice) + 1) x = x.unsqueeze(-1);
  for (int64_t k = 0; k < x.dim(); ++k)
    if (k > 3 && k != kBartSlice && x.size(k) > 1) return a;
  const Shape sizes(x.sizes().begin(), x.sizes().end());
  x = x.reshape({sizes[0], sizes[1], sizes[2], sizes[3], sizes[kBartSlice]});
  x = x.permute({4, 3, 2, 0, 1});
  if (x.size(2) == 1) x = x.squeeze(2);
  if (x.dim() == 4 && x.size(0) == 1) x = x.squeeze(0);
  return x.contiguous();
}

at::Tensor to_bart_order(const at::Tensor& a, bool read_last) {
  SP_CHECK(a.dim() >= 3 && a.dim() <= 5, "to_bart_order",
           "expected [coils,H,W], [slices,coils,H,W] or [slices,coils,E2,H,W], got ", a.sizes());
  at::Tensor x = a;
  if (x.dim() == 3) x = x.unsqueeze(0);
  if (x.dim() == 4) x = x.unsqueeze(2);
  x = read_last ? x.permute({4, 3, 2, 1, 0}) : x.permute({3, 4, 2, 1, 0});
  Shape shape(kBartSlice + 1, 1);
  for (size_t k = 0; k < 4; ++k) shape[k] = x.size(static_cast<int64_t>(k));
  shape[kBartSlice] = x.size(4);
  while (shape.size() > 4 && shape.back() == 1) shape.pop_back();
  return x.reshape(shape);
}

}  // namespace scoreprior::io
