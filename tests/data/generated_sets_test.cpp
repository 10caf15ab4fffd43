#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dead_leaves.h"
#include "scoreprior/data/gmm.h"
#include "scoreprior/data/phantom.h"
#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

const Rng kNothing(0);

std::vector<int64_t> counted(int64_t n) {
  std::vector<int64_t> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = i;
  return v;
}

std::unique_ptr<Dataset> generated(const std::string& name, const std::string& more = "",
                                   const std::string& split = "train") {
  return datasets().make(io::parse_toml("name = \"" + name + "\"\n" + more), "", split);
}

class GeneratedSet : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, GeneratedSet,
                         ::testing::Values("dead_leaves", "phantom", "gmm", "blackhole",
                                           "gaussian_field"),
                         [](const auto& p) { return std::string(p.param); });

TEST_P(GeneratedSet, AnImageDependsOnSeedSplitAndIndexOnly) {
  const auto set = generated(GetParam());
  EXPECT_EQ(set->size(), 0);
  const at::Tensor x = set->batch({0, 1, 2, 9}, kNothing);
  EXPECT_EQ(x.scalar_type(), at::kFloat);
  EXPECT_EQ(Shape(x.sizes().begin() + 1, x.sizes().end()), set->image_shape());
  EXPECT_TRUE(at::isfinite(x).all().item<bool>());
  EXPECT_TRUE(at::equal(x[3], set->batch({9}, Rng(5))[0]));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  EXPECT_TRUE(at::equal(x, generated(GetParam())->batch({0, 1, 2, 9}, kNothing)));
  at::set_num_threads(threads);
  EXPECT_FALSE(at::equal(x[0], x[1]));
  EXPECT_FALSE(at::equal(x, generated(GetParam(), "", "test")->batch({0, 1, 2, 9}, kNothing)));
  EXPECT_FALSE(at::equal(x, generated(GetParam(), "seed = 1\n")->batch({0, 1, 2, 9}, kNothing)));
}

