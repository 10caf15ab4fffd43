#include "scoreprior/io/hdf5.h"

#include <ATen/ATen.h>
#include <hdf5.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"
#include "scoreprior/io/detail/hdf5_handle.h"

namespace scoreprior::io {
namespace {

using detail::Hdf5Handle;

struct Hdf5Element {
  at::ScalarType type;
  Hdf5Handle memory;  // the type values are converted to
};

hid_t native_type(at::ScalarType t) {
  switch (t) {
    case at::kDouble:
      return H5T_NATIVE_DOUBLE;
    case at::kFloat:
      return H5T_NATIVE_FLOAT;
    case at::kLong:
      return H5T_NATIVE_INT64;
    case at::kInt:
      return H5T_NATIVE_INT32;
    case at::kShort:
      return H5T_NATIVE_INT16;
    case at::kChar:
      return H5T_NATIVE_INT8;
    default:
      return H5T_NATIVE_UINT8;
  }
}

Hdf5Handle complex_memory_type(bool wide, const char* real, const char* imag) {
  const size_t item = wide ? 8 : 4;
  Hdf5Handle t(H5Tcreate(H5T_COMPOUND, 2 * item));
  const hid_t part = wide ? H5T_NATIVE_DOUBLE : H5T_NATIVE_FLOAT;
  H5Tinsert(t.id(), real, 0, part);
  H5Tinsert(t.id(), imag, item, part);
  return t;
}

// How the values of a stored type are read; nullopt when there is no tensor for it.
std::optional<Hdf5Element> element_of(hid_t stored) {
  const size_t bytes = H5Tget_size(stored);
  const auto plain = [](at::ScalarType t) {
    return Hdf5Element{t, Hdf5Handle(H5Tcopy(native_type(t)))};
  };
  switch (H5Tget_class(stored)) {
    case H5T_FLOAT:
      return plain(bytes <= 4 ? at::kFloat : at::kDouble);
    case H5T_INTEGER: {
      const bool sign = H5Tget_sign(stored) == H5T_SGN_2;
      if (bytes == 1) return plain(sign ? at::kChar : at::kByte);
      if (bytes == 2) return plain(sign ? at::kShort : at::kInt);
      if (bytes == 4) return plain(sign ? at::kInt : at::kLong);
      return plain(at::kLong);
    }
    case H5T_ENUM: {
      if (H5Tget_nmembers(stored) != 2 || bytes != 1) return std::nullopt;
      return Hdf5Element{at::kBool, Hdf5Handle(H5Tcopy(stored))};
    }
    case H5T_COMPOUND: {
      if (H5Tget_nmembers(stored) != 2) return std::nullopt;
      std::string names[2];
      size_t widest = 0;
      for (unsigned k = 0; k < 2; ++k) {
        char* text = H5Tget_member_name(stored, k);
        names[k] = text ? text : "";
        H5free_memory(text);
        const Hdf5Handle part(H5Tget_member_type(stored, k));
        if (H5Tget_class(part.id()) != H5T_FLOAT) return std::nullopt;
        widest = std::max(widest, H5Tget_size(part.id()));
      }
      if (!(names[0] == "r" && names[1] == "i") && !(names[0] == "real" && names[1] == "imag"))
        return std::nullopt;
      const bool wide = widest > 4;
      return Hdf5Element{wide ? at::kComplexDouble : at::kComplexFloat,
                         complex_memory_type(wide, names[0].c_str(), names[1].c_str())};
    }
    default:
      return std::nullopt;
  }
}

std::optional<Shape> shape_of(hid_t space) {
  if (H5Sget_simple_extent_type(space) == H5S_SCALAR) return Shape{};
  if (H5Sget_simple_extent_type(space) != H5S_SIMPLE) return std::nullopt;
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 0 || rank > H5S_MAX_RANK) return std::nullopt;
  hsize_t dims[H5S_MAX_RANK];
  if (H5Sget_simple_extent_dims(space, dims, nullptr) < 0) return std::nullopt;
  Shape shape;
  for (int k = 0; k < rank; ++k) {
    if (dims[k] > (hsize_t{1} << 48)) return std::nullopt;
    shape.push_back(static_cast<int64_t>(dims[k]));
  }
  return shape;
}

struct OpenArray {
  Hdf5Handle set, space;
  Shape shape;
  std::optional<Hdf5Element> element;
};

OpenArray open_array(hid_t file, const std::string& path, const std::string& name,
                     uint64_t file_bytes) {
  OpenArray a;
  a.set = Hdf5Handle(H5Dopen2(file, name.c_str(), H5P_DEFAULT));
  if (!a.set) throw DataError(path + ": the data set " + name + " cannot be opened");
  a.space = Hdf5Handle(H5Dget_space(a.set.id()));
  const auto shape = shape_of(a.space.id());
  const Hdf5Handle stored(H5Dget_type(a.set.id())), plan(H5Dget_create_plist(a.set.id()));
  if (!shape || !stored || !plan) throw DataError(path + ": damaged data set " + name);
  a.shape = *shape;
  if (H5Pget_layout(plan.id()) == H5D_VIRTUAL || H5Pget_external_count(plan.id()) > 0) return a;
  a.element = element_of(stored.id());
  if (!a.element) return a;
  const uint64_t kept = std::min<uint64_t>(H5Dget_storage_size(a.set.id()), file_bytes);
  detail::require_plausible(path + ": data set " + name, a.shape, at::elementSize(a.element->type),
                            kept);
  return a;
}

void read_values(const OpenArray& a, const std::string& path, const std::string& name,
                 hid_t memory_space, hid_t file_space, const Shape& shape, void* values) {
  size_t count = 1;
  for (const int64_t d : shape) count *= static_cast<size_t>(d);
  if (count == 0) return;
  if (H5Dread(a.set.id(), a.element->memory.id(), memory_space, file_space, H5P_DEFAULT, values) <
      0)
    throw DataError(path + ": damaged or truncated: data set " + name);
  if (a.element->type != at::kBool) return;
  auto* bytes = static_cast<uint8_t*>(values);
  for (size_t k = 0; k < count; ++k) bytes[k] = bytes[k] != 0;
}

// One string of a data set or attribute, whatever its kind; `read` fetches into memory of that
// type.
std::optional<std::string> one_string(hid_t type, hid_t space,
                                      const std::function<herr_t(hid_t, void*)>& read) {
  if (H5Tget_class(type) != H5T_STRING || H5Sget_simple_extent_npoints(space) != 1)
    return std::nullopt;
  std::string out;
  if (H5Tis_variable_str(type) > 0) {
    const Hdf5Handle memory(H5Tcopy(H5T_C_S1));
    H5Tset_size(memory.id(), H5T_VARIABLE);
    H5Tset_cset(memory.id(), H5Tget_cset(type));
    char* text = nullptr;
    if (read(memory.id(), &text) < 0 || !text) return std::nullopt;
    out = text;
    H5Dvlen_reclaim(memory.id(), space, H5P_DEFAULT, &text);
  } else {
    const size_t n = H5Tget_size(type);
    if (n == 0 || n > (size_t{1} << 28)) return std::nullopt;
    out.resize(n);
    if (read(type, out.data()) < 0) return std::nullopt;
    out.resize(std::strlen(out.c_str()) < n ? std::strlen(out.c_str()) : n);
    while (!out.empty() && out.back() == ' ') out.pop_back();
  }
  return out;
}

struct Walk {
  std::string path;
  uint64_t file_bytes;
  hid_t file;
  detail::FindingsWriter* out;
  bool values;
  int64_t objects = 0;
  std::string error;
};

void put_attributes(Walk& w, hid_t object, const std::string& name) {
  H5O_info_t info;
  if (H5Oget_info2(object, &info, H5O_INFO_NUM_ATTRS) < 0) return;
  for (hsize_t k = 0; k < std::min<hsize_t>(info.num_attrs, 1000); ++k) {
    const Hdf5Handle a(
        H5Aopen_by_idx(object, ".", H5_INDEX_NAME, H5_ITER_INC, k, H5P_DEFAULT, H5P_DEFAULT));
    if (!a) continue;
    char key[256];
    if (H5Aget_name(a.id(), sizeof key, key) < 0) continue;
    const Hdf5Handle type(H5Aget_type(a.id())), space(H5Aget_space(a.id()));
    const std::string full = name + "@" + key;
    if (const auto text = one_string(type.id(), space.id(),
                                     [&](hid_t t, void* p) { return H5Aread(a.id(), t, p); })) {
      w.out->text(full, *text);
    } else if (H5Sget_simple_extent_npoints(space.id()) == 1) {
      const H5T_class_t kind = H5Tget_class(type.id());
      char shown[64];
      if (kind == H5T_FLOAT) {
        double v = 0;
        if (H5Aread(a.id(), H5T_NATIVE_DOUBLE, &v) < 0) continue;
        std::snprintf(shown, sizeof shown, "%.17g", v);
      } else if (kind == H5T_INTEGER) {
        long long v = 0;
        if (H5Aread(a.id(), H5T_NATIVE_LLONG, &v) < 0) continue;
        std::snprintf(shown, sizeof shown, "%lld", v);
      } else {
        continue;
      }
      w.out->text(full, shown);
    }
  }
}

void put_array(Walk& w, const std::string& name) {
  const OpenArray a = open_array(w.file, w.path, name, w.file_bytes);
  if (!a.element) {
    const Hdf5Handle type(H5Dget_type(a.set.id()));
    if (const auto text = one_string(type.id(), a.space.id(), [&](hid_t t, void* p) {
          return H5Dread(a.set.id(), t, H5S_ALL, H5S_ALL, H5P_DEFAULT, p);
        }))
      w.out->text(name, *text);
    return;
  }
  if (!w.values) {
    std::ostringstream s;
    s << static_cast<int>(a.element->type);
    for (const int64_t d : a.shape) s << ' ' << d;
    w.out->text("shape:" + name, s.str());
    return;
  }
  void* values = w.out->array(name, a.element->type, a.shape);
  read_values(a, w.path, name, H5S_ALL, H5S_ALL, a.shape, values);
}

// Called by the C library, so nothing may be thrown through it.
herr_t visit_object(hid_t object, const char* name, const H5O_info_t* info, void* data) {
  Walk& w = *static_cast<Walk*>(data);
  try {
    if (++w.objects > 100000) throw DataError(w.path + ": damaged: endlessly many objects");
    const std::string plain = std::strcmp(name, ".") == 0 ? "" : name;
    const Hdf5Handle here(H5Oopen(object, name, H5P_DEFAULT));
    if (!here) throw DataError(w.path + ": damaged: the object " + plain + " cannot be opened");
    if (w.values) put_attributes(w, here.id(), plain);
    if (info->type == H5O_TYPE_DATASET) put_array(w, plain);
    return 0;
  } catch (const std::exception& e) {
    w.error = e.what();
    return -1;
  }
}

Hdf5Handle open_hdf5(const std::string& path) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  if (H5Fis_hdf5(path.c_str()) <= 0) throw DataError(path + ": not an HDF5 file");
  Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!file) throw DataError(path + ": damaged or truncated HDF5 file");
  return file;
}

