// Scanners' files to a posterior: [data] kspace.

#include "scoreprior/pipeline/kspace_data.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/mri_masks.h"
#include "scoreprior/forward/multicoil_mri.h"
#include "scoreprior/io/cfl.h"
#include "scoreprior/io/hdf5.h"
#include "scoreprior/io/mat.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/problem.h"
#include "scoreprior/pipeline/run.h"
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

class KSpaceData : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-kspace-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    maps_ = simulated_coil_maps(kCoils, kSide, kSide);
    kspace_ = single(transform(maps_ * object(kSide, kSide), {1, 2}, false) + noise(kSide, kSide));
  }
  void TearDown() override { fs::remove_all(folder_); }
  static at::Tensor single(const at::Tensor& z) {
    return z.to(at::kComplexFloat).to(at::kComplexDouble);
  }
  static at::Tensor noise(int64_t height, int64_t width) {
    return 0.01 * at::complex(Rng(1).normal({kCoils, height, width}, at::kDouble),
                              Rng(2).normal({kCoils, height, width}, at::kDouble));
  }
  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  std::string quoted(const std::string& name) const { return "\"" + file(name) + "\"\n"; }

  Config config(const std::string& data, const std::string& forward,
                const std::string& likelihood = "sigma = 0.02\n") const {
    return io::parse_toml(
        "[data]\n" + data + "[forward]\n" + forward + "[likelihood]\n" + likelihood +
        "[prior]\nname = \"score_elbo\"\n[prior.score]\nweights = \"" + SP_SOURCE_DIR +
        "/models/phantom-32.safetensors\"\n[infer]\nname = \"split_gibbs\"\n"
        "n_draws = 2\nbatch = 2\nanneal = 2\nhold = 1\nsteps_per_efold = 1.0\n");
  }
  Measurement measure(const std::string& data, const std::string& forward,
                      const std::string& likelihood = "sigma = 0.02\n") const {
    return load_measurement(config(data, forward, likelihood), {1, kSide, kSide},
                            Session{at::kDouble, at::kCPU});
  }
  at::Tensor draws(const std::string& name, const Config& c) const {
    Observer quiet;
    run(c, {folder_ / name, ""}, quiet);
    return io::read_npy(folder_ / name / "draws.npy");
  }
  // y by hand: real then imaginary parts, points row by row, the coil fastest.
  static at::Tensor measurement(const at::Tensor& kspace, const at::Tensor& mask) {
    const at::Tensor points = mask.flatten().nonzero().flatten();
    const at::Tensor y = kspace.flatten(1).index_select(1, points).t().reshape({-1});
    return at::cat({at::real(y), at::imag(y)});
  }
  // The draws of `data` and `forward` are those of the same numbers as NPY files.
  void expect_draws_of(const at::Tensor& kspace, const at::Tensor& mask, const std::string& data,
                       const std::string& forward) const {
    io::write_npy(folder_ / "y.npy", measurement(kspace, mask));
    io::write_npy(folder_ / "mask.npy", mask.to(at::kDouble));
    io::write_npy(folder_ / "maps.npy", maps_);
    const at::Tensor expected =
        draws("plain", config("file = " + quoted("y.npy"),
                              "name = \"multicoil_mri\"\nmask = " + quoted("mask.npy") +
                                  "coil_maps = " + quoted("maps.npy")));
    const at::Tensor got = draws("file", config(data, forward));
    ASSERT_EQ(got.sizes(), at::IntArrayRef({2, 1, kSide, kSide}));
    // Apart from roundings of the same numbers in another order, which a few iterations in single
    // precision carry on.
    EXPECT_LT((got - expected).abs().max().item<double>(), 2e-4);
  }

  fs::path folder_;
  at::Tensor maps_, kspace_;
};

constexpr const char* kModel = "name = \"multicoil_mri\"\n";

