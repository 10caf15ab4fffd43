#include "scoreprior/io/netcdf.h"

#include <ATen/ATen.h>
#include <netcdf.h>
#include <netcdf_mem.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"

namespace scoreprior::io {
namespace {

constexpr int64_t kCompressedFrom = 4096;  // [values] smaller variables gain nothing

struct NetcdfFailure {
  int code;
};

void netcdf_try(int code) {
  if (code != NC_NOERR) throw NetcdfFailure{code};
}

struct NetcdfFile {
  int id = -1;
  ~NetcdfFile() {
    if (id >= 0) nc_close(id);
  }
};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
  return text;
}

nc_type netcdf_type(const std::string& name, const at::Tensor& values) {
  switch (values.scalar_type()) {
    case at::kDouble:
      return NC_DOUBLE;
    case at::kFloat:
      return NC_FLOAT;
    case at::kLong:
      return NC_INT64;
    case at::kInt:
      return NC_INT;
    case at::kByte:
      return NC_UBYTE;
    case at::kBool:
      return NC_BYTE;  // with the attribute dtype = "bool", as xarray does
    default:
      SP_CHECK(false, "write_netcdf", name,
               ": expected float64, float32, int64, int32, uint8 or bool, got ",
               values.scalar_type(),
               values.is_complex() ? "; store real and imaginary parts under two names" : "");
  }
  return NC_NAT;
}

void put_text(int group, int variable, const std::string& name, const std::string& text) {
  netcdf_try(nc_put_att_text(group, variable, name.c_str(), text.size(), text.c_str()));
}

std::map<std::string, std::string> read_texts(int group, int variable) {
  std::map<std::string, std::string> out;
  int count = 0;
  netcdf_try(variable == NC_GLOBAL ? nc_inq_natts(group, &count)
                                   : nc_inq_varnatts(group, variable, &count));
  for (int i = 0; i < count; ++i) {
    char name[NC_MAX_NAME + 1];
    netcdf_try(nc_inq_attname(group, variable, i, name));
    nc_type type;
    size_t length = 0;
    netcdf_try(nc_inq_att(group, variable, name, &type, &length));
    if (type == NC_CHAR) {
      std::string text(length, '\0');
      if (length > 0) netcdf_try(nc_get_att_text(group, variable, name, text.data()));
      out[name] = text;
    } else if (type == NC_STRING && length == 1) {
      char* text = nullptr;
      netcdf_try(nc_get_att_string(group, variable, name, &text));
      out[name] = text ? text : "";
      nc_free_string(1, &text);
    }
  }
  return out;
}

std::map<std::string, NetcdfVariable> with_coordinates(const std::string& group,
                                                       const NetcdfGroup& content) {
  auto variables = content.variables;
  std::map<std::string, int64_t> lengths;
  for (const auto& [name, v] : content.variables) {
    SP_CHECK(v.values.defined() && v.values.dim() == int64_t(v.dims.size()), "write_netcdf", group,
             ".", name, ": expected one dimension name per axis, got ", v.dims.size(),
             " names for ", v.values.defined() ? v.values.sizes() : at::IntArrayRef());
    for (size_t k = 0; k < v.dims.size(); ++k) {
      const auto [it, fresh] = lengths.emplace(v.dims[k], v.values.size(int64_t(k)));
      SP_CHECK(fresh || it->second == v.values.size(int64_t(k)), "write_netcdf", group, ".", name,
               ": dimension ", v.dims[k], " has ", v.values.size(int64_t(k)), " entries here and ",
               it->second, " elsewhere");
    }
  }
  for (const auto& [name, length] : lengths)
    if (variables.count(name) == 0)
      variables[name] = {at::arange(length, at::TensorOptions(at::kLong)), {name}, {}};
  return variables;
}

void write_group(int file, const std::string& name, const NetcdfGroup& content,
                 const std::map<std::string, std::string>& common, const std::string& now) {
  const auto variables = with_coordinates(name, content);
  int group = -1;
  netcdf_try(nc_def_grp(file, name.c_str(), &group));
  auto attributes = content.attributes;
  attributes.insert(common.begin(), common.end());
  attributes.emplace("created_at", now);
  for (const auto& [key, text] : attributes) put_text(group, NC_GLOBAL, key, text);

  std::map<std::string, int> dims;
  std::map<std::string, int> ids;
  for (const auto& [variable, v] : variables) {
    std::vector<int> axes;
    for (size_t k = 0; k < v.dims.size(); ++k) {
      auto it = dims.find(v.dims[k]);
      if (it == dims.end()) {
        int id = -1;
        // Length 0 is NetCDF's "unlimited", which holds nothing as well.
        netcdf_try(nc_def_dim(group, v.dims[k].c_str(), size_t(v.values.size(int64_t(k))), &id));
        it = dims.emplace(v.dims[k], id).first;
      }
      axes.push_back(it->second);
    }
    int id = -1;
    netcdf_try(nc_def_var(group, variable.c_str(), netcdf_type(variable, v.values),
                          int(axes.size()), axes.data(), &id));
    ids[variable] = id;
    if (v.values.numel() >= kCompressedFrom && !axes.empty()) {
      // One chunk per draw: readers take draws, seldom the same pixel of all.
      std::vector<size_t> chunk;
      for (size_t k = 0; k < v.dims.size(); ++k) {
        const bool sample_axis = v.dims.size() > 2 && (v.dims[k] == "chain" || v.dims[k] == "draw");
        chunk.push_back(sample_axis ? 1 : std::max<size_t>(1, size_t(v.values.size(int64_t(k)))));
      }
      netcdf_try(nc_def_var_chunking(group, id, NC_CHUNKED, chunk.data()));
      netcdf_try(nc_def_var_deflate(group, id, /*shuffle=*/1, /*deflate=*/1, /*level=*/4));
    }
    for (const auto& [key, text] : v.attributes) put_text(group, id, key, text);
    if (v.values.scalar_type() == at::kBool) put_text(group, id, "dtype", "bool");
  }
  for (const auto& [variable, v] : variables) {
    if (v.values.numel() == 0) continue;
    const at::Tensor x = v.values.detach().cpu().contiguous();
    netcdf_try(nc_put_var(group, ids[variable], x.data_ptr()));
  }
}

// Names of what the reading child reports; no NetCDF name holds a line feed.
constexpr char kNetcdfBreak = '\n';

void report_texts(const std::map<std::string, std::string>& texts, const std::string& owner,
                  detail::FindingsWriter& out) {
  for (const auto& [key, text] : texts) out.text(owner + kNetcdfBreak + key, text);
}

std::optional<at::ScalarType> tensor_type(nc_type type) {
  switch (type) {
    case NC_DOUBLE:
      return at::kDouble;
    case NC_FLOAT:
      return at::kFloat;
    case NC_INT64:
      return at::kLong;
    case NC_INT:
      return at::kInt;
    case NC_UBYTE:
      return at::kByte;
    case NC_BYTE:
      return at::kChar;
    default:
      return std::nullopt;  // strings and compounds of other writers
  }
}

// "group", "group\nvariable" and "group\nvariable\nattribute", in the child that reads.
void report_group(int group, const std::string& name, const std::string& path, uint64_t file_bytes,
                  detail::FindingsWriter& out) {
  out.text(name, "");
  report_texts(read_texts(group, NC_GLOBAL), name + kNetcdfBreak, out);
  int count = 0;
  netcdf_try(nc_inq_nvars(group, &count));
  for (int id = 0; id < count; ++id) {
    char variable[NC_MAX_NAME + 1];
    nc_type type;
    int rank = 0, axes[NC_MAX_VAR_DIMS];
    netcdf_try(nc_inq_var(group, id, variable, &type, &rank, axes, nullptr));
    const auto element = tensor_type(type);
    if (!element) continue;
    Shape shape;
    std::string dims;
    for (int k = 0; k < rank; ++k) {
      char dim[NC_MAX_NAME + 1];
      size_t length = 0;
      netcdf_try(nc_inq_dim(group, axes[k], dim, &length));
      dims += dim;
      dims += kNetcdfBreak;
      shape.push_back(static_cast<int64_t>(length));
    }
    const std::string full = name + kNetcdfBreak + variable;
    detail::require_plausible(path + ": variable " + variable, shape, at::elementSize(*element),
                              file_bytes);
    out.text(full + kNetcdfBreak, dims);
    report_texts(read_texts(group, id), full, out);
    void* values = out.array(full, *element, shape);
    if (std::find(shape.begin(), shape.end(), 0) == shape.end())
      netcdf_try(nc_get_var(group, id, values));
  }
}

std::vector<std::string> split_breaks(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text)
    if (c == kNetcdfBreak)
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

}  // namespace