uint64_t bytes_of(const std::filesystem::path& path) {
  std::error_code ec;
  return std::filesystem::file_size(path, ec);
}

detail::Findings walk_hdf5(const std::filesystem::path& path, bool values) {
  require_file(path, "HDF5 file");
  return detail::read_guarded(path, "HDF5", [&, bytes = bytes_of(path)](detail::FindingsWriter& o) {
    const Hdf5Handle file = open_hdf5(path.string());
    Walk walk{path.string(), bytes, file.id(), &o, values, 0, ""};
    if (H5Ovisit2(file.id(), H5_INDEX_NAME, H5_ITER_INC, visit_object, &walk, H5O_INFO_BASIC) < 0)
      throw DataError(walk.error.empty() ? path.string() + ": damaged HDF5 file" : walk.error);
  });
}

// Every group on the way to `name`.
void make_groups(hid_t file, const std::string& name) {
  for (size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1)) {
    const std::string group = name.substr(0, at);
    if (H5Lexists(file, group.c_str(), H5P_DEFAULT) > 0) continue;
    const Hdf5Handle made(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    if (!made) throw IoError("the HDF5 group " + group + " cannot be made");
  }
}

void put_hdf5_text(hid_t file, const std::string& name, const std::string& value) {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1)), space(H5Screate(H5S_SCALAR));
  H5Tset_size(type.id(), value.size() + 1);
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  const size_t at = name.rfind('@');
  herr_t done = -1;
  if (at == std::string::npos) {
    make_groups(file, name);
    const Hdf5Handle set(H5Dcreate2(file, name.c_str(), type.id(), space.id(), H5P_DEFAULT,
                                    H5P_DEFAULT, H5P_DEFAULT));
    if (set) done = H5Dwrite(set.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, value.c_str());
  } else {
    const Hdf5Handle owner(H5Oopen(file, at == 0 ? "/" : name.substr(0, at).c_str(), H5P_DEFAULT));
    const Hdf5Handle a(owner ? H5Acreate2(owner.id(), name.substr(at + 1).c_str(), type.id(),
                                          space.id(), H5P_DEFAULT, H5P_DEFAULT)
                             : -1);
    if (a) done = H5Awrite(a.id(), type.id(), value.c_str());
  }
  if (done < 0) throw IoError("the HDF5 text " + name + " cannot be written");
}

