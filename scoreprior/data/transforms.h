#pragma once
/// What happens to a stored picture before a model sees it, in this order: centre crop to a square,
/// grey or RGB, resize, [flip, rotation, zoom], taper, constant flux, dequantisation, [-1,1] for
/// centred models.
///
/// Flips, rotations and zooms belong to the training split only; the other splits are the same
/// pictures every time.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

class ImageCache;

struct ImageTransformOptions {
  int64_t image_size = 32;
  int64_t channels = 1;
  bool antialias = true;
  bool random_flip = false, random_rotation = false;
  double zoom_min = 1, zoom_max = 1;
  bool taper = false;
  double taper_frac_radius_min = 0.1, taper_frac_radius_max = 0.65;
  double taper_gaussian_blur_sigma = 2;
  bool constant_flux = false;
  double total_flux = 200;
  bool uniform_dequantization = false;
  int64_t n_bits = 8;
  bool centered = false;
  std::string split_by = "hash";
  double valid_fraction = 0.05, test_fraction = 0.05;
  uint64_t split_seed = 0;
  int64_t cache_mib = 2048;
  std::filesystem::path cache_folder;
  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("channels", channels, "1 (grey) or 3 (RGB)");
    f("antialias", antialias, "widen the resize filter when shrinking, so that nothing aliases");
    f("random_flip", random_flip, "training: mirror left-right with probability 1/2");
    f("random_rotation", random_rotation, "training: rotate by a uniform angle, zero outside");
    f("zoom_min", zoom_min, "training: smallest magnification");
    f("zoom_max", zoom_max, "training: largest magnification");
    f("taper", taper, "multiply by a blurred disc, so that the edges are dark");
    f("taper_frac_radius_min", taper_frac_radius_min, "smallest radius of the disc [image sides]");
    f("taper_frac_radius_max", taper_frac_radius_max, "largest radius of the disc [image sides]");
    f("taper_gaussian_blur_sigma", taper_gaussian_blur_sigma,
      "blur of the disc, one sigma [pixels]");
    f("constant_flux", constant_flux, "scale every image to the sum total_flux");
    f("total_flux", total_flux, "sum of all pixels of an image, with constant_flux");
    f("uniform_dequantization", uniform_dequantization, "add uniform noise of one grey level");
    f("n_bits", n_bits, "grey levels are 2^n_bits, with uniform_dequantization");
    f("centered", centered, "pixel values in [-1,1] instead of [0,1]");
    f("split_by", split_by, "hash (of the name or index) or range (train, valid, test in order)");
    f("valid_fraction", valid_fraction, "share of the images in the valid split");
    f("test_fraction", test_fraction, "share of the images in the test split");
    f("split_seed", split_seed, "seed of split_by = hash");
    f("cache_mib", cache_mib,
      "memory for resized images [MiB]; the rest is read again when needed");
    f("cache_folder", cache_folder,
      "folder for the resized images of this source, made once and mapped; empty = none");
  }
};

/// ConfigError at the first option out of range.
void check_transforms(const Config& config, const ImageTransformOptions& options);

/// The largest centred square of [C,H,W].
at::Tensor centre_square(const at::Tensor& image);
/// [C,H,W] with C in {1,2,3,4} -> [channels,H,W]; grey = 0.2989 R + 0.587 G + 0.114 B, alpha is
/// dropped.
at::Tensor to_channels(const at::Tensor& image, int64_t channels);
/// Triangle-filter resize of a centred window: [out,in] weights such that out = W in along one
/// axis. The window spans `window` input pixels (zero outside the input); `antialias` widens the
/// triangle to the reduction factor.
at::Tensor resize_weights(int64_t in, int64_t out, double window, bool antialias);
/// [C,H,W] -> [C,size,size], the window spanning the whole input unless given [input pixels].
at::Tensor resize_image(const at::Tensor& image, int64_t size, bool antialias, double window = 0);
/// Indicator of distance <= radius from the centre of a size x size image, convolved with a
/// Gaussian [pixels].
at::Tensor taper_mask(int64_t size, double radius, double sigma);
/// Augmentation and normalisation of images already at their final size: x [n,C,S,S]. `augment`
/// switches flips, rotation and zoom; then the taper radius is drawn per position, else per image
/// index.
at::Tensor transform_batch(at::Tensor x, const ImageTransformOptions& options, bool augment,
                           const std::vector<int64_t>& indices, const Rng& rng);

/// The members of a split, in order: "train", "valid", "test" or "all".
std::vector<int64_t> split_members(const std::vector<std::string>& names,
                                   const ImageTransformOptions& options, const std::string& split);

/// Files below `folder` (recursively) with one of the extensions (lower case, with dot), sorted. A
/// folder with subfolders named as the splits is already divided: then only those of `split` and
/// divided = true. Throws MissingFileError when the folder does not exist, DataError when nothing
/// is found.
struct FileList {
  std::vector<std::filesystem::path> files;
  bool divided = false;
};
FileList list_files(const std::filesystem::path& folder, const std::vector<std::string>& extensions,
                    const std::string& split);

/// What the resized images of a data set depend on: its options but for those of transform_batch(),
/// the splits and the caches, and the name, size and time of change of every file.
std::string file_identity(const std::vector<std::filesystem::path>& files);
bool shapes_stored_pixels(const std::string& option);
template <class Options>
std::string stored_identity(Options options, const std::vector<std::filesystem::path>& files) {
  std::ostringstream s;
  s.precision(17);
  options.fields([&](const char* key, auto& value, const char*) {
    if (shapes_stored_pixels(key)) s << key << '=' << value << '\n';
  });
  return s.str() + file_identity(files);
}

/// A finite set whose images come from `load(member) -> [C,H,W]` float32 at final size, kept in
/// memory up to cache_mib, or in cache_folder under a key made of `identity` and the members.
class StoredImages : public Dataset {
 public:
  ~StoredImages() override;
  Shape image_shape() const override;
  int64_t size() const override { return static_cast<int64_t>(members_.size()); }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string range() const override { return options_.centered ? "centered" : "unit"; }
  std::string describe() const override;

 protected:
  StoredImages(const ImageTransformOptions& options, std::string what, const std::string& split,
               std::vector<int64_t> members, std::function<at::Tensor(int64_t)> load,
               const std::string& identity);

 private:
  at::Tensor image_at(size_t index) const;

  const ImageTransformOptions options_;
  const std::string what_, split_, identity_;
  const std::vector<int64_t> members_;
  const std::function<at::Tensor(int64_t)> load_;
  mutable std::vector<at::Tensor> cache_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<ImageCache> disk_;
  mutable std::once_flag disk_opened_;
};

}  // namespace scoreprior
