#include "scoreprior/io/npy.h"

#include <ATen/ATen.h>
#include <zip.h>

#include <cstring>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

struct NpyType {
  const char* descr;
  at::ScalarType type;
};
constexpr NpyType kNpyTypes[] = {
    {"|b1", at::kBool},         {"|u1", at::kByte},          {"|i1", at::kChar},
    {"<i2", at::kShort},        {"<i4", at::kInt},           {"<i8", at::kLong},
    {"<f2", at::kHalf},         {"<f4", at::kFloat},         {"<f8", at::kDouble},
    {"<c8", at::kComplexFloat}, {"<c16", at::kComplexDouble}};

// The text after 'key': in the header's Python dictionary.
std::string npy_field(const std::string& header, const std::string& key, const std::string& name) {
  const size_t at = header.find("'" + key + "'");
  if (at == std::string::npos) throw DataError(name + ": the NPY header has no " + key);
  const size_t colon = header.find(':', at);
  if (colon == std::string::npos) throw DataError(name + ": damaged NPY header");
  return header.substr(colon + 1);
}

}  // namespace

at::Tensor from_npy_bytes(const char* data, size_t size, const std::string& name) {
  if (size < 10 || std::memcmp(data, "\x93NUMPY", 6) != 0)
    throw DataError(name + ": not an NPY file");
  const int major = static_cast<unsigned char>(data[6]);
  size_t header_size = 0, begin = 0;
  if (major == 1) {
    header_size = static_cast<unsigned char>(data[8]) | static_cast<unsigned char>(data[9]) << 8;
    begin = 10;
  } else {
    if (size < 12) throw DataError(name + ": truncated NPY header");
    uint32_t n;
    std::memcpy(&n, data + 8, 4);
    header_size = n;
    begin = 12;
  }
  if (begin + header_size > size) throw DataError(name + ": truncated NPY header");
  const std::string header(data + begin, header_size);

  std::string descr = npy_field(header, "descr", name);
  const size_t q0 = descr.find('\''), q1 = descr.find('\'', q0 + 1);
  if (q0 == std::string::npos || q1 == std::string::npos)
    throw DataError(name + ": structured NPY arrays are not supported");
  descr = descr.substr(q0 + 1, q1 - q0 - 1);
  const NpyType* type = nullptr;
  for (const auto& t : kNpyTypes)
    if (descr == t.descr || (descr[0] == '=' && descr.substr(1) == t.descr + 1)) type = &t;
  if (!type) throw DataError(name + ": unsupported NPY element type " + descr);

  const std::string order = npy_field(header, "fortran_order", name);
  const bool fortran = order.find("True") < order.find(',');
  std::string shape_text = npy_field(header, "shape", name);
  const size_t open = shape_text.find('('), close = shape_text.find(')');
  if (open == std::string::npos || close == std::string::npos || close < open)
    throw DataError(name + ": damaged NPY shape");
  Shape shape;
  const char* p = shape_text.c_str() + open + 1;
  const char* const stop = shape_text.c_str() + close;
  const size_t item = at::elementSize(type->type);
  const int64_t available = static_cast<int64_t>((size - begin - header_size) / item);
  int64_t count = 1;
  while (p < stop) {
    char* next = nullptr;
    const long long d = std::strtoll(p, &next, 10);
    if (next == p) {
      ++p;
      continue;
    }
    if (d < 0) throw DataError(name + ": negative NPY dimension");
    shape.push_back(d);
    if (d != 0 && count > std::numeric_limits<int64_t>::max() / d)
      throw DataError(name + ": damaged NPY shape");
    count *= d;
    p = next;
  }
  if (count > available)
    throw DataError(name + ": truncated: the header announces " + std::to_string(count) +
                    " elements, the file holds " + std::to_string(available));
  Shape stored = shape;
  if (fortran) std::reverse(stored.begin(), stored.end());
  at::Tensor out = at::empty(stored, at::TensorOptions().dtype(type->type));
  if (count > 0) std::memcpy(out.data_ptr(), data + begin + header_size, count * item);
  if (fortran) {
    std::vector<int64_t> axes(shape.size());
    for (size_t i = 0; i < axes.size(); ++i) axes[i] = static_cast<int64_t>(axes.size() - 1 - i);
    out = out.permute(axes).contiguous();
  }
  return out;
}

