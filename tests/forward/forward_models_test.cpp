#include "scoreprior/forward/forward_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/forward/visibilities.h"
#include "scoreprior/testing/forward_contract.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::GoldenCase;
using testing::relative_error;

template <class T>
ConfigNodePtr leaf(T value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = value;
  return node;
}

struct Entry {
  std::string label, name;
  Shape shape;
  std::function<void(Config&)> configure;
};

void put(Config& c, const std::string& key, const char* value) {
  c.set(key, leaf(std::string(value)));
}
void put(Config& c, const std::string& key, int64_t value) { c.set(key, leaf(value)); }
void put(Config& c, const std::string& key, double value) { c.set(key, leaf(value)); }
void put(Config& c, const std::string& key, int value) { put(c, key, int64_t{value}); }

/// Every entry of the catalogue, with even, odd and oblong images and every way it can go.
std::vector<Entry> entries() {
  return {
      {"identity", "identity", {3, 5, 4}, [](Config&) {}},
      {"blur_gaussian", "blur", {2, 8, 9}, [](Config&) {}},
      {"blur_motion",
       "blur",
       {1, 9, 8},
       [](Config& c) { put(c, "kernel", "motion"), put(c, "boundary", "zero"); }},
      {"blur_file",
       "blur",
       {2, 7, 10},
       [](Config& c) {
         put(c, "kernel", "file"), put(c, "kernel_file", "kernel_4x3");
         put(c, "boundary", "reflect");
       }},
      {"blur_wide_file",
       "blur",
       {1, 3, 4},
       [](Config& c) {
         put(c, "kernel", "file"), put(c, "kernel_file", "kernel_9x9");
         put(c, "boundary", "reflect");
       }},
      {"inpainting_box", "inpainting", {3, 6, 7}, [](Config&) {}},
      {"inpainting_random", "inpainting", {1, 8, 8}, [](Config& c) { put(c, "mask", "random"); }},
      {"inpainting_file",
       "inpainting",
       {2, 5, 6},
       [](Config& c) { put(c, "mask", "file"), put(c, "mask_file", "mask_5x6"); }},
      {"area", "super_resolution", {2, 8, 12}, [](Config&) {}},
      {"bicubic",
       "super_resolution",
       {1, 9, 15},
       [](Config& c) { put(c, "factor", 3), put(c, "filter", "bicubic"); }},
      {"low_dft", "low_dft", {2, 8, 9}, [](Config& c) { put(c, "n_freqs", 5); }},
      {"mri_even", "mri", {1, 8, 8}, [](Config&) {}},
      {"mri_poisson", "mri", {1, 12, 10}, [](Config& c) { put(c, "pattern", "poisson"); }},
      {"mri_radial", "mri", {1, 12, 11}, [](Config& c) { put(c, "pattern", "radial"); }},
      {"mri_odd", "mri", {2, 7, 9}, [](Config& c) { put(c, "acceleration", 2); }},
      {"multicoil_simulated", "multicoil_mri", {1, 8, 10}, [](Config&) {}},
      {"multicoil_complex",
       "multicoil_mri",
       {2, 9, 7},
       [](Config& c) {
         put(c, "coil_maps", "complex_3x9x7");
         put(c, "pattern", "random_lines"), put(c, "acceleration", 1.5);
       }},
      {"multicoil_estimated",
       "multicoil_mri",
       {2, 12, 10},
       [](Config& c) {
         put(c, "calibration", "complex_3x12x10"), put(c, "calibration_region", 8);
         put(c, "calibration_kernel", 3), put(c, "calibration_crop", 0.0);
       }},
      {"radon_strip", "radon", {2, 7, 6}, [](Config& c) { put(c, "angles", 9); }},
      {"radon_line",
       "radon",
       {1, 8, 8},
       [](Config& c) {
         put(c, "angles", 8), put(c, "integral", "line"), put(c, "range", 100.0);
         put(c, "detectors", 6), put(c, "detector_spacing", 1.3), put(c, "pixel_size", 0.2);
       }},
      {"phase_magnitude", "phase_retrieval", {2, 5, 6}, [](Config&) {}},
      {"phase_intensity",
       "phase_retrieval",
       {1, 6, 5},
       [](Config& c) { put(c, "quantity", "intensity"), put(c, "oversampling", 1.5); }},
      {"matrix", "matrix", {2, 3, 4}, [](Config& c) { put(c, "matrix", "re"); }},
      {"complex_matrix",
       "complex_matrix",
       {2, 3, 4},
       [](Config& c) { put(c, "matrix_real", "re"), put(c, "matrix_imag", "im"); }},
      {"visibilities_even", "visibilities", {1, 6, 8}, [](Config& c) { put(c, "uv", "uv"); }},
      {"visibilities_odd",
       "visibilities",
       {1, 7, 7},
       [](Config& c) { put(c, "uv", "uv"), put(c, "pulse", "delta"); }},
      {"visibilities_factored",
       "visibilities",
       {1, 35, 40},
       [](Config& c) { put(c, "uv", "uv"), put(c, "fov_uas", 60.0); }},
      {"compose_linear",
       "compose",
       {2, 8, 8},
       [](Config& c) { put(c, "first.name", "blur"), put(c, "second.name", "super_resolution"); }},
      {"compose_nonlinear",
       "compose",
       {1, 8, 8},
       [](Config& c) {
         put(c, "first.name", "super_resolution"), put(c, "first.factor", 2);
         put(c, "second.name", "phase_retrieval");
       }},
  };
}

