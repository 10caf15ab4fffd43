#include "scoreprior/pipeline/convert.h"

#include <ATen/ATen.h>

#include <cctype>
#include <tuple>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/ehtim_text.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/tiff.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/pipeline/data_file.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr double kUasInRad = 4.84813681109536e-12;

// The array to write where there is room for one: the named one, the pixels, k-space, the only one.
std::pair<std::string, at::Tensor> chosen_array(const DataFile& d, const ConvertOptions& o,
                                                const fs::path& in) {
  if (!o.array.empty()) {
    const auto found = d.arrays.find(o.array);
    if (found != d.arrays.end()) return *found;
  } else {
    for (const char* name : {"pixels", "kspace", "images"})
      if (d.arrays.count(name)) return {name, d.arrays.at(name)};
    if (d.arrays.size() == 1) return *d.arrays.begin();
  }
  std::string names;
  for (const auto& [name, a] : d.arrays) names += (names.empty() ? "" : ", ") + name;
  throw UsageError(in.string() +
                   (o.array.empty() ? ": name one of its arrays by --array"
                                    : ": it has no array \"" + o.array + "\"") +
                   " (" + names + ")");
}

// A picture [H,W] or [H,W,3] of [H,W], [H,W,C], [C,H,W] with one plane in front or none.
at::Tensor as_picture(at::Tensor a, const std::string& name) {
  while (a.dim() > 2 && a.size(0) == 1) a = a.squeeze(0);
  if (a.dim() == 3 && a.size(0) == 3 && a.size(2) != 3) a = a.permute({1, 2, 0});
  if (a.dim() == 3 && a.size(2) == 1) a = a.squeeze(2);
  if (a.is_complex() || a.numel() == 0 ||
      !(a.dim() == 2 || (a.dim() == 3 && a.size(2) >= 3 && a.size(2) <= 4)))
    throw UsageError("a picture needs real numbers [H,W] or [H,W,3]; " + name + " is " +
                     (a.is_complex() ? "complex " : "") + to_string(a.sizes().vec()));
  return a.contiguous();
}

std::string write_picture(const fs::path& out, const std::string& name, const at::Tensor& array) {
  at::Tensor a = as_picture(array, name);
  std::string scale = "bytes as they are";
  if (a.scalar_type() != at::kByte) {
    a = a.to(at::kDouble);
    double low = a.min().item<double>(), high = a.max().item<double>();
    if (low >= 0 && high <= 1) low = 0, high = 1;
    scale = detail::concat("0 is ", low, ", 255 is ", high);
    a = ((a - low) * (255 / (high > low ? high - low : 1))).round().clamp(0, 255).to(at::kByte);
  }
  a = a.contiguous();
  io::Raster r;
  r.height = a.size(0);
  r.width = a.size(1);
  r.channels = a.dim() == 3 ? a.size(2) : 1;
  r.data.assign(a.data_ptr<uint8_t>(), a.data_ptr<uint8_t>() + a.numel());
  io::write_png(out, r);
  return name + ", row 0 at the top, " + scale;
}

io::SkyImage as_sky(const DataFile& d, const ConvertOptions& o, const fs::path& in) {
  if (d.sky) return *d.sky;
  const auto [name, array] = chosen_array(d, o, in);
  at::Tensor pixels = as_picture(array, name);
  if (pixels.dim() != 2)
    throw UsageError("a sky image needs grey pixels, " + name + " has colours");
  if (!(o.fov_uas > 0))
    throw UsageError("a sky image needs its field of view: --fov-uas, in micro-arcseconds");
  io::SkyImage sky;
  sky.pixels = pixels.to(at::kDouble);
  sky.pixel_size_rad = o.fov_uas * kUasInRad / static_cast<double>(pixels.size(1));
  sky.source = in.stem().string();
  return sky;
}

std::string matlab_name(std::string name) {
  for (auto& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  if (name.empty() || !std::isalpha(static_cast<unsigned char>(name[0]))) name = "x" + name;
  return name.substr(0, 63);
}

// The array in BART's order where its axes are known: k-space, whose file says which axis is the
// read-out, and complex arrays of coils; and what to say of it.
std::pair<at::Tensor, std::string> for_bart(const DataFile& d, const std::string& name,
                                            const at::Tensor& a) {
  const std::string shape = name + " " + to_string(a.sizes().vec());
  if (d.kind.rfind("BART", 0) == 0) return {a, shape + ", dimensions in BART's order"};
  if (!a.is_complex() || a.dim() < 3 || a.dim() > 5) return {a, shape + ", dimensions as given"};
  const auto axis = d.arrays.find("read_axis");
  const bool known = name == "kspace" && axis != d.arrays.end() && axis->second.numel() == 1;
  const bool last = known && axis->second.to(at::kLong).reshape({}).item<int64_t>() == -1;
  const char* axes = a.dim() == 3   ? "[coils,H,W]"
                     : a.dim() == 4 ? "[slices,coils,H,W]"
                                    : "[slices,coils,E2,H,W]";
  const at::Tensor bart = io::to_bart_order(a, last);
  return {bart, shape + " taken as " + axes + ", written in BART's order as " +
                    to_string(bart.sizes().vec()) + " with " + (last ? "W" : "H") + " as " +
                    (known ? "the read-out" : "dimension 0")};
}

// What the file holds, in the order of axes of every format but BART's own.
io::Arrays plain_arrays(const DataFile& d) {
  io::Arrays arrays = d.arrays;
  if (d.kind.rfind("BART", 0) == 0)
    for (auto& [name, a] : arrays) a = io::from_bart_order(a);
  return arrays;
}

std::string shapes_of(const io::Arrays& arrays) {
  std::string text;
  for (const auto& [name, a] : arrays)
    text += (text.empty() ? "" : ", ") + name + " " + to_string(a.sizes().vec());
  return text;
}

}  // namespace

