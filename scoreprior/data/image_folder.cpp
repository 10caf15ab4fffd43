/// image_folder: PNG files below a folder, grey or RGB, cropped to a square and resized; 8-bit
/// values / 255. Subfolders train/, valid/, test/ are the splits if they exist; otherwise each
/// file's relative path decides, so that adding files moves none of the old ones.

#include <ATen/ATen.h>

#include "scoreprior/data/transforms.h"
#include "scoreprior/io/png.h"

namespace scoreprior {
namespace {

struct ImageFolderOptions : ImageTransformOptions {
  std::filesystem::path path;
  template <class F>
  void fields(F&& f) {
    f("path", path, "folder of PNG files");
    ImageTransformOptions::fields(f);
  }
};

at::Tensor load_png_image(const std::filesystem::path& path, const ImageTransformOptions& o) {
  io::Raster raster = io::read_png(path);
  const at::Tensor pixels =
      at::from_blob(raster.data.data(), {raster.height, raster.width, raster.channels}, at::kByte)
          .permute({2, 0, 1})
          .to(at::kFloat) /
      255;
  return resize_image(to_channels(centre_square(pixels), o.channels), o.image_size, o.antialias);
}

std::vector<std::string> relative_names(const std::filesystem::path& folder,
                                        const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.lexically_relative(folder).generic_string());
  return names;
}

class ImageFolder final : public StoredImages {
 public:
  ImageFolder(const ImageFolderOptions& o, const std::string& split, const FileList& list)
      : StoredImages(
            o, "PNG files in " + o.path.string(), split,
            split_members(relative_names(o.path, list.files), o, list.divided ? "all" : split),
            [files = list.files, o](int64_t i) { return load_png_image(files[i], o); }) {}
};

}  // namespace

std::unique_ptr<Dataset> make_image_folder(const Config& config, const std::string& split) {
  const auto options = config.read<ImageFolderOptions>();
  check_transforms(config, options);
  if (options.path.empty())
    config.fail("path", "the data set image_folder needs path, a folder of PNG files");
  return std::make_unique<ImageFolder>(options, split, list_files(options.path, {".png"}, split));
}

}  // namespace scoreprior
