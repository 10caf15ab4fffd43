#include "scoreprior/data/transforms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace scoreprior {
namespace {

TEST(Resize, KeepsConstantsAndMeans) {
  const at::Tensor flat = at::full({2, 13, 29}, 0.7, at::kDouble);
  for (const bool antialias : {true, false})
    EXPECT_LT((resize_image(flat, 8, antialias) - 0.7).abs().max().item<double>(), 1e-14);
  // A ramp stays a ramp away from the edges: the triangle is symmetric.
  const at::Tensor ramp = at::arange(64, at::kDouble).view({1, 1, 64}).expand({1, 64, 64});
  const at::Tensor small = resize_image(ramp, 16, true)[0][8];
  for (int64_t i = 2; i < 14; ++i) EXPECT_NEAR(small[i].item<double>(), 4 * i + 1.5, 1e-12);
}

TEST(Resize, AntialiasingRemovesWhatTheGridCannotCarry) {
  const at::Tensor checkers =
      (at::arange(64, at::kLong).unsqueeze(0) + at::arange(64, at::kLong).unsqueeze(1))
          .remainder(2)
          .to(at::kDouble);
  const at::Tensor good =
      resize_image(checkers.unsqueeze(0), 16, true).slice(1, 1, 15).slice(2, 1, 15);
  EXPECT_LT((good - 0.5).abs().max().item<double>(), 0.01);
}

TEST(Resize, EnlargingInterpolatesLinearly) {
  const at::Tensor w =
      resize_weights(2, 4, 2, true);  // half-pixel centres at -0.25, 0.25, 0.75, 1.25
  const at::Tensor expected =
      at::tensor({1.0, 0.0, 0.75, 0.25, 0.25, 0.75, 0.0, 1.0}, at::kDouble).view({4, 2});
  EXPECT_LT((w - expected).abs().max().item<double>(), 1e-14);
}

TEST(Resize, AWiderWindowIsPaddedWithDarknessAndANarrowerOneCrops) {
  const at::Tensor x = at::ones({1, 8, 8}, at::kDouble);
  const at::Tensor wide = resize_image(x, 16, true, 16)[0];
  EXPECT_NEAR(wide.sum().item<double>(), 64, 1e-12);
  EXPECT_EQ(wide[0][0].item<double>(), 0);
  const at::Tensor ramp = at::arange(8, at::kDouble).view({1, 1, 8}).expand({1, 8, 8});
  const at::Tensor middle = resize_image(ramp, 4, true, 4)[0][0];
  for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(middle[i].item<double>(), i + 2.0, 1e-12);
}

TEST(Channels, GreyIsTheUsualLuma) {
  const at::Tensor rgb = at::tensor({1.0, 0.5, 0.25}, at::kDouble).view({3, 1, 1});
  EXPECT_NEAR(to_channels(rgb, 1).item<double>(), 0.2989 + 0.2935 + 0.0285, 1e-12);
  EXPECT_EQ(to_channels(at::ones({4, 2, 2}), 3).size(0), 3);
  EXPECT_EQ(to_channels(at::ones({1, 2, 2}), 3).size(0), 3);
  EXPECT_EQ(centre_square(at::ones({3, 4, 9})).sizes(), (at::IntArrayRef{3, 4, 4}));
}

TEST(Taper, IsABlurredDisc) {
  const at::Tensor mask = taper_mask(64, 20, 2).to(at::kDouble);
  EXPECT_NEAR(mask[32][32].item<double>(), 1, 1e-6);
  EXPECT_NEAR(mask[0][0].item<double>(), 0, 1e-6);
  // Blurring keeps the number of disc pixels, pi r^2 to lattice-point error.
  EXPECT_NEAR(mask.sum().item<double>(), M_PI * 400, 12);
  // Half-way at the rim, less sigma / (2 r) sqrt(1/2pi) of curvature and half a pixel of lattice.
  EXPECT_NEAR(mask[32][51].item<double>(), 0.5, 0.12);
  EXPECT_TRUE(at::equal(taper_mask(8, 100, 2).round(), at::ones({8, 8})));
  EXPECT_TRUE(at::equal(mask, mask.t()));
}

TEST(Transform, FlipsRotationsAndZoomsAreKeyedByPosition) {
  ImageTransformOptions o;
  o.random_flip = o.random_rotation = true;
  o.zoom_min = 0.8;
  o.zoom_max = 1.3;
  o.taper = true;
  o.uniform_dequantization = true;
  const at::Tensor x = Rng(1).uniform({6, 1, 32, 32});
  const Rng rng(3);
  const at::Tensor all = transform_batch(x, o, true, {0, 1, 2, 3, 4, 5}, rng);
  const at::Tensor tail = transform_batch(x.slice(0, 4, 6), o, true, {4, 5}, rng.from_row(4));
  EXPECT_TRUE(at::equal(all.slice(0, 4, 6), tail));
  EXPECT_FALSE(at::equal(all, transform_batch(x, o, true, {0, 1, 2, 3, 4, 5}, Rng(4))));
}

TEST(Transform, HalfOfTheImagesAreMirrored) {
  ImageTransformOptions o;
  o.random_flip = true;
  const at::Tensor x = at::arange(16, at::kFloat).view({1, 1, 4, 4}).expand({400, 1, 4, 4});
  const at::Tensor y = transform_batch(x, o, true, std::vector<int64_t>(400, 0), Rng(2));
  int64_t mirrored = 0;
  for (int64_t i = 0; i < 400; ++i) {
    const bool flipped = at::equal(y[i], x[i].flip({2}));
    mirrored += flipped;
    EXPECT_TRUE(flipped || at::equal(y[i], x[i]));
  }
  EXPECT_NEAR(mirrored, 200, 4 * 10);  // 4 sigma of a binomial
}

TEST(Transform, RotationTurnsAboutTheMiddle) {
  ImageTransformOptions o;
  o.random_rotation = true;
  const at::Tensor axis = (at::arange(33, at::kFloat) - 16).square();
  const at::Tensor round =
      at::exp(-(axis.unsqueeze(0) + axis.unsqueeze(1)) / 50).view({1, 1, 33, 33});
  const at::Tensor y =
      transform_batch(round.expand({5, 1, 33, 33}), o, true, {0, 1, 2, 3, 4}, Rng(7));
  EXPECT_LT((y - round).abs().max().item<double>(),
            0.012);  // bilinear: curvature / 8 = 1/200 twice
}

TEST(Transform, EvaluationIsTheSameEveryTime) {
  ImageTransformOptions o;
  o.random_flip = o.random_rotation = o.taper = true;
  const at::Tensor x = Rng(1).uniform({3, 1, 16, 16});
  EXPECT_TRUE(at::equal(transform_batch(x, o, false, {5, 6, 7}, Rng(1)),
                        transform_batch(x, o, false, {5, 6, 7}, Rng(2))));
  o.taper = false;
  EXPECT_TRUE(at::equal(transform_batch(x, o, false, {5, 6, 7}, Rng(1)), x));
}

TEST(Transform, FluxDequantizationAndCentring) {
  ImageTransformOptions o;
  o.constant_flux = true;
  o.total_flux = 50;
  at::Tensor x = Rng(1).uniform({3, 1, 16, 16});
  x[2].zero_();
  const at::Tensor y = transform_batch(x, o, true, {0, 1, 2}, Rng(2));
  EXPECT_NEAR(y[0].sum().item<double>(), 50, 1e-3);
  EXPECT_NEAR(y[1].sum().item<double>(), 50, 1e-3);
  EXPECT_EQ(y[2].sum().item<double>(), 0);

  ImageTransformOptions q;
  q.uniform_dequantization = true;
  const at::Tensor grey = (at::arange(256, at::kFloat) / 255).view({1, 1, 16, 16});
  const at::Tensor noisy = transform_batch(grey, q, true, {0}, Rng(2)) * 256;
  EXPECT_LT((noisy.flatten() - at::arange(256, at::kFloat) - 0.5).abs().max().item<double>(),
            0.5 + 1e-4);
  q.n_bits = 3;
  const at::Tensor eight = (transform_batch(grey, q, true, {0}, Rng(2)) * 8).floor().flatten();
  EXPECT_EQ(eight[31].item<double>(), 0);
  EXPECT_EQ(eight[33].item<double>(), 1);
  EXPECT_EQ(eight[255].item<double>(), 7);

  ImageTransformOptions c;
  c.centered = true;
  EXPECT_LT(
      (transform_batch(grey, c, true, {0}, Rng(2)) - (2 * grey - 1)).abs().max().item<double>(),
      1e-6);
}

TEST(Split, PartsAreDisjointWholeAndStable) {
  std::vector<std::string> names;
  for (int i = 0; i < 2000; ++i) names.push_back("image_" + std::to_string(i) + ".png");
  ImageTransformOptions o;
  o.valid_fraction = 0.1;
  o.test_fraction = 0.2;
  for (const char* by : {"hash", "range"}) {
    o.split_by = by;
    std::set<int64_t> seen;
    size_t total = 0;
    for (const char* split : {"train", "valid", "test"}) {
      const auto members = split_members(names, o, split);
      total += members.size();
      seen.insert(members.begin(), members.end());
    }
    EXPECT_EQ(total, names.size());
    EXPECT_EQ(seen.size(), names.size());
    EXPECT_NEAR(static_cast<double>(split_members(names, o, "test").size()), 400,
                4 * 18);  // 4 binomial sigma
  }
  // A new file does not move the old ones.
  o.split_by = "hash";
  const auto before = split_members(names, o, "test");
  std::vector<std::string> more = names;
  more.push_back("a_new_image.png");
  auto after = split_members(more, o, "test");
  after.erase(std::remove(after.begin(), after.end(), 2000), after.end());
  EXPECT_EQ(before, after);
  EXPECT_EQ(split_members(names, o, "all").size(), names.size());
}

}  // namespace
}  // namespace scoreprior
