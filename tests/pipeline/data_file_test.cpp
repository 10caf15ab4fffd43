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
#include "scoreprior/io/cifar.h"
#include "scoreprior/io/ehtim_text.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/idx.h"
#include "scoreprior/io/mri_raw.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/tfrecord.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/pipeline/convert.h"
#include "scoreprior/pipeline/info.h"
#include "tests/io/sample_files.h"

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
  io::write_npy(folder_ / "x.npy", at::ones({4}));
  EXPECT_THROW(convert("x.npy", "y.uvfits"), UsageError);
  EXPECT_THROW(convert("x.uvfits", "y.xyz"), UsageError);
}

at::Tensor complex_sample(at::IntArrayRef shape) {
  return at::complex(Rng(7).normal(shape.vec()), Rng(8).normal(shape.vec()));
}
bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         (a.is_complex()
              ? at::equal(at::view_as_real(a.contiguous()), at::view_as_real(b.contiguous()))
              : at::equal(a, b));
}

TEST_F(DataFiles, CoilsAndSlicesHaveTheirDimensionsInBart) {
  const at::Tensor k = complex_sample({4, 10, 12});
  io::write_npy(folder_ / "k.npy", k);
  EXPECT_NE(convert("k.npy", "k.cfl").find("taken as [coils,H,W]"), std::string::npos);
  at::Tensor c = io::read_cfl(folder_ / "k.cfl");
  ASSERT_EQ(c.sizes(), at::IntArrayRef({10, 12, 1, 4}));
  EXPECT_TRUE(same(c.squeeze(2).permute({2, 0, 1}), k));
  convert("k.cfl", "back.npy");  // what multicoil_mri reads
  EXPECT_TRUE(same(io::read_npy(folder_ / "back.npy"), k));
  convert("k.cfl", "same.cfl");
  EXPECT_EQ(io::read_cfl(folder_ / "same.cfl").sizes(), c.sizes());

  io::write_npz(folder_ / "s.npz", {{"kspace", complex_sample({2, 4, 10, 12})}});
  convert("s.npz", "s.cfl");
  c = io::read_cfl(folder_ / "s.cfl");
  ASSERT_EQ(c.dim(), 14);
  EXPECT_EQ(c.size(13), 2);
  EXPECT_EQ(c.size(3), 4);
  convert("s.cfl", "s2.npy");
  EXPECT_TRUE(same(io::read_npy(folder_ / "s2.npy"), complex_sample({2, 4, 10, 12})));
  // A volume keeps its partitions apart from its coils.
  const at::Tensor v = complex_sample({1, 4, 3, 10, 12});
  EXPECT_TRUE(same(io::from_bart_order(io::to_bart_order(v)), v));
  // Maps of several sets have no such order here and stay; so do real arrays.
  const at::Tensor sets = complex_sample({10, 12, 1, 4, 2});
  EXPECT_TRUE(same(io::from_bart_order(sets), sets));
  io::write_npy(folder_ / "r.npy", at::ones({4, 10, 12}));
  EXPECT_NE(convert("r.npy", "r.cfl").find("dimensions as given"), std::string::npos);
  EXPECT_EQ(io::read_cfl(folder_ / "r.cfl").sizes(), at::IntArrayRef({4, 10, 12}));
}

// The read-out is BART's dimension 0, on whatever way the file came.
TEST_F(DataFiles, ScannerFilesKeepTheirReadOut) {
  io::testing_files::write_fastmri(folder_ / "f.h5");
  io::testing_files::write_ismrmrd(folder_ / "i.h5", {});
  for (const std::string name : {"f", "i"}) {
    convert(name + ".h5", name + "_direct.cfl");
    const at::Tensor direct = io::read_cfl(folder_ / (name + "_direct.cfl"));
    EXPECT_EQ(direct.size(0), name == "f" ? 16 : 12) << "samples of a read-out";
    EXPECT_EQ(direct.size(1), name == "f" ? 12 : 8) << "lines";
    for (const std::string through : {".npz", "_copy.h5", ".mat"}) {
      convert(name + ".h5", name + through);
      convert(name + through, name + "_through.cfl");
      EXPECT_TRUE(same(io::read_cfl(folder_ / (name + "_through.cfl")), direct)) << name << through;
    }
  }
  const io::FastmriVolume original = io::read_fastmri(folder_ / "f.h5"),
                          copy = io::read_fastmri(folder_ / "f_copy.h5");
  EXPECT_TRUE(same(copy.kspace, original.kspace));
  EXPECT_TRUE(same(copy.target, original.target));
  EXPECT_EQ(copy.header_xml, original.header_xml);
  EXPECT_EQ(copy.attributes.at("acquisition"), "CORPD_FBK");
  EXPECT_EQ(copy.pad_left, original.pad_left);
  EXPECT_TRUE(same(read_data_file(folder_ / "i_copy.h5").arrays.at("kspace"),
                   io::read_ismrmrd(folder_ / "i.h5").kspace));
  EXPECT_EQ(io::read_hdf5(folder_ / "i_copy.h5").texts.at("header"),
            io::read_ismrmrd(folder_ / "i.h5").header_xml);
}

// An array called kspace does not make a fastMRI file.
TEST_F(DataFiles, ItsOwnHdf5IsReadAgain) {
  io::write_npz(folder_ / "k.npz", {{"kspace", complex_sample({4, 10, 12})}});
  convert("k.npz", "k.h5");
  EXPECT_NE(describe_file(folder_ / "k.h5", false).find("HDF5 arrays"), std::string::npos);
  convert("k.h5", "again.npz");
  EXPECT_TRUE(same(io::read_npz(folder_ / "again.npz").at("kspace"), complex_sample({4, 10, 12})));
}

