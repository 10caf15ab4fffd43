#include "scoreprior/data/transforms.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/image_cache.h"

namespace scoreprior {

namespace fs = std::filesystem;

void check_transforms(const Config& config, const ImageTransformOptions& o) {
  const auto require = [&](bool good, const char* key, const char* wanted) {
    if (!good) config.fail(key, std::string(key) + " must be " + wanted);
  };
  require(o.image_size >= 1 && o.image_size <= 8192, "image_size", "between 1 and 8192");
  require(o.channels == 1 || o.channels == 3, "channels", "1 or 3");
  require(o.zoom_min > 0, "zoom_min", "positive");
  require(o.zoom_max >= o.zoom_min, "zoom_max", "at least zoom_min");
  require(o.taper_frac_radius_min >= 0, "taper_frac_radius_min", "at least 0");
  require(o.taper_frac_radius_max >= o.taper_frac_radius_min, "taper_frac_radius_max",
          "at least taper_frac_radius_min");
  require(o.taper_gaussian_blur_sigma >= 0, "taper_gaussian_blur_sigma", "at least 0");
  require(o.total_flux > 0, "total_flux", "positive");
  require(o.n_bits >= 1 && o.n_bits <= 8, "n_bits", "between 1 and 8");
  require(o.split_by == "hash" || o.split_by == "range", "split_by", "hash or range");
  require(o.valid_fraction >= 0 && o.valid_fraction < 1, "valid_fraction", "in [0,1)");
  require(o.test_fraction >= 0 && o.valid_fraction + o.test_fraction < 1, "test_fraction",
          "at least 0 and leave something to train on");
  require(o.cache_mib >= 0, "cache_mib", "at least 0");
}

at::Tensor centre_square(const at::Tensor& image) {
  const int64_t h = image.size(1), w = image.size(2), side = std::min(h, w);
  return image.slice(1, (h - side) / 2, (h - side) / 2 + side)
      .slice(2, (w - side) / 2, (w - side) / 2 + side);
}

at::Tensor to_channels(const at::Tensor& image, int64_t channels) {
  const int64_t have = image.size(0);
  SP_CHECK(have >= 1 && have <= 4, "to_channels", "expected 1 to 4 channels, got ", have);
  const bool grey = have <= 2;  // 2 = grey and alpha
  if (channels == 1)
    return grey ? image.slice(0, 0, 1)
                : (0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]).unsqueeze(0);
  return grey ? image.slice(0, 0, 1).expand({3, image.size(1), image.size(2)})
              : image.slice(0, 0, 3);
}

at::Tensor resize_weights(int64_t in, int64_t out, double window, bool antialias) {
  at::Tensor weights = at::zeros({out, in}, at::kDouble);
  auto w = weights.accessor<double, 2>();
  const double step = window / static_cast<double>(out);
  const double support = antialias ? std::max(1.0, step) : 1.0;
  const double start = 0.5 * (static_cast<double>(in) - window);
  const bool padded = window > static_cast<double>(in) * (1 + 1e-12);
  for (int64_t i = 0; i < out; ++i) {
    const double centre = start + (static_cast<double>(i) + 0.5) * step - 0.5;
    const int64_t first = static_cast<int64_t>(std::ceil(centre - support));
    const int64_t last = static_cast<int64_t>(std::floor(centre + support));
    double sum = 0;
    for (int64_t j = first; j <= last; ++j) {
      const double v = std::max(0.0, 1 - std::abs(static_cast<double>(j) - centre) / support);
      const bool inside = j >= 0 && j < in;
      if (inside) w[i][j] = v;
      // Inside the picture the edge counts in full; outside a padded window there is darkness.
      if (inside || padded) sum += v;
    }
    if (sum > 0)
      for (int64_t j = std::max<int64_t>(first, 0); j <= std::min(last, in - 1); ++j)
        w[i][j] /= sum;
  }
  return weights;
}

at::Tensor resize_image(const at::Tensor& image, int64_t size, bool antialias, double window) {
  const int64_t h = image.size(1), w = image.size(2);
  if (window == 0 && h == size && w == size) return image;
  const at::Tensor rows =
      resize_weights(h, size, window > 0 ? window : static_cast<double>(h), antialias)
          .to(image.scalar_type());
  const at::Tensor columns =
      resize_weights(w, size, window > 0 ? window : static_cast<double>(w), antialias)
          .to(image.scalar_type());
  return at::matmul(at::matmul(rows, image), columns.t());
}

