#include "scoreprior/pipeline/simulate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/pipeline/check.h"
#include "scoreprior/pipeline/problem.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

class Simulations : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-simulate-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    io::write_npy(folder_ / "image.npy", Rng(1).uniform({1, 16, 16}, at::kDouble) + 0.1);
    io::write_npy(folder_ / "matrix.npy", Rng(2).normal({40, 256}, at::kDouble) / 16);
    io::write_npy(folder_ / "positive.npy", Rng(3).uniform({40, 256}, at::kDouble) / 16);
    io::write_npy(folder_ / "uv.npy", Rng(4).normal({30, 2}, at::kDouble) * 3e9);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // The text with @ for the folder.
  Config config(std::string text) const {
    for (size_t at; (at = text.find('@')) != std::string::npos;)
      text.replace(at, 1, folder_.string());
    return io::parse_toml(text);
  }
  void simulate_text(const std::string& text, const char* out = "out") {
    simulate(config(text), folder_ / out, quiet_);
  }
  Measurement measured(const std::string& text) {
    return load_measurement(config(text), {1, 16, 16}, Session{at::kDouble, at::kCPU});
  }
  static double worst_chi2(const Measurement& m) {
    double worst = 0;
    const int64_t n = m.likelihood->residuals(m.truth.unsqueeze(0)).size(1);
    for (const auto& [name, value] : m.likelihood->chi2(m.truth.unsqueeze(0)))
      worst = std::max(
          worst, std::abs(value.item<double>() - 1) / std::sqrt(2.0 / static_cast<double>(n)));
    return worst;
  }
  CheckReport checked(const std::string& text) { return check(config(text), quiet_); }

  fs::path folder_;
  Observer quiet_;
};

const char* kTruth = "seed = 3\n[truth]\nfile = \"@/image.npy\"\n";
const char* kData = "[data]\nfile = \"@/out/observation.npz\"\n";

// What a table needs beyond a name, for an image [1,16,16].
std::string forward_settings(const std::string& name) {
  if (name == "matrix") return "matrix = \"@/matrix.npy\"\n";
  if (name == "complex_matrix")
    return "matrix_real = \"@/matrix.npy\"\nmatrix_imag = \"@/positive.npy\"\n";
  if (name == "visibilities") return "uv = \"@/uv.npy\"\n";
  if (name == "compose")
    return "[forward.first]\nname = \"blur\"\n[forward.second]\nname = \"super_resolution\"\n";
  return "";
}

// Every forward model of the catalogue, there and back: the truth fits its own data.
TEST_F(Simulations, EveryForwardModelThereAndBack) {
  for (const auto& entry : forward_models().entries()) {
    if (entry.name.find("wrong_") == 0) continue;  // of another test here
    const std::string tables = "[forward]\nname = \"" + entry.name + "\"\n" +
                               forward_settings(entry.name) + "[likelihood]\nsigma = 0.05\n";
    ASSERT_NO_THROW(simulate_text(kTruth + tables)) << entry.name;
    const Measurement m = measured(kData + tables);
    EXPECT_LT(worst_chi2(m), 4.5) << entry.name;
    EXPECT_TRUE(at::equal(m.truth, io::read_npy(folder_ / "image.npy"))) << entry.name;
    // The file knows its own sigma.
    const Measurement own = measured(kData + tables.substr(0, tables.find("sigma =")));
    EXPECT_NEAR(worst_chi2(own), worst_chi2(m), 1e-9) << entry.name;
  }
}

TEST_F(Simulations, EveryNoiseModel) {
  const at::Tensor g = Rng(5).normal({256, 256}, at::kDouble) / 16;
  io::write_npy(folder_ / "covariance.npy", 0.01 * (g.matmul(g.t()) + at::eye(256, at::kDouble)));
  simulate_text(
      std::string(kTruth) +
      "[likelihood]\nname = \"correlated_gaussian\"\ncovariance = \"@/covariance.npy\"\n");
  EXPECT_LT(
      worst_chi2(measured(std::string(kData) + "[likelihood]\nname = \"correlated_gaussian\"\n")),
      4.5);
  const std::string counts = "[likelihood]\nname = \"poisson\"\n";
  simulate_text(std::string(kTruth) + counts + "exposure = 200.0\nbackground = 3.0\n");
  const Measurement m = measured(kData + counts);  // exposure and background are in the file
  EXPECT_LT(worst_chi2(m), 4.5);
  EXPECT_GT(m.observation.y.mean().item<double>(), 50);
  // A rate below nothing is refused in one sentence.
  io::write_npy(folder_ / "image.npy", Rng(1).normal({1, 16, 16}, at::kDouble));
  EXPECT_THROW(simulate_text(kTruth + counts), DataError);
}

TEST_F(Simulations, TheSkyAtTheBaselinesOfAnObservation) {
  const std::string sky =
      "seed = 1\n[truth]\nname = \"blackhole\"\nimage_size = 16\nfov_uas = 128.0\n";
  simulate_text(sky + "[observe]\nadvance_seconds = 3600\n", "first");
  const std::string like =
      "[data]\nfile = \"@/first/observation.uvfits\"\n[likelihood]\nname = "
      "\"interferometry\"\nfov_uas = 128.0\nunits = \"jy\"\n";
  simulate_text(sky + like + "gains = \"marginal\"\n", "second");
  const auto a = io::read_uvfits(folder_ / "first/observation.uvfits"),
             b = io::read_uvfits(folder_ / "second/observation.uvfits");
  ASSERT_EQ(a.rows.size(), b.rows.size());
  EXPECT_EQ(a.rows[3].u, b.rows[3].u);
  EXPECT_NE(a.rows[3].vis, b.rows[3].vis);
  EXPECT_THROW(simulate_text(sky + "[likelihood]\nname = \"interferometry\"\n"), ConfigError);
}

