#include "scoreprior/pipeline/logp.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

constexpr double kMean = 0.5, kSigma = 0.2, kT0 = 1e-3;
const char* kLaw =
    "[score]\nname = \"gaussian\"\nmean = 0.5\nsigma = 0.2\nshape = [1, 4, 4]\n[score.sde]\n"
    "type = \"vp\"\n";

class LogpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("sp-logp-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string save(const std::string& name, const at::Tensor& a) const {
    io::write_npy(folder_ / name, a);
    return (folder_ / name).string();
  }
  LogpResult evaluate(const std::string& images, const std::string& extra = "",
                      const std::string& method = "all") const {
    Session session;
    session.dtype = at::kDouble;
    Observer observer;
    return log_densities(io::parse_toml(kLaw + extra), images, method, 3, session, observer);
  }
  void expect_error(const std::string& images, const std::string& says,
                    const std::string& extra = "", const std::string& method = "path") const {
    try {
      evaluate(images, extra, method);
      ADD_FAILURE() << "no error, expected: " << says;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
  }
  fs::path folder_;
};

at::Tensor some_images(int64_t n) {
  return kMean + kSigma * Rng(1).normal({n, 1, 4, 4}, at::kDouble);
}

// The law at t0 of VP with beta 0.1..20, by hand.
at::Tensor closed_form(const at::Tensor& x) {
  const double b = 0.1 * kT0 + 19.9 * kT0 * kT0 / 2, alpha = std::exp(-b / 2);
  const double v = alpha * alpha * kSigma * kSigma + 1 - std::exp(-b);
  return -0.5 * (x - alpha * kMean).square().flatten(1).sum(1) / v - 8 * std::log(2 * M_PI * v);
}

TEST_F(LogpTest, ThreeMethodsAgreeWithTheClosedForm) {
  const at::Tensor x = some_images(5);
  const std::string draws = "[path]\npaths = 16\nsteps = 64\n[elbo]\nreplicates = 16\n";
  const LogpResult r = evaluate(save("x.npy", x), draws + "[images]\nbatch = 2\n");
  ASSERT_EQ(r.columns.size(), 3u);
  ASSERT_EQ(r.names.size(), 5u);
  const at::Tensor exact = closed_form(x);
  for (const LogpColumn& c : r.columns) {
    // The prior stands for the law at t = 1, whose mean is alpha_1 kMean = 0.0033 per pixel: a
    // normal error of 0.0033 sqrt(16) = 0.013 for a latent, of which 0.05 is four standard
    // deviations. The bound is one on p_0, which differs by less.
    const double slack = 0.05;
    const at::Tensor steps =
        c.step_error.defined() && c.method == "ode" ? c.step_error : at::zeros_like(exact);
    const at::Tensor allowed = 5 * c.random_error + 2 * steps + slack;
    EXPECT_TRUE(((c.log_prob - exact).abs() < allowed).all().item<bool>())
        << c.method << "\n"
        << c.log_prob - exact << "\n"
        << allowed;
    EXPECT_TRUE((c.evaluations > 0).all().item<bool>());
    EXPECT_GT(c.seconds, 0);
  }
  EXPECT_EQ(r.columns[2].evaluations[0].item<int64_t>(), 16 * 64);
  // Rows do not depend on how they are batched.
  const LogpResult whole = evaluate(save("x.npy", x), draws, "path");
  EXPECT_LT((whole.columns[0].log_prob - r.columns[2].log_prob).abs().max().item<double>(), 1e-9);
}

// As many colours as leave sets for a standard error; a number that is asked for is taken.
TEST_F(LogpTest, ProbesShareThePixelsOut) {
  const auto path = save("x.npy", some_images(2));
  const auto settings = [&](const std::string& ode) {
    const LogpResult r = evaluate(path, "[ode]\nsteps = 4\n" + ode, "ode");
    return logp_text(r) +
           std::to_string(at::isfinite(r.columns[0].random_error).all().item<bool>());
  };
  for (const auto& [ode, want] :
       {std::make_pair("", "4 probes (hutchinson, 2 colours)"),
        std::make_pair("n_probes = 16\n", "16 probes (hutchinson, 4 colours)"),
        std::make_pair("n_probes = 2\n", "2 probes (hutchinson)"),
        std::make_pair("colours = 1\n", "4 probes (hutchinson)")}) {
    const std::string text = settings(ode);
    EXPECT_NE(text.find(want), std::string::npos) << text;
    EXPECT_EQ(text.back(), '1') << ode;
  }
}

