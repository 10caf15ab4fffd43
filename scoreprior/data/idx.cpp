/// idx: the MNIST family (MNIST, Fashion-MNIST, KMNIST, EMNIST). `path` is the folder of
/// train-images-idx3-ubyte and t10k-images-idx3-ubyte (also EMNIST's ...-train-images-..., .gz
/// too), or one file of images.

#include <ATen/ATen.h>

#include <algorithm>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/train_test_images.h"
#include "scoreprior/io/idx.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct IdxOptions : ImageTransformOptions {
  fs::path path;
  bool transpose = false;
  template <class F>
  void fields(F&& f) {
    f("path", path, "folder of the image files, or one of them");
    f("transpose", transpose, "exchange rows and columns, as EMNIST needs");
    ImageTransformOptions::fields(f);
  }
};

at::Tensor read_idx_images(const fs::path& path, bool transpose) {
  at::Tensor x = io::read_idx(path);
  if (x.scalar_type() != at::kByte || x.dim() != 3 || x.numel() == 0)
    throw DataError(detail::concat(path.string(), ": expected images [N,H,W] of bytes, got ",
                                   to_string(x.sizes().vec())));
  return (transpose ? x.transpose(1, 2) : x).unsqueeze(1);
}

// The one file of the folder whose name holds one of `words` and "images"; empty when none does.
fs::path find_idx(const fs::path& folder, std::initializer_list<const char*> words) {
  std::vector<fs::path> found;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(folder, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.find("images") == std::string::npos || name.find("idx") == std::string::npos) continue;
    if (std::any_of(words.begin(), words.end(),
                    [&](const char* w) { return name.find(w) != std::string::npos; }))
      found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());  // NAME before NAME.gz, which is the same packed
  if (found.size() > 2 || (found.size() == 2 && found[0].string() + ".gz" != found[1].string()))
    throw DataError("folder " + folder.string() + " holds several sets (" +
                    found[0].filename().string() + ", " + found[1].filename().string() +
                    "); name the file in path");
  return found.empty() ? fs::path() : found[0];
}

}  // namespace

std::unique_ptr<Dataset> make_idx(const Config& config, const std::string& split) {
  const auto o = config.read<IdxOptions>();
  check_transforms(config, o);
  if (o.path.empty()) config.fail("path", "the data set idx needs path, a folder or a file");
  std::error_code ec;
  TrainTestBytes bytes;
  std::vector<fs::path> files;
  if (fs::is_directory(o.path, ec)) {
    const fs::path train = find_idx(o.path, {"train"}), test = find_idx(o.path, {"t10k", "test"});
    if (train.empty() || test.empty())
      throw DataError("folder " + o.path.string() + " lacks " +
                      (train.empty() ? "train-images-idx3-ubyte" : "t10k-images-idx3-ubyte"));
    bytes = {read_idx_images(train, o.transpose), read_idx_images(test, o.transpose)};
    files = {train, test};
  } else {
    bytes.train = read_idx_images(o.path, o.transpose);
    files = {o.path};
  }
  return std::make_unique<TrainTestImages>(o, "images in " + o.path.string(), split, bytes,
                                           stored_identity(o, files));
}

}  // namespace scoreprior
