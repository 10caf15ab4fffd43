#include "scoreprior/io/mat.h"

#include <ATen/ATen.h>
#include <matio.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"

namespace scoreprior::io {
namespace {

struct MatCloser {
  mat_t* file = nullptr;
  ~MatCloser() {
    if (file) Mat_Close(file);
  }
};

struct MatVariable {
  matvar_t* v = nullptr;
  ~MatVariable() {
    if (v) Mat_VarFree(v);
  }
};

struct MatClass {
  matio_classes id;
  matio_types type;
  at::ScalarType in, out;  // as stored, as a tensor
};
constexpr MatClass kMatClasses[] = {{MAT_C_DOUBLE, MAT_T_DOUBLE, at::kDouble, at::kDouble},
                                    {MAT_C_SINGLE, MAT_T_SINGLE, at::kFloat, at::kFloat},
                                    {MAT_C_INT8, MAT_T_INT8, at::kChar, at::kChar},
                                    {MAT_C_UINT8, MAT_T_UINT8, at::kByte, at::kByte},
                                    {MAT_C_INT16, MAT_T_INT16, at::kShort, at::kShort},
                                    {MAT_C_UINT16, MAT_T_UINT16, at::kShort, at::kInt},
                                    {MAT_C_INT32, MAT_T_INT32, at::kInt, at::kInt},
                                    {MAT_C_UINT32, MAT_T_UINT32, at::kInt, at::kLong},
                                    {MAT_C_INT64, MAT_T_INT64, at::kLong, at::kLong},
                                    {MAT_C_UINT64, MAT_T_UINT64, at::kLong, at::kLong}};

bool widens(const MatClass& c) { return c.id == MAT_C_UINT16 || c.id == MAT_C_UINT32; }

// Column-major values -> C order, `parts` interleaved numbers an element (2 = complex).
void put_mat_values(const char* from, const MatClass& c, const Shape& shape, size_t parts,
                    size_t part, char* to) {
  const size_t in = at::elementSize(c.in), out = at::elementSize(c.out);
  size_t count = 1;
  for (const int64_t d : shape) count *= static_cast<size_t>(d);
  std::vector<size_t> index(shape.size(), 0), stride(shape.size(), 1);
  for (size_t k = shape.size(); k-- > 1;) stride[k - 1] = stride[k] * static_cast<size_t>(shape[k]);
  size_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    char* slot = to + (at * parts + part) * out;
    if (c.id == MAT_C_UINT16) {
      uint16_t v;
      std::memcpy(&v, from + i * in, in);
      const int32_t w = v;
      std::memcpy(slot, &w, out);
    } else if (c.id == MAT_C_UINT32) {
      uint32_t v;
      std::memcpy(&v, from + i * in, in);
      const int64_t w = v;
      std::memcpy(slot, &w, out);
    } else {
      std::memcpy(slot, from + i * in, in);
    }
    for (size_t k = 0; k < shape.size(); ++k) {
      at += stride[k];
      if (++index[k] < static_cast<size_t>(shape[k])) break;
      at -= stride[k] * static_cast<size_t>(shape[k]);
      index[k] = 0;
    }
  }
}

void read_mat_variables(const std::string& path, uint64_t file_bytes, detail::FindingsWriter& out) {
  MatCloser mat{Mat_Open(path.c_str(), MAT_ACC_RDONLY)};
  if (!mat.file) throw DataError(path + ": not a MATLAB file, or damaged");
  int64_t seen = 0;
  for (matvar_t* next; (next = Mat_VarReadNextInfo(mat.file)) != nullptr;) {
    const MatVariable holder{next};
    const matvar_t& v = *next;
    if (++seen > 100000) throw DataError(path + ": damaged: endlessly many variables");
    const MatClass* c = nullptr;
    for (const auto& k : kMatClasses)
      if (k.id == v.class_type) c = &k;
    if (!v.name || !c) continue;
    if (v.rank < 1 || v.rank > 32 || !v.dims)
      throw DataError(path + ": damaged: the variable " + v.name + " has no dimensions");
    Shape shape;
    for (int k = 0; k < v.rank; ++k) {
      if (v.dims[k] > (size_t{1} << 48)) throw DataError(path + ": damaged dimensions");
      shape.push_back(static_cast<int64_t>(v.dims[k]));
    }
    const std::string name = v.name;
    detail::require_plausible(path + ": variable " + name, shape, at::elementSize(c->in),
                              file_bytes);
    if (v.isComplex && c->id != MAT_C_DOUBLE && c->id != MAT_C_SINGLE)
      throw DataError(path + ": variable " + name + " is of complex integers");
    const bool bits = v.isLogical && c->id == MAT_C_UINT8;
    const auto type = v.isComplex ? (c->id == MAT_C_DOUBLE ? at::kComplexDouble : at::kComplexFloat)
                      : bits      ? at::kBool
                                  : c->out;
    size_t count = 1;
    for (const int64_t d : shape) count *= static_cast<size_t>(d);
    if (count > 0 && (Mat_VarReadDataAll(mat.file, next) != 0 || !v.data ||
                      static_cast<size_t>(v.data_size) != at::elementSize(c->in) ||
                      (!v.isComplex && v.nbytes < count * at::elementSize(c->in))))
      throw DataError(path + ": damaged or truncated: variable " + name);
    char* values = static_cast<char*>(out.array(name, type, shape));
    if (count == 0) continue;
    if (v.isComplex) {
      const auto* split = static_cast<const mat_complex_split_t*>(v.data);
      if (!split->Re || !split->Im) throw DataError(path + ": damaged: variable " + name);
      put_mat_values(static_cast<const char*>(split->Re), *c, shape, 2, 0, values);
      put_mat_values(static_cast<const char*>(split->Im), *c, shape, 2, 1, values);
    } else {
      put_mat_values(static_cast<const char*>(v.data), *c, shape, 1, 0, values);
      if (bits)
        for (size_t i = 0; i < count; ++i) values[i] = values[i] != 0;
    }
  }
  if (seen == 0) throw DataError(path + ": no variable, or damaged");
}

}  // namespace

