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
constexpr const char* kVisibilityConvention =
    "V(u,v) = sum I exp(+2 pi i (u x + v y)), x east, y north, u and v of r1 - r2";
constexpr const char* kArrayConvention =
    "as stored, C order; what the axes mean is the program's that reads them: images [C,H,W] with "
    "row 0 at the top, k-space [coils,H,W] with k = 0 at index n/2";
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

at::Tensor text_bytes(const std::string& text) {
  at::Tensor a = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), a.data_ptr<uint8_t>());
  return a;
}

std::string text_of(const at::Tensor& bytes) {
  const at::Tensor b = bytes.to(at::kByte).flatten().contiguous();
  return std::string(b.data_ptr<uint8_t>(), b.data_ptr<uint8_t>() + b.numel());
}

std::string names_of(const std::vector<Site>& sites) {
  std::string names;
  for (const Site& s : sites) names += (names.empty() ? "" : ",") + s.name;
  return names;
}

void put_sites(const std::vector<Site>& sites, io::Arrays& a) {
  const auto n = static_cast<int64_t>(sites.size());
  at::Tensor xyz = at::empty({n, 3}, at::kDouble), sefd = at::empty({n, 2}, at::kDouble);
  for (size_t k = 0; k < sites.size(); ++k) {
    double *p = xyz.data_ptr<double>() + 3 * k, *q = sefd.data_ptr<double>() + 2 * k;
    p[0] = sites[k].x, p[1] = sites[k].y, p[2] = sites[k].z;
    q[0] = sites[k].sefd_r, q[1] = sites[k].sefd_l;
  }
  a["site_xyz"] = xyz;
  a["site_sefd"] = sefd;
  a["site_names"] = text_bytes(names_of(sites));
}

// The numbers of a visibility table, one array each.
struct Column {
  const char* name;
  double (*get)(const VisibilityRow&);
  void (*set)(VisibilityRow&, double);
};
#define SP_COLUMN(name, member, type)                                       \
  {                                                                         \
    name, [](const VisibilityRow& r) { return double(r.member); },          \
        [](VisibilityRow& r, double x) { r.member = static_cast<type>(x); } \
  }
const Column kColumns[] = {SP_COLUMN("time_hours", time, double),
                           SP_COLUMN("tint_seconds", tint, double),
                           SP_COLUMN("u", u, double),
                           SP_COLUMN("v", v, double),
                           SP_COLUMN("sigma", sigma, double),
                           SP_COLUMN("t1", t1, int32_t),
                           SP_COLUMN("t2", t2, int32_t),
                           SP_COLUMN("tau1", tau1, double),
                           SP_COLUMN("tau2", tau2, double)};
#undef SP_COLUMN

io::Arrays arrays_of(const VisibilityTable& t) {
  const auto n = static_cast<int64_t>(t.rows.size());
  io::Arrays a;
  for (const Column& c : kColumns) {
    at::Tensor x = at::empty({n}, at::kDouble);
    for (int64_t k = 0; k < n; ++k) x.data_ptr<double>()[k] = c.get(t.rows[static_cast<size_t>(k)]);
    a[c.name] = x;
  }
  for (const char* index : {"t1", "t2"}) a[index] = a[index].to(at::kLong);
  at::Tensor vis = at::empty({n}, at::kComplexDouble);
  for (int64_t k = 0; k < n; ++k)
    vis.data_ptr<c10::complex<double>>()[k] = t.rows[static_cast<size_t>(k)].vis;
  a["vis"] = vis;
  put_sites(t.sites, a);
  a["source_name"] = text_bytes(t.source);
  a["ra_hours"] = at::scalar_tensor(t.ra_hours, at::kDouble);
  a["dec_deg"] = at::scalar_tensor(t.dec_deg, at::kDouble);
  a["frequency_hz"] = at::scalar_tensor(t.rf_hz, at::kDouble);
  a["bandwidth_hz"] = at::scalar_tensor(t.bw_hz, at::kDouble);
  a["mjd"] = at::scalar_tensor(t.mjd, at::kLong);
  return a;
}