// Read-out oversampled by two and cut to the header's image; columns of the file's mask; maps of a
// MATLAB file.
TEST_F(KSpaceData, FastmriRuns) {
  const at::Tensor columns = cartesian_mask(1, kSide, 2, 6)[0].ne(0);
  at::Tensor images = at::zeros({kCoils, 2 * kSide, kSide}, at::kComplexDouble);
  images.narrow(1, kSide / 2, kSide).copy_(maps_ * object(kSide, kSide));
  const at::Tensor wide =
      single((transform(images, {1, 2}, false) + noise(2 * kSide, kSide)) * columns);
  samples::write_fastmri(folder_ / "scan.h5",
                         at::stack({0 * wide, wide, 0 * wide}).to(at::kComplexFloat), kSide, kSide,
                         columns);
  io::write_mat(folder_ / "maps.mat", {{"S", maps_}});
  const at::Tensor cut =
      transform(transform(wide, {1}, true).narrow(1, kSide / 2, kSide), {1}, false);
  expect_draws_of(cut, columns.unsqueeze(0).expand({kSide, kSide}), "kspace = " + quoted("scan.h5"),
                  kModel + ("coil_maps = " + quoted("maps.mat")));
}

// Lines that were not measured are not in y; the second of two slices; maps of an NPZ of several.
TEST_F(KSpaceData, IsmrmrdRuns) {
  samples::IsmrmrdSample s;
  s.coils = kCoils;
  s.lines = s.samples = kSide;
  s.skip_lines = {1, 4, 7, 30};
  s.kspace = at::stack({0.5 * kspace_, kspace_}).to(at::kComplexFloat);
  samples::write_ismrmrd(folder_ / "scan.mrd", s);
  io::write_npz(folder_ / "maps.npz", {{"maps", maps_}, {"other", at::ones({3})}});
  at::Tensor mask = at::ones({kSide, kSide}, at::kBool);
  for (const int line : s.skip_lines) mask[line].fill_(false);
  // The sample's header halves the read-out's field of view: crop keeps it.
  expect_draws_of(kspace_, mask, "slice = 1\ncrop = [32, 32]\nkspace = " + quoted("scan.mrd"),
                  kModel + ("coil_maps = \"" + file("maps.npz") + ":maps\"\n"));
}

// k-space, mask and maps of BART, dimensions [x,y,1,coils].
TEST_F(KSpaceData, BartFilesRun) {
  const at::Tensor mask = cartesian_mask(kSide, kSide, 2, 6);
  io::write_cfl(folder_ / "ksp.cfl", io::to_bart_order(kspace_));
  io::write_cfl(folder_ / "maps.cfl", io::to_bart_order(maps_));
  io::write_cfl(folder_ / "mask.cfl", mask);
  maps_ = single(maps_);
  expect_draws_of(kspace_, mask, "kspace = " + quoted("ksp.cfl"),
                  kModel + ("mask = " + quoted("mask.cfl")) + "coil_maps = " + quoted("maps.cfl"));
}

TEST_F(KSpaceData, OneCoilRuns) {
  const at::Tensor k =
      single(transform(object(kSide, kSide), {0, 1}, false)) * cartesian_mask(kSide, kSide, 2, 6);
  io::write_npy(folder_ / "ksp.npy", k);
  const Measurement m = measure("kspace = " + quoted("ksp.npy"), "name = \"mri\"\n");
  EXPECT_TRUE(
      at::allclose(m.observation.y, at::cat({at::real(k).flatten(), at::imag(k).flatten()})));
  EXPECT_NE(m.observation.notes.at("kspace").find("acceleration 2"), std::string::npos)
      << m.observation.notes.at("kspace");
  EXPECT_EQ(draws("run", config("kspace = " + quoted("ksp.npy"), "name = \"mri\"\n")).size(0), 2);
  // The written configuration, which says where the mask is from, runs again.
  EXPECT_EQ(draws("again", io::read_toml(folder_ / "run" / "config.toml")).size(0), 2);
  Observer quiet;
  rebuild_report(folder_ / "run", quiet);
}

// Without maps they come from the data, with the phase of the object in them: the picture of the
// data is the object itself, though its phase is not that of the coils.
TEST_F(KSpaceData, MapsComeFromTheData) {
  const at::Tensor phase = at::linspace(-1, 2, kSide, at::kDouble);
  const at::Tensor k = transform(
      maps_ * object(kSide, kSide) * at::polar(at::ones_like(phase), phase), {1, 2}, false);
  io::write_cfl(folder_ / "ksp.cfl", io::to_bart_order(k));
  const Config c = config("kspace = " + quoted("ksp.cfl"), kModel);
  const Measurement m = load_measurement(c, {1, kSide, kSide}, Session{at::kDouble, at::kCPU});
  EXPECT_NE(c.to_toml().find("calibration = \"" + file("ksp.cfl") + "\""), std::string::npos);
  const at::Tensor picture = m.likelihood->naive_image()[0][0];
  const at::Tensor difference = picture - object(kSide, kSide);
  // Where the object is; maps are estimated, and the phase's ramp is not periodic.
  const at::Tensor inside = object(kSide, kSide).gt(0.1);
  EXPECT_LT(difference.masked_select(inside).abs().max().item<double>(), 0.03);
}

