#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "scoreprior/core/catalog.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {

/// y = A(x), noise-free. x [B,C,H,W]; y [B,M] or [B,out...], real numbers (complex data as real
/// then imaginary parts). Vectors of image-like measurements are flattened (H,W,C) with C fastest.
class ForwardModel {
 public:
  virtual ~ForwardModel() = default;
  virtual Shape input_shape() const = 0;
  virtual Shape output_shape() const = 0;
  /// {C,H,W} when y is an image in measurement order, which another model may look at; else empty.
  virtual Shape output_image() const { return {}; }
  /// Channels of y, its fastest index: numel(output_shape) is a multiple, and entry k belongs to
  /// channel k mod channels. A list of noise levels has one level for each. As they stand the
  /// channels of the image, which most models look at one by one; 1 where y has none.
  virtual int64_t output_channels() const {
    const Shape image = output_image();
    return image.empty() ? input_shape()[0] : image[0];
  }
  virtual bool linear() const = 0;
  /// Differentiable in x.
  virtual at::Tensor apply(const at::Tensor& x) const = 0;
  /// A^T y for linear models, else nullopt.
  virtual std::optional<at::Tensor> adjoint(const at::Tensor& y) const { return std::nullopt; }
  /// A cheap picture of what was measured (zero-filled inverse, dirty image), [B,C,H,W], if there
  /// is one.
  virtual std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const {
    return std::nullopt;
  }
  /// How the noise level a user states becomes the standard deviation of one real entry of y: 1, or
  /// 1/sqrt(2) for complex measurements.
  virtual double noise_scale() const { return 1.0; }
};

/// Reads the array of a file; programs pass io::read_npy, so that this module needs no file
/// formats.
using ArrayReader = std::function<at::Tensor(const std::filesystem::path&)>;

/// Every maker sees the dtype and device the run computes in.
struct ForwardContext {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  ArrayReader read_array = {};  ///< needed by models that name files in their table
  Shape image_shape =
      {};  ///< {C,H,W} of the unknown image; empty: the table's image_size and channels
};

/// The array of the file that `key` names. ConfigError without a reader.
at::Tensor read_array(const Config& config, const std::string& key, const ArrayReader& reader);

/// {C,H,W} from the context, or from the table's `image_size` (square) and `channels`. ConfigError
/// when both are given and differ.
Shape image_shape(const Config& config, const ForwardContext& context, int64_t default_size = 16);

const Catalog<ForwardModel, const ForwardContext&>& forward_models();
Catalog<ForwardModel, const ForwardContext&>& mutable_forward_models();

}  // namespace scoreprior
