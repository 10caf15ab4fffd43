#include "scoreprior/data/kspace.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/mri_raw.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

using Size = std::array<int64_t, 2>;

// What a file holds, before a slice is chosen.
struct RawKSpace {
  at::Tensor kspace;   // complex [slices,coils,H,W]
  at::Tensor sampled;  // [H,W] bool as the file says; undefined = it does not
  bool zeros_unmeasured = true;
  Size crop{0, 0};  // of the header
  std::array<double, 2> pixel_mm{1, 1};
  double sigma = 0;
};

std::string size_text(const Size& s) { return std::to_string(s[0]) + " x " + std::to_string(s[1]); }

// [slices,coils,H,W] of [H,W], [coils,H,W] or itself.
at::Tensor four_axes(at::Tensor k, const std::string& file) {
  const std::string shape = to_string(Shape(k.sizes().begin(), k.sizes().end()));
  if (k.dim() == 5 && k.size(2) == 1) k = k.squeeze(2);
  if (k.dim() == 5)
    throw DataError(file + ": k-space of " + std::to_string(k.size(2)) +
                    " partitions; take the inverse Fourier transform along them and keep one slice "
                    "(BART: fft -i -u 4, slice 2 N)");
  if (!k.is_complex() || k.dim() < 2 || k.dim() > 4 || k.numel() == 0)
    throw DataError(file +
                    ": expected complex k-space [H,W], [coils,H,W] or "
                    "[slices,coils,H,W], got " +
                    (k.is_complex() ? "" : "real ") + shape);
  while (k.dim() < 4) k = k.unsqueeze(0);
  return k;
}

// [H,W] bool of a mask of points, of columns [W] or [1,W], or of rows [H,1].
at::Tensor points_of(const at::Tensor& mask, const at::Tensor& k, const std::string& file) {
  at::Tensor m = mask.is_complex() ? mask.abs() : mask;
  m = m.ne(0);
  while (m.dim() > 2 && m.size(0) == 1) m = m.squeeze(0);
  if (m.dim() == 1) m = m.unsqueeze(0);
  const int64_t height = k.size(2), width = k.size(3);
  if (m.dim() != 2 || (m.size(0) != height && m.size(0) != 1) ||
      (m.size(1) != width && m.size(1) != 1))
    throw DataError(
        file + ": the mask " + to_string(Shape(mask.sizes().begin(), mask.sizes().end())) +
        " does not fit the k-space " + to_string(Shape(k.sizes().begin(), k.sizes().end())));
  return m.expand({height, width});
}

RawKSpace from_arrays(const io::Arrays& arrays, const std::string& wanted,
                      const std::string& file) {
  std::vector<std::string> found;
  std::string names;
  for (const auto& [name, a] : arrays) {
    names += (names.empty() ? "" : ", ") + name;
    if (wanted.empty() ? a.is_complex() && a.dim() >= 2 : name == wanted) found.push_back(name);
  }
  for (const char* usual : {"kspace", "ksp"})
    if (wanted.empty() && arrays.count(usual)) found = {usual};
  if (found.size() != 1)
    throw DataError(file +
                    (wanted.empty() ? found.empty() ? ": no complex array of k-space"
                                                    : ": several complex arrays; name one by array"
                                    : ": no array \"" + wanted + "\"") +
                    " (" + names + ")");
  RawKSpace raw;
  raw.kspace = four_axes(arrays.at(found[0]), file);
  for (const char* name : {"mask", "sampled"})
    if (arrays.count(name) && !raw.sampled.defined()) {
      raw.sampled = points_of(arrays.at(name), raw.kspace, file);
      raw.zeros_unmeasured = false;
    }
  const auto sigma = arrays.find("sigma");
  if (sigma != arrays.end()) {
    if (sigma->second.numel() != 1 || sigma->second.is_complex())
      throw DataError(file + ": sigma is not one real number");
    raw.sigma = sigma->second.to(at::kDouble).reshape({}).item<double>();
    if (!(raw.sigma > 0) || !std::isfinite(raw.sigma))
      throw DataError(file + ": sigma is not positive");
  }
  return raw;
}

// Sides of a pixel along the read-out and the phase encoding, 1 where the header does not say.
std::array<double, 2> pixel_sides(const io::IsmrmrdHeader& h) {
  std::array<double, 2> mm{1, 1};
  if (h.encoded_fov_mm[0] > 0 && h.encoded_fov_mm[1] > 0)
    for (size_t a = 0; a < 2; ++a) mm[a] = h.encoded_fov_mm[a] / static_cast<double>(h.encoded[a]);
  return mm;
}

RawKSpace from_fastmri(const fs::path& path) {
  const io::FastmriVolume v = io::read_fastmri(path);
  RawKSpace raw;
  raw.kspace = v.kspace;
  raw.sampled = at::ones({v.kspace.size(2), v.kspace.size(3)}, at::kBool);
  if (v.mask.defined()) raw.sampled = points_of(v.mask, v.kspace, path.string()).clone();
  raw.sampled.narrow(1, 0, v.pad_left).fill_(false);
  raw.sampled.narrow(1, v.kspace.size(3) - v.pad_right, v.pad_right).fill_(false);
  raw.crop = {v.crop_height, v.crop_width};
  raw.pixel_mm = pixel_sides(v.header);
  return raw;
}