at::Tensor taper_mask(int64_t size, double radius, double sigma) {
  const int64_t pad = static_cast<int64_t>(std::ceil(4 * sigma)), n = size + 2 * pad;
  const at::Tensor axis = at::arange(n, at::kDouble) - 0.5 * static_cast<double>(n - 1);
  const at::Tensor disc =
      (axis.square().unsqueeze(1) + axis.square().unsqueeze(0) <= radius * radius).to(at::kDouble);
  if (sigma == 0) return disc.to(at::kFloat);
  const at::Tensor lag = at::arange(size, at::kDouble).unsqueeze(1) + static_cast<double>(pad) -
                         at::arange(n, at::kDouble).unsqueeze(0);
  at::Tensor kernel =
      at::exp(-0.5 * (lag / sigma).square()) * (lag.abs() <= static_cast<double>(pad));
  kernel = kernel / kernel.sum(1, true);
  return at::matmul(at::matmul(kernel, disc), kernel.t()).to(at::kFloat);
}

at::Tensor transform_batch(at::Tensor x, const ImageTransformOptions& o, bool augment,
                           const std::vector<int64_t>& indices, const Rng& rng) {
  const int64_t n = x.size(0), side = x.size(3);
  if (augment && o.random_flip) {
    const at::Tensor flip = (rng.split("flip").uniform({n}, at::kDouble) < 0.5).view({n, 1, 1, 1});
    x = at::where(flip, x.flip({3}), x);
  }
  if (augment && (o.random_rotation || o.zoom_min != 1 || o.zoom_max != 1)) {
    const at::Tensor angle = o.random_rotation
                                 ? rng.split("rotation").uniform({n}, at::kDouble) * (2 * M_PI)
                                 : at::zeros({n}, at::kDouble);
    const at::Tensor scale =
        1 / (o.zoom_min + (o.zoom_max - o.zoom_min) * rng.split("zoom").uniform({n}, at::kDouble));
    const at::Tensor c = scale * at::cos(angle), s = scale * at::sin(angle),
                     zero = at::zeros_like(c);
    const at::Tensor theta =
        at::stack({at::stack({c, -s, zero}, 1), at::stack({s, c, zero}, 1)}, 1).to(at::kFloat);
    const at::Tensor grid = at::affine_grid_generator(theta, x.sizes(), /*align_corners=*/false);
    x = at::grid_sampler(x, grid, /*bilinear*/ 0, /*zeros*/ 0, /*align_corners=*/false);
  }
  if (o.taper) {
    std::vector<at::Tensor> masks;
    const at::Tensor position = rng.split("taper").uniform({n}, at::kDouble);
    for (int64_t i = 0; i < n; ++i) {
      const double u = augment ? position[i].item<double>()
                               : Rng(o.split_seed).split("taper").at(indices[i]).uniforms(1)[0];
      const double radius =
          o.taper_frac_radius_min + (o.taper_frac_radius_max - o.taper_frac_radius_min) * u;
      masks.push_back(
          taper_mask(side, radius * static_cast<double>(side), o.taper_gaussian_blur_sigma));
    }
    x = x * at::stack(masks).unsqueeze(1);
  }
  if (o.constant_flux) {
    const at::Tensor sum = x.sum({1, 2, 3}, true);
    // A black picture has no flux to scale.
    x = x * at::where(sum > 0, o.total_flux / sum, at::ones_like(sum));
  }
  if (o.uniform_dequantization) {
    const double levels = std::pow(2.0, static_cast<double>(o.n_bits));
    at::Tensor grey = x * (o.n_bits == 8 ? 255.0 : 255.0 * levels / 256.0);
    if (o.n_bits < 8) grey = grey.floor();
    x = (grey + rng.split("dequantization").uniform(x.sizes())) / levels;
  }
  if (o.centered) x = 2 * x - 1;
  return x;
}

std::vector<int64_t> split_members(const std::vector<std::string>& names,
                                   const ImageTransformOptions& o, const std::string& split) {
  SP_CHECK(split == "train" || split == "valid" || split == "test" || split == "all",
           "split_members", "expected train, valid, test or all, got ", split);
  const int64_t n = static_cast<int64_t>(names.size());
  const Rng rng = Rng(o.split_seed).split("split");
  std::vector<int64_t> members;
  for (int64_t i = 0; i < n; ++i) {
    const double u = o.split_by == "hash" ? rng.split(names[i]).uniforms(1)[0]
                                          : (static_cast<double>(i) + 0.5) / static_cast<double>(n);
    const double train = 1 - o.valid_fraction - o.test_fraction;
    const char* mine = u < train ? "train" : u < train + o.valid_fraction ? "valid" : "test";
    if (split == "all" || split == mine) members.push_back(i);
  }
  return members;
}