TEST_F(DataFiles, PicturesOfDataSets) {
  const at::Tensor bytes = (Rng(1).uniform({3, 9, 8}) * 255).to(at::kByte);
  io::write_idx(folder_ / "x.idx", bytes);
  convert("x.idx", "x.npy");
  EXPECT_TRUE(same(io::read_npy(folder_ / "x.npy"), bytes));
  convert("x.npy", "y.idx");
  EXPECT_TRUE(same(io::read_idx(folder_ / "y.idx"), bytes));

  const io::CifarBatch batch{(Rng(2).uniform({2, 3, 32, 32}) * 255).to(at::kByte),
                             at::full({2}, 3, at::kByte)};
  io::write_cifar10(folder_ / "c.bin", batch);
  convert("c.bin", "c.npz");
  EXPECT_TRUE(same(io::read_npz(folder_ / "c.npz").at("images"), batch.images));
  EXPECT_TRUE(same(io::read_npz(folder_ / "c.npz").at("labels"), batch.labels));

  io::Example e;
  e["image"].floats = {0.5f, 0.25f, 1};
  e["size"].ints = {3, 1};
  e["name"].bytes = {"a record"};
  io::write_tfrecord(folder_ / "t.tfrecord", {io::serialize_example(e)});
  convert("t.tfrecord", "t.npz");
  const io::Arrays t = io::read_npz(folder_ / "t.npz");
  EXPECT_EQ(t.at("image")[1].item<float>(), 0.25f);
  EXPECT_EQ(t.at("size")[0].item<int64_t>(), 3);
  EXPECT_EQ(t.size(), 2u);
}

TEST_F(DataFiles, TelescopesAndVisibilitiesReturn) {
  const std::vector<Site> sites = {{"LM", -768713.9637, -5988541.7982, 2063275.9472, 600, 601},
                                   {"AA", 2225061.164, -5440057.37, -2481681.15, 70, 71}};
  io::write_ehtim_array(folder_ / "a.txt", sites);
  convert("a.txt", "a.npz");
  convert("a.npz", "a.mat");
  convert("a.mat", "a.h5");
  convert("a.h5", "b.txt");
  const auto back = io::read_ehtim_array(folder_ / "b.txt");
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[1].name, "AA");
  EXPECT_EQ(back[0].x, sites[0].x);
  EXPECT_EQ(back[0].sefd_l, 601);

  ObserveOptions o;
  o.start_hours = 4;
  o.stop_hours = 6;
  VisibilityTable t = coverage(o);
  for (auto& r : t.rows) r.vis = {r.u * 1e-10, 0.1};
  io::write_uvfits(folder_ / "x.uvfits", t);
  for (const char* through : {"x.npz", "x.h5", "x.mat"}) {
    convert("x.uvfits", through);
    convert(through, "y.uvfits");
    EXPECT_EQ(io::read_text(folder_ / "y.uvfits"), io::read_text(folder_ / "x.uvfits")) << through;
  }
  EXPECT_EQ(remarks("x.npz"), "");
  // Damaged: a site that is not listed, columns of different lengths.
  io::Arrays a = io::read_npz(folder_ / "x.npz");
  a["t2"] = a["t2"] + 100;
  io::write_npz(folder_ / "z.npz", a);
  EXPECT_THROW(read_data_file(folder_ / "z.npz"), DataError);
  a["t2"] = at::ones({1}, at::kLong);
  io::write_npz(folder_ / "z.npz", a);
  EXPECT_THROW(read_data_file(folder_ / "z.npz"), DataError);
}

TEST_F(DataFiles, TheDoctorSeesCoilsIntegersAndShiftedImages) {
  const at::Tensor picture = smooth_picture(32), k = centred_spectrum(picture);
  const at::Tensor corner = at::fft_ifftshift(k, {{0, 1}});
  io::write_cfl(folder_ / "ksp.cfl",
                at::stack({corner, corner * 2, corner, corner}, 2).unsqueeze(2));
  EXPECT_NE(remarks("ksp.cfl").find("corner"), std::string::npos);
  io::write_cfl(folder_ / "ksp.cfl", at::stack({k, k * 2, k, k}, 2).unsqueeze(2));
  EXPECT_EQ(remarks("ksp.cfl"), "");
  io::write_npy(folder_ / "int.npy", (picture * 150).to(at::kInt));
  EXPECT_NE(remarks("int.npy").find("0 to 255"), std::string::npos);
  io::write_npz(
      folder_ / "half.npz",
      {{"kspace", at::fft_fftshift(at::fft_fft2(picture.to(at::kComplexDouble)), {{0, 1}})}});
  EXPECT_NE(remarks("half.npz").find("whose middle is in the corner"), std::string::npos);
}

TEST_F(DataFiles, InfoSaysTypesAndConventions) {
  io::write_npz(folder_ / "x.npz", {{"a", complex_sample({3, 4})}, {"b", at::arange(3)}});
  const std::string text = describe_file(folder_ / "x.npz", false);
  EXPECT_NE(text.find("complex64"), std::string::npos) << text;
  EXPECT_NE(text.find("int64"), std::string::npos);
  EXPECT_NE(text.find("convention"), std::string::npos);
}

}  // namespace
}  // namespace scoreprior
