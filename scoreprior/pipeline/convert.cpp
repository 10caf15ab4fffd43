#include "scoreprior/pipeline/convert.h"

#include <ATen/ATen.h>

#include <cctype>

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

// [slices, coils, (E2,) a, b] -> BART's order: read, phase 1, phase 2, coil, ..., slice (13).
at::Tensor bart_order(const DataFile& d, const at::Tensor& kspace) {
  const bool fastmri = d.kind.rfind("fastMRI", 0) == 0;
  at::Tensor x = kspace.dim() == 5 ? kspace : kspace.unsqueeze(2);  // [S,C,E2,.,.]
  // fastMRI files store the read-out first, ISMRMRD scans are [phase, read].
  x = fastmri ? x.permute({3, 4, 2, 1, 0}) : x.permute({4, 3, 2, 1, 0});
  return x.reshape(
      {x.size(0), x.size(1), x.size(2), x.size(3), 1, 1, 1, 1, 1, 1, 1, 1, 1, x.size(4)});
}

std::string shapes_of(const io::Arrays& arrays) {
  std::string text;
  for (const auto& [name, a] : arrays)
    text += (text.empty() ? "" : ", ") + name + " " + to_string(a.sizes().vec());
  return text;
}

}  // namespace

std::string convert_file(const fs::path& in, const fs::path& out, const ConvertOptions& o) {
  const DataFile d = read_data_file(in);
  std::string extension = out.extension().string(), what;
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
    for (const auto& [key, text] : d.texts)
      h5.texts[key.find('@') == std::string::npos && !d.arrays.count(key) ? "@" + key : key] = text;
    io::write_hdf5(out, h5);
    what = shapes_of(d.arrays);
  } else if (extension == ".mat") {
    io::Arrays named;
    for (const auto& [name, a] : d.arrays) named[matlab_name(name)] = a;
    io::write_mat(out, named);
    what = shapes_of(named);
  } else if (extension == ".cfl" || extension == ".hdr") {
    auto a = one();
    if (a.first == "kspace" && (a.second.dim() == 4 || a.second.dim() == 5))
      a.second = bart_order(d, a.second);
    if (a.second.numel() == 0 || a.second.dim() > 16)
      throw UsageError("a BART array needs values of at most 16 dimensions");
    io::write_cfl(out, a.second);
    what = described(a) + ", dimensions in BART's order";
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
  } else if (extension == ".txt") {
    const io::SkyImage sky = as_sky(d, o, in);
    io::write_ehtim_image(out, sky);
    what =
        "sky image " + to_string(sky.pixels.sizes().vec()) + ", north-east corner first, Jy/pixel";
  } else if (extension == ".uvfits") {
    if (!d.visibilities)
      throw UsageError("a UVFITS file needs visibilities, " + in.string() + " is a " + d.kind);
    io::write_uvfits(out, *d.visibilities);
    what = std::to_string(d.visibilities->rows.size()) + " visibilities, Stokes I as RR = LL";
  } else {
    throw UsageError("cannot write " + out.string() +
                     ": unknown extension (known: .npy .npz .h5 .mat .cfl .png .tif .idx .fits "
                     ".txt .uvfits)");
  }
  std::string text = d.kind + (d.convention.empty() ? "" : ": " + d.convention) + "\n" +
                     out.string() + ": " + what + "\n";
  for (const auto& remark : examine_data_file(d, in)) text += "note: " + remark + "\n";
  return text;
}

}  // namespace scoreprior