void put_hdf5_array(hid_t file, const std::string& name, const at::Tensor& array) {
  at::Tensor a = array.detach().to(at::kCPU).resolve_conj().contiguous();
  if (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16) a = a.to(at::kFloat);
  const at::ScalarType t = a.scalar_type();
  Hdf5Handle type;
  if (a.is_complex()) {
    type = complex_memory_type(t == at::kComplexDouble, "r", "i");
  } else if (t == at::kBool) {
    type = Hdf5Handle(H5Tenum_create(H5T_NATIVE_INT8));
    int8_t v = 0;
    H5Tenum_insert(type.id(), "FALSE", &v);
    v = 1;
    H5Tenum_insert(type.id(), "TRUE", &v);
  } else {
    type = Hdf5Handle(H5Tcopy(native_type(t)));
  }
  std::vector<hsize_t> dims(a.sizes().begin(), a.sizes().end());
  const Hdf5Handle space(
      dims.empty() ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
  const Hdf5Handle plan(H5Pcreate(H5P_DATASET_CREATE));
  if (a.numel() >= 4096) {
    // One chunk an image, so that a reader who takes one does not unpack the rest.
    std::vector<hsize_t> chunk = dims;
    uint64_t bytes = a.nbytes();
    for (size_t k = 0; k + 2 < chunk.size() || (k < chunk.size() && bytes > (64u << 20)); ++k) {
      bytes /= chunk[k];
      chunk[k] = 1;
    }
    H5Pset_chunk(plan.id(), static_cast<int>(chunk.size()), chunk.data());
    H5Pset_shuffle(plan.id());
    H5Pset_deflate(plan.id(), 4);
  }
  make_groups(file, name);
  const Hdf5Handle set(
      H5Dcreate2(file, name.c_str(), type.id(), space.id(), H5P_DEFAULT, plan.id(), H5P_DEFAULT));
  if (!set || (a.numel() > 0 &&
               H5Dwrite(set.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, a.data_ptr()) < 0))
    throw IoError("the HDF5 data set " + name + " cannot be written");
}

}  // namespace

