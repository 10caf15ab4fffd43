#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "scoreprior/data/transforms.h"

namespace scoreprior {

/// Bytes of a set whose test images are a file of their own: [N,C,H,W] uint8, divided by 255.
/// "test" is that file and "valid" a part of the other; when `test` is undefined, all splits are
/// parts of `train`.
struct TrainTestBytes {
  at::Tensor train, test;
};

class TrainTestImages final : public StoredImages {
 public:
  TrainTestImages(const ImageTransformOptions& options, const std::string& what,
                  const std::string& split, const TrainTestBytes& bytes,
                  const std::string& identity);
};

}  // namespace scoreprior
