// The multi-coil operator against BART, on BART's own phantom and coil sensitivities. Skipped
// where the program `bart` (Debian package bart) is not installed.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "scoreprior/core/rng.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/mri_masks.h"
#include "scoreprior/forward/multicoil_mri.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSide = 64, kCoils = 8;

class Bart : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("bart version > /dev/null 2>&1") != 0) GTEST_SKIP() << "bart is not installed";
    std::string pattern = (fs::temp_directory_path() / "scoreprior-bart-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }
  void bart(const std::string& command) const {
    ASSERT_EQ(std::system(("cd " + folder_.string() + " && OMP_NUM_THREADS=1 bart " + command +
                           " > log 2>&1")
                              .c_str()),
              0)
        << command;
  }
  /// BART's dimensions 0 (x), 1 (y) and 3 (coil) as [coils, x, y].
  at::Tensor read(const std::string& name, int64_t coils) const {
    at::Tensor a = at::empty({coils, kSide, kSide}, at::kComplexFloat);
    std::ifstream in(folder_ / (name + ".cfl"), std::ios::binary);
    in.read(static_cast<char*>(a.data_ptr()), static_cast<std::streamsize>(a.nbytes()));
    EXPECT_EQ(in.gcount(), static_cast<std::streamsize>(a.nbytes())) << name;
    return a.transpose(1, 2).to(at::kComplexDouble);
  }
  void write(const std::string& name, const at::Tensor& array) const {
    const at::Tensor a = array.transpose(1, 2).to(at::kComplexFloat).contiguous();
    std::ofstream(folder_ / (name + ".hdr"))
        << "# Dimensions\n"
        << kSide << ' ' << kSide << " 1 " << a.size(0) << " 1 1\n";
    std::ofstream(folder_ / (name + ".cfl"), std::ios::binary)
        .write(static_cast<const char*>(a.data_ptr()), static_cast<std::streamsize>(a.nbytes()));
  }
  fs::path folder_;
};

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().square().sum().sqrt() / b.abs().square().sum().sqrt()).item<double>();
}
at::Tensor two_channels(const at::Tensor& image) {  // complex [1,H,W] -> [1,2,H,W]
  return at::stack({at::real(image[0]), at::imag(image[0])}).unsqueeze(0);
}
at::Tensor complex_image(const at::Tensor& x) {  // [1,2,H,W] -> complex [1,H,W]
  return at::complex(x[0][0].contiguous(), x[0][1].contiguous()).unsqueeze(0);
}
at::Tensor poisson(double acceleration) {
  PoissonMaskOptions mask;
  mask.acceleration = acceleration;
  mask.centre = 20;
  return poisson_mask(kSide, kSide, mask);
}

TEST_F(Bart, ForwardAndAdjointAreEqual) {
  const std::string side = std::to_string(kSide), coils = std::to_string(kCoils);
  bart("phantom -x " + side + " object");
  bart("phantom -x " + side + " -S " + coils + " maps");
  const at::Tensor mask = poisson(4);
  write("mask", mask.unsqueeze(0));
  bart("fmac object maps seen");
  bart("fft -u 3 seen full");
  bart("fmac full mask kspace");
  const at::Tensor maps = read("maps", kCoils), object = read("object", 1);
  const at::Tensor noise = at::complex(Rng(1).normal({kCoils, kSide, kSide}, at::kDouble),
                                       Rng(2).normal({kCoils, kSide, kSide}, at::kDouble));
  write("noise", noise);
  bart("fmac noise mask masked");
  bart("fft -u -i 3 masked images");
  bart("fmac -C -s 8 images maps back");
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const MulticoilMri model(2, maps, mask, {dtype, at::kCPU});
    const at::Tensor y = model.apply(two_channels(object).to(dtype));
    const double forward =
        distance(model.kspace(y)[0].to(at::kComplexDouble), read("kspace", kCoils));
    const at::Tensor data = model.measurement(noise.unsqueeze(0));
    const double adjoint =
        distance(complex_image(model.adjoint(data)->to(at::kDouble)), read("back", 1));
    std::cout << "relative difference from BART, " << (dtype == at::kDouble ? "float64" : "float32")
              << ": forward " << forward << ", adjoint " << adjoint << "\n";
    EXPECT_LT(forward, 1e-5);  // BART computes in single precision
    EXPECT_LT(adjoint, 1e-5);
  }
}