std::map<std::string, Hdf5Array> list_hdf5(const std::filesystem::path& path) {
  std::map<std::string, Hdf5Array> out;
  for (const auto& [name, text] : walk_hdf5(path, false).texts) {
    if (name.rfind("shape:", 0) != 0) {
      out[name] = {{}, "text"};
      continue;
    }
    std::istringstream in(text);
    int type = 0;
    in >> type;
    Hdf5Array a;
    for (int64_t d; in >> d;) a.shape.push_back(d);
    a.type = numpy_type_name(static_cast<at::ScalarType>(type));
    out[name.substr(6)] = a;
  }
  return out;
}

Hdf5 read_hdf5(const std::filesystem::path& path, const std::vector<std::string>& names) {
  if (names.empty()) {
    detail::Findings found = walk_hdf5(path, true);
    return {std::move(found.arrays), std::move(found.texts)};
  }
  require_file(path, "HDF5 file");
  detail::Findings found =
      detail::read_guarded(path, "HDF5", [&, bytes = bytes_of(path)](detail::FindingsWriter& o) {
        const Hdf5Handle file = open_hdf5(path.string());
        Walk walk{path.string(), bytes, file.id(), &o, true, 0, ""};
        put_attributes(walk, file.id(), "");
        for (const auto& name : names) {
          const Hdf5Handle here(H5Oopen(file.id(), name.c_str(), H5P_DEFAULT));
          if (!here) throw DataError(path.string() + ": no data set " + name);
          put_attributes(walk, here.id(), name);
          put_array(walk, name);
        }
      });
  return {std::move(found.arrays), std::move(found.texts)};
}

