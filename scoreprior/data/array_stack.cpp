/// array_stack: images in one .npy, .npz, .mat, .h5 file or a folder of such files, [N,H,W],
/// [N,C,H,W] or [N,H,W,C]. Bytes are divided by 255, other numbers are multiplied by `scale` or
/// each image by its peak. HDF5 files are read a few images at a time; of a folder, all images of
/// a file fall into one split, so that neighbouring slices of a volume never do into two.

#include <ATen/ATen.h>

#include <deque>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/transforms.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct ArrayStackOptions : ImageTransformOptions {
  fs::path path;
  std::string array;
  std::string layout = "auto";
  double scale = 1;
  bool normalize = false;
  template <class F>
  void fields(F&& f) {
    f("path", path, ".npy, .npz, .mat or .h5 file of images, or a folder of them");
    f("array", array, "name inside the file; may be left out when there is only one");
    f("layout", layout, "auto, nhw, nchw or nhwc");
    f("scale", scale, "factor on pixels that are not bytes");
    f("normalize", normalize, "divide every image by its largest absolute pixel instead");
    ImageTransformOptions::fields(f);
  }
};

// The images of one file: all in memory, or a few blocks of an HDF5 data set.
class StackFile {
 public:
  StackFile(const fs::path& path, const std::string& array) : path_(path) {
    const std::string extension = path.extension().string();
    if (extension == ".h5" || extension == ".hdf5") {
      const auto listed = io::list_hdf5(path);
      std::map<std::string, io::Hdf5Array> stacks;
      for (const auto& [name, a] : listed)
        if (a.shape.size() == 3 || a.shape.size() == 4 || (name == array && a.type != "text"))
          stacks.insert({name, a});
      name_ = pick(stacks, array);
      const io::Hdf5Array& a = stacks.at(name_);
      shape_ = a.shape;
      complex_ = a.type.find("complex") != std::string::npos;
      int64_t image = 8;
      for (size_t k = 1; k < shape_.size(); ++k) image *= std::max<int64_t>(shape_[k], 1);
      block_ = std::max<int64_t>(1, (int64_t{16} << 20) / image);
      return;
    }
    if (extension == ".npy") {
      whole_ = io::read_npy(path);
    } else {
      const io::Arrays arrays = extension == ".mat" ? io::read_mat(path) : io::read_npz(path);
      whole_ = arrays.at(pick(arrays, array));
    }
    shape_ = whole_.sizes().vec();
    complex_ = whole_.is_complex();
    if (whole_.is_floating_point() && !at::isfinite(whole_).all().item<bool>())
      throw DataError(path.string() + ": a pixel is not finite");
  }

  const Shape& shape() const { return shape_; }
  bool is_complex() const { return complex_; }
  const fs::path& path() const { return path_; }

  at::Tensor row(int64_t i) const {
    if (whole_.defined()) return whole_[i];
    const int64_t first = i / block_ * block_;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [at, rows] : recent_)
        if (at == first) return rows[i - first];
    }
    const at::Tensor rows =
        io::read_hdf5_rows(path_, name_, first, std::min(block_, shape_[0] - first));
    const std::lock_guard<std::mutex> lock(mutex_);
    recent_.emplace_back(first, rows);
    if (recent_.size() > kBlocks) recent_.pop_front();
    return rows[i - first];
  }

 private:
  static constexpr size_t kBlocks = 4;

  template <class Map>
  std::string pick(const Map& arrays, const std::string& array) const {
    if (array.empty() && arrays.size() == 1) return arrays.begin()->first;
    if (!array.empty() && arrays.count(array)) return array;
    std::string names;
    for (const auto& [name, value] : arrays) names += (names.empty() ? "" : ", ") + name;
    throw DataError(
        path_.string() + ": " +
        (array.empty() ? "several arrays, name one by array = ..." : "no array \"" + array + "\"") +
        " (it holds " + (names.empty() ? "none of images" : names) + ")");
  }

  fs::path path_;
  std::string name_;
  at::Tensor whole_;
  Shape shape_;
  bool complex_ = false;
  int64_t block_ = 1;
  mutable std::deque<std::pair<int64_t, at::Tensor>> recent_;
  mutable std::mutex mutex_;
};

