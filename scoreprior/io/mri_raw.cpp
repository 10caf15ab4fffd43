#include "scoreprior/io/mri_raw.h"

#include <ATen/ATen.h>
#include <hdf5.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <pugixml.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"
#include "scoreprior/io/detail/hdf5_handle.h"
#include "scoreprior/io/hdf5.h"

namespace scoreprior::io {
namespace {

using detail::Hdf5Handle;

constexpr int64_t kMaxMatrix = 65536;

// Prefixes such as "ismrmrd:" do not matter.
pugi::xml_node xml_child(const pugi::xml_node& parent, const char* wanted) {
  for (const auto& child : parent.children()) {
    const char* name = child.name();
    const char* colon = std::strchr(name, ':');
    if (std::strcmp(colon ? colon + 1 : name, wanted) == 0) return child;
  }
  return {};
}

std::array<int64_t, 3> xml_sizes(const pugi::xml_node& space, const std::string& name) {
  const pugi::xml_node m = xml_child(space, "matrixSize");
  std::array<int64_t, 3> sizes{};
  const char* axes[] = {"x", "y", "z"};
  for (size_t k = 0; k < 3; ++k) {
    sizes[k] = xml_child(m, axes[k]).text().as_llong(0);
    if (sizes[k] < 1 || sizes[k] > kMaxMatrix)
      throw DataError(name + ": the ISMRMRD header has no valid matrix size");
  }
  return sizes;
}

std::array<double, 3> xml_fov(const pugi::xml_node& space) {
  const pugi::xml_node f = xml_child(space, "fieldOfView_mm");
  return {xml_child(f, "x").text().as_double(0), xml_child(f, "y").text().as_double(0),
          xml_child(f, "z").text().as_double(0)};
}

// The fields of ISMRMRD's acquisition header that decide where a read-out belongs.
struct ReadoutHead {
  uint64_t flags;
  uint16_t samples, coils, discard_pre, discard_post, centre;
  uint16_t step_1, step_2, average, slice, contrast, phase, repetition, set;
};

struct Readout {
  ReadoutHead head;
  hvl_t data;
};

Hdf5Handle readout_head_type() {
  Hdf5Handle index(H5Tcreate(H5T_COMPOUND, sizeof(ReadoutHead)));
  const auto put = [](hid_t t, const char* name, size_t at) {
    H5Tinsert(t, name, at, H5T_NATIVE_UINT16);
  };
  // The counters live in a compound of their own inside the header.
  const size_t base = offsetof(ReadoutHead, step_1);
  put(index.id(), "kspace_encode_step_1", 0);
  put(index.id(), "kspace_encode_step_2", offsetof(ReadoutHead, step_2) - base);
  put(index.id(), "average", offsetof(ReadoutHead, average) - base);
  put(index.id(), "slice", offsetof(ReadoutHead, slice) - base);
  put(index.id(), "contrast", offsetof(ReadoutHead, contrast) - base);
  put(index.id(), "phase", offsetof(ReadoutHead, phase) - base);
  put(index.id(), "repetition", offsetof(ReadoutHead, repetition) - base);
  put(index.id(), "set", offsetof(ReadoutHead, set) - base);
  H5Tset_size(index.id(), 8 * sizeof(uint16_t));
  Hdf5Handle head(H5Tcreate(H5T_COMPOUND, sizeof(ReadoutHead)));
  H5Tinsert(head.id(), "flags", offsetof(ReadoutHead, flags), H5T_NATIVE_UINT64);
  put(head.id(), "number_of_samples", offsetof(ReadoutHead, samples));
  put(head.id(), "active_channels", offsetof(ReadoutHead, coils));
  put(head.id(), "discard_pre", offsetof(ReadoutHead, discard_pre));
  put(head.id(), "discard_post", offsetof(ReadoutHead, discard_post));
  put(head.id(), "center_sample", offsetof(ReadoutHead, centre));
  H5Tinsert(head.id(), "idx", base, index.id());
  return head;
}

struct OpenReadouts {
  Hdf5Handle file, set, space;
  hsize_t count = 0;
};

OpenReadouts open_readouts(const std::string& path) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  OpenReadouts o;
  if (H5Fis_hdf5(path.c_str()) <= 0) throw DataError(path + ": not an HDF5 file");
  o.file = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!o.file) throw DataError(path + ": damaged or truncated HDF5 file");
  o.set = Hdf5Handle(H5Dopen2(o.file.id(), "dataset/data", H5P_DEFAULT));
  if (!o.set) throw DataError(path + ": not an ISMRMRD file (no dataset/data)");
  o.space = Hdf5Handle(H5Dget_space(o.set.id()));
  const hssize_t n = H5Sget_simple_extent_npoints(o.space.id());
  if (n < 1 || H5Sget_simple_extent_ndims(o.space.id()) != 1)
    throw DataError(path + ": no acquisitions in dataset/data");
  o.count = static_cast<hsize_t>(n);
  return o;
}