TEST(GeneratedSets, RefuseImpossibleOptionsAtTheirKey) {
  const std::pair<const char*, const char*> bad[] = {
      {"dead_leaves", "image_size = 0"},   {"dead_leaves", "min_radius = 0.1"},
      {"dead_leaves", "max_radius = 0.5"}, {"dead_leaves", "shading = -1.0"},
      {"dead_leaves", "texture = nan"},    {"phantom", "modality = \"pet\""},
      {"phantom", "image_size = 0"},       {"phantom", "texture = -1.0"},
      {"gmm", "weights = [1.0, -1.0]"},    {"gmm", "means = [1.0]"},
      {"gmm", "sigmas = [0.1]"},           {"gmm", "shape = [2]"}};
  for (const auto& [name, line] : bad) {
    try {
      generated(name, std::string(line) + "\n");
      ADD_FAILURE() << name << ": " << line;
    } catch (const ConfigError& e) {
      const std::string key = std::string(line).substr(0, std::string(line).find(' '));
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(generated("dead_leaves")->batch({-1}, kNothing), std::invalid_argument);
  EXPECT_THROW(generated("phantom")->batch({-1}, kNothing), std::invalid_argument);
  EXPECT_THROW(generated("gmm")->batch({-1}, kNothing), std::invalid_argument);
}

// Slope of ln(power) against ln(frequency) over 2..10 cycles per image, Hann window.
double spectral_slope(const at::Tensor& grey) {
  const int64_t n = grey.size(-1);
  const at::Tensor hann =
      0.5 - 0.5 * at::cos((2 * M_PI / static_cast<double>(n)) * (at::arange(n, at::kDouble) + 0.5));
  const at::Tensor x = grey - grey.mean({1, 2}, true);
  const at::Tensor f = at::fft_fft2(x * at::outer(hann, hann));
  const at::Tensor power = (at::real(f).square() + at::imag(f).square()).mean(0);
  const at::Tensor k = at::fft_fftfreq(n, 1.0 / static_cast<double>(n), at::kDouble);
  const at::Tensor radius = (k.square().unsqueeze(1) + k.square()).sqrt();
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  int count = 0;
  for (int r = 2; r <= 10; ++r) {
    const at::Tensor ring = (radius - r).abs() < 0.5;
    const double px = std::log(r), py = std::log(power.masked_select(ring).mean().item<double>());
    sx += px, sy += py, sxx += px * px, sxy += px * py, ++count;
  }
  return (count * sxy - sx * sy) / (count * sxx - sx * sx);
}

TEST(DeadLeaves, PowerFallsAsTheSquareOfTheFrequency) {
  // Radii up to the side of the image, else the largest scales are missing.
  DeadLeavesOptions o;
  o.image_size = 64;
  o.max_radius = 64;
  const at::Tensor x = DeadLeaves(o, "train").batch(counted(150), kNothing).mean(1).to(at::kDouble);
  // Photographs: -2 with a scatter of about 0.3 between collections. Sampling error of 150 images
  // is 0.03.
  EXPECT_NEAR(spectral_slope(x), -2.0, 0.25);
  // The same slope for white noise, to see that the estimate tells.
  EXPECT_NEAR(spectral_slope(Rng(3).normal({150, 64, 64}, at::kDouble)), 0.0, 0.1);
}

TEST(DeadLeaves, ColoursAreThoseOfNature) {
  const at::Tensor x = generated("dead_leaves")->batch(counted(300), kNothing).to(at::kDouble);
  EXPECT_GT(x.min().item<double>(), 0);
  EXPECT_LT(x.max().item<double>(), 1);
  EXPECT_NEAR(x.mean().item<double>(), 0.5, 0.05);
  const at::Tensor logit = (x / (1 - x)).log();
  const at::Tensor r = logit.select(1, 0), g = logit.select(1, 1), b = logit.select(1, 2);
  const double lightness = ((r + g + b) / std::sqrt(3.0)).std().item<double>();
  const double yellow = ((r + g - 2 * b) / std::sqrt(6.0)).std().item<double>();
  const double red = ((r - g) / std::sqrt(2.0)).std().item<double>();
  EXPECT_GT(lightness, 2 * yellow);
  EXPECT_GT(yellow, 1.5 * red);
}

TEST(DeadLeaves, PixelsAreMeansOverTheirArea) {
  // Flat leaves: neighbours are equal inside a leaf, and pixels on an edge hold a mixture of 16
  // points, so that the steps across edges are no more than the two leaves' difference in one go.
  DeadLeavesOptions o;
  o.texture = o.shading = 0;
  o.min_radius = 6;
  const at::Tensor x = DeadLeaves(o, "train").batch(counted(50), kNothing);
  const at::Tensor step = (x.slice(3, 1) - x.slice(3, 0, -1)).abs().amax(1);  // [50,32,31]
  const double flat = (step == 0).to(at::kDouble).mean().item<double>();
  EXPECT_GT(flat, 0.5);
  EXPECT_LT(flat, 0.95);
  // A sharp edge is one step; an area-sampled one is two in a row nearly always (1 in 16 is
  // aligned).
  const at::Tensor edge = step > 0;
  const at::Tensor alone = edge.slice(2, 1, -1) & ~edge.slice(2, 2) & ~edge.slice(2, 0, -2);
  EXPECT_LT(alone.sum().item<double>(), 0.3 * edge.sum().item<double>());
}

TEST(Phantom, LooksLikeItsModality) {
  const at::Tensor mri =
      generated("phantom", "modality = \"mri\"\n")->batch(counted(100), kNothing);
  const at::Tensor ct = generated("phantom", "modality = \"ct\"\n")->batch(counted(100), kNothing);
  for (const at::Tensor& x : {mri, ct}) {
    EXPECT_GE(x.min().item<float>(), 0.f);
    EXPECT_LE(x.max().item<float>(), 1.f);
    // Air around the body: the corners are empty.
    EXPECT_EQ(x.slice(2, 0, 2).slice(3, 0, 2).abs().max().item<float>(), 0.f);
    const double body = (x > 0).to(at::kDouble).mean().item<double>();
    EXPECT_GT(body, 0.35);
    EXPECT_LT(body, 0.7);
  }
  // Soft tissue of CT lies in a narrow band; MRI's does not.
  const auto band = [](const at::Tensor& x) {
    const at::Tensor inside = x.slice(2, 12, 20).slice(3, 12, 20);
    return ((inside > 0.2) & (inside < 0.6)).to(at::kDouble).mean().item<double>();
  };
  EXPECT_GT(band(ct), band(mri) + 0.1);
  // Half of the mixed set is each.
  const at::Tensor mixed = generated("phantom")->batch(counted(100), kNothing);
  int64_t as_mri = 0, as_ct = 0;
  for (int64_t i = 0; i < 100; ++i) {
    as_mri += at::equal(mixed[i], mri[i]);
    as_ct += at::equal(mixed[i], ct[i]);
  }
  EXPECT_EQ(as_mri + as_ct, 100);
  EXPECT_NEAR(static_cast<double>(as_ct), 50, 20);  // 4 standard deviations
}

TEST(Phantom, OtherSizesShowTheSamePicture) {
  const at::Tensor coarse = generated("phantom")->batch(counted(20), kNothing);
  const at::Tensor fine = at::avg_pool2d(
      generated("phantom", "image_size = 128\n")->batch(counted(20), kNothing), {4, 4});
  // 16 sampling points a pixel put an edge to about 1/8 pixel.
  EXPECT_LT((coarse - fine).square().mean().sqrt().item<double>(), 0.02);
}

TEST(Gmm, DensityIntegratesToOneAndIsThatOfTheDraws) {
  GmmOptions o;
  o.weights = {1, 3};
  o.means = {0.5, 0.4, -0.5, -0.3};
  o.sigmas = {0.1, 0.2};
  const Gmm law(o, "train");
  const int64_t n = 400;
  const at::Tensor axis = -2 + (at::arange(n, at::kDouble) + 0.5) * (4.0 / n);
  const at::Tensor grid =
      at::stack({axis.expand({n, n}), axis.unsqueeze(1).expand({n, n})}, 2).reshape({-1, 2, 1, 1});
  const at::Tensor p = law.log_prob(grid).exp() * (4.0 / n) * (4.0 / n);
  EXPECT_NEAR(p.sum().item<double>(), 1, 1e-9);  // midpoint rule on an analytic function
  const at::Tensor x = law.batch(counted(20000), kNothing).to(at::kDouble);
  // Mean and mean log-density against quadrature: 5 standard errors of 20000 draws.
  const at::Tensor lp = law.log_prob(x);
  const double expected = (p * law.log_prob(grid)).sum().item<double>();
  EXPECT_NEAR(lp.mean().item<double>(), expected, 5 * lp.std().item<double>() / std::sqrt(20000.0));
  EXPECT_NEAR(x.select(1, 0).mean().item<double>(), 0.25 * 0.5 - 0.75 * 0.5,
              5 * 0.5 / std::sqrt(20000.0));
}

}  // namespace
}  // namespace scoreprior