void write_netcdf(const std::filesystem::path& path, const InferenceData& data) {
  const std::lock_guard<std::mutex> lock(detail::hdf5_mutex());
  const std::string now = utc_now();
  // Built in memory: HDF5 crashes at exit over a file it could not flush to a full disk.
  NC_memio memory{};
  try {
    NetcdfFile file;
    netcdf_try(nc_create_mem(path.c_str(), NC_NETCDF4, 0, &file.id));
    for (const auto& [key, text] : data.attributes) put_text(file.id, NC_GLOBAL, key, text);
    if (data.attributes.count("created_at") == 0) put_text(file.id, NC_GLOBAL, "created_at", now);
    for (const auto& [name, group] : data.groups)
      write_group(file.id, name, group, data.attributes, now);
    const int id = file.id;
    file.id = -1;
    netcdf_try(nc_close_memio(id, &memory));
  } catch (const NetcdfFailure& failure) {
    throw IoError("cannot write " + path.string() + ": " + nc_strerror(failure.code));
  }
  const std::unique_ptr<void, decltype(&std::free)> owner(memory.memory, std::free);
  write_text(path, {static_cast<const char*>(memory.memory), memory.size});
}

InferenceData read_netcdf(const std::filesystem::path& path) {
  require_file(path, "NetCDF file");
  std::error_code ec;
  const uint64_t file_bytes = std::filesystem::file_size(path, ec);
  const detail::Findings found =
      detail::read_guarded(path, "NetCDF", [&](detail::FindingsWriter& out) {
        try {
          NetcdfFile file;
          const int code = nc_open(path.c_str(), NC_NOWRITE, &file.id);
          if (code != NC_NOERR) {
            file.id = -1;
            throw NetcdfFailure{code};
          }
          report_texts(read_texts(file.id, NC_GLOBAL), "", out);
          int count = 0;
          netcdf_try(nc_inq_grps(file.id, &count, nullptr));
          std::vector<int> groups(static_cast<size_t>(count));
          if (count > 0) netcdf_try(nc_inq_grps(file.id, &count, groups.data()));
          for (const int group : groups) {
            char name[NC_MAX_NAME + 1];
            netcdf_try(nc_inq_grpname(group, name));
            report_group(group, name, path.string(), file_bytes, out);
          }
        } catch (const NetcdfFailure& failure) {
          throw DataError(path.string() +
                          ": not a readable NetCDF file: " + nc_strerror(failure.code));
        }
      });
  InferenceData out;
  for (const auto& [key, text] : found.texts) {
    const auto parts = split_breaks(key);
    if (parts.size() == 1)
      out.groups[parts[0]];
    else if (parts[0].empty())
      out.attributes[parts[1]] = text;
    else if (parts[1].empty())
      out.groups[parts[0]].attributes[parts.back()] = text;
    else if (parts[2].empty()) {
      auto dims = split_breaks(text);
      dims.pop_back();
      out.groups[parts[0]].variables[parts[1]].dims = dims;
    } else
      out.groups[parts[0]].variables[parts[1]].attributes[parts[2]] = text;
  }
  for (const auto& [key, values] : found.arrays) {
    const auto parts = split_breaks(key);
    NetcdfVariable& v = out.groups.at(parts[0]).variables.at(parts[1]);
    v.values = values;
    if (const auto it = v.attributes.find("dtype");
        it != v.attributes.end() && it->second == "bool") {
      v.values = v.values.to(at::kBool);
      v.attributes.erase(it);
    }
  }
  return out;
}

}  // namespace scoreprior::io