RawKSpace from_ismrmrd(const fs::path& path) {
  const io::IsmrmrdScan scan = io::read_ismrmrd(path);
  RawKSpace raw;
  raw.kspace = four_axes(scan.kspace, path.string());
  raw.sampled = points_of(scan.sampled.reshape({-1, 1}), raw.kspace, path.string());
  // Rows are phase encodings, columns the read-out.
  raw.crop = {std::min(scan.header.recon[1], raw.kspace.size(2)),
              std::min(scan.header.recon[0], raw.kspace.size(3))};
  raw.pixel_mm = pixel_sides(scan.header);
  std::swap(raw.pixel_mm[0], raw.pixel_mm[1]);
  return raw;
}

RawKSpace read_raw(const fs::path& path, const std::string& array) {
  const std::string extension = path.extension().string(), name = path.string();
  if (extension == ".h5" || extension == ".hdf5" || extension == ".mrd") {
    if (io::is_fastmri(path)) return from_fastmri(path);
    if (io::list_hdf5(path).count("dataset/xml")) return from_ismrmrd(path);
    return from_arrays(io::read_hdf5(path).arrays, array, name);
  }
  if (extension == ".npz") return from_arrays(io::read_npz(path), array, name);
  if (extension == ".mat") return from_arrays(io::read_mat(path), array, name);
  if (extension == ".npy") return from_arrays({{"kspace", io::read_npy(path)}}, array, name);
  if (extension == ".cfl" || extension == ".hdr")
    return from_arrays({{"kspace", io::from_bart_order(io::read_cfl(path))}}, array, name);
  throw DataError(name + ": unknown kind of k-space (known: .h5 .mrd .cfl .mat .npz .npy)");
}

// k-space whose image is the central n pixels along `axis`.
at::Tensor cut_field(const at::Tensor& k, int64_t axis, int64_t n) {
  const int64_t axes[1] = {axis}, size = k.size(axis);
  at::Tensor x =
      at::fft_fftshift(at::fft_ifft(at::fft_ifftshift(k, axes), c10::nullopt, axis, "ortho"), axes);
  x = x.narrow(axis, size / 2 - n / 2, n);
  return at::fft_fftshift(at::fft_fft(at::fft_ifftshift(x, axes), c10::nullopt, axis, "ortho"),
                          axes);
}

// The measured stretch of an axis of [H,W] `sampled`, if every line along the axis that was
// measured at all was measured from `first` to `last` without a gap, k = 0 among them.
struct Stretch {
  bool whole_lines = false;
  int64_t first = 0, last = 0;
};
Stretch stretch_along(const at::Tensor& sampled, int64_t axis) {
  const at::Tensor along = sampled.any(1 - axis), lines = sampled.any(axis);
  const at::Tensor at_all = along.nonzero().flatten();
  Stretch s;
  if (at_all.numel() == 0) return s;
  s.first = at_all[0].item<int64_t>();
  s.last = at_all[-1].item<int64_t>();
  const int64_t centre = sampled.size(axis) / 2;
  s.whole_lines = s.last - s.first + 1 == at_all.numel() && s.first <= centre && centre <= s.last &&
                  sampled.sum().item<int64_t>() == at_all.numel() * lines.sum().item<int64_t>();
  return s;
}

// The same frequencies on an axis of n points instead of `size`.
at::Tensor cut_sampled(const at::Tensor& sampled, int64_t axis, int64_t n) {
  const Stretch s = stretch_along(sampled, axis);
  const int64_t size = sampled.size(axis);
  at::Tensor along = at::ones({n}, at::kBool);
  if (s.first > 0 || s.last < size - 1) {
    const at::Tensor frequency = (at::arange(n, at::kDouble) - static_cast<double>(n / 2)) *
                                 (static_cast<double>(size) / static_cast<double>(n));
    along = frequency.ge(static_cast<double>(s.first - size / 2))
                .logical_and(frequency.le(static_cast<double>(s.last - size / 2)));
  }
  const at::Tensor lines = sampled.any(axis);
  return axis == 0 ? along.unsqueeze(1).logical_and(lines.unsqueeze(0))
                   : lines.unsqueeze(1).logical_and(along.unsqueeze(0));
}

