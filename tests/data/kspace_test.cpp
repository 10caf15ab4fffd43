#include "scoreprior/data/kspace.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "tests/io/kspace_object.h"
#include "tests/io/sample_files.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
namespace samples = io::testing_files;

using samples::kCoils;
using samples::kSide;
using samples::object;
using samples::transform;

class KSpace : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-kspace-slice-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string quoted(const std::string& name) const {
    return "\"" + (folder_ / name).string() + "\"\n";
  }
  fs::path folder_;
};

TEST_F(KSpace, SizesAndScales) {
  // A field of 64 x 96 of which the middle 64 x 64 is kept, at half the resolution.
  const at::Tensor fine = object(64, 96) + at::zeros({kCoils, 1, 1});
  const at::Tensor k = transform(fine.to(at::kComplexDouble), {1, 2}, false);
  io::write_npz(folder_ / "k.npz", {{"kspace", k}, {"sigma", at::scalar_tensor(0.5, at::kDouble)}});
  const auto load = [&](const std::string& keys) {
    return load_kspace(io::parse_toml("kspace = " + quoted("k.npz") + keys), {1, kSide, kSide});
  };
  KSpaceSlice s = load("crop = [64, 64]\n");
  const at::Tensor image = transform(s.kspace, {1, 2}, true);
  // Band-limited: the centre of k-space holds all of these blobs.
  EXPECT_TRUE(at::allclose(at::real(image[1]),
                           fine[1].narrow(1, 16, 64).slice(0, 0, 64, 2).slice(1, 0, 64, 2), 0,
                           1e-4));
  EXPECT_NEAR(s.sigma, 0.5 * 0.5, 1e-12);  // sqrt(32/64) for each axis
  EXPECT_EQ(s.sampled.sum().item<double>(), kSide * kSide);
  s = load("crop = [64, 64]\nscale = 2.0\n");
  EXPECT_TRUE(at::allclose(transform(s.kspace, {1, 2}, true), 2 * image));
  EXPECT_NEAR(s.sigma, 0.5, 1e-12);
  s = load("crop = [64, 64]\nscale = 0.0\n");
  EXPECT_NEAR(transform(s.kspace, {1, 2}, true).abs().square().sum(0).sqrt().max().item<double>(),
              1, 1e-12);
  EXPECT_THROW(load(""), ConfigError) << "pixels would not be square";
  EXPECT_THROW(load("crop = [16, 16]\n"), DataError) << "fewer than the images have";
  EXPECT_THROW(load("crop = [128, 128]\n"), ConfigError);
  EXPECT_THROW(load("slice = 1\ncrop = [64, 64]\n"), ConfigError);
  EXPECT_THROW(load("array = \"absent\"\n"), DataError);
}

// Gaps in the phase encoding cannot be cut by their image; the read-out is then cut to the same
// field.
TEST_F(KSpace, UndersampledColumnsKeepTheirField) {
  const at::Tensor columns =
      (at::arange(48) % 3).eq(0).logical_or((at::arange(48) - 24).abs().le(4));
  const at::Tensor k = at::complex(Rng(3).normal({1, kCoils, 96, 48}, at::kDouble),
                                   Rng(4).normal({1, kCoils, 96, 48}, at::kDouble)) *
                       columns;
  samples::write_fastmri(folder_ / "scan.h5", k.to(at::kComplexFloat), 40, 40, columns);
  const KSpaceSlice s =
      load_kspace(io::parse_toml("kspace = " + quoted("scan.h5")), {1, kSide, kSide});
  EXPECT_NE(s.summary.find("field 48 x 48"), std::string::npos) << s.summary;
  EXPECT_TRUE(at::equal(s.sampled.ne(0), columns.narrow(0, 8, 32).expand({kSide, kSide})));
  EXPECT_THROW(load_kspace(io::parse_toml("crop = [40, 40]\nkspace = " + quoted("scan.h5")),
                           {1, kSide, kSide}),
               ConfigError);
}

}  // namespace
}  // namespace scoreprior
