#include "sample_files.h"

#include <ATen/ATen.h>
#include <hdf5.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/cifar.h"
#include "scoreprior/io/ehtim_text.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/mri_raw.h"
#include "scoreprior/io/netcdf.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/tfrecord.h"
#include "scoreprior/io/tiff.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/io/uvfits.h"

namespace scoreprior::io::testing_files {
namespace {

namespace fs = std::filesystem;

// ISMRMRD's acquisition header as the standard lays it out, without padding.
#pragma pack(push, 1)
struct SampleCounters {
  uint16_t step_1, step_2, average, slice, contrast, phase, repetition, set, segment;
  uint16_t user[8];
};
struct SampleHead {
  uint16_t version;
  uint64_t flags;
  uint16_t number_of_samples, active_channels, discard_pre, discard_post, center_sample;
  SampleCounters idx;
};
#pragma pack(pop)
struct SampleReadout {
  SampleHead head;
  hvl_t data;
};

SkyImage sample_sky() {
  SkyImage sky;
  sky.pixels = Rng(5).uniform({6, 6}, at::kDouble);
  sky.pixel_size_rad = 1e-11;
  sky.ra_hours = 12.5;
  sky.dec_deg = 12.4;
  sky.frequency_hz = 230e9;
  sky.mjd = 57854;
  sky.source = "M87";
  return sky;
}

std::vector<Site> sample_sites() {
  return {{"LM", -768713.9637, -5988541.7982, 2063275.9472, 600, 600},
          {"AA", 2225061.164, -5440057.37, -2481681.15, 70, 70},
          {"PV", 5088967.9, -301681.6, 3825015.8, 1900, 1900}};
}

VisibilityTable sample_table() {
  VisibilityTable t;
  t.source = "M87";
  t.ra_hours = 12.5;
  t.dec_deg = 12.4;
  t.rf_hz = 230e9;
  t.bw_hz = 2e9;
  t.mjd = 57854;
  t.sites = sample_sites();
  for (int k = 0; k < 3; ++k)
    for (int32_t i = 0; i < 3; ++i)
      for (int32_t j = i + 1; j < 3; ++j)
        t.rows.push_back(
            {k * 0.1, 10, i, j, 0.1, 0.2, 1e9 * (i + 1), 2e9 * j, {0.5, 0.1 * k}, 0.01});
  arrange(t);
  return t;
}

Example sample_example(int k) {
  Example e;
  for (int i = 0; i < 20; ++i) e["image"].floats.push_back(static_cast<float>(k) + 0.1f * i);
  e["shape"].ints = {4, 5};
  e["name"].bytes = {"record"};
  return e;
}

}  // namespace

std::string ismrmrd_header_xml(int x, int y, int z, int recon_x, int recon_y, int lines) {
  const auto size = [](int a, int b, int c) {
    return "<matrixSize><x>" + std::to_string(a) + "</x><y>" + std::to_string(b) + "</y><z>" +
           std::to_string(c) + "</z></matrixSize><fieldOfView_mm><x>" + std::to_string(a) +
           "</x><y>" + std::to_string(b) + "</y><z>5</z></fieldOfView_mm>";
  };
  return "<?xml version=\"1.0\"?><ismrmrdHeader xmlns=\"http://www.ismrm.org/ISMRMRD\">"
         "<acquisitionSystemInformation><systemModel>Test</systemModel>"
         "</acquisitionSystemInformation><encoding><encodedSpace>" +
         size(x, y, z) + "</encodedSpace><reconSpace>" + size(recon_x, recon_y, 1) +
         "</reconSpace><encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>" +
         std::to_string(lines - 1) + "</maximum><center>" + std::to_string(lines / 2) +
         "</center></kspace_encoding_step_1></encodingLimits>"
         "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>";
}

void write_ismrmrd(const fs::path& path, const IsmrmrdSample& s) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t group = H5Gcreate2(file, "dataset", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  const hsize_t one = 1;
  const hid_t text = H5Tcopy(H5T_C_S1), one_space = H5Screate_simple(1, &one, nullptr);
  H5Tset_size(text, H5T_VARIABLE);
  const std::string xml =
      ismrmrd_header_xml(s.samples, s.lines, 1, s.samples / 2, s.lines, s.lines);
  const char* xml_text = xml.c_str();
  const hid_t xml_set =
      H5Dcreate2(group, "xml", text, one_space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  H5Dwrite(xml_set, text, H5S_ALL, H5S_ALL, H5P_DEFAULT, &xml_text);

  const hid_t counters = H5Tcreate(H5T_COMPOUND, sizeof(SampleCounters));
  const char* names[] = {"kspace_encode_step_1",
                         "kspace_encode_step_2",
                         "average",
                         "slice",
                         "contrast",
                         "phase",
                         "repetition",
                         "set",
                         "segment"};
  for (size_t k = 0; k < 9; ++k) H5Tinsert(counters, names[k], 2 * k, H5T_NATIVE_UINT16);
  const hid_t head = H5Tcreate(H5T_COMPOUND, sizeof(SampleHead));
  H5Tinsert(head, "version", offsetof(SampleHead, version), H5T_NATIVE_UINT16);
  H5Tinsert(head, "flags", offsetof(SampleHead, flags), H5T_NATIVE_UINT64);
  H5Tinsert(head, "number_of_samples", offsetof(SampleHead, number_of_samples), H5T_NATIVE_UINT16);
  H5Tinsert(head, "active_channels", offsetof(SampleHead, active_channels), H5T_NATIVE_UINT16);
  H5Tinsert(head, "discard_pre", offsetof(SampleHead, discard_pre), H5T_NATIVE_UINT16);
  H5Tinsert(head, "discard_post", offsetof(SampleHead, discard_post), H5T_NATIVE_UINT16);
  H5Tinsert(head, "center_sample", offsetof(SampleHead, center_sample), H5T_NATIVE_UINT16);
  H5Tinsert(head, "idx", offsetof(SampleHead, idx), counters);
  const hid_t values = H5Tvlen_create(H5T_NATIVE_FLOAT);
  const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(SampleReadout));
  H5Tinsert(type, "head", offsetof(SampleReadout, head), head);
  H5Tinsert(type, "data", offsetof(SampleReadout, data), values);

  std::vector<SampleReadout> readouts;
  std::vector<std::vector<float>> data;
  const auto add = [&](int slice, int line, uint64_t flags, float factor) {
    std::vector<float> v;
    for (int c = 0; c < s.coils; ++c)
      for (int x = 0; x < s.samples; ++x) {
        v.push_back(factor * s.real(slice, c, line, x));
        v.push_back(factor * s.imag(slice, c, line, x));
      }
    SampleReadout r{};
    r.head.flags = flags;
    r.head.number_of_samples = static_cast<uint16_t>(s.samples);
    r.head.active_channels = static_cast<uint16_t>(s.coils);
    r.head.center_sample = static_cast<uint16_t>(s.samples / 2);
    r.head.idx.step_1 = static_cast<uint16_t>(line);
    r.head.idx.slice = static_cast<uint16_t>(slice);
    data.push_back(std::move(v));
    readouts.push_back(r);
  };
  add(0, 0, uint64_t{1} << 18, 1e6f);  // noise
  for (int slice = 0; slice < s.slices; ++slice)
    for (int line = 0; line < s.lines; ++line) {
      if (std::count(s.skip_lines.begin(), s.skip_lines.end(), line)) continue;
      if (slice == 0 && line == 2) {
        add(slice, line, 0, 0.5f);
        add(slice, line, 0, 1.5f);
      } else {
        add(slice, line, 0, 1);
      }
    }
  for (size_t k = 0; k < readouts.size(); ++k) readouts[k].data = {data[k].size(), data[k].data()};
  const hsize_t count = readouts.size();
  const hid_t space = H5Screate_simple(1, &count, nullptr);
  const hid_t set = H5Dcreate2(group, "data", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, readouts.data());
  for (const hid_t id : {xml_set, set}) H5Dclose(id);
  for (const hid_t id : {text, counters, head, values, type}) H5Tclose(id);
  for (const hid_t id : {one_space, space}) H5Sclose(id);
  H5Gclose(group);
  H5Fclose(file);
}

void write_fastmri(const fs::path& path, const at::Tensor& kspace, int recon_h, int recon_w,
                   const at::Tensor& mask) {
  Hdf5 h5;
  h5.arrays["kspace"] = kspace;
  if (mask.defined()) h5.arrays["mask"] = mask;
  const int height = static_cast<int>(kspace.size(2)), width = static_cast<int>(kspace.size(3));
  h5.texts["ismrmrd_header"] = ismrmrd_header_xml(height, width, 1, recon_h, recon_w, width);
  write_hdf5(path, h5);
}

void write_fastmri(const fs::path& path) {
  Hdf5 h5;
  h5.arrays["kspace"] = at::complex(Rng(1).normal({2, 3, 16, 12}), Rng(2).normal({2, 3, 16, 12}));
  h5.arrays["reconstruction_rss"] = Rng(3).uniform({2, 8, 8});
  h5.texts["ismrmrd_header"] = ismrmrd_header_xml(16, 14, 1, 8, 8, 10);
  h5.texts["@acquisition"] = "CORPD_FBK";
  write_hdf5(path, h5);
}

const std::vector<FileFormat>& file_formats() {
  static const std::vector<FileFormat> formats = {
      {"npy", ".npy",
       [](auto& p) {
         write_npy(p, Rng(1).normal({3, 4}));
       },
       [](auto& p) { read_npy(p); }, ""},
      {"npz", ".npz",
       [](auto& p) {
         write_npz(p, {{"a", Rng(1).normal({3, 4})}, {"b", at::arange(9)}});
       },
       [](auto& p) { read_npz(p); }, ""},
      {"safetensors", ".safetensors",
       [](auto& p) {
         write_safetensors(p, {{{"a", Rng(1).normal({3, 4})}, {"b", at::arange(9)}}, {{"k", "v"}}});
       },
       [](auto& p) { read_safetensors(p); }, ""},
      {"toml", ".toml",
       [](auto& p) {
         write_text(p, "seed = 1\n[a]\nname = \"x\"\nlist = [1, 2.5e3, 3]\n[a.b]\nflag = true\n");
       },
       [](auto& p) { read_toml(p); }, ""},
      {"png", ".png",
       [](auto& p) {
         write_png(p, Raster{9, 7, 3, std::vector<uint8_t>(9 * 7 * 3, 77)});
       },
       [](auto& p) { read_png(p); }, ""},
      {"tiff", ".tif",
       [](auto& p) {
         write_tiff(p, Rng(2).uniform({2, 9, 7}));
       },
       [](auto& p) { read_tiff(p); }, ""},
      {"fits", ".fits", [](auto& p) { write_fits_image(p, sample_sky()); },
       [](auto& p) { read_fits_image(p); }, ""},
      {"uvfits", ".uvfits", [](auto& p) { write_uvfits(p, sample_table()); },
       [](auto& p) { read_uvfits(p); }, ""},
      {"netcdf", ".nc",
       [](auto& p) {
         InferenceData d;
         d.groups["posterior"].variables["x"] = {
             Rng(1).normal({2, 3, 4}), {"chain", "draw", "k"}, {{"units", "Jy"}}};
         write_netcdf(p, d);
       },
       [](auto& p) { read_netcdf(p); }, ""},
      {"hdf5", ".h5",
       [](auto& p) {
         Hdf5 h5;
         h5.arrays = {{"images", Rng(1).uniform({5, 32, 32})}, {"group/b", at::arange(9)}};
         h5.texts = {{"note", "text"}, {"@version", "1"}};
         write_hdf5(p, h5);
       },
       [](auto& p) {
         read_hdf5(p);
         list_hdf5(p);
       },
       ""},
      {"fastmri", ".h5", [](auto& p) { write_fastmri(p); }, [](auto& p) { read_fastmri(p); }, ""},
      {"ismrmrd", ".h5", [](auto& p) { write_ismrmrd(p, {}); }, [](auto& p) { read_ismrmrd(p); },
       ""},
      {"mat", ".mat",
       [](auto& p) {
         write_mat(p, {{"a", Rng(1).normal({3, 4}, at::kDouble)},
                       {"z", at::complex(Rng(1).normal({3, 4}), Rng(2).normal({3, 4}))}});
       },
       [](auto& p) { read_mat(p); }, ""},
      {"cfl", ".cfl",
       [](auto& p) {
         write_cfl(p, at::complex(Rng(1).normal({3, 4}), Rng(2).normal({3, 4})));
       },
       [](auto& p) { read_cfl(p); }, ".hdr"},
      {"idx", ".idx",
       [](auto& p) {
         write_idx(p, at::full({4, 5, 6}, 9, at::kByte));
       },
       [](auto& p) { read_idx(p); }, ""},
      {"idx.gz", ".gz",
       [](auto& p) {
         write_idx(p, at::full({4, 5, 6}, 9, at::kByte));
       },
       [](auto& p) { read_idx(p); }, ""},
      {"cifar10", ".bin",
       [](auto& p) {
         write_cifar10(p, {at::full({2, 3, 32, 32}, 9, at::kByte), at::full({2}, 3, at::kByte)});
       },
       [](auto& p) { read_cifar10(p); }, ""},
      {"tfrecord", ".tfrecord",
       [](auto& p) {
         write_tfrecord(
             p, {serialize_example(sample_example(0)), serialize_example(sample_example(1))});
       },
       [](auto& p) {
         const TfrecordFile file(p);
         for (int64_t i = 0; i < file.size(); ++i) file.example(i);
       },
       ""},
      // The message alone, since damage to a record is seen by its checksum first.
      {"example", ".pb", [](auto& p) { write_text(p, serialize_example(sample_example(3))); },
       [](auto& p) { parse_example(read_text(p), p.string()); }, ""},
      {"tfrecord.gz", ".tfrecord",
       [](auto& p) { write_tfrecord(p, {serialize_example(sample_example(0))}, true); },
       [](auto& p) {
         const TfrecordFile file(p);
         for (int64_t i = 0; i < file.size(); ++i) file.example(i);
       },
       ""},
      {"ehtim image", ".txt", [](auto& p) { write_ehtim_image(p, sample_sky()); },
       [](auto& p) { read_ehtim_image(p); }, ""},
      {"ehtim array", ".txt", [](auto& p) { write_ehtim_array(p, sample_sites()); },
       [](auto& p) { read_ehtim_array(p); }, ""},
  };
  return formats;
}

}  // namespace scoreprior::io::testing_files
