#include "scoreprior/pipeline/data_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/data/observe.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/cifar.h"
#include "scoreprior/io/ehtim_text.h"
#include "scoreprior/io/fits_header.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/mri_raw.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/tfrecord.h"
#include "scoreprior/io/tiff.h"
#include "scoreprior/io/uvfits.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSkyConvention =
    "row 0 north, column 0 east (right ascension grows to the left), Jy/pixel";
constexpr const char* kMriConvention =
    "image = fftshift(ifft2(ifftshift(kspace))), orthonormal: k = 0 at index n/2";

[[noreturn]] void fail_unknown_kind(const fs::path& path) {
  throw DataError(path.string() +
                  ": unknown kind of file (known: .uvfits .fits .npy .npz .png .tif .h5 .mat "
                  ".cfl .txt of ehtim .idx *-ubyte .bin .tfrecord)");
}

// Whether a text is a table of telescopes: the first line that is no comment has its six columns.
bool looks_like_sites(const std::string& text) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string first, word;
    if (!(words >> first) || first[0] == '#') continue;
    int more = 0;
    while (words >> word) ++more;
    return more >= 5;
  }
  return false;
}

std::string data_kind(const fs::path& path) {
  std::string name = path.filename().string();
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has(".tfrecord")) return "tfrecord";
  if (has("ubyte") || has(".idx")) return "idx";
  const size_t dot = name.rfind('.');
  const std::string extension = dot == std::string::npos ? "" : name.substr(dot);
  static const std::map<std::string, std::string> kinds = {
      {".uvfits", "uvfits"}, {".fits", "fits"}, {".fit", "fits"},  {".npy", "npy"},
      {".npz", "npz"},       {".png", "png"},   {".tif", "tiff"},  {".tiff", "tiff"},
      {".h5", "hdf5"},       {".hdf5", "hdf5"}, {".mrd", "hdf5"},  {".mat", "mat"},
      {".cfl", "cfl"},       {".hdr", "cfl"},   {".txt", "ehtim"}, {".bin", "cifar10"}};
  const auto found = kinds.find(extension);
  return found == kinds.end() ? "" : found->second;
}

io::Arrays arrays_of(const VisibilityTable& t) {
  const int64_t n = static_cast<int64_t>(t.rows.size());
  io::Arrays a;
  const auto column = [&](const char* name, const auto& get) {
    at::Tensor x = at::empty({n}, at::kDouble);
    for (int64_t k = 0; k < n; ++k) x.data_ptr<double>()[k] = get(t.rows[static_cast<size_t>(k)]);
    a[name] = x;
  };
  column("time_hours", [](const VisibilityRow& r) { return r.time; });
  column("tint_seconds", [](const VisibilityRow& r) { return r.tint; });
  column("u", [](const VisibilityRow& r) { return r.u; });
  column("v", [](const VisibilityRow& r) { return r.v; });
  column("sigma", [](const VisibilityRow& r) { return r.sigma; });
  column("vis", [](const VisibilityRow& r) { return r.vis.real(); });
  const at::Tensor real = a["vis"];
  column("vis", [](const VisibilityRow& r) { return r.vis.imag(); });
  a["vis"] = at::complex(real, a["vis"]);
  column("t1", [](const VisibilityRow& r) { return r.t1; });
  column("t2", [](const VisibilityRow& r) { return r.t2; });
  a["t1"] = a["t1"].to(at::kLong);
  a["t2"] = a["t2"].to(at::kLong);
  at::Tensor sites = at::empty({static_cast<int64_t>(t.sites.size()), 3}, at::kDouble);
  for (size_t k = 0; k < t.sites.size(); ++k) {
    double* p = sites.data_ptr<double>() + 3 * k;
    p[0] = t.sites[k].x, p[1] = t.sites[k].y, p[2] = t.sites[k].z;
  }
  a["site_xyz"] = sites;
  a["frequency_hz"] = at::scalar_tensor(t.rf_hz, at::kDouble);
  a["mjd"] = at::scalar_tensor(t.mjd, at::kLong);
  return a;
}

DataFile sky_file(const std::string& kind, const io::SkyImage& sky) {
  DataFile d;
  d.kind = kind;
  d.convention = kSkyConvention;
  d.sky = sky;
  d.arrays["pixels"] = sky.pixels;
  d.arrays["pixel_size_rad"] = at::scalar_tensor(sky.pixel_size_rad, at::kDouble);
  d.arrays["frequency_hz"] = at::scalar_tensor(sky.frequency_hz, at::kDouble);
  d.texts["source"] = sky.source;
  return d;
}

