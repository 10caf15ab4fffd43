#include "scoreprior/pipeline/array_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/simulate.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class ArrayFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-arrayfile-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_F(ArrayFiles, OneArrayOfAnyFile) {
  const at::Tensor maps = at::complex(Rng(1).normal({3, 6, 5}), Rng(2).normal({3, 6, 5}));
  io::write_npy(folder_ / "a.npy", maps);
  io::write_npz(folder_ / "a.npz", {{"maps", maps}});
  io::write_mat(folder_ / "a.mat", {{"S", maps}});
  io::write_hdf5(folder_ / "a.h5", {{{"maps", maps}}, {}});
  io::write_cfl(folder_ / "a.cfl", io::to_bart_order(maps));
  for (const char* name : {"a.npy", "a.npz", "a.mat", "a.h5", "a.cfl", "a.hdr"}) {
    const at::Tensor read = read_array_file(folder_ / name);
    ASSERT_EQ(read.sizes(), maps.sizes()) << name;
    EXPECT_TRUE(at::equal(at::view_as_real(read), at::view_as_real(maps))) << name;
  }
  io::write_npz(folder_ / "b.npz", {{"x", at::ones({2})}, {"y", at::zeros({3})}});
  EXPECT_EQ(read_array_file(folder_ / "b.npz:y").size(0), 3);
  EXPECT_THROW(read_array_file(folder_ / "b.npz:z"), DataError);
  try {
    read_array_file(folder_ / "b.npz");
    FAIL() << "one of two arrays was chosen";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("b.npz:NAME (x, y)"), std::string::npos) << e.what();
  }
  EXPECT_THROW(read_array_file(folder_ / "absent.npz"), MissingFileError);
  EXPECT_THROW(read_array_file(folder_ / "absent.npz:x"), MissingFileError);
}

// A picture as the truth of a simulation: bytes are 0 to 1.
TEST_F(ArrayFiles, PicturesAreTruths) {
  io::Raster r{8, 8, 3, std::vector<uint8_t>(8 * 8 * 3, 51)};
  r.data[3 * (8 * 2 + 5) + 1] = 255;  // row 2, column 5, green
  io::write_png(folder_ / "t.png", r);
  Observer quiet;
  simulate(io::parse_toml("[truth]\nfile = \"" + (folder_ / "t.png").string() +
                          "\"\n[likelihood]\nsigma = 0.1\n"),
           folder_ / "out", quiet);
  const at::Tensor x = io::read_npy(folder_ / "out" / "truth.npy");
  ASSERT_EQ(x.sizes(), at::IntArrayRef({3, 8, 8}));
  EXPECT_EQ(x[1][2][5].item<double>(), 1);
  EXPECT_DOUBLE_EQ(x[0][2][5].item<double>(), 0.2);
}

}  // namespace
}  // namespace scoreprior