/// Files by name, generated.
at::Tensor fake_file(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const Rng rng = Rng(1).split(name);
  if (name == "uv") return rng.normal({13, 2}, at::kDouble) * 4e9;
  if (name == "kernel_4x3") return rng.uniform({4, 3}, at::kDouble);
  if (name == "kernel_9x9") return rng.uniform({9, 9}, at::kDouble);
  if (name == "mask_5x6") return rng.uniform({5, 6}, at::kDouble).gt(0.5);
  if (name == "complex_3x9x7" || name == "complex_3x12x10") {
    const Shape s = name == "complex_3x9x7" ? Shape{3, 9, 7} : Shape{3, 12, 10};
    return at::complex(rng.split("re").normal(s, at::kDouble),
                       rng.split("im").normal(s, at::kDouble));
  }
  return rng.normal({5, 24}, at::kDouble);
}

std::vector<testing::ForwardCase> cases() {
  std::vector<testing::ForwardCase> out;
  for (const Entry& e : entries())
    out.push_back({e.label, [e](at::ScalarType dtype) {
                     Config config;
                     e.configure(config);
                     put(config, "name", e.name.c_str());
                     auto model = forward_models().make(
                         config, "", ForwardContext{dtype, at::kCPU, fake_file, e.shape});
                     config.require_all_used();
                     EXPECT_EQ(model->input_shape(), e.shape);
                     return model;
                   }});
  return out;
}

}  // namespace

namespace testing {
INSTANTIATE_TEST_SUITE_P(Catalogue, ForwardContract, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.label; });
}  // namespace testing

namespace {

TEST(ForwardModels, ContractCoversTheCatalogue) {
  std::set<std::string> covered;
  for (const Entry& e : entries()) covered.insert(e.name);
  for (const std::string& name : forward_models().names()) EXPECT_TRUE(covered.count(name)) << name;
}

at::Tensor nchw(const at::Tensor& a) { return a.permute({0, 3, 1, 2}).contiguous(); }

TEST(ForwardModels, MatchReference) {
  for (const std::string name : {"deblur_16x1_n8", "deblur_16x3_n6", "denoise_16x3", "eht_matrix_8",
                                 "mri_16_poisson4", "mri_32_cartesian4", "mri_32_poisson8"}) {
    SP_REQUIRE_GOLDEN("operators/" + name);
    const GoldenCase g("operators/" + name);
    const std::string kind = g.config()["kind"];
    Config config;
    config.set("image_size", leaf(g.config()["image_size"].get<int64_t>()));
    config.set("channels", leaf(g.config()["num_channels"].get<int64_t>()));
    const auto file = [&](const char* key, const std::string& array) {
      config.set(key, leaf(g.path(array).string()));
    };
    if (kind == "deblur") {
      config.set("name", leaf(std::string("low_dft")));
      config.set("n_freqs", leaf(g.config()["n_freqs_per_direction"].get<int64_t>()));
    } else if (kind == "mri") {
      config.set("name", leaf(std::string("mri")));
      file("mask", "mask");
    } else if (kind == "eht") {
      config.set("name", leaf(std::string("complex_matrix")));
      file("matrix_real", "matrix_real");
      file("matrix_imag", "matrix_imag");
    }
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const auto model = forward_models().make(config, "identity", {dtype, at::kCPU, io::read_npy});
      // The reference's double precision rounding; float32 single rounding of sums over the image.
      const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
      const at::Tensor y = g.array("y", dtype);
      EXPECT_LT(relative_error(model->apply(nchw(g.array("x", dtype))), g.array("Ax")), tolerance)
          << name;
      EXPECT_LT(relative_error(*model->adjoint(y), nchw(g.array("adjoint_y"))), tolerance) << name;
      EXPECT_LT(relative_error(*model->naive_inverse(y), nchw(g.array("inverse_y"))), tolerance)
          << name;
      const double level = g.config()["noise_scale"];
      if (kind == "eht") continue;
      EXPECT_LT(relative_error(at::full_like(g.array("sigmas"), level * model->noise_scale()),
                               g.array("sigmas")),
                1e-12);
    }
  }
}