void put_header(const io::IsmrmrdHeader& h, DataFile& d) {
  const auto text = [](const auto& a) { return detail::concat(a[0], " x ", a[1], " x ", a[2]); };
  d.texts["encoded_matrix"] = text(h.encoded);
  d.texts["recon_matrix"] = text(h.recon);
  d.texts["encoded_fov_mm"] = text(h.encoded_fov_mm);
  d.texts["recon_fov_mm"] = text(h.recon_fov_mm);
  if (!h.system.empty()) d.texts["system"] = h.system;
}

DataFile hdf5_file(const fs::path& path) {
  DataFile d;
  const auto listed = io::list_hdf5(path);
  if (listed.count("kspace")) {
    const io::FastmriVolume v = io::read_fastmri(path);
    d.kind = "fastMRI volume (HDF5)";
    d.convention =
        detail::concat("kspace [slices, coils, H (read-out), W (phase)]; ", kMriConvention,
                       "; the image is its centre, ", v.crop_height, " x ", v.crop_width);
    d.arrays["kspace"] = v.kspace;
    if (v.target.defined()) d.arrays["target"] = v.target;
    if (v.mask.defined()) d.arrays["mask"] = v.mask;
    d.texts = v.attributes;
    d.texts["crop"] = detail::concat(v.crop_height, " x ", v.crop_width);
    d.texts["unmeasured_columns"] = detail::concat(v.pad_left, " left, ", v.pad_right, " right");
    put_header(v.header, d);
    return d;
  }
  io::Hdf5 h5 = io::read_hdf5(path);
  if (h5.texts.count("dataset/xml")) {
    const io::IsmrmrdScan scan = io::read_ismrmrd(path);
    d.kind = "ISMRMRD scan (HDF5)";
    d.convention =
        detail::concat("kspace [slices, coils, phase encodings, samples]; ", kMriConvention);
    d.arrays = {{"kspace", scan.kspace}, {"sampled", scan.sampled}};
    put_header(scan.header, d);
    return d;
  }
  d.kind = "HDF5 arrays";
  d.arrays = std::move(h5.arrays);
  d.texts = std::move(h5.texts);
  return d;
}

DataFile tfrecord_file(const fs::path& path) {
  const io::TfrecordFile file(path);
  DataFile d;
  d.kind = "TFRecord file";
  d.convention = "one tf.train.Example a record; the arrays below are those of the first";
  d.texts["records"] = std::to_string(file.size());
  for (const auto& [name, f] : file.example(0)) {
    if (!f.floats.empty())
      d.arrays[name] = at::tensor(f.floats);
    else if (!f.ints.empty())
      d.arrays[name] = at::tensor(f.ints, at::kLong);
    else
      d.texts[name] = detail::concat(f.bytes.size(), " byte string(s), the first of ",
                                     f.bytes.empty() ? 0 : f.bytes[0].size(), " bytes");
  }
  return d;
}

// What the doctor looks at.

double median_of(at::Tensor x) { return x.flatten().median().item<double>(); }

struct SpectrumLook {
  double concentration = 0, transformed = 0;  // energy share of the largest 1 % of the pixels
  bool corner = false, centre = false;        // where the largest pixel is
};

double energy_share(const at::Tensor& power) {
  const at::Tensor p = power.flatten();
  const int64_t k = std::max<int64_t>(1, p.numel() / 100);
  const double total = p.sum().item<double>();
  return total > 0 ? std::get<0>(at::topk(p, k)).sum().item<double>() / total : 0;
}

SpectrumLook look_at_spectrum(const at::Tensor& x) {
  const int64_t h = x.size(-2), w = x.size(-1), n = x.numel() / (h * w);
  at::Tensor planes = x.reshape({n, h, w});
  if (n > 16)
    planes = planes.index_select(0, at::linspace(0, n - 1, 16, at::kDouble).to(at::kLong));
  planes = planes.to(at::kComplexDouble);
  const at::Tensor power = at::real(planes * planes.conj()).sum(0);
  const at::Tensor other = at::fft_fft2(planes, c10::nullopt, {-2, -1}, "ortho");
  SpectrumLook look;
  look.concentration = energy_share(power);
  look.transformed = energy_share(at::real(other * other.conj()).sum(0));
  const int64_t peak = power.argmax().item<int64_t>(), y = peak / w, c = peak % w;
  const auto near_zero = [](int64_t at, int64_t size) {
    return std::min(at, size - at) <= size / 8;
  };
  const auto near_middle = [](int64_t at, int64_t size) {
    return std::abs(at - size / 2) <= size / 8;
  };
  look.corner = near_zero(y, h) && near_zero(c, w);
  look.centre = near_middle(y, h) && near_middle(c, w);
  return look;
}