// The values of an array that put_sites or arrays_of wrote; `count` < 0: any number.
std::vector<double> numbers(const io::Arrays& arrays, const std::string& name, int64_t count,
                            const std::string& file) {
  const at::Tensor& array = arrays.at(name);
  if (array.is_complex() || (count >= 0 && array.numel() != count))
    throw DataError(file + ": the array " + name + " does not have " + std::to_string(count) +
                    " real numbers");
  const at::Tensor a = array.to(at::kDouble).flatten().contiguous();
  if (!at::isfinite(a).all().item<bool>())
    throw DataError(file + ": the array " + name + " has values that are not finite");
  return {a.data_ptr<double>(), a.data_ptr<double>() + a.numel()};
}

bool has_all(const io::Arrays& arrays, std::initializer_list<const char*> names) {
  return std::all_of(names.begin(), names.end(),
                     [&](const char* name) { return arrays.count(name) > 0; });
}

// Telescopes and visibilities among plain arrays, by the names of put_sites and arrays_of.
void find_radio(DataFile& d, const std::string& file) {
  const io::Arrays& a = d.arrays;
  if (!has_all(a, {"site_xyz", "site_sefd", "site_names"})) return;
  std::vector<Site> sites;
  std::istringstream names(text_of(a.at("site_names")));
  for (std::string name; std::getline(names, name, ',');) sites.push_back({name});
  const auto n = static_cast<int64_t>(sites.size());
  const auto xyz = numbers(a, "site_xyz", 3 * n, file), sefd = numbers(a, "site_sefd", 2 * n, file);
  for (size_t k = 0; k < sites.size(); ++k) {
    Site& s = sites[k];
    s.x = xyz[3 * k], s.y = xyz[3 * k + 1], s.z = xyz[3 * k + 2];
    s.sefd_r = sefd[2 * k], s.sefd_l = sefd[2 * k + 1];
  }
  if (!has_all(a, {"vis", "source_name", "ra_hours", "dec_deg", "frequency_hz", "bandwidth_hz",
                   "mjd"}) ||
      !std::all_of(std::begin(kColumns), std::end(kColumns),
                   [&](const Column& c) { return a.count(c.name) > 0; })) {
    d.sites = std::move(sites);
    return;
  }
  VisibilityTable t;
  t.source = text_of(a.at("source_name"));
  t.ra_hours = numbers(a, "ra_hours", 1, file)[0];
  t.dec_deg = numbers(a, "dec_deg", 1, file)[0];
  t.rf_hz = numbers(a, "frequency_hz", 1, file)[0];
  t.bw_hz = numbers(a, "bandwidth_hz", 1, file)[0];
  t.mjd = static_cast<int64_t>(std::clamp(numbers(a, "mjd", 1, file)[0], 0.0, 1e7));
  t.sites = std::move(sites);
  const at::Tensor vis = a.at("vis").to(at::kComplexDouble).flatten().contiguous();
  if (vis.numel() == 0) throw DataError(file + ": no visibilities");
  t.rows.resize(static_cast<size_t>(vis.numel()));
  for (size_t k = 0; k < t.rows.size(); ++k) {
    const auto z = vis.data_ptr<c10::complex<double>>()[k];
    t.rows[k].vis = {z.real(), z.imag()};
  }
  for (const Column& c : kColumns) {
    const auto values = numbers(a, c.name, vis.numel(), file);
    const bool index = std::string(c.name) == "t1" || std::string(c.name) == "t2";
    for (size_t k = 0; k < t.rows.size(); ++k) {
      if (index && !(values[k] >= 0 && values[k] < static_cast<double>(n)))
        throw DataError(file + ": the array " + c.name + " names sites that are not listed");
      c.set(t.rows[k], values[k]);
    }
  }
  for (const VisibilityRow& r : t.rows)
    if (!(r.sigma > 0)) throw DataError(file + ": sigma is not positive everywhere");
  arrange(t);
  d.visibilities = std::move(t);
  d.convention = kVisibilityConvention;
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
  if (io::is_fastmri(path)) {
    const io::FastmriVolume v = io::read_fastmri(path);
    d.kind = "fastMRI volume (HDF5)";
    d.convention =
        detail::concat("kspace [slices, coils, H (read-out), W (phase)]; ", kMriConvention,
                       "; the image is its centre, ", v.crop_height, " x ", v.crop_width);
    d.arrays["kspace"] = v.kspace;
    d.arrays["read_axis"] = at::scalar_tensor(-2, at::kLong);
    d.header = v.header_xml;
    if (v.target.defined()) d.arrays[v.target_name] = v.target;
    if (v.mask.defined()) d.arrays["mask"] = v.mask;
    d.texts = v.attributes;
    d.texts["crop"] = detail::concat(v.crop_height, " x ", v.crop_width);
    d.texts["unmeasured_columns"] = detail::concat(v.pad_left, " left, ", v.pad_right, " right");
    put_header(v.header, d);
    return d;
  }
  if (io::list_hdf5(path).count("dataset/xml")) {
    const io::IsmrmrdScan scan = io::read_ismrmrd(path);
    d.kind = "ISMRMRD scan (HDF5)";
    d.convention =
        detail::concat("kspace [slices, coils, phase encodings, samples]; ", kMriConvention);
    d.arrays = {{"kspace", scan.kspace},
                {"sampled", scan.sampled},
                {"read_axis", at::scalar_tensor(-1, at::kLong)}};
    d.header = scan.header_xml;
    put_header(scan.header, d);
    return d;
  }
  io::Hdf5 h5 = io::read_hdf5(path);
  d.kind = "HDF5 arrays";
  d.convention = kArrayConvention;
  d.arrays = std::move(h5.arrays);
  d.texts = std::move(h5.texts);
  find_radio(d, path.string());
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
  bool corner_image = false;  // as centred k-space, of an image that lies about the corners
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
  // The middle quarter of the area holds at least a quarter of the light of most pictures.
  const auto middle = [&](const at::Tensor& image) {
    return image.narrow(1, h / 4, h / 2).narrow(2, w / 4, w / 2).sum().item<double>();
  };
  const at::Tensor image =
      at::fft_ifft2(at::fft_ifftshift(planes, {{1, 2}}), c10::nullopt, {1, 2}, "ortho")
          .abs()
          .square();
  look.corner_image = middle(image) > 4 * middle(at::fft_fftshift(image, {{1, 2}}));
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
  if (spectrum && look.centre && look.corner_image)
    out.push_back(name +
                  " looks like k-space of an image whose middle is in the corner: multiply it by "
                  "(-1)^(i+j), or apply ifftshift to the image before its transform");
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
    d.convention = kVisibilityConvention;
    d.arrays = arrays_of(*d.visibilities);
    d.texts["source"] = d.visibilities->source;
    d.texts["sites"] = names_of(d.visibilities->sites);
  } else if (kind == "fits") {
    d = sky_file("FITS sky image", io::read_fits_image(path));
  } else if (kind == "npy") {
    d.kind = "NPY array";
    d.convention = kArrayConvention;
    d.arrays["array"] = io::read_npy(path);
  } else if (kind == "npz") {
    d.kind = "NPZ arrays";
    d.convention = kArrayConvention;
    d.arrays = io::read_npz(path);
    find_radio(d, path.string());
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
    find_radio(d, path.string());
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
      d.sites = io::read_ehtim_array(path);
      d.kind = "ehtim telescope array (text)";
      d.convention = "geocentric positions [m], SEFD [Jy]";
      put_sites(d.sites, d.arrays);
      d.texts["sites"] = names_of(d.sites);
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
  const bool bart = d.kind.rfind("BART", 0) == 0;
  for (const auto& [stored_name, stored] : d.arrays) {
    const std::string name = bart ? path.stem().string() : stored_name;
    const at::Tensor a = bart ? io::from_bart_order(stored) : stored;
    if (a.dim() < 2 || a.size(-1) < 8 || a.size(-2) < 8) continue;
    // Bytes have their range by the format's convention.
    if (a.scalar_type() != at::kByte && a.scalar_type() != at::kBool) {
      const at::Tensor bad = a.numel() - at::isfinite(a).sum();
      if (bad.item<int64_t>() > 0) {
        out.push_back(name + " has " + std::to_string(bad.item<int64_t>()) +
                      " values that are not finite");
        continue;
      }
      if (a.is_complex())
        examine_complex(name, a, out);
      else
        examine_real(name, a, out);
    }
  }
  return out;
}

}  // namespace scoreprior
