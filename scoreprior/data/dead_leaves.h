#pragma once
/// Colour dead leaves [Lee01]: discs of every size that hide one another, the simplest random
/// pictures with the statistics of natural images. Seeded and infinite.
///
///   shape     leaves fall from the front until nothing shows through; centres uniform, radii with
///             density r^-3 on [min_radius, max_radius], which makes the scene scale invariant:
///             power spectrum close to 1/f^2 (amplitude 1/f), edges and flat parts as in
///             photographs
///   colour    logit(RGB) = m + M (l, a, b), M the orthonormal opponent axes (1,1,1)/sqrt 3,
///             (1,1,-2)/sqrt 6, (1,-1,0)/sqrt 2: lightness, yellow-blue and red-green, whose spread
///             falls in this order in nature [Ruderman98]. An image has a mean colour
///             m ~ N(0, (0.5, 0.25, 0.12)^2) and 3 to 6 paints ~ N(0, (1.7, 0.5, 0.25)^2) times its
///             contrast exp(N(0, 0.25^2)); a leaf takes a paint and jitters it by
///             N(0, (0.45, 0.12, 0.08)^2)
///   shading   lightness += g (d . (p - c)) / r, g ~ 0.4 |N(0,1)|, d within 0.6 rad (one sd) of the
///             image's light
///   texture   lightness += s T(p + shift), s = 0.35 u^2, T a unit Gaussian field of spectrum
///             (k^2 + 16)^(-3/2) on a periodic tile of 64 x 64 pixels
///   pixels    means over 4 x 4 points a pixel (area sampling), in (0,1)

#include <cstdint>
#include <string>
#include <vector>

#include "scoreprior/data/dataset.h"

namespace scoreprior {

struct DeadLeavesOptions {
  int64_t image_size = 32;
  double min_radius = 0.75, max_radius = 24;
  double shading = 1, texture = 1;
  uint64_t seed = 0;
  template <class F>
  void fields(F&& f) {
    f("image_size", image_size, "side of the square image [pixels]");
    f("min_radius", min_radius, "smallest radius of a leaf [pixels], at least 0.25");
    f("max_radius", max_radius, "largest radius of a leaf [pixels]");
    f("shading", shading, "factor on the brightness gradients within leaves");
    f("texture", texture, "factor on the texture within leaves");
    f("seed", seed, "the family's seed: image `index` of a split never changes under it");
  }
};

class DeadLeaves final : public Dataset {
 public:
  /// std::invalid_argument for options out of range.
  DeadLeaves(const DeadLeavesOptions& options, const std::string& split);

  Shape image_shape() const override { return {3, options_.image_size, options_.image_size}; }
  int64_t size() const override { return 0; }
  at::Tensor batch(const std::vector<int64_t>& indices, const Rng& rng) const override;
  std::string describe() const override;

 private:
  void render(int64_t index, float* image) const;

  DeadLeavesOptions options_;
  std::string split_;
  Rng rng_;
  std::vector<float> tile_;  // the texture, one value per sampling point
};

}  // namespace scoreprior