void examine_complex(const std::string& name, const at::Tensor& x, std::vector<std::string>& out) {
  const SpectrumLook look = look_at_spectrum(x);
  std::string lower = name;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto called = [&](std::initializer_list<const char*> words) {
    return std::any_of(words.begin(), words.end(),
                       [&](const char* w) { return lower.find(w) != std::string::npos; });
  };
  // A picture's spectrum is far more concentrated than the picture.
  const bool spectrum = look.concentration > 2 * look.transformed;
  const bool picture = look.transformed > 2 * look.concentration;
  if (called({"kspace", "ksp", "k_space"}) && picture)
    out.push_back(name +
                  " is called k-space but looks like an image: its Fourier transform is "
                  "more concentrated than it is");
  if (called({"image", "img", "recon"}) && spectrum)
    out.push_back(name +
                  " is called an image but looks like k-space: it is more concentrated than "
                  "its Fourier transform");
  if (spectrum && look.corner)
    out.push_back(name +
                  " looks like k-space with k = 0 in the corner; it is expected in the "
                  "middle (index n/2): apply fftshift to the last two axes");
}

void examine_real(const std::string& name, const at::Tensor& x, std::vector<std::string>& out) {
  const double low = x.min().item<double>(), high = x.max().item<double>();
  std::ostringstream range;
  range << " has values from " << low << " to " << high;
  if (low >= 0 && high > 1.5 && high <= 255.5)
    out.push_back(name + range.str() +
                  ", which looks like 0 to 255; pixels in [0,1] are expected: multiply by 1/255 "
                  "(scale of array_stack)");
  if (low < -0.5 && low >= -1.001 && high > 0.5 && high <= 1.001)
    out.push_back(name + range.str() +
                  ", which looks like centred pixels; [0,1] is expected: (x + 1)/2");
}

void examine_visibilities(const VisibilityTable& t, std::vector<std::string>& out) {
  // The u, v that the stations' positions give at those times.
  double uu = 0, vv = 0, u_model = 0, v_model = 0, u_data = 0, v_data = 0;
  const double ra = t.ra_hours * M_PI / 12, dec = t.dec_deg * M_PI / 180;
  const double wavelength = 299792458.0 / t.rf_hz;
  for (const auto& r : t.rows) {
    const Site &a = t.sites[static_cast<size_t>(r.t1)], &b = t.sites[static_cast<size_t>(r.t2)];
    const double theta = gmst_hours(t.mjd, r.time, 0) * M_PI / 12 - ra;
    const double x = a.x - b.x, y = a.y - b.y, z = a.z - b.z;
    const double rx = std::cos(theta) * x - std::sin(theta) * y,
                 ry = std::sin(theta) * x + std::cos(theta) * y;
    const double u = ry / wavelength, v = (-rx * std::sin(dec) + z * std::cos(dec)) / wavelength;
    uu += u * r.u, vv += v * r.v;
    u_model += u * u, v_model += v * v, u_data += r.u * r.u, v_data += r.v * r.v;
  }
  const double cu = uu / std::sqrt(u_model * u_data), cv = vv / std::sqrt(v_model * v_data);
  constexpr double kAlike = 0.9;
  if (cu > kAlike && cv > kAlike) return;
  if (!std::isfinite(cu) || !std::isfinite(cv)) return;
  std::ostringstream s;
  s.precision(3);
  s << "u, v against the station positions: correlations " << cu << ", " << cv << "; ";
  if (cu < -kAlike && cv < -kAlike)
    s << "u and v are those of r2 - r1: negate them or conjugate the visibilities, else the image "
         "is turned by 180 degrees";
  else if (cu < -kAlike && cv > kAlike)
    s << "u has the other sign: the image would be mirrored east-west";
  else if (cu > kAlike && cv < -kAlike)
    s << "v has the other sign: the image would be mirrored north-south";
  else
    s << "positions, times, source or u, v do not belong together";
  out.push_back(s.str());
}

}  // namespace

bool is_data_file(const fs::path& path) { return !data_kind(path).empty(); }