std::string convert_file(const fs::path& in, const fs::path& out, const ConvertOptions& o) {
  DataFile d = read_data_file(in);
  std::string extension = out.extension().string(), what;
  const auto remarks = examine_data_file(d, in);
  if (extension != ".cfl" && extension != ".hdr") d.arrays = plain_arrays(d);
  const auto one = [&] { return chosen_array(d, o, in); };
  const auto described = [](const std::pair<std::string, at::Tensor>& a) {
    return a.first + " " + to_string(a.second.sizes().vec());
  };
  if (extension == ".npy") {
    const auto a = one();
    io::write_npy(out, a.second);
    what = described(a);
  } else if (extension == ".npz") {
    io::write_npz(out, d.arrays);
    what = shapes_of(d.arrays);
  } else if (extension == ".h5" || extension == ".hdf5") {
    io::Hdf5 h5;
    h5.arrays = d.arrays;
    // Texts of HDF5 files have their places already; those of others become attributes.
    const bool placed = d.kind.rfind("HDF5", 0) == 0;
    for (const auto& [key, text] : d.texts) h5.texts[placed ? key : "@" + key] = text;
    if (!d.header.empty())
      h5.texts[d.kind.rfind("fastMRI", 0) == 0 ? "ismrmrd_header" : "header"] = d.header;
    io::write_hdf5(out, h5);
    what = shapes_of(d.arrays);
  } else if (extension == ".mat") {
    io::Arrays named;
    for (const auto& [name, a] : d.arrays) named[matlab_name(name)] = a;
    io::write_mat(out, named);
    what = shapes_of(named);
  } else if (extension == ".cfl" || extension == ".hdr") {
    auto a = one();
    std::tie(a.second, what) = for_bart(d, a.first, a.second);
    if (a.second.numel() == 0 || a.second.dim() > 16)
      throw UsageError("a BART array needs values of at most 16 dimensions");
    io::write_cfl(out, a.second);
  } else if (extension == ".png") {
    const auto a = one();
    what = write_picture(out, a.first, a.second);
  } else if (extension == ".tif" || extension == ".tiff") {
    auto a = one();
    if (a.second.is_complex() || a.second.numel() == 0 ||
        !(a.second.dim() == 2 || a.second.dim() == 3))
      throw UsageError("a TIFF needs real numbers [H,W], [H,W,3] or [pages,H,W], got " +
                       described(a));
    io::write_tiff(out, a.second);
    what = described(a);
  } else if (extension == ".idx") {
    const auto a = one();
    if (a.second.scalar_type() != at::kByte || a.second.dim() < 1)
      throw UsageError("an IDX file of images needs bytes, got " + described(a));
    io::write_idx(out, a.second);
    what = described(a);
  } else if (extension == ".fits" || extension == ".fit") {
    const io::SkyImage sky = as_sky(d, o, in);
    io::write_fits_image(out, sky);
    what = "sky image " + to_string(sky.pixels.sizes().vec()) +
           ", CDELT1 < 0: east left, north up, Jy/pixel";
  } else if (extension == ".txt" && !d.sites.empty()) {
    io::write_ehtim_array(out, d.sites);
    what = std::to_string(d.sites.size()) + " telescopes, geocentric metres and SEFD in Jy";
  } else if (extension == ".txt") {
    const io::SkyImage sky = as_sky(d, o, in);
    io::write_ehtim_image(out, sky);
    what =
        "sky image " + to_string(sky.pixels.sizes().vec()) + ", north-east corner first, Jy/pixel";
  } else if (extension == ".uvfits") {
    if (!d.visibilities)
      throw UsageError("a UVFITS file needs visibilities; " + in.string() + " has none (" + d.kind +
                       ")");
    io::write_uvfits(out, *d.visibilities);
    what = std::to_string(d.visibilities->rows.size()) + " visibilities, Stokes I as RR = LL";
  } else {
    throw UsageError("cannot write " + out.string() +
                     ": unknown extension (known: .npy .npz .h5 .mat .cfl .png .tif .idx .fits "
                     ".txt .uvfits)");
  }
  std::string text = d.kind + (d.convention.empty() ? "" : ": " + d.convention) + "\n" +
                     out.string() + ": " + what + "\n";
  for (const auto& remark : remarks) text += "note: " + remark + "\n";
  return text;
}

}  // namespace scoreprior