TEST_F(LogpTest, WritesTextJsonAndArrays) {
  const LogpResult r = evaluate(save("x.npy", some_images(2)), "[ode]\nn_probes = 2\n");
  const std::string text = logp_text(r);
  for (const char* part : {"log p ode", "+- probes", "+- solver", "ELBO", "gap", "log p path",
                           "bits/dim", "mean", "evaluations per image", "t0 = 0.001"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  const auto j = nlohmann::json::parse(logp_json(r));
  EXPECT_EQ(j["names"].size(), 2u);
  EXPECT_NEAR(j["methods"]["ode"]["bits_per_dim"][0].get<double>(),
              -r.columns[0].log_prob[0].item<double>() / (16 * std::log(2.0)), 1e-12);
  const std::string head = text.substr(
      text.find("\nimage "), text.find('\n', text.find("\nimage ") + 1) - text.find("\nimage "));
  size_t bits = 0;
  for (size_t at = head.find("bits/dim"); at != std::string::npos;
       at = head.find("bits/dim", at + 1))
    ++bits;
  EXPECT_EQ(bits, 3u) << head;
  const io::Arrays a = logp_arrays(r);
  EXPECT_TRUE(a.count("ode_step_error") && a.count("elbo_random_error") && a.count("path_nfe"));
  EXPECT_FALSE(a.count("elbo_step_error"));
}

TEST_F(LogpTest, ReadsEveryKindOfImage) {
  const at::Tensor x = some_images(3).clamp(0, 1);
  const at::Tensor bytes = (x * 255).round().to(at::kByte);
  const at::Tensor levels = bytes.to(at::kDouble) / 255;
  const at::Tensor exact = closed_form(levels);
  const auto matches = [&](const LogpResult& r, const at::Tensor& want) {
    EXPECT_EQ(r.columns[0].log_prob.size(0), want.size(0));
    EXPECT_LT((r.columns[0].log_prob - want).abs().max().item<double>(), 0.02);
  };
  const std::string ode = "[ode]\nrtol = 1e-6\natol = 1e-6\n";
  const LogpResult r = evaluate(save("b.npy", bytes), ode, "ode");
  EXPECT_TRUE(r.bytes);
  matches(r, exact);
  matches(evaluate(save("nhw.npy", levels.squeeze(1)), ode, "ode"), exact);
  matches(evaluate(save("nhwc.npy", levels.permute({0, 2, 3, 1}).contiguous()), ode, "ode"), exact);
  matches(evaluate(save("hw.npy", levels[1][0]), ode, "ode"), exact.slice(0, 1, 2));
  io::write_npz(folder_ / "two.npz", {{"a", levels}, {"b", levels + 0.01}});
  matches(evaluate((folder_ / "two.npz").string(), ode + "[images]\narray = \"a\"\n", "ode"),
          exact);
  fs::create_directories(folder_ / "pictures");
  for (int64_t i = 0; i < 3; ++i) {
    io::Raster raster;
    raster.width = raster.height = 4;
    raster.channels = 1;
    const at::Tensor one = bytes[i].contiguous();
    raster.data.assign(one.data_ptr<uint8_t>(), one.data_ptr<uint8_t>() + 16);
    io::write_png(folder_ / "pictures" / (std::to_string(i) + ".png"), raster);
  }
  matches(evaluate((folder_ / "pictures").string(), ode, "ode"), exact);
  matches(evaluate((folder_ / "pictures" / "2.png").string(), ode, "ode"), exact.slice(0, 2, 3));
  io::SkyImage sky;
  sky.pixels = levels[0][0] * 0.1;
  sky.pixel_size_rad = 1e-11;
  io::write_fits_image(folder_ / "sky.fits", sky);
  matches(evaluate((folder_ / "sky.fits").string(),
                   ode + "[images]\ntotal_flux = " + std::to_string(levels[0].sum().item<double>()),
                   "ode"),
          exact.slice(0, 0, 1));
  const LogpResult generated =
      evaluate("gaussian_field", "[images]\ncount = 2\nfirst = 1\n", "path");
  EXPECT_EQ(generated.names, (std::vector<std::string>{"1", "2"}));
}

// (level + u)/256 with u in [0,1).
TEST_F(LogpTest, DequantisesBytes) {
  const at::Tensor bytes = at::full({1, 4, 4}, 128, at::kByte);
  const LogpResult plain = evaluate(save("b.npy", bytes), "", "ode");
  const LogpResult spread = evaluate(save("b.npy", bytes), "[images]\ndequantize = true\n", "ode");
  EXPECT_TRUE(spread.dequantized);
  // A shift of at most 2/256 of the pixels at 0.5 changes the exponent by up to 16 (1/128)^2 /
  // 0.08.
  const double change =
      (plain.columns[0].log_prob - spread.columns[0].log_prob).abs().item<double>();
  EXPECT_GT(change, 1e-5);
  EXPECT_LT(change, 0.02);
}

TEST_F(LogpTest, PerturbsImagesToTimeZero) {
  const at::Tensor x = some_images(3);
  const double b = 0.1 * kT0 + 19.9 * kT0 * kT0 / 2;
  const at::Tensor noise =
      Rng(3).split("logp").split("perturbation").normal(x.sizes(), at::kDouble);
  const at::Tensor at_t0 = std::exp(-b / 2) * x + std::sqrt(1 - std::exp(-b)) * noise;
  const std::string ode = "[ode]\ntrace = \"exact\"\nrtol = 1e-7\natol = 1e-7\n";
  const std::string in = save("x.npy", x);
  const LogpResult r = evaluate(in, ode + "[images]\nperturb = true\nbatch = 2\n");
  EXPECT_TRUE(r.perturbed);
  const at::Tensor exact = closed_form(at_t0);
  EXPECT_LT((r.columns[0].log_prob - exact).abs().max().item<double>(), 0.05);
  EXPECT_GT((exact - closed_form(x)).abs().max().item<double>(), 0.1) << "nothing was added";
  // The bound begins with the noise itself and takes the images as they are.
  const LogpResult clean = evaluate(in, "[images]\nbatch = 2\n", "elbo");
  EXPECT_EQ((clean.columns[0].log_prob - r.columns[1].log_prob).abs().max().item<double>(), 0);
}

// No law with the noise of t0 has a density above N(0; 0, std(t0)^2 I): values beyond are noted,
// unless the images got that noise. Here one Euler step, far too long, puts them there.
TEST_F(LogpTest, ValuesAboveTheCeilingAreNoted) {
  const double b = 0.1 * kT0 + 19.9 * kT0 * kT0 / 2;
  const double ceiling = -8 * std::log(2 * M_PI * (1 - std::exp(-b)));
  const std::string images = save("x.npy", at::zeros({2, 1, 4, 4}, at::kDouble));
  const auto notes = [&](const std::string& extra, const std::string& method, double* log_prob) {
    Session session;
    session.dtype = at::kDouble;
    Observer observer;
    const LogpResult r = log_densities(
        io::parse_toml("[score]\nname = \"gaussian\"\nmean = 0.0\nsigma = 1e-5\nshape = [1, 4, "
                       "4]\n[score.sde]\ntype = \"vp\"\n[ode]\ntrace = \"exact\"\n" +
                       extra),
        images, method, 3, session, observer);
    if (log_prob) *log_prob = r.columns[0].log_prob[0].item<double>();
    return r.notes;
  };
  const std::string coarse = "solver = \"euler\"\nvariable = \"time\"\nsteps = 1\n";
  double fine = 0, far = 0;
  // The narrowest law reaches the ceiling but for 8 alpha(1)^2 = 3e-4 and 8 (1e-5/std)^2 nats.
  EXPECT_TRUE(notes("rtol = 1e-9\natol = 1e-9\n", "ode", &fine).empty());
  EXPECT_NEAR(fine, ceiling, 1e-3);
  const auto said = notes(coarse, "ode", &far);
  EXPECT_GT(far, ceiling + 1);
  ASSERT_EQ(said.size(), 1u);
  std::ostringstream limit;
  limit << "ode: 2 image(s) above " << std::setprecision(6) << ceiling << " nats";
  EXPECT_NE(said[0].find(limit.str()), std::string::npos) << said[0];
  EXPECT_NE(said[0].find("images.perturb=true"), std::string::npos) << said[0];
  EXPECT_TRUE(notes(coarse + "[images]\nperturb = true\n", "ode", nullptr).empty());
  EXPECT_TRUE(notes(coarse, "elbo", nullptr).empty());
}

// A batch that the memory cannot hold goes in pieces, and the program says so.
TEST_F(LogpTest, PiecesForTheMemoryAreNoted) {
  const std::string images = save("x.npy", some_images(3));
  const LogpResult whole = evaluate(images, "", "ode");
  EXPECT_TRUE(whole.notes.empty());
  const LogpResult pieces = evaluate(images, "[ode]\nmax_memory_mib = 1e-6\n", "ode");
  EXPECT_LT((whole.columns[0].log_prob - pieces.columns[0].log_prob).abs().max().item<double>(),
            1e-9);
  ASSERT_EQ(pieces.notes.size(), 1u);
  EXPECT_NE(pieces.notes[0].find("3 images at a time, in 3 pieces of up to 1"), std::string::npos)
      << pieces.notes[0];
}

TEST_F(LogpTest, AcceptsARunConfiguration) {
  const std::string images = save("x.npy", some_images(1));
  const Config run = io::parse_toml(
      "title = \"a run\"\n[data]\nfile = \"y.npz\"\n[prior]\nname = \"score_ode\"\ntrace = "
      "\"exact\"\nweight = 1.0\n[prior.score]\nname = \"gaussian\"\nmean = 0.5\nsigma = 0.2\nshape "
      "= [1, 4, 4]\n[infer]\nname = \"dpi\"\n");
  Session session;
  session.dtype = at::kDouble;
  Observer observer;
  const LogpResult r = log_densities(run, images, "ode", 0, session, observer);
  EXPECT_EQ(r.columns[0].random_error.item<double>(), 0);  // the prior's exact trace is used
}

TEST_F(LogpTest, AFailedSolverIsSaid) {
  const LogpResult r = evaluate(save("x.npy", some_images(2)), "[ode]\nmax_steps = 1\n", "ode");
  EXPECT_TRUE(at::isnan(r.columns[0].log_prob).all().item<bool>());
  EXPECT_EQ(r.columns[0].failed(), 2);
  const std::string says = "ode: no value for 2 of 2 images: step limit reached at t = 0.00";
  EXPECT_EQ(logp_failure(r).rfind(says, 0), 0u) << logp_failure(r);
  EXPECT_NE(logp_text(r).find(says), std::string::npos) << logp_text(r);
  EXPECT_EQ(logp_failure(evaluate(save("x.npy", some_images(2)), "", "ode")), "");
}

// One image without a value leaves the means of the others; infinite is no value.
TEST_F(LogpTest, MeansAreOverTheImagesThatHaveAValue) {
  at::Tensor x = some_images(3);
  const LogpResult good = evaluate(save("x.npy", x.slice(0, 0, 2)));
  x[2].fill_(1e200);
  const LogpResult r = evaluate(save("far.npy", x));
  const std::string text = logp_text(r);
  const auto j = nlohmann::json::parse(logp_json(r));
  for (size_t k = 0; k < 3; ++k) {
    const LogpColumn& c = r.columns[k];
    EXPECT_EQ(c.failed(), 1) << c.method;
    EXPECT_FALSE(at::isfinite(c.random_error[2]).item<bool>()) << c.method;
    EXPECT_EQ(j["methods"][c.method]["failed"], 1);
    EXPECT_NE(text.find(c.method + ": no value for 1 of 3 images, left out of the means: "),
              std::string::npos)
        << text;
    std::ostringstream mean;
    mean << std::fixed << std::setprecision(2) << good.columns[k].log_prob.mean().item<double>();
    EXPECT_NE(text.find(mean.str(), text.find("\nmean")), std::string::npos)
        << c.method << " " << mean.str() << "\n"
        << text;
  }
  EXPECT_NE(logp_failure(r).find("; path: no value for 1 of 3"), std::string::npos)
      << logp_failure(r);
}

// Every method has its own t0, and the bound reaches t = 0.
TEST_F(LogpTest, EveryMethodSaysItsTime) {
  const std::string images = save("x.npy", some_images(1));
  const LogpResult r = evaluate(images, "[ode]\nt0 = 1e-4\n");
  const auto noise = [](double t) {
    return std::sqrt(1 - std::exp(-(0.1 * t + 19.9 * t * t / 2)));
  };
  EXPECT_NEAR(r.columns[0].noise, noise(1e-4), 1e-12);
  EXPECT_NEAR(r.columns[2].noise, noise(1e-3), 1e-12);
  std::string text = logp_text(r);
  for (const char* part : {"ode: log p at t0 = 0.0001, where the noise is 0.00317",
                           "elbo: bounds log p at t = 0;", "path: log p at t0 = 0.001, where",
                           "gap = log p ode - that column; the densities are those of different"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  text = logp_text(evaluate(images, "", "elbo"));
  EXPECT_EQ(text.find("t0"), std::string::npos) << text;
  text = logp_text(evaluate(images, "[elbo]\noffset = false\n", "elbo"));
  EXPECT_NE(text.find("elbo: bounds log p from t0 = 0.001"), std::string::npos) << text;
  text = logp_text(evaluate(images));
  EXPECT_EQ(text.find("different times"), std::string::npos) << text;
}

// The second solution is work too; one step has none, and no error that it would give.
TEST_F(LogpTest, AllEvaluationsAreCounted) {
  const std::string images = save("x.npy", some_images(2));
  const auto ode = [&](const std::string& settings) {
    return evaluate(images, "[ode]\nsolver = \"rk4\"\n" + settings, "ode");
  };
  const LogpResult both = ode("steps = 10\n"), value = ode("steps = 10\nsolver_error = \"none\"\n"),
                   half = ode("steps = 5\nsolver_error = \"none\"\n");
  const auto count = [](const LogpResult& r) {
    return r.columns[0].evaluations[0].item<int64_t>();
  };
  EXPECT_EQ(count(both), count(value) + count(half));
  EXPECT_EQ(both.columns[0].error_evaluations[0].item<int64_t>(), count(half));
  EXPECT_FALSE(value.columns[0].error_evaluations.defined());
  EXPECT_NE(logp_text(both).find("60 evaluations per image, 20 of them for the solver's error"),
            std::string::npos)
      << logp_text(both);
  const LogpResult one = ode("steps = 1\n");
  EXPECT_TRUE(at::isnan(one.columns[0].step_error).all().item<bool>());
  EXPECT_TRUE(at::isfinite(one.columns[0].log_prob).all().item<bool>());
}

TEST_F(LogpTest, BadImagesAreOneSentence) {
  at::Tensor nan = some_images(3);
  nan[2][0][1][1] = NAN;
  expect_error(save("nan.npy", nan), "image 2 has pixels that are not finite");
  expect_error(save("size.npy", at::rand({2, 1, 5, 5}, at::kDouble)),
               "an array [2,1,5,5], expected images [N,1,4,4] as the model's");
  expect_error(save("colour.npy", at::rand({2, 3, 4, 4}, at::kDouble)), "expected images");
  expect_error(save("empty.npy", at::rand({0, 1, 4, 4}, at::kDouble)), "holds no image");
  expect_error(save("x.npy", some_images(2)), "unknown method", "", "exact");
  expect_error(save("x.npy", some_images(2)), "unknown key", "[ode]\nrtool = 1.0\n");
  expect_error(save("x.npy", some_images(2)), "holds 2 image(s)", "[images]\nfirst = 2\n");
  for (const char* dead : {"adjoint = \"direct\"", "seminorm = true", "check_gradient = true",
                           "gradient_tolerance = 0.1"})
    expect_error(save("x.npy", some_images(2)), "unknown key",
                 "[ode]\n" + std::string(dead) + "\n");
  expect_error(save("x.npy", some_images(2)),
               "the solver rk4 has no error estimate: it needs steps > 0",
               "[ode]\nsolver = \"rk4\"\n");
  expect_error((folder_ / "none.npy").string(), "none.npy");
  expect_error((folder_ / "x.txt").string(), "unknown kind of images");
  expect_error(save("x.npy", some_images(2)), "steps must be even", "[path]\nsteps = 7\n");
  io::write_npz(folder_ / "two.npz", {{"a", nan}, {"b", nan}});
  expect_error((folder_ / "two.npz").string(), "name one by images.array=");
}

}  // namespace
}  // namespace scoreprior