DataFile read_data_file(const fs::path& path) {
  const std::string kind = data_kind(path);
  DataFile d;
  if (kind == "uvfits") {
    d.visibilities = io::read_uvfits(path);
    d.kind = "UVFITS visibilities, Stokes I";
    d.convention = "V(u,v) = sum I exp(+2 pi i (u x + v y)), x east, y north, u and v of r1 - r2";
    d.arrays = arrays_of(*d.visibilities);
    d.texts["source"] = d.visibilities->source;
    std::string names;
    for (const auto& s : d.visibilities->sites) names += (names.empty() ? "" : ",") + s.name;
    d.texts["sites"] = names;
  } else if (kind == "fits") {
    d = sky_file("FITS sky image", io::read_fits_image(path));
  } else if (kind == "npy") {
    d.kind = "NPY array";
    d.arrays["array"] = io::read_npy(path);
  } else if (kind == "npz") {
    d.kind = "NPZ arrays";
    d.arrays = io::read_npz(path);
  } else if (kind == "png") {
    io::Raster r = io::read_png(path);
    d.kind = "PNG image";
    d.convention = "row 0 at the top; bytes 0 to 255";
    d.arrays["pixels"] =
        at::from_blob(r.data.data(), {r.height, r.width, r.channels}, at::kByte).clone();
    if (r.channels == 1) d.arrays["pixels"] = d.arrays["pixels"].squeeze(2);
  } else if (kind == "tiff") {
    d.kind = "TIFF image";
    d.convention = "row 0 at the top";
    d.arrays["pixels"] = io::read_tiff(path);
  } else if (kind == "hdf5") {
    d = hdf5_file(path);
  } else if (kind == "mat") {
    d.kind = "MATLAB arrays";
    d.convention = "(i,j,...) here is MATLAB's (i+1,j+1,...)";
    d.arrays = io::read_mat(path);
  } else if (kind == "cfl") {
    d.kind = "BART array (cfl)";
    d.convention =
        "BART's order of dimensions (0 read, 1 phase 1, 2 phase 2, 3 coil, 4 maps, 13 "
        "slice); centred transforms: k = 0 at index n/2";
    d.arrays["array"] = io::read_cfl(path);
  } else if (kind == "ehtim") {
    const std::string head = io::read_text(path).substr(0, 4000);
    if (head.find("FOVX") != std::string::npos) {
      d = sky_file("ehtim sky image (text)", io::read_ehtim_image(path));
    } else if (!looks_like_sites(head)) {
      fail_unknown_kind(path);
    } else {
      const auto sites = io::read_ehtim_array(path);
      d.kind = "ehtim telescope array (text)";
      d.convention = "geocentric positions [m], SEFD [Jy]";
      at::Tensor xyz = at::empty({static_cast<int64_t>(sites.size()), 3}, at::kDouble);
      for (size_t k = 0; k < sites.size(); ++k) {
        double* p = xyz.data_ptr<double>() + 3 * k;
        p[0] = sites[k].x, p[1] = sites[k].y, p[2] = sites[k].z;
        d.texts["sites"] += (k ? "," : "") + sites[k].name;
      }
      d.arrays["site_xyz"] = xyz;
    }
  } else if (kind == "idx") {
    d.kind = "IDX array";
    d.convention = "row 0 at the top; bytes 0 to 255";
    d.arrays["array"] = io::read_idx(path);
  } else if (kind == "cifar10") {
    const io::CifarBatch b = io::read_cifar10(path);
    d.kind = "CIFAR-10 batch";
    d.convention = "images [N,3,32,32], row 0 at the top; bytes 0 to 255";
    d.arrays = {{"images", b.images}, {"labels", b.labels}};
  } else if (kind == "tfrecord") {
    d = tfrecord_file(path);
  } else {
    fail_unknown_kind(path);
  }
  return d;
}

std::vector<std::string> examine_data_file(const DataFile& d, const fs::path& path) {
  std::vector<std::string> out;
  if (d.visibilities) {
    examine_visibilities(*d.visibilities, out);
    const double amplitude = median_of(at::abs(d.arrays.at("vis")));
    if (amplitude > 1e3 || amplitude < 1e-6)
      out.push_back("the median visibility is " + std::to_string(amplitude) + "; are they in Jy?");
    return out;
  }
  if (d.sky) {
    if (data_kind(path) == "fits") {
      const auto step = io::read_fits_number(path, "CDELT1"),
                 rows = io::read_fits_number(path, "CDELT2");
      if (step && *step > 0)
        out.push_back(
            "CDELT1 > 0: east is to the right in the file; it is mirrored on reading, so "
            "that east is left");
      if (rows && *rows < 0)
        out.push_back("CDELT2 < 0: the first row of the file is the north; it is kept on top");
    }
    const double flux = d.sky->pixels.sum().item<double>();
    if (flux > 1e3 || flux <= 0)
      out.push_back("the total flux is " + std::to_string(flux) + " Jy; are the pixels in Jy?");
    if (d.sky->pixels.min().item<double>() < 0)
      out.push_back("some pixels are negative: a cleaned or dirty image rather than a model?");
    return out;
  }
  for (const auto& [name, a] : d.arrays) {
    if (a.dim() < 2 || a.size(-1) < 8 || a.size(-2) < 8) continue;
    if (a.is_complex() || a.is_floating_point()) {
      const at::Tensor bad = a.numel() - at::isfinite(a).sum();
      if (bad.item<int64_t>() > 0) {
        out.push_back(name + " has " + std::to_string(bad.item<int64_t>()) +
                      " values that are not finite");
        continue;
      }
      if (a.is_complex())
        examine_complex(d.kind.rfind("BART", 0) == 0 ? path.stem().string() : name,
                        d.kind.rfind("BART", 0) == 0 ? a.transpose(0, -1).transpose(1, -2) : a,
                        out);
      else
        examine_real(name, a, out);
    }
  }
  return out;
}

}  // namespace scoreprior
