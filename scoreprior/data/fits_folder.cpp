/// fits_folder: FITS sky images below a folder, row 0 north, column 0 east. A field of view may be
/// cut out (or padded with darkness), so that files of different pixel sizes show the same angles.
/// Negative pixels become 0; each image is then divided by its peak, or scaled to a constant flux.

#include <ATen/ATen.h>

#include "scoreprior/data/transforms.h"
#include "scoreprior/io/fits_image.h"

namespace scoreprior {
namespace {

struct FitsFolderOptions : ImageTransformOptions {
  std::filesystem::path path;
  double fov_uas = 0;
  template <class F>
  void fields(F&& f) {
    f("path", path, "folder of FITS images");
    f("fov_uas", fov_uas, "field of view [micro-arcseconds]; 0 = the whole of each file");
    ImageTransformOptions::fields(f);
  }
};

constexpr double kUasPerRadian = 180.0 * 3600.0 * 1e6 / 3.14159265358979323846;

at::Tensor load_fits_image(const std::filesystem::path& path, const FitsFolderOptions& o) {
  const io::SkyImage sky = io::read_fits_image(path);
  if (o.fov_uas > 0 && !(sky.pixel_size_rad > 0))
    throw DataError(path.string() + ": no pixel size, so a field of view cannot be cut out");
  at::Tensor image = centre_square(sky.pixels.clamp_min(0).unsqueeze(0));
  const double window = o.fov_uas > 0 ? o.fov_uas / (sky.pixel_size_rad * kUasPerRadian) : 0;
  image = resize_image(image, o.image_size, o.antialias, window);
  const double peak = image.max().item<double>();
  if (!(peak > 0)) throw DataError(path.string() + ": no positive pixel in the field of view");
  return to_channels((image / peak).to(at::kFloat), o.channels);
}

class FitsFolder final : public StoredImages {
 public:
  FitsFolder(const FitsFolderOptions& o, const std::string& split, const FileList& list,
             std::vector<int64_t> members)
      : StoredImages(
            o, "FITS images in " + o.path.string(), split, std::move(members),
            [files = list.files, o](int64_t i) { return load_fits_image(files[i], o); },
            stored_identity(o, list.files)) {}
};

}  // namespace

std::unique_ptr<Dataset> make_fits_folder(const Config& config, const std::string& split) {
  const auto options = config.read<FitsFolderOptions>();
  check_transforms(config, options);
  if (options.fov_uas < 0) config.fail("fov_uas", "fov_uas must be at least 0");
  if (options.path.empty())
    config.fail("path", "the data set fits_folder needs path, a folder of FITS images");
  const FileList list = list_files(options.path, {".fits", ".fit"}, split);
  std::vector<std::string> names;
  for (const auto& file : list.files)
    names.push_back(file.lexically_relative(options.path).generic_string());
  return std::make_unique<FitsFolder>(options, split, list,
                                      split_members(names, options, list.divided ? "all" : split));
}

}  // namespace scoreprior