at::Tensor read_hdf5_rows(const std::filesystem::path& path, const std::string& name, int64_t first,
                          int64_t count) {
  require_file(path, "HDF5 file");
  detail::Findings found =
      detail::read_guarded(path, "HDF5", [&, bytes = bytes_of(path)](detail::FindingsWriter& o) {
        const Hdf5Handle file = open_hdf5(path.string());
        const OpenArray a = open_array(file.id(), path.string(), name, bytes);
        if (!a.element || a.shape.empty() || first < 0 || count < 1 || first + count > a.shape[0])
          throw DataError(path.string() + ": data set " + name + " has no rows " +
                          std::to_string(first) + " to " + std::to_string(first + count - 1));
        Shape part = a.shape;
        part[0] = count;
        std::vector<hsize_t> start(part.size(), 0), extent(part.begin(), part.end());
        start[0] = static_cast<hsize_t>(first);
        H5Sselect_hyperslab(a.space.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                            nullptr);
        const Hdf5Handle memory(
            H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
        read_values(a, path.string(), name, memory.id(), a.space.id(), part,
                    o.array("rows", a.element->type, part));
      });
  return found.arrays.at("rows");
}

void write_hdf5(const std::filesystem::path& path, const Hdf5& content) {
  const std::lock_guard<std::mutex> lock(detail::hdf5_mutex());
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  // Built in memory: HDF5 crashes at exit over a file it could not flush to a full disk.
  std::string image;
  try {
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_fapl_core(access.id(), size_t{1} << 22, 0);
    const Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()));
    if (!file) throw IoError("no HDF5 file can be made in memory");
    for (const auto& [name, a] : content.arrays) put_hdf5_array(file.id(), name, a);
    for (const auto& [name, text] : content.texts)
      if (name.find('@') == std::string::npos) put_hdf5_text(file.id(), name, text);
    for (const auto& [name, text] : content.texts)
      if (name.find('@') != std::string::npos) put_hdf5_text(file.id(), name, text);
    H5Fflush(file.id(), H5F_SCOPE_GLOBAL);
    const ssize_t bytes = H5Fget_file_image(file.id(), nullptr, 0);
    if (bytes <= 0) throw IoError("the HDF5 file cannot be taken from memory");
    image.resize(static_cast<size_t>(bytes));
    if (H5Fget_file_image(file.id(), image.data(), image.size()) < 0)
      throw IoError("the HDF5 file cannot be taken from memory");
  } catch (const IoError& e) {
    throw IoError("cannot write " + path.string() + ": " + e.what());
  }
  write_text(path, image);
}

}  // namespace scoreprior::io