const char* kPrior =
    "[run]\ndtype = \"float32\"\n[image]\nsize = 16\n[prior]\nname = \"tv\"\n"
    "[infer]\nname = \"map\"\n";

TEST_F(Simulations, CheckPassesForGoodConfigurations) {
  for (const char* name : {"identity", "mri", "phase_retrieval"}) {
    const std::string tables =
        std::string("[forward]\nname = \"") + name + "\"\n[likelihood]\nsigma = 0.05\n";
    simulate_text(kTruth + tables);
    const CheckReport report = checked(kData + tables + kPrior);
    EXPECT_TRUE(report.passed()) << check_text(report);
    bool dot = false, finite_difference = false, cost = false, scale = false;
    for (const auto& l : report.lines) {
      dot |= l.name.find("dot test") == 0 && l.verdict == CheckLine::Verdict::kPassed;
      finite_difference |= l.part == "likelihood" && l.name.find("gradient, ") == 0;
      cost |= l.name == "prior gradient";
      scale |= l.name == "y: data/sigma";
    }
    EXPECT_EQ(dot, std::string(name) != "phase_retrieval");
    EXPECT_TRUE(finite_difference && cost && scale) << check_text(report);
    EXPECT_NE(check_text(report).find("0 failed"), std::string::npos);
    EXPECT_NE(report.settings.find("[forward]"), std::string::npos);
  }
}

TEST_F(Simulations, CheckOfAnObservationOfTheSky) {
  simulate_text(
      "seed = 1\n[truth]\nname = \"blackhole\"\nimage_size = 16\nfov_uas = 128.0\n"
      "[observe]\nadvance_seconds = 3600\ngain_std = 0.1\nphase_errors = true\n");
  for (const char* gains : {"", "gains = \"marginal\"\ngain_amp_std = 0.15\n"}) {
    const CheckReport report =
        checked(std::string("[data]\nfile = \"@/out/observation.uvfits\"\n[likelihood]\nname = "
                            "\"interferometry\"\nfov_uas = 128.0\n") +
                gains + kPrior);
    EXPECT_TRUE(report.passed()) << check_text(report);
  }
}

// A user's operator whose adjoint is not one, and one whose gradient lies.
class Wrong final : public ForwardModel {
 public:
  Wrong(Shape shape, bool linear) : shape_(std::move(shape)), linear_(linear) {}
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {numel(shape_)}; }
  bool linear() const override { return linear_; }
  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("wrong", "x", x, shape_);
    if (linear_) return x.flatten(1).cumsum(1);
    return (x.square().detach() + x * 0.5).flatten(1);
  }
  std::optional<at::Tensor> adjoint(const at::Tensor& y) const override {
    if (!linear_) return std::nullopt;
    return y.cumsum(1).reshape(batched(y.size(0), shape_));
  }

 private:
  Shape shape_;
  bool linear_;
};

TEST_F(Simulations, CheckFindsWrongOperators) {
  for (const bool linear : {true, false}) {
    const std::string name = linear ? "wrong_adjoint" : "wrong_gradient";
    mutable_forward_models().add(name, "", [linear](const Config&, const ForwardContext& c) {
      return std::make_unique<Wrong>(c.image_shape, linear);
    });
    const std::string tables = "[forward]\nname = \"" + name + "\"\n[likelihood]\nsigma = 0.05\n";
    simulate_text(kTruth + tables);
    const CheckReport report = checked(kData + tables + kPrior);
    EXPECT_FALSE(report.passed());
    int in_operator = 0, in_likelihood = 0;
    for (const auto& l : report.lines) {
      if (l.verdict != CheckLine::Verdict::kFailed) continue;
      in_operator += l.part == "operator";
      in_likelihood += l.part == "likelihood";
    }
    EXPECT_GE(in_operator, 2) << check_text(report);  // both dtypes
    EXPECT_EQ(in_likelihood, 1) << check_text(report);
  }
}

TEST_F(Simulations, CheckRemarksOnScale) {
  simulate_text(std::string(kTruth) + "[likelihood]\nsigma = 0.05\n");
  auto arrays = io::read_npz(folder_ / "out/observation.npz");
  arrays["y"] = arrays["y"] * 255;  // measured in other units than the images
  io::write_npz(folder_ / "out/observation.npz", arrays);
  const CheckReport report = checked(std::string(kData) + "[likelihood]\nsigma = 0.05\n" + kPrior);
  EXPECT_TRUE(report.passed());
  bool remarked = false;
  for (const auto& l : report.lines)
    remarked |= l.name == "y: model/data" && l.verdict == CheckLine::Verdict::kLook;
  EXPECT_TRUE(remarked) << check_text(report);
  EXPECT_THROW(checked(std::string(kData) + "[likelihood]\nsigmma = 0.05\n" + kPrior), ConfigError);
}

}  // namespace
}  // namespace scoreprior
