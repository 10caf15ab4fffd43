#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// A trained score model on disk: one .safetensors file whose `__metadata__` entry "scoreprior" is
/// TOML with the tables [net], [sde], [images] (shape, range, fov_uas) and [record] (how it was
/// trained). A weight file of another program has weights only: `described` is then false.
struct ModelFile {
  std::map<std::string, at::Tensor>
      weights;  ///< parameters (moving average) and buffers, by clear name
  bool described = false;
  Config net, sde, record;
  Shape image_shape;           ///< {C,H,W}
  std::string range = "unit";  ///< "unit" [0,1] or "centered" [-1,1]
  double fov_uas = 0;          ///< width of the images on the sky [micro-arcsec]; 0 = not known
};

/// Throws MissingFileError, DataError (truncated or damaged file, metadata that cannot be read).
ModelFile read_model_file(const std::filesystem::path& path);
/// Written whole or not at all.
void write_model_file(const std::filesystem::path& path, const ModelFile& model);

/// Throws DataError in one sentence unless images of this shape and range are what the model was
/// made for. "" matches any range.
void check_model_images(const std::string& model, const Shape& model_shape,
                        const std::string& model_range, const Shape& shape,
                        const std::string& range);

}  // namespace scoreprior