// A point at column c, row r and a Gaussian have visibilities in closed form.
TEST(Visibilities, ConventionsAndClosedForms) {
  const std::vector<double> u = {1e9, -2e9, 3.3e9}, v = {0.5e9, 4e9, -1e9};
  for (const auto& size : {std::pair<int64_t, int64_t>{8, 8}, {7, 7}, {6, 9}}) {
    const SkyGrid grid = make_sky_grid(size.first, size.second, 128);
    for (const Pulse pulse : {Pulse::kDelta, Pulse::kTriangle}) {
      const VisibilityTransform transform(u, v, grid, pulse, {at::kDouble, at::kCPU});
      at::Tensor x = at::zeros({1, 1, size.first, size.second}, at::kDouble);
      const int64_t r = 1, c = size.second - 2;
      x[0][0][r][c] = 2;
      const auto parts = transform.parts(x);
      const double east = ((size.second - 1) / 2.0 - c) * grid.pixel_rad;
      const double north = ((size.first - 1) / 2.0 - r) * grid.pixel_rad;
      for (int k = 0; k < 3; ++k) {
        const auto sinc2 = [&](double w) {
          const double a = M_PI * w * grid.pixel_rad;
          return std::pow(std::sin(a) / a, 2);
        };
        const double p = pulse == Pulse::kDelta ? 1 : sinc2(u[k]) * sinc2(v[k]);
        const auto want = std::polar(2 * p, 2 * M_PI * (u[k] * east + v[k] * north));
        EXPECT_NEAR(parts.first[k][0].item<double>(), want.real(), 1e-13);
        EXPECT_NEAR(parts.second[k][0].item<double>(), want.imag(), 1e-13);
      }
    }
  }
  // A well-sampled Gaussian, offset east and north.
  const int64_t n = 65;
  const SkyGrid grid = make_sky_grid(n, n, 200);
  const double s = 12 * kRadPerUas, x0 = 15 * kRadPerUas, y0 = -7 * kRadPerUas;
  at::Tensor image = at::empty({1, 1, n, n}, at::kDouble);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < n; ++c)
      image[0][0][r][c] =
          std::exp(-(std::pow(grid.x(c) - x0, 2) + std::pow(grid.y(r) - y0, 2)) / (2 * s * s));
  image = image / image.sum();
  const VisibilityTransform transform(u, v, grid, Pulse::kDelta, {at::kDouble, at::kCPU});
  const auto parts = transform.parts(image);
  for (int k = 0; k < 3; ++k) {
    const auto want = std::polar(std::exp(-2 * M_PI * M_PI * s * s * (u[k] * u[k] + v[k] * v[k])),
                                 2 * M_PI * (u[k] * x0 + v[k] * y0));
    // The sum over pixels of a Gaussian 4 pixels wide is its integral to exp(-2 pi^2 4^2); the edge
    // is 5.8 sd away.
    EXPECT_NEAR(parts.first[k][0].item<double>(), want.real(), 1e-7);
    EXPECT_NEAR(parts.second[k][0].item<double>(), want.imag(), 1e-7);
  }
}

TEST(Visibilities, AxisByAxisEqualsTables) {
  const at::Tensor uv = Rng(1).normal({37, 2}, at::kDouble) * 4e9;
  std::vector<double> u, v;
  for (int64_t k = 0; k < 37; ++k)
    u.push_back(uv[k][0].item<double>()), v.push_back(uv[k][1].item<double>());
  for (const auto& size : {std::pair<int64_t, int64_t>{8, 8}, {7, 9}, {9, 6}, {1, 5}}) {
    const SkyGrid grid = make_sky_grid(size.first, size.second, 100);
    const VisibilityTransform tables(u, v, grid, Pulse::kTriangle, {at::kDouble, at::kCPU});
    const VisibilityTransform axes(u, v, grid, Pulse::kTriangle, {at::kDouble, at::kCPU}, 0);
    const at::Tensor x = Rng(2).normal({5, 1, size.first, size.second}, at::kDouble);
    const at::Tensor y = Rng(3).normal({5, 74}, at::kDouble);
    EXPECT_LT(relative_error(axes.apply(x), tables.apply(x)), 1e-13);
    EXPECT_LT(relative_error(*axes.adjoint(y), *tables.adjoint(y)), 1e-13);
  }
}

