/// cifar10: the "binary version" of CIFAR-10. `path` is the folder of data_batch_1.bin to
/// data_batch_5.bin and test_batch.bin, or one such file.

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/train_test_images.h"
#include "scoreprior/io/cifar.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct Cifar10Options : ImageTransformOptions {
  fs::path path;
  template <class F>
  void fields(F&& f) {
    f("path", path, "folder of data_batch_1.bin ... test_batch.bin, or one of them");
    ImageTransformOptions::fields(f);
  }
};

}  // namespace

std::unique_ptr<Dataset> make_cifar10(const Config& config, const std::string& split) {
  Cifar10Options defaults;
  defaults.channels = 3;
  const auto o = config.read<Cifar10Options>(defaults);
  check_transforms(config, o);
  if (o.path.empty())
    config.fail("path", "the data set cifar10 needs path, the folder of its .bin files");
  std::error_code ec;
  TrainTestBytes bytes;
  std::vector<fs::path> files;
  if (fs::is_directory(o.path, ec)) {
    std::vector<at::Tensor> parts;
    for (int k = 1; k <= 5; ++k) {
      files.push_back(o.path / ("data_batch_" + std::to_string(k) + ".bin"));
      parts.push_back(io::read_cifar10(files.back()).images);
    }
    bytes.train = at::cat(parts);
    files.push_back(o.path / "test_batch.bin");
    bytes.test = io::read_cifar10(files.back()).images;
  } else {
    files = {o.path};
    bytes.train = io::read_cifar10(o.path).images;
  }
  return std::make_unique<TrainTestImages>(o, "CIFAR-10 in " + o.path.string(), split, bytes,
                                           stored_identity(o, files));
}

}  // namespace scoreprior