// Calls `use` for every acquisition, reading only the members of `type` (at offset 0: the head).
template <class Item, class Use>
void for_each_readout(const OpenReadouts& o, hid_t type, const std::string& path, const Use& use) {
  constexpr hsize_t kBlock = 128;
  std::vector<Item> block(kBlock);
  for (hsize_t first = 0; first < o.count; first += kBlock) {
    const hsize_t n = std::min(kBlock, o.count - first);
    std::memset(static_cast<void*>(block.data()), 0, sizeof(Item) * kBlock);
    H5Sselect_hyperslab(o.space.id(), H5S_SELECT_SET, &first, nullptr, &n, nullptr);
    const Hdf5Handle memory(H5Screate_simple(1, &n, nullptr));
    if (H5Dread(o.set.id(), type, memory.id(), o.space.id(), H5P_DEFAULT, block.data()) < 0)
      throw DataError(path + ": damaged acquisitions");
    for (hsize_t k = 0; k < n; ++k) use(block[k], first + k);
    H5Dvlen_reclaim(type, memory.id(), H5P_DEFAULT, block.data());
  }
}

// ISMRMRD flags, counted from 1: noise (19), navigator (23), phase correction (24), and parallel
// calibration (20) unless it is also imaging (21).
bool is_imaging(uint64_t flags) {
  const auto flag = [&](int n) { return (flags >> (n - 1) & 1) != 0; };
  return !flag(19) && !flag(23) && !flag(24) && (!flag(20) || flag(21));
}

struct ScanGrid {
  int64_t slices = 0, coils = 0, e2 = 0, e1 = 0, samples = 0;
  bool three_d() const { return e2 > 1; }
  Shape shape() const {
    return three_d() ? Shape{slices, coils, e2, e1, samples} : Shape{slices, coils, e1, samples};
  }
};

}  // namespace