TEST_F(KSpaceData, NoiseOfTheFile) {
  // The noise level of the file is that of a complex number.
  io::write_npz(folder_ / "n.npz",
                {{"kspace", kspace_}, {"sigma", at::scalar_tensor(0.5, at::kDouble)}});
  const Measurement m = measure("kspace = " + quoted("n.npz"), "name = \"multicoil_mri\"\n", "");
  EXPECT_NEAR(m.observation.sigma.item<double>(), 0.5 * M_SQRT1_2, 1e-12);
}

TEST_F(KSpaceData, MistakesAreNamed) {
  const at::Tensor mask = cartesian_mask(kSide, kSide, 2, 6);
  io::write_npy(folder_ / "k.npy", kspace_ * mask);
  const std::string data = "kspace = " + quoted("k.npy"), maps = "coils = 3\n";
  const auto message = [&](const std::string& d, const std::string& forward) -> std::string {
    try {
      measure(d, forward);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message(data, kModel + maps + "pattern = \"radial\"\n").find("were not measured"),
            std::string::npos);
  EXPECT_NE(message(data, std::string(kModel) + "coils = 4\n").find("of 3 coils, the model has 4"),
            std::string::npos);
  EXPECT_NE(message(data, "name = \"identity\"\n").find("mri or multicoil_mri"), std::string::npos);
  EXPECT_NE(message(data, "name = \"mri\"\n").find("of 3 coils, the model has 1"),
            std::string::npos);
  EXPECT_NE(message(data + "file = \"y.npy\"\n", kModel).find("not both"), std::string::npos);
  // Two channels are a complex image, which the single-coil model does not know.
  io::write_npy(folder_ / "one.npy", kspace_[0]);
  EXPECT_THROW(load_measurement(config("kspace = " + quoted("one.npy"), "name = \"mri\"\n"),
                                {2, kSide, kSide}, Session{at::kDouble, at::kCPU}),
               DataError);
  // Maps from data whose centre has gaps.
  EXPECT_NE(message(data, kModel).find("set calibration_region"), std::string::npos)
      << message(data, kModel);
  EXPECT_EQ(message(data, std::string(kModel) + "calibration_region = 6\n"), "");
  EXPECT_EQ(message(data, kModel + maps), "");
  io::write_npy(folder_ / "real.npy", at::ones({kSide, kSide}));
  EXPECT_NE(message("kspace = " + quoted("real.npy"), kModel).find("complex"), std::string::npos);
  EXPECT_NE(message("kspace = " + quoted("absent.h5"), kModel).find("absent.h5"),
            std::string::npos);
}

// As docs/forward.md does it.
TEST_F(KSpaceData, BartPhantom) {
  if (std::system("bart version > /dev/null 2>&1") != 0) GTEST_SKIP() << "bart is not installed";
  ASSERT_EQ(
      std::system(("cd " + folder_.string() +
                   " && bart phantom -x 32 -k -s 8 ksp > log && bart fft -i -u 3 ksp coils > log "
                   "&& bart rss 8 coils rss > log && bart ecalib -m 1 -c 0 ksp maps > log")
                      .c_str()),
      0);
  const std::string data = "scale = 0.0\nkspace = " + quoted("ksp.cfl");
  const at::Tensor object = at::real(io::read_cfl(folder_ / "rss.cfl")).to(at::kDouble);
  const auto alike = [&](const at::Tensor& picture) {
    const at::Tensor a = picture.flatten(), b = object.flatten();
    return ((a * b).sum() / (a.norm() * b.norm())).item<double>();
  };
  EXPECT_GT(alike(measure(data, kModel).likelihood->naive_image()), 0.97);
  // Maps have sum |S|^2 = 1, so the picture is shaded as the root of the sum of squares is.
  // BART's have a phase of their own: for a complex image.
  const Measurement m =
      load_measurement(config(data, kModel + ("coil_maps = " + quoted("maps.cfl"))),
                       {2, kSide, kSide}, Session{at::kDouble, at::kCPU});
  EXPECT_GT(alike(m.likelihood->naive_image()[0].square().sum(0).sqrt()), 0.97);
}

}  // namespace
}  // namespace scoreprior
