#include "scoreprior/io/safetensors.h"

#include <ATen/ATen.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

struct SafeType {
  const char* name;
  at::ScalarType type;
};
constexpr SafeType kSafeTypes[] = {{"F64", at::kDouble},    {"F32", at::kFloat}, {"F16", at::kHalf},
                                   {"BF16", at::kBFloat16}, {"I64", at::kLong},  {"I32", at::kInt},
                                   {"I16", at::kShort},     {"I8", at::kChar},   {"U8", at::kByte},
                                   {"BOOL", at::kBool}};

}  // namespace

Safetensors read_safetensors(const std::filesystem::path& path) {
  require_file(path, "file");
  const std::string bytes = read_text(path), name = path.string();
  if (bytes.size() < 8) throw DataError(name + ": too short to be a safetensors file");
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  if (header_size > bytes.size() - 8)
    throw DataError(name + ": not a safetensors file, or truncated inside its header");
  const auto header =
      nlohmann::json::parse(bytes.begin() + 8, bytes.begin() + 8 + header_size, nullptr, false);
  if (!header.is_object()) throw DataError(name + ": the safetensors header is not JSON");
  const char* data = bytes.data() + 8 + header_size;
  const uint64_t data_size = bytes.size() - 8 - header_size;

  Safetensors out;
  try {
    for (const auto& [key, entry] : header.items()) {
      if (key == "__metadata__") {
        for (const auto& [k, v] : entry.items()) out.metadata[k] = v.get<std::string>();
        continue;
      }
      const auto dtype = entry.at("dtype").get<std::string>();
      const SafeType* type = nullptr;
      for (const auto& t : kSafeTypes)
        if (dtype == t.name) type = &t;
      if (!type) throw DataError(name + ": tensor " + key + " has the unsupported type " + dtype);
      const auto shape = entry.at("shape").get<Shape>();
      const auto begin = entry.at("data_offsets").at(0).get<uint64_t>();
      const auto end = entry.at("data_offsets").at(1).get<uint64_t>();
      double expected = static_cast<double>(at::elementSize(type->type));
      for (int64_t d : shape) expected *= d < 0 ? -1e300 : static_cast<double>(d);
      if (begin > end || static_cast<double>(end - begin) != expected)
        throw DataError(name + ": tensor " + key + " has offsets that do not fit its shape");
      if (end > data_size)
        throw DataError(name + ": truncated: tensor " + key + " ends beyond the file");
      at::Tensor t = at::empty(shape, at::TensorOptions().dtype(type->type));
      if (end > begin) std::memcpy(t.data_ptr(), data + begin, end - begin);
      out.tensors[key] = t;
    }
  } catch (const nlohmann::json::exception&) {
    throw DataError(name + ": damaged safetensors header");
  }
  return out;
}

void write_safetensors(const std::filesystem::path& path, const Safetensors& file) {
  nlohmann::ordered_json header;
  if (!file.metadata.empty())
    for (const auto& [k, v] : file.metadata) header["__metadata__"][k] = v;
  uint64_t offset = 0;
  std::map<std::string, at::Tensor> ready;
  for (const auto& [name, tensor] : file.tensors) {
    const at::Tensor t = tensor.detach().to(at::kCPU).contiguous();
    const SafeType* type = nullptr;
    for (const auto& s : kSafeTypes)
      if (s.type == t.scalar_type()) type = &s;
    SP_CHECK(type, "safetensors", "unsupported element type of ", name);
    header[name] = {{"dtype", type->name},
                    {"shape", Shape(t.sizes().begin(), t.sizes().end())},
                    {"data_offsets", {offset, offset + t.nbytes()}}};
    offset += t.nbytes();
    ready[name] = t;
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  std::string bytes(8, '\0');
  const uint64_t n = text.size();
  std::memcpy(bytes.data(), &n, 8);
  bytes.reserve(8 + text.size() + offset);
  bytes += text;
  for (const auto& [name, t] : ready)
    if (t.numel() > 0) bytes.append(static_cast<const char*>(t.data_ptr()), t.nbytes());
  write_text(path, bytes);
}

}  // namespace scoreprior::io