std::string numpy_type_name(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return "bool";
    case at::kByte:
      return "uint8";
    case at::kChar:
      return "int8";
    case at::kShort:
      return "int16";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    case at::kHalf:
      return "float16";
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kComplexFloat:
      return "complex64";
    case at::kComplexDouble:
      return "complex128";
    default:
      return at::toString(type);  // bfloat16 and others that NumPy has no name for
  }
}

std::string to_npy_bytes(const at::Tensor& array) {
  at::Tensor a = array.detach().to(at::kCPU);
  if (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16) a = a.to(at::kFloat);
  a = a.resolve_conj().contiguous();
  const NpyType* type = nullptr;
  for (const auto& t : kNpyTypes)
    if (t.type == a.scalar_type()) type = &t;
  SP_CHECK(type, "npy", "unsupported element type");
  std::string shape = "(";
  for (int64_t d : a.sizes()) shape += std::to_string(d) + ",";
  if (a.dim() > 1) shape.pop_back();
  std::string header = std::string("{'descr': '") + type->descr +
                       "', 'fortran_order': False, 'shape': " + shape + "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  if (a.numel() > 0) bytes.append(static_cast<const char*>(a.data_ptr()), a.nbytes());
  return bytes;
}

at::Tensor read_npy(const std::filesystem::path& path) {
  const std::string bytes = read_text(path);
  return from_npy_bytes(bytes.data(), bytes.size(), path.string());
}

void write_npy(const std::filesystem::path& path, const at::Tensor& array) {
  write_text(path, to_npy_bytes(array));
}

Arrays read_npz(const std::filesystem::path& path) {
  require_file(path, "file");
  int error = 0;
  zip_t* archive = zip_open(path.c_str(), ZIP_RDONLY, &error);
  if (!archive) throw DataError(path.string() + ": not an NPZ (zip) file, or damaged");
  Arrays out;
  try {
    const zip_int64_t n = zip_get_num_entries(archive, 0);
    for (zip_int64_t i = 0; i < n; ++i) {
      zip_stat_t st;
      if (zip_stat_index(archive, i, 0, &st) != 0)
        throw DataError(path.string() + ": damaged zip directory");
      const std::string entry = path.string() + ":" + st.name;
      zip_file_t* f = zip_fopen_index(archive, i, 0);
      if (!f) throw DataError(entry + ": cannot be read");
      std::string bytes;
      char buffer[1 << 16];
      zip_int64_t got;
      while ((got = zip_fread(f, buffer, sizeof buffer)) > 0 && bytes.size() <= st.size)
        bytes.append(buffer, got);
      zip_fclose(f);
      if (got < 0 || bytes.size() != st.size) throw DataError(entry + ": damaged or truncated");
      std::string name = st.name;
      if (name.size() > 4 && name.substr(name.size() - 4) == ".npy") name.resize(name.size() - 4);
      out[name] = from_npy_bytes(bytes.data(), bytes.size(), entry);
    }
  } catch (...) {
    zip_discard(archive);
    throw;
  }
  zip_discard(archive);
  return out;
}

void write_npz(const std::filesystem::path& path, const Arrays& arrays) {
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    int error = 0;
    zip_t* archive = zip_open(temporary.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &error);
    if (!archive) throw CannotCreateError("cannot write " + path.string());
    std::map<std::string, std::string> bytes;  // must live until zip_close
    for (const auto& [name, array] : arrays) bytes[name] = to_npy_bytes(array);
    for (const auto& [name, b] : bytes) {
      zip_source_t* source = zip_source_buffer(archive, b.data(), b.size(), 0);
      const zip_int64_t index =
          source ? zip_file_add(archive, (name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8) : -1;
      if (index < 0) {
        if (source) zip_source_free(source);
        zip_discard(archive);
        throw IoError("cannot write " + path.string());
      }
      zip_file_set_mtime(archive, index, 315532800, 0);  // fixed date: equal arrays, equal bytes
    }
    if (zip_close(archive) != 0) {
      const std::string why = zip_strerror(archive);
      zip_discard(archive);
      throw IoError("cannot write " + path.string() + ": " + why);
    }
  });
}

}  // namespace scoreprior::io
