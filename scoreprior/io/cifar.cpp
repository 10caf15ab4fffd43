#include "scoreprior/io/cifar.h"

#include <ATen/ATen.h>

#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {
constexpr size_t kCifarPixels = 3 * 32 * 32, kCifarRecord = kCifarPixels + 1;
}

CifarBatch read_cifar10(const std::filesystem::path& path) {
  const std::string bytes = read_text(path);
  if (bytes.empty() || bytes.size() % kCifarRecord != 0)
    throw DataError(path.string() + ": not a CIFAR-10 batch, or truncated: " +
                    std::to_string(bytes.size()) + " bytes are not whole records of 3073");
  const int64_t n = static_cast<int64_t>(bytes.size() / kCifarRecord);
  CifarBatch out{at::empty({n, 3, 32, 32}, at::kByte), at::empty({n}, at::kByte)};
  for (int64_t i = 0; i < n; ++i) {
    const char* record = bytes.data() + static_cast<size_t>(i) * kCifarRecord;
    const uint8_t label = static_cast<uint8_t>(record[0]);
    if (label > 9)
      throw DataError(path.string() + ": not a CIFAR-10 batch: record " + std::to_string(i) +
                      " has label " + std::to_string(label) + ", expected 0 to 9");
    out.labels.data_ptr<uint8_t>()[i] = label;
    std::memcpy(out.images.data_ptr<uint8_t>() + static_cast<size_t>(i) * kCifarPixels, record + 1,
                kCifarPixels);
  }
  return out;
}

void write_cifar10(const std::filesystem::path& path, const CifarBatch& batch) {
  const int64_t n = batch.labels.numel();
  SP_CHECK(batch.images.sizes() == at::IntArrayRef({n, 3, 32, 32}) &&
               batch.images.scalar_type() == at::kByte && batch.labels.scalar_type() == at::kByte,
           "write_cifar10", "expected images [N,3,32,32] and labels [N], uint8");
  const at::Tensor rows =
      at::cat({batch.labels.view({n, 1}), batch.images.reshape({n, -1})}, 1).contiguous();
  write_text(path, {static_cast<const char*>(rows.data_ptr()), rows.nbytes()});
}

}  // namespace scoreprior::io