IsmrmrdHeader parse_ismrmrd_header(const std::string& xml, const std::string& name) {
  pugi::xml_document document;
  const pugi::xml_parse_result result = document.load_buffer(xml.data(), xml.size());
  if (!result) throw DataError(name + ": the ISMRMRD header is not XML: " + result.description());
  const pugi::xml_node root = xml_child(document, "ismrmrdHeader");
  const pugi::xml_node encoding = xml_child(root, "encoding");
  if (!encoding) throw DataError(name + ": the ISMRMRD header has no encoding");
  IsmrmrdHeader h;
  const pugi::xml_node encoded = xml_child(encoding, "encodedSpace"),
                       recon = xml_child(encoding, "reconSpace"),
                       limits = xml_child(encoding, "encodingLimits");
  h.encoded = xml_sizes(encoded, name);
  h.recon = xml_sizes(recon, name);
  h.encoded_fov_mm = xml_fov(encoded);
  h.recon_fov_mm = xml_fov(recon);
  const auto read_limits = [&](const char* key, int64_t size) {
    const pugi::xml_node n = xml_child(limits, key);
    if (!n) return IsmrmrdHeader::Limits{0, size - 1, size / 2};
    const IsmrmrdHeader::Limits l{xml_child(n, "minimum").text().as_llong(0),
                                  xml_child(n, "maximum").text().as_llong(0),
                                  xml_child(n, "center").text().as_llong(0)};
    if (l.minimum < 0 || l.maximum < l.minimum || l.maximum >= kMaxMatrix || l.centre < 0 ||
        l.centre >= kMaxMatrix)
      throw DataError(name + ": the ISMRMRD header has impossible encoding limits");
    return l;
  };
  h.step_1 = read_limits("kspace_encoding_step_1", h.encoded[1]);
  h.step_2 = read_limits("kspace_encoding_step_2", h.encoded[2]);
  const pugi::xml_node trajectory = xml_child(encoding, "trajectory");
  if (trajectory) h.trajectory = trajectory.text().as_string();
  h.system =
      xml_child(xml_child(root, "acquisitionSystemInformation"), "systemModel").text().as_string();
  return h;
}

bool is_fastmri(const std::filesystem::path& path) {
  const auto listed = list_hdf5(path);
  const auto header = listed.find("ismrmrd_header");
  return listed.count("kspace") && header != listed.end() && header->second.type == "text";
}

FastmriVolume read_fastmri(const std::filesystem::path& path) {
  const auto listed = list_hdf5(path);
  const std::string name = path.string();
  if (!listed.count("kspace")) throw DataError(name + ": not a fastMRI file (no kspace)");
  std::vector<std::string> wanted = {"kspace", "ismrmrd_header"};
  std::string target;
  for (const char* key : {"reconstruction_rss", "reconstruction_esc"})
    if (target.empty() && listed.count(key)) target = key;
  if (!target.empty()) wanted.push_back(target);
  if (listed.count("mask")) wanted.push_back("mask");
  Hdf5 h5 = read_hdf5(path, wanted);
  const auto header = h5.texts.find("ismrmrd_header");
  if (header == h5.texts.end()) throw DataError(name + ": the ismrmrd_header is not text");
  FastmriVolume v;
  v.kspace = h5.arrays.at("kspace");
  if (!v.kspace.is_complex() || (v.kspace.dim() != 3 && v.kspace.dim() != 4) ||
      v.kspace.numel() == 0)
    throw DataError(scoreprior::detail::concat(
        name, ": expected complex kspace [slices, coils, H, W], got ",
        v.kspace.is_complex() ? "" : "real ", to_string(v.kspace.sizes().vec())));
  v.kspace = v.kspace.to(at::kComplexFloat);
  if (v.kspace.dim() == 3) v.kspace = v.kspace.unsqueeze(1);
  v.header_xml = header->second;
  v.header = parse_ismrmrd_header(v.header_xml, name);
  if (!target.empty()) v.target = h5.arrays.at(target);
  v.target_name = target;
  if (h5.arrays.count("mask")) v.mask = h5.arrays.at("mask").flatten();
  for (const auto& [key, text] : h5.texts)
    if (key[0] == '@') v.attributes[key.substr(1)] = text;

  const int64_t height = v.kspace.size(2), width = v.kspace.size(3);
  v.crop_height = v.header.recon[0];
  v.crop_width = v.header.recon[1];
  if (v.target.defined()) {
    if (v.target.dim() != 3 || v.target.size(0) != v.kspace.size(0))
      throw DataError(name + ": " + target + " does not fit kspace");
    v.crop_height = v.target.size(1);
    v.crop_width = v.target.size(2);
  }
  if (width < v.crop_width) v.crop_height = v.crop_width = width;
  if (v.crop_height > height)
    throw DataError(name + ": the image is higher than kspace, " + std::to_string(v.crop_height) +
                    " > " + std::to_string(height) + " rows");
  v.pad_left = std::clamp<int64_t>(v.header.encoded[1] / 2 - v.header.step_1.centre, 0, width);
  v.pad_right = std::clamp<int64_t>(width - (v.pad_left + v.header.step_1.maximum + 1), 0, width);
  return v;
}

