#pragma once
/// Random medical phantoms: ellipses in an elliptic body with smooth texture, after the head
/// phantom of [Shepp74]. Seeded and infinite; the same picture at every size.
///
///   body     an ellipse of semi-axes 0.62 to 0.92 (1 = half the image), any orientation up to 25
///            degrees, at most 0.06 off the centre; a shell of 5 to 13 % of the axes
///   organs   4 to 12 ellipses inside the shell, painted over one another; sizes log-uniform
///   mri      shell: bright fat over dark bone; tissue 0.3 to 0.7, organs 0.1 to 0.95, paired
///            ventricles of one value in half of the images; all times exp(bias), a coil's smooth
///            quadratic in position of at most about 30 %
///   ct       shell: bright bone; tissue about 0.4 (0.5 = fat to muscle window), organs within
///            +-0.12 of it, up to two air cavities (0 to 0.06) and up to three bones (0.75 to 1)
///   texture  every region is times 1 + s T(p + shift), s = 0.09 u (mri) or 0.04 u (ct), T a unit
///            Gaussian field of spectrum (k^2 + 4)^-2
///   pixels   means over 4 x 4 points a pixel, clamped to [0,1]; 0 outside the body

#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

struct PhantomOptions {
  int64_t image_size = 32;
  std::string modality = "mixed";
  double texture = 1;
  uint64_t seed = 0;
  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("modality", modality, "mri | ct | mixed (half of each)");
    f("texture", texture,
      "factor on the texture of all regions (0 = piecewise constant, times bias)");
    f("seed", seed, "the family's seed: image `index` of a split never changes under it");
  }
};

class Phantom final : public Dataset {
 public:
  /// std::invalid_argument for options out of range.
  Phantom(const PhantomOptions& options, const std::string& split);

  Shape image_shape() const override { return {1, options_.image_size, options_.image_size}; }
  int64_t size() const override { return 0; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string describe() const override;

 private:
  void render(int64_t index, float* image) const;

  PhantomOptions options_;
  std::string split_;
  Rng rng_;
  std::vector<float> tile_;  // one period of the texture
};

}  // namespace scoreprior