// The field of view to keep, [rows, columns] of pixels.
Size field_of_view(const Config& data, const RawKSpace& raw, const at::Tensor& sampled) {
  const Size size{sampled.size(0), sampled.size(1)};
  const auto complete = [&](size_t a) {
    return stretch_along(sampled, static_cast<int64_t>(a)).whole_lines;
  };
  if (data.has("crop")) {
    const auto given = data.get<std::vector<int64_t>>("crop");
    if (given.size() != 2 || given[0] < 1 || given[1] < 1 || given[0] > size[0] ||
        given[1] > size[1])
      data.fail("crop", "expected crop = [rows, columns] within " + size_text(size));
    for (size_t a = 0; a < 2; ++a)
      if (given[a] < size[a] && !complete(a))
        data.fail("crop", std::string(a ? "columns" : "rows") +
                              " cannot be cut off: along them the k-space has gaps");
    return {given[0], given[1]};
  }
  if (raw.crop[0] < 1 || raw.crop[1] < 1) return size;
  Size field = raw.crop;
  for (size_t a = 0; a < 2; ++a) {
    if (field[a] == size[a] || complete(a)) continue;
    const double wider = static_cast<double>(size[a]) / static_cast<double>(field[a]);
    field[1 - a] = std::min(
        size[1 - a], static_cast<int64_t>(std::llround(wider * static_cast<double>(field[1 - a]))));
    field[a] = size[a];
  }
  return field;
}

}  // namespace

KSpaceSlice load_kspace(const Config& data, const Shape& image) {
  const auto path = data.get<fs::path>("kspace");
  const auto o = data.read<KSpaceOptions>();
  if (!(o.scale >= 0) || !std::isfinite(o.scale))
    data.fail("scale", "scale must be positive, or 0 for the file's own");
  const std::string name = path.string();
  const RawKSpace raw = read_raw(path, o.array);
  const int64_t slices = raw.kspace.size(0);
  if (o.slice < -1 || o.slice >= slices)
    data.fail("slice", name + " has the slices 0 to " + std::to_string(slices - 1));
  const int64_t slice = o.slice < 0 ? slices / 2 : o.slice;
  at::Tensor k = raw.kspace[slice].to(at::kComplexDouble);
  if (!at::isfinite(at::view_as_real(k)).all().item<bool>())
    throw DataError(name + ": the k-space has values that are not finite");
  at::Tensor sampled = raw.sampled;
  const at::Tensor nonzero = k.abs().sum(0).gt(0);
  if (!sampled.defined())
    sampled = nonzero;
  else if (raw.zeros_unmeasured)
    sampled = sampled.logical_and(nonzero);
  if (!sampled.any().item<bool>())
    throw DataError(name + ": nothing was measured in slice " + std::to_string(slice));
  const Size stored{k.size(1), k.size(2)}, wanted{image[1], image[2]};
  const Size field = field_of_view(data, raw, sampled);
  // Headers round their millimetres.
  constexpr double kSquare = 0.02;
  const double side[2] = {
      static_cast<double>(field[0]) * raw.pixel_mm[0] / static_cast<double>(wanted[0]),
      static_cast<double>(field[1]) * raw.pixel_mm[1] / static_cast<double>(wanted[1])};
  if (std::abs(side[0] / side[1] - 1) > kSquare)
    data.fail("crop", detail::concat("the field of view of ", name, " is ", size_text(field),
                                     " pixels, in which the ", size_text(wanted),
                                     " pixels of the images would be ", side[0], " x ", side[1],
                                     raw.crop[0] > 0 ? " mm" : "",
                                     "; give a crop = [rows, columns] that makes them square"));
  if (field[0] < wanted[0] || field[1] < wanted[1])
    throw DataError(name + ": the field of view is " + size_text(field) +
                    " pixels, fewer than the " + size_text(wanted) + " of the images");
  double factor = 1;
  for (int64_t a = 0; a < 2; ++a) {
    const int64_t pixels = field[static_cast<size_t>(a)], n = wanted[static_cast<size_t>(a)];
    if (pixels < stored[static_cast<size_t>(a)]) {
      k = cut_field(k, a + 1, pixels);
      sampled = cut_sampled(sampled, a, pixels);
    }
    k = k.narrow(a + 1, pixels / 2 - n / 2, n);
    sampled = sampled.narrow(a, pixels / 2 - n / 2, n);
    factor *= std::sqrt(static_cast<double>(n) / static_cast<double>(pixels));
  }
  KSpaceSlice out;
  out.sampled = sampled.to(at::kDouble).contiguous();
  k = k * out.sampled;
  if (o.scale > 0) {
    factor *= o.scale;
  } else {
    const int64_t axes[2] = {1, 2};
    const double largest = at::fft_ifft2(k, c10::nullopt, axes, "ortho")
                               .abs()
                               .square()
                               .sum(0)
                               .sqrt()
                               .max()
                               .item<double>() *
                           factor;
    if (!(largest > 0)) throw DataError(name + ": the k-space is zero; there is no scale");
    factor /= largest;
  }
  out.kspace = (k * factor).contiguous();
  out.sigma = raw.sigma * factor;
  out.summary = detail::concat("slice ", slice, " of ", slices, ", ", k.size(0), " coils, k-space ",
                               size_text(stored), ", field ", size_text(field), ", images ",
                               size_text(wanted), ", times ", factor);
  return out;
}

}  // namespace scoreprior