// nhw, nchw or nhwc.
std::string stack_layout(const Shape& shape, const std::string& wanted, const fs::path& path) {
  const auto channel_like = [](int64_t n) { return n >= 1 && n <= 4; };
  std::string layout = wanted;
  if (layout == "auto") {
    if (shape.size() == 3)
      layout = "nhw";
    else if (shape.size() == 4 && channel_like(shape[1]) != channel_like(shape[3]))
      layout = channel_like(shape[1]) ? "nchw" : "nhwc";
  }
  const bool fits = (layout == "nhw" && shape.size() == 3) ||
                    (layout == "nchw" && shape.size() == 4 && channel_like(shape[1])) ||
                    (layout == "nhwc" && shape.size() == 4 && channel_like(shape[3]));
  if (!fits || std::find(shape.begin(), shape.end(), 0) != shape.end())
    throw DataError(detail::concat(path.string(),
                                   ": expected images [N,H,W], [N,C,H,W] or [N,H,W,C], got ",
                                   to_string(shape), wanted == "auto" ? "; give its layout" : ""));
  return layout;
}

struct Stack {
  std::vector<std::unique_ptr<StackFile>> files;
  std::vector<std::string> layouts, names;        // names: one an image, what the split hashes
  std::vector<std::pair<size_t, int64_t>> where;  // file and row of an image
};

at::Tensor load_stack_image(const Stack& stack, int64_t i, const ArrayStackOptions& o) {
  const auto [file, row] = stack.where[static_cast<size_t>(i)];
  at::Tensor image = stack.files[file]->row(row);
  const bool bytes = image.scalar_type() == at::kByte;
  const std::string& layout = stack.layouts[file];
  image = layout == "nhw"    ? image.unsqueeze(0)
          : layout == "nchw" ? image
                             : image.permute({2, 0, 1});
  image = centre_square(image.to(at::kFloat));
  double factor = bytes ? 1 / 255.0 : o.scale;
  if (o.normalize) {
    const double peak = image.abs().max().item<double>();
    factor = peak > 0 ? 1 / peak : 1;
  }
  image = image * factor;
  if (!at::isfinite(image).all().item<bool>())
    throw DataError(stack.files[file]->path().string() + ": image " + std::to_string(row) +
                    ": a pixel is not finite");
  return resize_image(to_channels(image, o.channels), o.image_size, o.antialias);
}

class ArrayStack final : public StoredImages {
 public:
  ArrayStack(const ArrayStackOptions& o, const std::string& split, std::vector<int64_t> members,
             std::shared_ptr<const Stack> stack, const std::vector<fs::path>& files)
      : StoredImages(
            o, "images in " + o.path.string(), split, std::move(members),
            [stack, o](int64_t i) { return load_stack_image(*stack, i, o); },
            stored_identity(o, files)) {}
};

}  // namespace

std::unique_ptr<Dataset> make_array_stack(const Config& config, const std::string& split) {
  const auto options = config.read<ArrayStackOptions>();
  check_transforms(config, options);
  config.one_of("layout", "auto", {"auto", "nhw", "nchw", "nhwc"});
  if (options.path.empty())
    config.fail("path", "the data set array_stack needs path, a .npy, .npz, .mat or .h5 file");
  std::error_code ec;
  const bool folder = fs::is_directory(options.path, ec);
  FileList list;
  if (folder)
    list = list_files(options.path, {".h5", ".hdf5", ".npy", ".npz", ".mat"}, split);
  else
    list.files = {options.path};
  auto stack = std::make_shared<Stack>();
  for (const auto& path : list.files) {
    auto file = std::make_unique<StackFile>(path, options.array);
    if (file->is_complex()) throw DataError(path.string() + ": complex pixels");
    stack->layouts.push_back(stack_layout(file->shape(), options.layout, path));
    for (int64_t i = 0; i < file->shape()[0]; ++i) {
      stack->where.emplace_back(stack->files.size(), i);
      stack->names.push_back(folder ? path.lexically_relative(options.path).generic_string()
                                    : std::to_string(i));
    }
    stack->files.push_back(std::move(file));
  }
  auto members = split_members(stack->names, options, list.divided ? "all" : split);
  return std::make_unique<ArrayStack>(options, split, std::move(members), std::move(stack),
                                      list.files);
}

}  // namespace scoreprior