FileList list_files(const fs::path& folder, const std::vector<std::string>& extensions,
                    const std::string& split) {
  std::error_code ec;
  if (!fs::exists(folder, ec))
    throw MissingFileError("folder " + folder.string() + " does not exist");
  if (!fs::is_directory(folder, ec)) throw MissingFileError(folder.string() + " is not a folder");
  FileList list;
  fs::path root = folder;
  for (const char* name : {"train", "valid", "test"})
    if (fs::is_directory(folder / name, ec)) list.divided = true;
  if (list.divided && split != "all") {
    root = folder / split;
    if (!fs::is_directory(root, ec))
      throw MissingFileError("folder " + root.string() +
                             " does not exist (its siblings hold the other splits)");
  }
  fs::recursive_directory_iterator files(root, fs::directory_options::follow_directory_symlink, ec);
  if (ec) throw MissingFileError("folder " + root.string() + " cannot be read: " + ec.message());
  std::set<std::string> others;
  for (const auto& entry : files) {
    if (!entry.is_regular_file(ec)) continue;
    std::string extension = entry.path().extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (std::find(extensions.begin(), extensions.end(), extension) != extensions.end())
      list.files.push_back(entry.path());
    else
      others.insert(extension);
  }
  std::sort(list.files.begin(), list.files.end());
  if (list.files.empty()) {
    std::string message = "folder " + root.string() + " holds no " + extensions.front() + " file";
    std::string found;
    for (const auto& e : others)
      if (!e.empty()) found += (found.empty() ? " (only " : ", ") + e;
    throw DataError(message + (found.empty() ? "" : found + ")"));
  }
  return list;
}

std::string file_identity(const std::vector<fs::path>& files) {
  std::ostringstream s;
  for (const auto& file : files) {
    std::error_code ec;
    const auto time = fs::last_write_time(file, ec).time_since_epoch().count();
    s << fs::absolute(file, ec).lexically_normal().string() << ' ' << fs::file_size(file, ec) << ' '
      << time << '\n';
  }
  return s.str();
}

bool shapes_stored_pixels(const std::string& option) {
  static const std::set<std::string> later = {"random_flip",
                                              "random_rotation",
                                              "zoom_min",
                                              "zoom_max",
                                              "taper",
                                              "constant_flux",
                                              "total_flux",
                                              "uniform_dequantization",
                                              "n_bits",
                                              "centered",
                                              "split_by",
                                              "valid_fraction",
                                              "test_fraction",
                                              "split_seed",
                                              "cache_mib",
                                              "cache_folder",
                                              "taper_frac_radius_min",
                                              "taper_frac_radius_max",
                                              "taper_gaussian_blur_sigma"};
  return later.count(option) == 0;
}

StoredImages::StoredImages(const ImageTransformOptions& options, std::string what,
                           const std::string& split, std::vector<int64_t> members,
                           std::function<at::Tensor(int64_t)> load, const std::string& identity)
    : options_(options),
      what_(std::move(what)),
      split_(split),
      identity_(identity),
      members_(std::move(members)),
      load_(std::move(load)) {
  if (members_.empty())
    throw DataError(what_ + ": its " + split +
                    " split is empty; change split_by, valid_fraction or test_fraction");
  if (!options_.cache_folder.empty()) return;
  const int64_t bytes = 4 * options_.channels * options_.image_size * options_.image_size;
  const int64_t room = options_.cache_mib * (int64_t{1} << 20) / bytes;
  cache_.resize(static_cast<size_t>(std::min<int64_t>(room, size())));
}

StoredImages::~StoredImages() = default;

Shape StoredImages::image_shape() const {
  return {options_.channels, options_.image_size, options_.image_size};
}

std::string StoredImages::describe() const {
  return detail::concat(what_, ", ", split_, " split, ", size(), " images of ",
                        to_string(image_shape()), options_.constant_flux ? ", constant flux" : "",
                        options_.taper ? ", tapered" : "");
}

at::Tensor StoredImages::image_at(size_t index) const {
  if (disk_) return disk_->image(static_cast<int64_t>(index));
  if (index < cache_.size()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (cache_[index].defined()) return cache_[index];
  }
  const at::Tensor image = load_(members_[index]).contiguous();
  if (index < cache_.size()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cache_[index] = image;
  }
  return image;
}

at::Tensor StoredImages::batch(const std::vector<int64_t>& indices, const Rng& rng) const {
  const int64_t n = static_cast<int64_t>(indices.size());
  at::Tensor x = at::empty(batched(n, image_shape()), at::kFloat);
  for (const int64_t index : indices)
    SP_CHECK(index >= 0 && index < size(), "StoredImages", "expected an index below ", size(),
             ", got ", index);
  // At the first use, so that a configuration can be checked without reading the pictures.
  if (!options_.cache_folder.empty())
    std::call_once(disk_opened_, [&] {
      std::ostringstream key;
      key << identity_;
      for (const int64_t m : members_) key << m << ' ';
      disk_ = std::make_unique<ImageCache>(
          options_.cache_folder, what_, key.str(), image_shape(), size(),
          [&](int64_t i) { return load_(members_[static_cast<size_t>(i)]); });
    });
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    for (int64_t i = begin; i < end; ++i)
      x[i].copy_(image_at(static_cast<size_t>(indices[static_cast<size_t>(i)])));
  });
  return transform_batch(std::move(x), options_, split_ == "train", indices, rng);
}

}  // namespace scoreprior
