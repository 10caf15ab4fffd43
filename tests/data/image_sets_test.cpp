#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "scoreprior/data/gaussian_field.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class ImageSets : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp_sets_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void png(const fs::path& name, uint8_t value, int64_t w = 12, int64_t h = 8) {
    fs::create_directories((folder_ / name).parent_path());
    io::write_png(folder_ / name, io::Raster{w, h, 3, std::vector<uint8_t>(w * h * 3, value)});
  }
  std::unique_ptr<Dataset> make(const std::string& name, const std::string& file,
                                const std::string& split = "all", const std::string& more = "") {
    return datasets().make(
        io::parse_toml("name = \"" + name + "\"\npath = \"" + (folder_ / file).string() + "\"\n" +
                       (more.find("image_size") == std::string::npos ? "image_size = 8\n" : "") +
                       more),
        "", split);
  }
  std::string message(const std::function<void()>& f) {
    try {
      f();
    } catch (const std::exception& e) {
      return e.what();
    }
    return "";
  }
  fs::path folder_;
};

TEST_F(ImageSets, FolderOfPictures) {
  for (int i = 0; i < 40; ++i)
    png("cats/" + std::to_string(100 + i) + ".png", static_cast<uint8_t>(i));
  const auto all = make("image_folder", "");
  EXPECT_EQ(all->size(), 40);
  EXPECT_EQ(all->image_shape(), (Shape{1, 8, 8}));
  const at::Tensor x = all->batch({0, 39, 7}, Rng(0));
  // The luma weights of three equal channels add up to 0.9999.
  EXPECT_NEAR(x[1].mean().item<double>(), 0.9999 * 39 / 255, 1e-6);
  EXPECT_NEAR(x[2].mean().item<double>(), 0.9999 * 7 / 255, 1e-6);
  EXPECT_TRUE(at::equal(x, all->batch({0, 39, 7}, Rng(1))));
  EXPECT_TRUE(
      at::equal(x, make("image_folder", "", "all", "cache_mib = 0\n")->batch({0, 39, 7}, Rng(1))));

  std::set<float> seen;
  int64_t total = 0;
  for (const char* split : {"train", "valid", "test"}) {
    const auto part = make("image_folder", "", split,
                           "valid_fraction = 0.2\ntest_fraction = 0.2\nchannels = 3\n");
    total += part->size();
    for (int64_t i = 0; i < part->size(); ++i)
      seen.insert(part->batch({i}, Rng(0))[0][0][0][0].item<float>());
    EXPECT_NE(part->describe().find(split), std::string::npos);
  }
  EXPECT_EQ(total, 40);
  EXPECT_EQ(seen.size(), 40u);
}

// Whichever split the one file falls into, the broken file is named rather than an empty split.
TEST_F(ImageSets, OnlyFileBroken) {
  fs::create_directories(folder_ / "one");
  std::ofstream(folder_ / "one" / "only.png") << "\x89PNG\r\n\x1a\n but no more";
  for (const char* split : {"train", "valid", "test"}) {
    const std::string said =
        message([&] { make("image_folder", "one", split)->batch({0}, Rng(0)); });
    EXPECT_NE(said.find("only.png"), std::string::npos) << split << ": " << said;
  }
  png("one/only.png", 7);
  EXPECT_NE(message([&] {
              for (const char* split : {"train", "valid", "test"})
                make("image_folder", "one", split);
            }).find("split is empty"),
            std::string::npos);
}

TEST_F(ImageSets, SubfoldersAreTheSplits) {
  png("train/a.png", 10);
  png("train/b.png", 20);
  png("test/c.png", 30);
  EXPECT_EQ(make("image_folder", "", "train")->size(), 2);
  EXPECT_NEAR(make("image_folder", "", "test")->batch({0}, Rng(0)).mean().item<double>(),
              0.9999 * 30 / 255, 1e-6);
  EXPECT_THROW(make("image_folder", "", "valid"), MissingFileError);
}

TEST_F(ImageSets, MistakesNameThePath) {
  EXPECT_THROW(make("image_folder", "absent"), MissingFileError);
  std::ofstream(folder_ / "photo.jpg") << "x";
  const std::string none = message([&] { make("image_folder", ""); });
  EXPECT_NE(none.find("holds no .png file (only .jpg)"), std::string::npos) << none;
  png("one.png", 3);
  EXPECT_THROW(make("image_folder", "", "test", "test_fraction = 0.0\n"), DataError);
  EXPECT_THROW(make("image_folder", "", "all", "channels = 2\n"), ConfigError);
  EXPECT_THROW(datasets().make(io::parse_toml("name = \"image_folder\"\n"), "", "train"),
               ConfigError);
  std::ofstream(folder_ / "two.png") << "not a picture";
  const auto set = make("image_folder", "");
  const std::string broken = message([&] { set->batch({0, 1}, Rng(0)); });
  EXPECT_NE(broken.find("two.png"), std::string::npos) << broken;
  EXPECT_THROW(set->batch({2}, Rng(0)), std::invalid_argument);
}