Arrays read_mat(const std::filesystem::path& path) {
  require_file(path, "MATLAB file");
  const std::string name = path.string();
  std::error_code ec;
  const uint64_t bytes = std::filesystem::file_size(path, ec);
  return detail::read_guarded(
             path, "MATLAB",
             [&](detail::FindingsWriter& out) { read_mat_variables(name, bytes, out); })
      .arrays;
}

void write_mat(const std::filesystem::path& path, const Arrays& arrays) {
  for (const auto& [name, a] : arrays) {
    bool good =
        !name.empty() && name.size() < 64 && std::isalpha(static_cast<unsigned char>(name[0]));
    for (const char ch : name)
      good = good && (std::isalnum(static_cast<unsigned char>(ch)) || ch == '_');
    SP_CHECK(good, "write_mat", "expected a MATLAB name, got ", name);
  }
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    MatCloser mat{Mat_CreateVer(temporary.c_str(), nullptr, MAT_FT_MAT5)};
    if (!mat.file) throw CannotCreateError("cannot write " + path.string());
    for (const auto& [name, array] : arrays) {
      at::Tensor a = array.detach().to(at::kCPU).resolve_conj();
      if (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16) a = a.to(at::kFloat);
      while (a.dim() < 2) a = a.unsqueeze(0);
      std::vector<size_t> dims(a.sizes().begin(), a.sizes().end());
      std::vector<int64_t> axes;
      for (int64_t k = a.dim(); k-- > 0;) axes.push_back(k);
      a = a.permute(axes);
      const bool logical = a.scalar_type() == at::kBool, complex = a.is_complex();
      if (logical) a = a.to(at::kByte);
      const at::Tensor re = (complex ? at::real(a) : a).contiguous(),
                       im = complex ? at::imag(a).contiguous() : at::Tensor();
      const MatClass* c = nullptr;
      for (const auto& k : kMatClasses)
        if (k.out == re.scalar_type() && !widens(k) && k.id != MAT_C_UINT64) c = &k;
      SP_CHECK(c, "write_mat", "unsupported element type of ", name);
      mat_complex_split_t split{re.data_ptr(), complex ? im.data_ptr() : nullptr};
      const MatVariable v{Mat_VarCreate(
          name.c_str(), c->id, c->type, static_cast<int>(dims.size()), dims.data(),
          complex ? static_cast<void*>(&split) : re.data_ptr(),
          MAT_F_DONT_COPY_DATA | (complex ? MAT_F_COMPLEX : 0) | (logical ? MAT_F_LOGICAL : 0))};
      if (!v.v || Mat_VarWrite(mat.file, v.v, MAT_COMPRESSION_ZLIB) != 0)
        throw IoError("cannot write " + path.string() + ": variable " + name);
    }
  });
}

}  // namespace scoreprior::io
