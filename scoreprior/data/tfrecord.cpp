/// tfrecord: TFRecord files of tf.train.Example with the features `image` (or `data`) and `shape`
/// [H,W], [H,W,C] or [C,H,W]: floats, bytes (divided by 255) or the bytes of float32 (the GRMHD,
/// Sgr A*, fastMRI and CelebA-HQ sets of [Feng23]). Files whose names say train, val or test
/// are these splits; otherwise each record is put into one by its name.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/transforms.h"
#include "scoreprior/io/tfrecord.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct TfrecordOptions : ImageTransformOptions {
  fs::path path;
  std::string feature = "auto";
  std::string layout = "auto";
  double scale = 1;
  template <class F>
  void fields(F&& f) {
    f("path", path, "a TFRecord file, or a folder of *.tfrecord*, packed by GZIP or not");
    f("feature", feature, "name of the pixels; auto = image or data");
    f("layout", layout, "auto, hwc or chw, of shapes with three numbers");
    f("scale", scale, "factor on pixels that are not bytes");
    ImageTransformOptions::fields(f);
  }
};

struct TfrecordSet {
  std::vector<io::TfrecordFile> files;
  std::vector<std::string> file_names, names;
  std::vector<std::pair<size_t, int64_t>> where;
};

// [C,H,W] float32.
at::Tensor decode_example(const io::Example& example, const TfrecordOptions& o,
                          const std::string& name) {
  const auto fail = [&](const std::string& what) -> void { throw DataError(name + " " + what); };
  const auto has = [&](const char* key) { return example.count(key) > 0; };
  const std::string key = o.feature != "auto" ? o.feature : has("image") ? "image" : "data";
  const auto found = example.find(key);
  if (found == example.end()) {
    std::string names;
    for (const auto& [k, v] : example) names += (names.empty() ? "" : ", ") + k;
    fail("has no feature \"" + key + "\" (it has " + names + ")");
  }
  const io::ExampleFeature& pixels = found->second;
  const std::string raw = pixels.bytes.size() == 1 ? pixels.bytes[0] : "";
  if (pixels.floats.empty() && raw.empty()) fail("has no pixels");
  Shape shape;
  if (has("shape")) shape = example.at("shape").ints;
  if (shape.empty()) {
    const double side = std::sqrt(static_cast<double>(std::max(pixels.floats.size(), raw.size())));
    if (side != std::floor(side)) fail("has no shape and its pixels are no square");
    shape = {static_cast<int64_t>(side), static_cast<int64_t>(side)};
  }
  uint64_t count = 1;
  for (const int64_t d : shape) {
    if (d < 1 || d > (1 << 20) || count > (uint64_t{1} << 40)) fail("has an impossible shape");
    count *= static_cast<uint64_t>(d);
  }
  if (shape.size() != 2 && shape.size() != 3)
    fail("has the shape " + to_string(shape) + ", expected two or three numbers");
  at::Tensor x;
  if (pixels.floats.size() == count) {
    x = at::from_blob(const_cast<float*>(pixels.floats.data()), shape, at::kFloat) * o.scale;
  } else if (raw.size() == count) {
    x = at::from_blob(const_cast<char*>(raw.data()), shape, at::kByte).to(at::kFloat) / 255;
  } else if (raw.size() == 4 * count) {
    x = at::empty(shape, at::kFloat);
    std::memcpy(x.data_ptr(), raw.data(), raw.size());
    x = x * o.scale;
  } else {
    fail("has " + std::to_string(std::max(pixels.floats.size(), raw.size())) +
         " pixels, its shape is " + to_string(shape));
  }
  if (!at::isfinite(x).all().item<bool>()) fail("has a pixel that is not finite");
  if (shape.size() == 2) return x.unsqueeze(0);
  const bool last = o.layout == "hwc" || (o.layout == "auto" && shape[2] <= 4);
  x = last ? x.permute({2, 0, 1}) : x;
  if (x.size(0) > 4) fail("has the shape " + to_string(shape) + "; give its layout");
  return x;
}

at::Tensor load_example(const TfrecordSet& set, int64_t i, const TfrecordOptions& o) {
  const auto [file, record] = set.where[static_cast<size_t>(i)];
  const std::string name = set.file_names[file] + ": record " + std::to_string(record);
  const at::Tensor x = decode_example(set.files[file].example(record), o, name);
  return resize_image(to_channels(centre_square(x), o.channels), o.image_size, o.antialias);
}

class Tfrecord final : public StoredImages {
 public:
  Tfrecord(const TfrecordOptions& o, const std::string& split, std::vector<int64_t> members,
           std::shared_ptr<const TfrecordSet> set, const std::vector<fs::path>& files)
      : StoredImages(
            o, "TFRecords in " + o.path.string(), split, std::move(members),
            [set, o](int64_t i) { return load_example(*set, i, o); }, stored_identity(o, files)) {}
};

// The split that a file's name tells, or "".
std::string split_in_name(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const char* split : {"train", "valid", "test"}) {
    const std::string word = std::string(split) == "valid" ? "val" : split;
    for (const char before : {'-', '_', '.'})
      if (name.find(before + word) != std::string::npos) return split;
    if (name.rfind(word, 0) == 0) return split;
  }
  return "";
}

}  // namespace

std::unique_ptr<Dataset> make_tfrecord(const Config& config, const std::string& split) {
  const auto o = config.read<TfrecordOptions>();
  check_transforms(config, o);
  config.one_of("layout", "auto", {"auto", "hwc", "chw"});
  if (o.path.empty())
    config.fail("path", "the data set tfrecord needs path, a TFRecord file or a folder of them");
  std::error_code ec;
  std::vector<fs::path> files;
  bool divided = false;
  if (fs::is_directory(o.path, ec)) {
    std::vector<fs::path> all;
    for (const auto& entry : fs::recursive_directory_iterator(o.path, ec))
      if (entry.is_regular_file(ec) &&
          entry.path().filename().string().find(".tfrecord") != std::string::npos)
        all.push_back(entry.path());
    if (all.empty()) throw DataError("folder " + o.path.string() + " holds no .tfrecord file");
    std::sort(all.begin(), all.end());
    for (const auto& f : all) divided = divided || !split_in_name(f).empty();
    for (const auto& f : all)
      if (!divided || split == "all" || split_in_name(f) == split) files.push_back(f);
    if (files.empty())
      throw DataError("folder " + o.path.string() + " holds no TFRecord file of the " + split +
                      " split (its files name the others)");
  } else {
    files = {o.path};
  }
  auto set = std::make_shared<TfrecordSet>();
  for (const auto& f : files) {
    set->files.emplace_back(f);
    set->file_names.push_back(f.string());
    for (int64_t i = 0; i < set->files.back().size(); ++i) {
      set->where.emplace_back(set->files.size() - 1, i);
      set->names.push_back(f.filename().string() + ":" + std::to_string(i));
    }
  }
  auto members = split_members(set->names, o, divided ? "all" : split);
  return std::make_unique<Tfrecord>(o, split, std::move(members), std::move(set), files);
}

}  // namespace scoreprior