TEST_F(ImageSets, StacksOfEveryLayout) {
  const at::Tensor x = Rng(1).uniform({5, 3, 8, 8});
  io::write_npy(folder_ / "nchw.npy", x);
  io::write_npy(folder_ / "nhwc.npy", x.permute({0, 2, 3, 1}).contiguous());
  io::write_npy(folder_ / "nhw.npy", x.select(1, 0).contiguous());
  io::write_npy(folder_ / "bytes.npy", at::full({4, 8, 8}, 51, at::kByte));
  const at::Tensor a =
      make("array_stack", "nchw.npy", "all", "channels = 3\n")->batch({0, 4}, Rng(0));
  EXPECT_TRUE(at::equal(a, at::stack({x[0], x[4]})));
  EXPECT_TRUE(at::equal(
      make("array_stack", "nhwc.npy", "all", "channels = 3\n")->batch({0, 4}, Rng(0)), a));
  EXPECT_TRUE(at::equal(make("array_stack", "nhw.npy")->batch({2}, Rng(0))[0][0], x[2][0]));
  EXPECT_NEAR(make("array_stack", "bytes.npy")->batch({3}, Rng(0)).mean().item<double>(), 0.2,
              1e-7);

  io::write_npz(folder_ / "two.npz", {{"images", x}, {"labels", at::arange(5)}});
  EXPECT_TRUE(at::equal(make("array_stack", "two.npz", "all", "array = \"images\"\nchannels = 3\n")
                            ->batch({0, 4}, Rng(0)),
                        a));
  const std::string several = message([&] { make("array_stack", "two.npz"); });
  EXPECT_NE(several.find("images, labels"), std::string::npos) << several;
  EXPECT_THROW(make("array_stack", "absent.npy"), MissingFileError);

  at::Tensor bad = x.clone();
  bad[1][1][1][1] = NAN;
  io::write_npy(folder_ / "nan.npy", bad);
  EXPECT_THROW(make("array_stack", "nan.npy"), DataError);
  io::write_npy(folder_ / "flat.npy", at::ones({7, 7}));
  EXPECT_THROW(make("array_stack", "flat.npy"), DataError);
}

TEST_F(ImageSets, RangesKeepTheOrderOfAMovie) {
  io::write_npy(folder_ / "movie.npy",
                at::arange(20, at::kFloat).view({20, 1, 1}).expand({20, 8, 8}).contiguous());
  const std::string options = "split_by = \"range\"\nvalid_fraction = 0.2\ntest_fraction = 0.1\n";
  EXPECT_EQ(make("array_stack", "movie.npy", "train", options)->size(), 14);
  EXPECT_EQ(
      make("array_stack", "movie.npy", "valid", options)->batch({0}, Rng(0)).mean().item<double>(),
      14);
  EXPECT_EQ(
      make("array_stack", "movie.npy", "test", options)->batch({0}, Rng(0)).mean().item<double>(),
      18);
}

TEST_F(ImageSets, SkyImagesAreCutToTheField) {
  const double uas = M_PI / 180 / 3600 / 1e6;
  io::SkyImage sky;
  sky.pixels = at::zeros({32, 32}, at::kDouble);
  sky.pixels.slice(0, 8, 16).slice(1, 8, 12).fill_(0.02);  // north and east of the middle
  sky.pixel_size_rad = 4 * uas;
  sky.frequency_hz = 230e9;
  sky.source = "TEST";
  io::write_fits_image(folder_ / "a.fits", sky);
  const auto set = make("fits_folder", "", "all", "fov_uas = 128\n");
  const at::Tensor x = set->batch({0}, Rng(0))[0][0];
  EXPECT_NEAR(x.max().item<double>(), 1, 1e-6);
  EXPECT_GT(x[2][2].item<double>(), 0.9);  // rows 8..15 of 32 are rows 2..3 of 8
  EXPECT_LT(x[6][6].item<double>(), 1e-6);
  // Twice the field: the same source in the inner half.
  const at::Tensor wide =
      make("fits_folder", "", "all", "fov_uas = 256\nimage_size = 16\n")->batch({0}, Rng(0))[0][0];
  EXPECT_EQ(wide.size(0), 16);
  EXPECT_LT((wide.slice(0, 4, 12).slice(1, 4, 12) - x).abs().max().item<double>(), 1e-5);
}

TEST(GaussianField, HasItsStatedCovariance) {
  GaussianFieldOptions o;
  o.image_size = 6;
  const GaussianField field(o, "train");
  std::vector<int64_t> indices(20000);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i);
  const at::Tensor x = field.batch(indices, Rng(0)).to(at::kDouble).flatten(1) - 0.5;
  const at::Tensor exact = field.covariance();
  EXPECT_NEAR(exact[3][3].item<double>(), 0.15 * 0.15, 1e-12);
  const at::Tensor empirical = at::matmul(x.t(), x) / 20000;
  // Var of an empirical covariance: (C_ii C_jj + C_ij^2) / n.
  const at::Tensor z = (empirical - exact) / at::sqrt((std::pow(0.15, 4) + exact.square()) / 20000);
  EXPECT_LT(z.abs().max().item<double>(), 5);  // 1296 correlated entries
  EXPECT_NEAR(z.square().mean().item<double>(), 1, 0.35);
  EXPECT_TRUE(at::equal(field.batch({5}, Rng(0))[0], field.batch({4, 5}, Rng(8))[1]));
}

TEST(GaussianField, LogProbIsTheDenseGaussian) {
  GaussianFieldOptions o;
  o.image_size = 5;
  o.channels = 2;
  const GaussianField field(o, "test");
  const at::Tensor x = field.batch({0, 1, 2}, Rng(0)).to(at::kDouble);
  const at::Tensor c = field.covariance();
  const at::Tensor d = (x - 0.5).flatten(2);  // [B,2,25]
  const at::Tensor quadratic = (at::matmul(d, at::inverse(c)) * d).sum({1, 2});
  const at::Tensor exact = -0.5 * (quadratic + 2 * (25 * std::log(2 * M_PI) + at::logdet(c)));
  EXPECT_LT((field.log_prob(x) - exact).abs().max().item<double>(), 1e-8);
}

}  // namespace
}  // namespace scoreprior
