#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "scoreprior/data/dataset.h"
#include "scoreprior/data/image_cache.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/cifar.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/tfrecord.h"
#include "scoreprior/io/tiff.h"
#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class StoredSets : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-stored-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::unique_ptr<Dataset> make(const std::string& name, const std::string& file,
                                const std::string& split = "all", const std::string& more = "") {
    return datasets().make(io::parse_toml("name = \"" + name + "\"\npath = \"" +
                                          (folder_ / file).string() + "\"\n" + more),
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

TEST_F(StoredSets, IdxTrainAndTestFiles) {
  const at::Tensor train = (at::arange(30).view({30, 1, 1}).expand({30, 8, 8})).to(at::kByte),
                   test = train.slice(0, 0, 4) + 100;
  io::write_idx(folder_ / "train-images-idx3-ubyte.gz", train);
  io::write_idx(folder_ / "t10k-images-idx3-ubyte", test);
  const std::string o = "image_size = 8\nvalid_fraction = 0.3\n";
  std::set<int> seen;
  for (const char* split : {"train", "valid"}) {
    const auto set = make("idx", "", split, o);
    for (int64_t i = 0; i < set->size(); ++i)
      seen.insert(
          static_cast<int>(std::lround(set->batch({i}, Rng(0)).mean().item<double>() * 255)));
  }
  EXPECT_EQ(seen.size(), 30u);  // each training image in exactly one
  EXPECT_EQ(make("idx", "", "train", o)->size() + make("idx", "", "valid", o)->size(), 30);
  EXPECT_EQ(make("idx", "", "test", o)->size(), 4);
  EXPECT_NEAR(make("idx", "", "test", o)->batch({2}, Rng(0)).mean().item<double>(), 102 / 255.0,
              1e-6);
  EXPECT_EQ(make("idx", "t10k-images-idx3-ubyte", "all", o)->size(), 4);
  fs::remove(folder_ / "t10k-images-idx3-ubyte");
  EXPECT_NE(message([&] { make("idx", "", "train", o); }).find("t10k-images-idx3-ubyte"),
            std::string::npos);
}

TEST_F(StoredSets, Cifar10Folder) {
  for (int k = 1; k <= 5; ++k)
    io::write_cifar10(folder_ / ("data_batch_" + std::to_string(k) + ".bin"),
                      {at::full({2, 3, 32, 32}, 10 * k, at::kByte), at::zeros({2}, at::kByte)});
  EXPECT_THROW(make("cifar10", ""), MissingFileError);
  io::write_cifar10(folder_ / "test_batch.bin",
                    {at::full({3, 3, 32, 32}, 200, at::kByte), at::zeros({3}, at::kByte)});
  const auto all = make("cifar10", "");
  EXPECT_EQ(all->size(), 13);
  EXPECT_EQ(all->image_shape(), (Shape{3, 32, 32}));
  EXPECT_NEAR(all->batch({4}, Rng(0)).mean().item<double>(), 30 / 255.0, 1e-6);
  EXPECT_EQ(make("cifar10", "", "test")->size(), 3);
  EXPECT_NEAR(make("cifar10", "", "test")->batch({0}, Rng(0)).mean().item<double>(), 200 / 255.0,
              1e-6);
}

TEST_F(StoredSets, TfrecordsOfTheReferenceLayouts) {
  const at::Tensor grey = Rng(1).uniform({8, 8});
  io::Example floats, chw, raw;
  floats["image"].floats.assign(grey.data_ptr<float>(), grey.data_ptr<float>() + 64);
  floats["shape"].ints = {8, 8};
  raw["image"].bytes = {std::string(static_cast<const char*>(grey.data_ptr()), 256)};
  raw["shape"].ints = {8, 8, 1};
  std::string bytes;
  for (int i = 0; i < 3 * 64; ++i) bytes += static_cast<char>(i < 64 ? 255 : 51);
  chw["data"].bytes = {bytes};
  chw["shape"].ints = {3, 8, 8};
  io::write_tfrecord(folder_ / "grmhd-train.tfrecord-00000-of-00002",
                     {io::serialize_example(floats), io::serialize_example(raw)});
  io::write_tfrecord(folder_ / "grmhd-train.tfrecord-00001-of-00002",
                     {io::serialize_example(floats)}, true);
  io::write_tfrecord(folder_ / "grmhd-test.tfrecord-00000-of-00001", {io::serialize_example(chw)});
  const auto train = make("tfrecord", "", "train", "image_size = 8\n");
  ASSERT_EQ(train->size(), 3);
  const at::Tensor x = train->batch({0, 1, 2}, Rng(0));
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(x[i][0], grey));
  const at::Tensor c =
      make("tfrecord", "", "test", "image_size = 8\nchannels = 3\n")->batch({0}, Rng(0))[0];
  EXPECT_NEAR(c[0].mean().item<double>(), 1, 1e-6);
  EXPECT_NEAR(c[2].mean().item<double>(), 0.2, 1e-6);
  EXPECT_THROW(make("tfrecord", "", "valid", "image_size = 8\n"), DataError);
  const auto wrong = make("tfrecord", "", "train", "image_size = 8\nfeature = \"absent\"\n");
  EXPECT_NE(message([&] { wrong->batch({0}, Rng(0)); }).find("image, shape"), std::string::npos);
}

TEST_F(StoredSets, StacksInHdf5AndMat) {
  const at::Tensor x = Rng(1).uniform({40, 8, 8});
  io::write_hdf5(folder_ / "x.h5", {{{"set/images", x}, {"labels", at::arange(40)}}, {}});
  const auto h5 = make("array_stack", "x.h5", "all", "image_size = 8\n");
  ASSERT_EQ(h5->size(), 40);
  EXPECT_TRUE(at::equal(h5->batch({39, 0, 7}, Rng(0)).squeeze(1), at::stack({x[39], x[0], x[7]})));
  io::write_mat(folder_ / "x.mat", {{"images", x}});
  EXPECT_TRUE(at::equal(
      make("array_stack", "x.mat", "all", "image_size = 8\n")->batch({5}, Rng(0))[0][0], x[5]));
  io::write_npy(folder_ / "bright.npy", x * 1e4);
  EXPECT_NEAR(make("array_stack", "bright.npy", "all", "image_size = 8\nnormalize = true\n")
                  ->batch({5}, Rng(0))
                  .max()
                  .item<double>(),
              1, 1e-6);
}

TEST_F(StoredSets, SlicesOfAVolumeStayTogether) {
  fs::create_directories(folder_ / "volumes");
  for (int k = 0; k < 12; ++k)
    io::write_hdf5(folder_ / "volumes" / ("v" + std::to_string(k) + ".h5"),
                   {{{"reconstruction_rss", at::full({5, 8, 8}, k + 1.0)}}, {}});
  std::set<int> of_split[3];
  int64_t total = 0, which = 0;
  for (const char* split : {"train", "valid", "test"}) {
    const auto set = make("array_stack", "volumes", split,
                          "image_size = 8\narray = \"reconstruction_rss\"\nvalid_fraction = "
                          "0.3\ntest_fraction = 0.3\n");
    total += set->size();
    EXPECT_EQ(set->size() % 5, 0);
    for (int64_t i = 0; i < set->size(); ++i)
      of_split[which].insert(
          static_cast<int>(std::lround(set->batch({i}, Rng(0)).mean().item<double>())));
    ++which;
  }
  EXPECT_EQ(total, 60);
  EXPECT_EQ(of_split[0].size() + of_split[1].size() + of_split[2].size(), 12u);
}

TEST_F(StoredSets, FoldersOfTiff) {
  fs::create_directories(folder_ / "pictures");
  io::write_tiff(folder_ / "pictures" / "a.tif", at::full({8, 8}, 0.25));
  io::write_tiff(folder_ / "pictures" / "b.tiff", at::full({8, 8, 3}, 51, at::kByte));
  const at::Tensor x = make("image_folder", "pictures", "all", "image_size = 8\nchannels = 3\n")
                           ->batch({0, 1}, Rng(0));
  EXPECT_NEAR(x[0].mean().item<double>(), 0.25, 1e-7);
  EXPECT_NEAR(x[1].mean().item<double>(), 0.2, 1e-7);
}

TEST_F(StoredSets, CacheIsMadeOnceAndFollowsItsSource) {
  const fs::path cache = folder_ / "cache";
  std::atomic<int> loads{0};
  const auto load = [&](int64_t i) {
    ++loads;
    return at::full({1, 4, 4}, static_cast<double>(i), at::kFloat);
  };
  {
    const ImageCache a(cache, "what", "identity", {1, 4, 4}, 10, load);
    EXPECT_EQ(loads, 10);
    EXPECT_EQ(a.image(7).sum().item<double>(), 16 * 7);
  }
  const ImageCache again(cache, "what", "identity", {1, 4, 4}, 10, load);
  EXPECT_EQ(loads, 10);
  EXPECT_EQ(again.image(9).sum().item<double>(), 16 * 9);
  const ImageCache other(cache, "what", "identity of another", {1, 4, 4}, 10, load);
  EXPECT_EQ(loads, 20);
  EXPECT_NE(again.folder(), other.folder());
  // Nothing half-made is left by a source that fails.
  EXPECT_THROW(ImageCache(cache, "what", "fails", {1, 4, 4}, 10,
                          [](int64_t i) -> at::Tensor {
                            if (i == 5) throw DataError("broken");
                            return at::zeros({1, 4, 4});
                          }),
               DataError);
  EXPECT_EQ(std::distance(fs::directory_iterator(cache), fs::directory_iterator()), 2);
  fs::resize_file(other.folder() / "shard-00000.f32", 100);
  EXPECT_THROW(ImageCache(cache, "what", "identity of another", {1, 4, 4}, 10, load), DataError);
}

TEST_F(StoredSets, CacheOfSeveralShards) {
  const auto load = [](int64_t i) {
    return at::full({1, 4, 4}, static_cast<double>(i), at::kFloat);
  };
  // 64 bytes an image: shards of 3, 3, 3 and 1.
  const ImageCache cache(folder_ / "cache", "what", "identity", {1, 4, 4}, 10, load, 200);
  for (int64_t i = 0; i < 10; ++i) EXPECT_TRUE(at::equal(cache.image(i), load(i))) << i;
  EXPECT_EQ(fs::file_size(cache.folder() / "shard-00000.f32"), 3u * 64);
  EXPECT_EQ(fs::file_size(cache.folder() / "shard-00003.f32"), 64u);
  EXPECT_FALSE(fs::exists(cache.folder() / "shard-00004.f32"));
  // Smaller than an image: one each.
  const ImageCache single(folder_ / "cache", "what", "single", {1, 4, 4}, 2, load, 1);
  EXPECT_TRUE(at::equal(single.image(1), load(1)));
}

TEST_F(StoredSets, CachedSetsEqualUncachedOnes) {
  io::write_npy(folder_ / "x.npy", Rng(1).uniform({30, 16, 16}));
  const std::string o = "image_size = 8\nrandom_flip = true\ntaper = true\n";
  const std::string cached = o + "cache_folder = \"" + (folder_ / "cache").string() + "\"\n";
  const std::vector<int64_t> indices = {3, 0, 11, 3};
  for (int pass = 0; pass < 2; ++pass)
    EXPECT_TRUE(at::equal(make("array_stack", "x.npy", "train", cached)->batch(indices, Rng(4)),
                          make("array_stack", "x.npy", "train", o)->batch(indices, Rng(4))));
  const auto entries = [&] {
    return std::distance(fs::directory_iterator(folder_ / "cache"), fs::directory_iterator());
  };
  EXPECT_EQ(entries(), 1);
  // Augmentation is applied behind the cache and makes no new one; another size does.
  make("array_stack", "x.npy", "train", cached + "total_flux = 3.0\n")->batch({0}, Rng(0));
  EXPECT_EQ(entries(), 1);
  make("array_stack", "x.npy", "train",
       "image_size = 4\ncache_folder = \"" + (folder_ / "cache").string() + "\"\n")
      ->batch({0}, Rng(0));
  EXPECT_EQ(entries(), 2);
  // So does a changed source.
  io::write_npy(folder_ / "x.npy", Rng(2).uniform({31, 16, 16}));
  EXPECT_TRUE(at::equal(make("array_stack", "x.npy", "train", cached)->batch(indices, Rng(4)),
                        make("array_stack", "x.npy", "train", o)->batch(indices, Rng(4))));
}

}  // namespace
}  // namespace scoreprior
