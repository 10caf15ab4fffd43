#include "scoreprior/pipeline/data_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/data/observe.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/pipeline/convert.h"
#include "scoreprior/pipeline/info.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class DataFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-datafile-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string convert(const std::string& in, const std::string& out, const ConvertOptions& o = {}) {
    return convert_file(folder_ / in, folder_ / out, o);
  }
  std::string remarks(const std::string& name) {
    std::string all;
    for (const auto& r : examine_data_file(read_data_file(folder_ / name), folder_ / name))
      all += r + "\n";
    return all;
  }
  fs::path folder_;
};

// A smooth picture and its centred spectrum.
at::Tensor smooth_picture(int64_t n) {
  const at::Tensor axis = at::arange(n, at::kDouble) - static_cast<double>(n) / 2;
  const at::Tensor r2 = (axis - 3).square().unsqueeze(1) + (axis + 2).square().unsqueeze(0);
  return at::exp(-r2 / (0.08 * static_cast<double>(n * n)));
}
at::Tensor centred_spectrum(const at::Tensor& x) {
  return at::fft_fftshift(
      at::fft_fft2(at::fft_ifftshift(x, {{0, 1}}), c10::nullopt, {0, 1}, "ortho"), {{0, 1}});
}

TEST_F(DataFiles, ArraysSurviveEveryContainer) {
  const at::Tensor x = Rng(1).uniform({12, 10}, at::kDouble);
  io::write_npy(folder_ / "x.npy", x);
  std::string from = "x.npy";
  for (const char* to : {"a.npz", "b.h5", "c.mat", "d.npy"}) {
    convert(from, to);
    from = to;
  }
  EXPECT_TRUE(at::equal(io::read_npy(folder_ / "d.npy"), x));
  convert("x.npy", "e.tif");
  convert("e.tif", "f.npy");
  EXPECT_TRUE(at::equal(io::read_npy(folder_ / "f.npy"), x.to(at::kFloat)));
  convert("x.npy", "g.cfl");
  convert("g.hdr", "h.npy");
  EXPECT_TRUE(at::equal(at::real(io::read_npy(folder_ / "h.npy")), x.to(at::kFloat)));
  convert("x.npy", "i.png");
  EXPECT_NEAR(io::read_png(folder_ / "i.png").data[3], x[0][3].item<double>() * 255, 0.5 + 1e-9);
}

TEST_F(DataFiles, SkyImagesKeepTheirOrientation) {
  const at::Tensor x = Rng(1).uniform({8, 8}, at::kDouble) * 0.01;
  io::write_npy(folder_ / "x.npy", x);
  EXPECT_THROW(convert("x.npy", "x.fits"), UsageError);
  ConvertOptions o;
  o.fov_uas = 160;
  convert("x.npy", "x.fits", o);
  convert("x.fits", "y.txt");
  convert("y.txt", "z.fits");
  convert("z.fits", "z.npy");
  EXPECT_TRUE(at::equal(io::read_npy(folder_ / "z.npy"), x));
  EXPECT_NEAR(read_data_file(folder_ / "z.fits").sky->pixel_size_rad, 20 * 4.84813681109536e-12,
              1e-22);
  EXPECT_EQ(remarks("z.fits"), "");
  // The same file with the other sign of CDELT1.
  std::string bytes = io::read_text(folder_ / "z.fits");
  const size_t card = bytes.find("CDELT1  ="), minus = bytes.find('-', card);
  bytes[minus] = ' ';
  io::write_text(folder_ / "flipped.fits", bytes);
  EXPECT_NE(remarks("flipped.fits").find("east is to the right"), std::string::npos);
  EXPECT_TRUE(at::equal(read_data_file(folder_ / "flipped.fits").sky->pixels, x.flip({1})));
}

TEST_F(DataFiles, TheDoctorKnowsUncentredKSpace) {
  const at::Tensor picture = smooth_picture(32), k = centred_spectrum(picture);
  const auto doctor = [&](const at::Tensor& a, const std::string& name) {
    io::write_npz(folder_ / "x.npz", {{name, a}});
    return remarks("x.npz");
  };
  EXPECT_EQ(doctor(k, "kspace"), "");
  EXPECT_NE(doctor(at::fft_ifftshift(k, {{0, 1}}), "kspace").find("corner"), std::string::npos);
  EXPECT_NE(doctor(at::complex(picture, 0 * picture), "kspace").find("looks like an image"),
            std::string::npos);
  EXPECT_NE(doctor(k, "image").find("looks like k-space"), std::string::npos);
  EXPECT_EQ(doctor(picture, "image"), "");
  EXPECT_NE(doctor(picture * 255, "image").find("0 to 255"), std::string::npos);
  EXPECT_NE(doctor(picture * 2 - 1, "image").find("centred pixels"), std::string::npos);
}

TEST_F(DataFiles, TheDoctorKnowsTheSignOfUv) {
  ObserveOptions o;
  o.start_hours = 4;
  o.stop_hours = 9;
  VisibilityTable t = coverage(o);
  for (auto& r : t.rows) r.vis = {0.5, 0.1};
  io::write_uvfits(folder_ / "x.uvfits", t);
  EXPECT_EQ(remarks("x.uvfits"), "");
  for (auto& r : t.rows) r.u = -r.u;
  io::write_uvfits(folder_ / "x.uvfits", t);
  EXPECT_NE(remarks("x.uvfits").find("mirrored east-west"), std::string::npos);
  for (auto& r : t.rows) r.v = -r.v;
  io::write_uvfits(folder_ / "x.uvfits", t);
  EXPECT_NE(remarks("x.uvfits").find("turned by 180 degrees"), std::string::npos);
  EXPECT_NE(describe_file(folder_ / "x.uvfits", false).find("note: u, v"), std::string::npos);
  convert("x.uvfits", "x.npz");
  EXPECT_EQ(io::read_npz(folder_ / "x.npz").at("u").size(0), static_cast<int64_t>(t.rows.size()));
  EXPECT_THROW(convert("x.npz", "y.uvfits"), UsageError);
  EXPECT_THROW(convert("x.uvfits", "y.xyz"), UsageError);
}

}  // namespace
}  // namespace scoreprior