// min |A x - y|^2 + lambda |x|^2 by conjugate gradients, here and there.
TEST_F(Bart, LeastSquaresReconstructionIsEqual) {
  const std::string side = std::to_string(kSide);
  bart("phantom -x " + side + " -k -s 8 kspace_full");
  bart("phantom -x " + side + " -S 8 maps_full");
  at::Tensor maps = read("maps_full", kCoils);  // in BART's own, large units
  maps = maps / maps.abs().square().sum(0).max().sqrt();
  write("maps", maps);
  const MulticoilMri model(2, maps, poisson(4), {at::kDouble, at::kCPU});
  const at::Tensor full = read("kspace_full", kCoils).unsqueeze(0);
  const at::Tensor y = model.measurement(full / full.abs().max());
  write("kspace", model.kspace(y)[0]);
  const double lambda = 0.02;
  bart("pics -S -w 1 -l2 -r 0.02 -i 80 kspace maps reconstruction");
  at::Tensor x = at::zeros({1, 2, kSide, kSide}, at::kDouble), r = *model.adjoint(y), p = r;
  double rr = r.square().sum().item<double>();
  for (int k = 0; k < 80; ++k) {
    const at::Tensor q = *model.adjoint(model.apply(p)) + lambda * p;
    const double step = rr / (p * q).sum().item<double>();
    x = x + step * p, r = r - step * q;
    const double next = r.square().sum().item<double>();
    p = r + (next / rr) * p, rr = next;
  }
  const double d = distance(complex_image(x), read("reconstruction", 1));
  std::cout << "relative difference of the l2 reconstruction: " << d << "\n";
  EXPECT_LT(d, 1e-5);  // two iterative solvers, one in single precision
}

// Both ESPIRiT estimates from the same 24 x 24 samples, where the object is: parallel up to phase.
TEST_F(Bart, EstimatedMapsAgree) {
  const std::string side = std::to_string(kSide);
  bart("phantom -x " + side + " -k -s 8 kspace");
  bart("phantom -x " + side + " object");
  bart("phantom -x " + side + " -S 8 maps");
  bart("ecalib -m 1 -k 6 -r 24 -c 0 kspace estimated");
  const at::Tensor theirs = read("estimated", kCoils), truth = read("maps", kCoils);
  CoilCalibration options;
  options.crop = 0;
  const at::Tensor ours = estimated_coil_maps(read("kspace", kCoils), options);
  const at::Tensor inside = read("object", 1)[0].abs().gt(0.05);
  const auto agreement = [&](const at::Tensor& a, const at::Tensor& b) {
    const at::Tensor product = (a.conj() * b).sum(0).abs();
    const at::Tensor norms = (a.abs().square().sum(0) * b.abs().square().sum(0)).sqrt();
    return (product / norms).masked_select(inside).to(at::kDouble);
  };
  const at::Tensor both = agreement(ours, theirs), true_ours = agreement(ours, truth),
                   true_theirs = agreement(theirs, truth);
  std::cout << "mean cosine of coil vectors: ours and BART's " << both.mean().item<double>()
            << ", ours and true " << true_ours.mean().item<double>() << ", BART's and true "
            << true_theirs.mean().item<double>() << "\n";
  EXPECT_GT(both.mean().item<double>(), 0.999);
  EXPECT_GT(true_ours.mean().item<double>(), true_theirs.mean().item<double>() - 1e-3);
}

}  // namespace
}  // namespace scoreprior