IsmrmrdScan read_ismrmrd(const std::filesystem::path& path) {
  require_file(path, "ISMRMRD file");
  const std::string name = path.string();
  std::error_code ec;
  const uint64_t file_bytes = std::filesystem::file_size(path, ec);
  Hdf5 text;
  try {
    text = read_hdf5(path, {"dataset/xml"});
  } catch (const DataError& e) {
    if (std::string(e.what()).find("no data set") == std::string::npos) throw;
    throw DataError(name + ": not an ISMRMRD file (no dataset/xml)");
  }
  const auto xml = text.texts.find("dataset/xml");
  if (xml == text.texts.end()) throw DataError(name + ": dataset/xml is not one text");
  IsmrmrdScan scan;
  scan.header_xml = xml->second;
  scan.header = parse_ismrmrd_header(scan.header_xml, name);
  const IsmrmrdHeader& h = scan.header;
  if (h.trajectory != "cartesian")
    throw DataError(name + ": a " + h.trajectory + " trajectory; only Cartesian scans are read");

  // First the headers alone, for the size of the grid.
  constexpr size_t kHeadNumbers = 14;
  const detail::Findings heads =
      detail::read_guarded(path, "ISMRMRD", [&](detail::FindingsWriter& out) {
        const OpenReadouts o = open_readouts(name);
        detail::require_plausible(name, {static_cast<int64_t>(o.count)}, 1, file_bytes);
        auto* to = static_cast<int32_t*>(
            out.array("heads", at::kInt,
                      {static_cast<int64_t>(o.count), static_cast<int64_t>(kHeadNumbers)}));
        const Hdf5Handle head = readout_head_type(),
                         type(H5Tcreate(H5T_COMPOUND, sizeof(ReadoutHead)));
        H5Tinsert(type.id(), "head", 0, head.id());
        for_each_readout<ReadoutHead>(o, type.id(), name, [&](const ReadoutHead& r, hsize_t k) {
          const int32_t values[kHeadNumbers] = {
              is_imaging(r.flags), r.samples, r.coils,    r.discard_pre,
              r.discard_post,      r.centre,  r.step_1,   r.step_2,
              r.average,           r.slice,   r.contrast, r.phase,
              r.repetition,        r.set};
          std::memcpy(to + k * kHeadNumbers, values, sizeof values);
        });
      });
  const at::Tensor table = heads.arrays.at("heads");
  const int32_t* rows = table.data_ptr<int32_t>();
  ScanGrid grid;
  grid.e1 = std::max<int64_t>(h.encoded[1], 1);
  grid.e2 = std::max<int64_t>(h.encoded[2], 1);
  const int32_t* first = nullptr;
  for (int64_t k = 0; k < table.size(0); ++k) {
    const int32_t* r = rows + k * static_cast<int64_t>(kHeadNumbers);
    if (!r[0]) continue;
    if (!first) first = r;
    const auto same = [&](size_t at, const char* what) {
      if (r[at] != first[at])
        throw DataError(name + ": acquisitions of several " + what + "; split the file first");
    };
    same(1, "numbers of samples");
    same(2, "numbers of coils");
    same(10, "contrasts");
    same(11, "phases");
    same(12, "repetitions");
    same(13, "sets");
    grid.slices = std::max<int64_t>(grid.slices, r[9] + 1);
  }
  if (!first) throw DataError(name + ": no imaging acquisition");
  grid.coils = first[2];
  grid.samples = std::max<int64_t>(h.encoded[0], 1);
  if (first[1] < 1 || grid.coils < 1 || first[1] > grid.samples)
    throw DataError(name + ": damaged: " + std::to_string(first[1]) + " samples in a matrix of " +
                    std::to_string(grid.samples));
  detail::require_plausible(name, grid.shape(), 8, file_bytes);

  detail::Findings found = detail::read_guarded(path, "ISMRMRD", [&](detail::FindingsWriter& out) {
    const OpenReadouts o = open_readouts(name);
    const size_t lines = static_cast<size_t>(grid.e2 * grid.e1);
    std::vector<uint32_t> hits(static_cast<size_t>(grid.slices) * lines, 0);
    auto* k_space =
        static_cast<std::complex<float>*>(out.array("kspace", at::kComplexFloat, grid.shape()));
    const Hdf5Handle head = readout_head_type(), values(H5Tvlen_create(H5T_NATIVE_FLOAT)),
                     type(H5Tcreate(H5T_COMPOUND, sizeof(Readout)));
    H5Tinsert(type.id(), "head", offsetof(Readout, head), head.id());
    H5Tinsert(type.id(), "data", offsetof(Readout, data), values.id());
    const size_t samples = static_cast<size_t>(grid.samples),
                 coils = static_cast<size_t>(grid.coils);
    const auto line_of = [&](size_t slice, size_t coil, size_t line) {
      return k_space + ((slice * coils + coil) * lines + line) * samples;
    };
    for_each_readout<Readout>(o, type.id(), name, [&](const Readout& r, hsize_t k) {
      if (!is_imaging(r.head.flags)) return;
      const auto bad = [&](const std::string& what) {
        throw DataError(name + ": acquisition " + std::to_string(k) + " " + what);
      };
      const int64_t n = r.head.samples;
      const int64_t y = r.head.step_1 - h.step_1.centre + grid.e1 / 2;
      const int64_t z = grid.three_d() ? r.head.step_2 - h.step_2.centre + grid.e2 / 2 : 0;
      const int64_t x = grid.samples / 2 - r.head.centre;
      if (r.head.coils != grid.coils || n != first[1] || r.head.slice >= grid.slices)
        bad("changed while it was read");
      if (r.data.len != static_cast<size_t>(2 * n * grid.coils) || !r.data.p)
        bad("holds another number of samples than its header says");
      if (y < 0 || y >= grid.e1 || z < 0 || z >= grid.e2) bad("lies outside the matrix");
      const auto* from = static_cast<const std::complex<float>*>(r.data.p);
      const size_t line = static_cast<size_t>(z * grid.e1 + y);
      ++hits[r.head.slice * lines + line];
      for (size_t c = 0; c < coils; ++c) {
        std::complex<float>* to = line_of(r.head.slice, c, line);
        for (int64_t s = r.head.discard_pre; s < n - r.head.discard_post; ++s)
          if (x + s >= 0 && x + s < grid.samples)
            to[x + s] += from[c * static_cast<size_t>(n) + static_cast<size_t>(s)];
      }
    });
    for (size_t slice = 0; slice < static_cast<size_t>(grid.slices); ++slice)
      for (size_t line = 0; line < lines; ++line) {
        const uint32_t n = hits[slice * lines + line];
        for (size_t c = 0; n > 1 && c < coils; ++c)
          for (size_t s = 0; s < samples; ++s) line_of(slice, c, line)[s] /= static_cast<float>(n);
      }
    auto* sampled = static_cast<uint8_t*>(
        out.array("sampled", at::kBool, grid.three_d() ? Shape{grid.e2, grid.e1} : Shape{grid.e1}));
    for (size_t k = 0; k < hits.size(); ++k)
      if (hits[k] > 0) sampled[k % lines] = 1;
  });
  scan.kspace = found.arrays.at("kspace");
  scan.sampled = found.arrays.at("sampled");
  return scan;
}

}  // namespace scoreprior::io