// 64 x 64 and oblong odd images against the sum over pixels, in both directions.
TEST(Visibilities, FactoredEqualsTheSum) {
  const int64_t rows = 50;
  const at::Tensor uv = (Rng(1).uniform({rows, 2}, at::kDouble) - 0.5) * 12e9;
  std::vector<double> u, v;
  for (int64_t k = 0; k < rows; ++k)
    u.push_back(uv[k][0].item<double>()), v.push_back(uv[k][1].item<double>());
  for (const auto& size : {std::pair<int64_t, int64_t>{64, 64}, {71, 80}}) {
    const SkyGrid grid = make_sky_grid(size.first, size.second, 128);
    at::Tensor x = at::empty({size.second}, at::kDouble), y = at::empty({size.first}, at::kDouble);
    for (int64_t c = 0; c < size.second; ++c) x[c] = grid.x(c);
    for (int64_t r = 0; r < size.first; ++r) y[r] = grid.y(r);
    const at::Tensor phase = 2 * M_PI *
                             (uv.select(1, 0).view({-1, 1, 1}) * x.view({1, 1, -1}) +
                              uv.select(1, 1).view({-1, 1, 1}) * y.view({1, -1, 1}));
    const at::Tensor matrix = at::cat({phase.cos().flatten(1), phase.sin().flatten(1)}, 0);
    const at::Tensor image = Rng(2).uniform({3, 1, size.first, size.second}, at::kDouble);
    const at::Tensor data = Rng(3).normal({3, 2 * rows}, at::kDouble);
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const VisibilityTransform transform(u, v, grid, Pulse::kDelta, {dtype, at::kCPU});
      EXPECT_STREQ(transform.method(3), "factored");
      // Rounding of sums over thousands of pixels; bases are cut at 1e-15 and 1e-8.
      const double tolerance = dtype == at::kDouble ? 2e-13 : 2e-6;
      EXPECT_LT(
          relative_error(transform.apply(image.to(dtype)), at::mm(image.flatten(1), matrix.t())),
          tolerance);
      EXPECT_LT(relative_error(transform.adjoint(data.to(dtype))->flatten(1), at::mm(data, matrix)),
                tolerance);
    }
  }
}

TEST(Visibilities, PixelPinsMatchReference) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  const GoldenCase g("interferometry/demo_obs");
  const at::Tensor ut = g.array("obs_u"), vt = g.array("obs_v");
  std::vector<double> u(ut.data_ptr<double>(), ut.data_ptr<double>() + ut.numel());
  std::vector<double> v(vt.data_ptr<double>(), vt.data_ptr<double>() + vt.numel());
  for (const std::string pin : {"pin7", "pin8"})
    for (const std::string suffix : {"", "_deltapulse"}) {
      const at::Tensor x = g.array(pin + "_x", at::kDouble).unsqueeze(0).unsqueeze(0);
      const VisibilityTransform transform(u, v, make_sky_grid(x.size(2), x.size(3), 128),
                                          suffix.empty() ? Pulse::kTriangle : Pulse::kDelta,
                                          {at::kDouble, at::kCPU});
      const auto parts = transform.parts(x);
      const at::Tensor vis = g.array(pin + "_vis" + suffix);
      // 2.5e-13 is the reference's cut pi, times phases of up to 20 rad.
      EXPECT_LT(relative_error(parts.first, at::real(vis)), 2e-11);
      EXPECT_LT(relative_error(parts.second, at::imag(vis)), 2e-11);
    }
}

TEST(ForwardModels, ConfigErrors) {
  const auto fails = [](const std::string& name, std::function<void(Config&)> configure,
                        Shape shape = {}) {
    Config config;
    config.set("name", leaf(name));
    configure(config);
    try {
      forward_models().make(config, "", {at::kDouble, at::kCPU, fake_file, shape});
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(fails("lowdft", [](Config&) {}).find("did you mean \"low_dft\""), std::string::npos);
  EXPECT_NE(
      fails("low_dft", [](Config& c) { c.set("n_freqs", leaf(int64_t{99})); }).find("n_freqs"),
      std::string::npos);
  EXPECT_NE(fails("mri", [](Config& c) { c.set("mask", leaf(std::string("re"))); }).find("mask"),
            std::string::npos);
  EXPECT_NE(
      fails("mri", [](Config& c) { c.set("acceleration", leaf(int64_t{0})); }).find("acceleration"),
      std::string::npos);
  EXPECT_NE(fails("complex_matrix", [](Config&) {}).find("matrix_real"), std::string::npos);
  EXPECT_NE(fails("identity", [](Config& c) { c.set("image_size", leaf(int64_t{9})); }, {1, 8, 8})
                .find("differs"),
            std::string::npos);
  EXPECT_NE(fails("visibilities", [](Config&) {}, {3, 8, 8}).find("channel"), std::string::npos);
}

}  // namespace
}  // namespace scoreprior
