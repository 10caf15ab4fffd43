/// image_folder: PNG and TIFF files below a folder, grey or RGB, cropped to a square and resized;
/// integers fill [0,1] (8-bit values / 255), floats are taken as they are. Subfolders train/,
/// valid/, test/ are the splits if they exist; otherwise each file's relative path decides, so that
/// adding files moves none of the old ones.

#include <ATen/ATen.h>

#include <cctype>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/transforms.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/tiff.h"

namespace scoreprior {
namespace {

struct ImageFolderOptions : ImageTransformOptions {
  std::filesystem::path path;
  template <class F>
  void fields(F&& f) {
    f("path", path, "folder of PNG or TIFF files");
    ImageTransformOptions::fields(f);
  }
};

// [C,H,W] in [0,1].
at::Tensor read_picture(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  for (auto& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (extension == ".png") {
    io::Raster raster = io::read_png(path);
    return at::from_blob(raster.data.data(), {raster.height, raster.width, raster.channels},
                         at::kByte)
               .permute({2, 0, 1})
               .to(at::kFloat) /
           255;
  }
  at::Tensor pixels = io::read_tiff(path);
  if (pixels.dim() == 4 || (pixels.dim() == 3 && pixels.size(2) > 4))
    throw DataError(path.string() + ": a TIFF of several pages; one picture a file is expected");
  // uint8, uint16 and uint32 fill [0,1]; floats are taken as they are.
  const double top = pixels.scalar_type() == at::kByte   ? 255.0
                     : pixels.scalar_type() == at::kInt  ? 65535.0
                     : pixels.scalar_type() == at::kLong ? 4294967295.0
                                                         : 1.0;
  pixels = (pixels.to(at::kDouble) / top).to(at::kFloat);
  if (!at::isfinite(pixels).all().item<bool>())
    throw DataError(path.string() + ": a pixel is not finite");
  return pixels.dim() == 2 ? pixels.unsqueeze(0) : pixels.permute({2, 0, 1});
}

at::Tensor load_picture(const std::filesystem::path& path, const ImageTransformOptions& o) {
  return resize_image(to_channels(centre_square(read_picture(path)), o.channels), o.image_size,
                      o.antialias);
}

std::vector<std::string> relative_names(const std::filesystem::path& folder,
                                        const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.lexically_relative(folder).generic_string());
  return names;
}

// A split without images has few files below it; a broken one among them is the first thing to say.
void read_when_empty(const ImageFolderOptions& o, const std::string& split, const FileList& list) {
  constexpr size_t kFew = 16;
  if (list.files.size() > kFew) return;
  if (!split_members(relative_names(o.path, list.files), o, list.divided ? "all" : split).empty())
    return;
  for (const auto& file : list.files) read_picture(file);
}

class ImageFolder final : public StoredImages {
 public:
  ImageFolder(const ImageFolderOptions& o, const std::string& split, const FileList& list)
      : StoredImages(
            o, "pictures in " + o.path.string(), split,
            split_members(relative_names(o.path, list.files), o, list.divided ? "all" : split),
            [files = list.files, o](int64_t i) { return load_picture(files[i], o); },
            stored_identity(o, list.files)) {}
};

}  // namespace

std::unique_ptr<Dataset> make_image_folder(const Config& config, const std::string& split) {
  const auto options = config.read<ImageFolderOptions>();
  check_transforms(config, options);
  if (options.path.empty())
    config.fail("path", "the data set image_folder needs path, a folder of PNG or TIFF files");
  const FileList list = list_files(options.path, {".png", ".tif", ".tiff"}, split);
  read_when_empty(options, split, list);
  return std::make_unique<ImageFolder>(options, split, list);
}

}  // namespace scoreprior
