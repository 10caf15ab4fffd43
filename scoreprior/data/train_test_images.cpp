#include "scoreprior/data/train_test_images.h"

#include <ATen/ATen.h>

namespace scoreprior {
namespace {

// Members count the training images first, then the test images.
std::vector<int64_t> train_test_members(const TrainTestBytes& b, ImageTransformOptions o,
                                        const std::string& split) {
  const int64_t train = b.train.defined() ? b.train.size(0) : 0;
  const int64_t test = b.test.defined() ? b.test.size(0) : 0;
  std::vector<int64_t> members;
  if (split != "test" || test == 0) {
    if (test > 0) o.test_fraction = 0;
    std::vector<std::string> names;
    for (int64_t i = 0; i < train; ++i) names.push_back(std::to_string(i));
    members = split_members(names, o, split);
  }
  if (split == "test" || split == "all")
    for (int64_t i = 0; i < test; ++i) members.push_back(train + i);
  return members;
}

}  // namespace

TrainTestImages::TrainTestImages(const ImageTransformOptions& o, const std::string& what,
                                 const std::string& split, const TrainTestBytes& bytes,
                                 const std::string& identity)
    : StoredImages(
          o, what, split, train_test_members(bytes, o, split),
          [bytes, o](int64_t i) {
            const int64_t train = bytes.train.defined() ? bytes.train.size(0) : 0;
            const at::Tensor raw = i < train ? bytes.train[i] : bytes.test[i - train];
            return resize_image(to_channels(centre_square(raw.to(at::kFloat) / 255), o.channels),
                                o.image_size, o.antialias);
          },
          identity) {}

}  // namespace scoreprior
