#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "sample_files.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/cifar.h"
#include "scoreprior/io/ehtim_text.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/mri_raw.h"
#include "scoreprior/io/tfrecord.h"
#include "scoreprior/io/tiff.h"

namespace scoreprior::io {
namespace {

namespace fs = std::filesystem;

class Formats : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-formats-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

at::Tensor complex_sample(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) {
  return at::complex(Rng(1).normal(shape, dtype), Rng(2).normal(shape, dtype));
}

TEST_F(Formats, CflIsBartsOrder) {
  const at::Tensor x = complex_sample({4, 3, 1, 2});
  write_cfl(folder_ / "a.b", x);  // a dot in the stem is not an extension
  EXPECT_TRUE(at::equal(at::view_as_real(read_cfl(folder_ / "a.b.hdr")), at::view_as_real(x)));
  EXPECT_TRUE(at::equal(at::view_as_real(read_cfl(folder_ / "a.b")), at::view_as_real(x)));
  // The first dimension is the fastest in the file.
  const std::string bytes = read_text(folder_ / "a.b.cfl");
  float second[2];
  std::memcpy(second, bytes.data() + 8, 8);
  EXPECT_EQ(second[0], at::real(x)[1][0][0][0].item<float>());
  EXPECT_EQ(read_text(folder_ / "a.b.hdr").rfind("# Dimensions\n4 3 1 2 1 1", 0), 0u);
}

TEST_F(Formats, MatKeepsTypesAndOrder) {
  const Arrays arrays = {{"d", Rng(1).normal({3, 4, 2}, at::kDouble)},
                         {"f", Rng(1).normal({5, 2})},
                         {"i", at::arange(6).view({2, 3})},
                         {"mask", (at::arange(6) % 2 == 0).view({3, 2})},
                         {"z", complex_sample({3, 4}, at::kDouble)},
                         {"zf", complex_sample({2, 2})}};
  write_mat(folder_ / "a.mat", arrays);
  const Arrays back = read_mat(folder_ / "a.mat");
  ASSERT_EQ(back.size(), arrays.size());
  for (const auto& [name, a] : arrays) {
    const at::Tensor b = back.at(name);
    EXPECT_EQ(a.scalar_type(), b.scalar_type()) << name;
    EXPECT_EQ(a.sizes(), b.sizes()) << name;
    EXPECT_TRUE(a.is_complex() ? at::equal(at::view_as_real(a), at::view_as_real(b))
                               : at::equal(a, b))
        << name;
  }
  EXPECT_THROW(write_mat(folder_ / "b.mat", {{"1x", at::ones({1})}}), std::invalid_argument);
}

TEST_F(Formats, TiffPagesColoursAndFloats) {
  const at::Tensor grey = Rng(1).uniform({7, 9}), pages = Rng(2).uniform({3, 5, 6}),
                   colour = (Rng(3).uniform({4, 6, 3}) * 255).to(at::kByte);
  write_tiff(folder_ / "g.tif", grey);
  write_tiff(folder_ / "p.tif", pages);
  write_tiff(folder_ / "c.tif", colour);
  EXPECT_TRUE(at::equal(read_tiff(folder_ / "g.tif"), grey));
  EXPECT_TRUE(at::equal(read_tiff(folder_ / "p.tif"), pages));
  EXPECT_TRUE(at::equal(read_tiff(folder_ / "c.tif"), colour));
}

TEST_F(Formats, IdxIsBigEndianAndMayBePacked) {
  const at::Tensor bytes = (Rng(1).uniform({5, 4, 3}) * 255).to(at::kByte);
  const at::Tensor ints = at::arange(6, at::kInt).view({2, 3}) * 70000;
  write_idx(folder_ / "a", bytes);
  write_idx(folder_ / "a.gz", bytes);
  write_idx(folder_ / "i", ints);
  EXPECT_TRUE(at::equal(read_idx(folder_ / "a"), bytes));
  EXPECT_TRUE(at::equal(read_idx(folder_ / "a.gz"), bytes));
  EXPECT_TRUE(at::equal(read_idx(folder_ / "i"), ints));
  EXPECT_EQ(read_text(folder_ / "a").substr(0, 8), std::string("\0\0\x08\x03\0\0\0\x05", 8));
  EXPECT_LT(fs::file_size(folder_ / "a.gz"), 200u);
}

TEST_F(Formats, PackedBombsAreNotUnpacked) {
  write_idx(folder_ / "zeros.gz", at::zeros({50000000}, at::kByte));
  const std::string packed = read_text(folder_ / "zeros.gz");
  EXPECT_LT(packed.size(), 100000u);
  EXPECT_EQ(read_idx(folder_ / "zeros.gz").numel(), 50000000);
  write_idx(folder_ / "small.gz", at::zeros({10}, at::kByte));
  // A second gzip member makes it longer than announced.
  write_text(folder_ / "two.gz", read_text(folder_ / "small.gz") + packed);
  EXPECT_THROW(read_idx(folder_ / "two.gz"), DataError);
}

TEST_F(Formats, TfrecordChecksumsAreCastagnolis) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising;
  for (int i = 0; i < 32; ++i) rising += static_cast<char>(i);
  EXPECT_EQ(crc32c(rising), 0x46dd794eu);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}

TEST_F(Formats, TfrecordExamples) {
  Example e;
  e["image"].floats = {1.5f, -2.0f, 3.25f};
  e["shape"].ints = {3, -1, int64_t{1} << 40};
  e["name"].bytes = {"a", std::string("b\0c", 3)};
  for (const bool packed : {false, true}) {
    const fs::path path = folder_ / (packed ? "p.tfrecord" : "r.tfrecord");
    write_tfrecord(path, {serialize_example(e), "second"}, packed);
    const TfrecordFile file(path);
    ASSERT_EQ(file.size(), 2);
    EXPECT_EQ(file.record(1), "second");
    const Example b = file.example(0);
    EXPECT_EQ(b.at("image").floats, e.at("image").floats);
    EXPECT_EQ(b.at("shape").ints, e.at("shape").ints);
    EXPECT_EQ(b.at("name").bytes, e.at("name").bytes);
    EXPECT_THROW(file.example(1), DataError);
  }
  std::string bytes = read_text(folder_ / "r.tfrecord");
  bytes[30] ^= 1;
  write_text(folder_ / "bad.tfrecord", bytes);
  const TfrecordFile bad(folder_ / "bad.tfrecord");
  EXPECT_THROW(bad.record(0), DataError);
  EXPECT_NO_THROW(bad.record(1));
}

TEST_F(Formats, Hdf5ArraysTextsAndRows) {
  Hdf5 h5;
  h5.arrays = {{"images", Rng(1).uniform({7, 40, 40})},
               {"group/deep/z", complex_sample({3, 2})},
               {"mask", at::arange(5) > 2},
               {"count", at::arange(4)}};
  h5.texts = {{"header", "<xml/>"}, {"@version", "1"}, {"images@unit", "Jy"}};
  write_hdf5(folder_ / "a.h5", h5);
  const Hdf5 back = read_hdf5(folder_ / "a.h5");
  EXPECT_EQ(back.texts, h5.texts);
  ASSERT_EQ(back.arrays.size(), h5.arrays.size());
  for (const auto& [name, a] : h5.arrays) {
    const at::Tensor b = back.arrays.at(name);
    EXPECT_EQ(a.scalar_type(), b.scalar_type()) << name;
    EXPECT_TRUE(a.is_complex() ? at::equal(at::view_as_real(a), at::view_as_real(b))
                               : at::equal(a, b))
        << name;
  }
  EXPECT_EQ(list_hdf5(folder_ / "a.h5").at("images").shape, (Shape{7, 40, 40}));
  EXPECT_TRUE(at::equal(read_hdf5_rows(folder_ / "a.h5", "images", 2, 3),
                        h5.arrays.at("images").slice(0, 2, 5)));
  EXPECT_THROW(read_hdf5_rows(folder_ / "a.h5", "images", 6, 2), DataError);
  EXPECT_THROW(read_hdf5(folder_ / "a.h5", {"absent"}), DataError);
  EXPECT_EQ(read_hdf5(folder_ / "a.h5", {"mask"}).arrays.size(), 1u);
}

TEST_F(Formats, FastmriCropRule) {
  testing_files::write_fastmri(folder_ / "v.h5");
  const FastmriVolume v = read_fastmri(folder_ / "v.h5");
  EXPECT_EQ(v.kspace.sizes(), at::IntArrayRef({2, 3, 16, 12}));
  EXPECT_EQ(v.kspace.scalar_type(), at::kComplexFloat);
  EXPECT_EQ(v.crop_height, 8);
  EXPECT_EQ(v.crop_width, 8);
  // The header has 14 encoded lines, centre 5, last 9, in a file of 12 columns.
  EXPECT_EQ(v.pad_left, 2);
  EXPECT_EQ(v.pad_right, 0);
  EXPECT_EQ(v.attributes.at("acquisition"), "CORPD_FBK");
  EXPECT_EQ(v.target.sizes(), at::IntArrayRef({2, 8, 8}));

  Hdf5 single;
  single.arrays["kspace"] = complex_sample({2, 16, 12});
  single.arrays["mask"] = at::arange(12) % 3 == 0;
  single.texts["ismrmrd_header"] = testing_files::ismrmrd_header_xml(16, 12, 1, 14, 14, 12);
  write_hdf5(folder_ / "s.h5", single);
  const FastmriVolume s = read_fastmri(folder_ / "s.h5");
  EXPECT_EQ(s.kspace.sizes(), at::IntArrayRef({2, 1, 16, 12}));
  EXPECT_EQ(s.crop_height, 12);  // k-space is narrower than the image: square of its width
  EXPECT_EQ(s.crop_width, 12);
  EXPECT_EQ(s.mask.sum().item<int64_t>(), 4);
}

TEST_F(Formats, IsmrmrdReadoutsOnTheGrid) {
  const testing_files::IsmrmrdSample sample;
  testing_files::write_ismrmrd(folder_ / "m.h5", sample);
  const IsmrmrdScan scan = read_ismrmrd(folder_ / "m.h5");
  ASSERT_EQ(scan.kspace.sizes(),
            at::IntArrayRef({sample.slices, sample.coils, sample.lines, sample.samples}));
  const auto k = scan.kspace.accessor<c10::complex<float>, 4>();
  int64_t wrong = 0;
  for (int s = 0; s < sample.slices; ++s)
    for (int c = 0; c < sample.coils; ++c)
      for (int l = 0; l < sample.lines; ++l)
        for (int x = 0; x < sample.samples; ++x) {
          const bool skipped = l == 1;
          const float re = skipped ? 0 : sample.real(s, c, l, x),
                      im = skipped ? 0 : sample.imag(s, c, l, x);
          wrong += std::abs(k[s][c][l][x].real() - re) > 1e-4f * std::abs(re) ||
                   std::abs(k[s][c][l][x].imag() - im) > 1e-4f * std::abs(im);
        }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(scan.sampled.sum().item<int64_t>(), sample.lines - 1);
  EXPECT_FALSE(scan.sampled[1].item<bool>());
  EXPECT_EQ(scan.header.recon[0], sample.samples / 2);
  EXPECT_EQ(scan.header.system, "Test");
  EXPECT_THROW(read_fastmri(folder_ / "m.h5"), DataError);
}

// Pixels lie where their x, y say, in whatever order the lines stand.
TEST_F(Formats, EhtimPixelsByPosition) {
  SkyImage sky;
  sky.pixels = Rng(4).uniform({4, 5}, at::kDouble);
  sky.pixel_size_rad = 2e-11;
  sky.source = "M87";
  write_ehtim_image(folder_ / "a.txt", sky);
  std::vector<std::string> header, lines;
  std::istringstream in(read_text(folder_ / "a.txt"));
  for (std::string line; std::getline(in, line);)
    (line[0] == '#' ? header : lines).push_back(line + "\n");
  const auto write = [&](const std::vector<std::string>& body) {
    std::string text;
    for (const auto& l : header) text += l;
    for (const auto& l : body) text += l;
    write_text(folder_ / "b.txt", text);
  };
  std::vector<std::string> west_first;  // each row from the other end
  for (size_t row = 0; row < 4; ++row)
    for (size_t k = 5; k-- > 0;) west_first.push_back(lines[5 * row + k]);
  write(west_first);
  EXPECT_TRUE(at::equal(read_ehtim_image(folder_ / "b.txt").pixels, sky.pixels));
  std::reverse(lines.begin(), lines.end());
  write(lines);
  EXPECT_TRUE(at::equal(read_ehtim_image(folder_ / "b.txt").pixels, sky.pixels));
  auto twice = lines;
  twice[3] = twice[4];
  write(twice);
  EXPECT_THROW(read_ehtim_image(folder_ / "b.txt"), DataError);
  auto off = lines;
  off[3] = "1e-9 0.0 1.0\n";
  write(off);
  EXPECT_THROW(read_ehtim_image(folder_ / "b.txt"), DataError);
}

TEST_F(Formats, EhtimImageAndArray) {
  SkyImage sky;
  sky.pixels = Rng(4).uniform({5, 5}, at::kDouble) * 1e-3;
  sky.pixel_size_rad = 2e-11;
  sky.ra_hours = 12.513728717168174;
  sky.dec_deg = -12.39112323919932;
  sky.frequency_hz = 227.1e9;
  sky.mjd = 57848;
  sky.source = "M87 jet";
  write_ehtim_image(folder_ / "i.txt", sky);
  const SkyImage b = read_ehtim_image(folder_ / "i.txt");
  EXPECT_TRUE(at::equal(b.pixels, sky.pixels));
  EXPECT_NEAR(b.pixel_size_rad, sky.pixel_size_rad, 1e-14 * 2e-11 * 100);
  EXPECT_NEAR(b.ra_hours, sky.ra_hours, 1e-13);  // 1e-10 s of time
  EXPECT_NEAR(b.dec_deg, sky.dec_deg, 1e-13);
  EXPECT_EQ(b.frequency_hz, sky.frequency_hz);
  EXPECT_EQ(b.mjd, sky.mjd);
  EXPECT_EQ(b.source, sky.source);
  // As ehtim rounds it, with polarisation columns.
  write_text(folder_ / "e.txt",
             "# SRC: 3C279\n# RA: 12 h 56 m 11.1665 s\n# DEC: -5 deg 47 m 21.5247 s\n"
             "# MJD: 57854.0000 \n# RF: 230.0000 GHz\n# FOVX: 2 pix 0.000002 as\n"
             "# FOVY: 2 pix 0.000002 as\n# ----\n# x (as) y (as) I (Jy/pixel) Q\n"
             "0.0000005 0.0000005 0.25 0.1\n-0.0000005 0.0000005 0.5 0\n"
             "0.0000005 -0.0000005 0.75 0\n-0.0000005 -0.0000005 1 0\n");
  const SkyImage e = read_ehtim_image(folder_ / "e.txt");
  EXPECT_EQ(e.pixels[0][1].item<double>(), 0.5);
  EXPECT_EQ(e.pixels[1][0].item<double>(), 0.75);
  EXPECT_NEAR(e.dec_deg, -(5 + 47 / 60.0 + 21.5247 / 3600), 1e-12);

  const std::vector<Site> sites = {{"AA", 2225061.164, -5440057.37, -2481681.15, 70, 71},
                                   {"PV", 5088967.9, -301681.6, 3825015.8, 1900, 1901}};
  write_ehtim_array(folder_ / "a.txt", sites);
  const auto back = read_ehtim_array(folder_ / "a.txt");
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[1].x, sites[1].x);
  EXPECT_EQ(back[1].sefd_l, 1901);
}

TEST_F(Formats, CifarRecords) {
  const CifarBatch batch{(Rng(1).uniform({3, 3, 32, 32}) * 255).to(at::kByte),
                         at::arange(3).to(at::kByte)};
  write_cifar10(folder_ / "b.bin", batch);
  EXPECT_EQ(fs::file_size(folder_ / "b.bin"), 3 * 3073u);
  const CifarBatch back = read_cifar10(folder_ / "b.bin");
  EXPECT_TRUE(at::equal(back.images, batch.images));
  EXPECT_TRUE(at::equal(back.labels, batch.labels));
}

}  // namespace
}  // namespace scoreprior::io
