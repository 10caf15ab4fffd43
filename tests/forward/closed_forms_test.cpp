#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "scoreprior/core/rng.h"
#include "scoreprior/forward/coil_maps.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/multicoil_mri.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/testing/golden.h"

namespace scoreprior {
namespace {

using testing::relative_error;

std::unique_ptr<ForwardModel> model_of(const std::string& toml, Shape shape,
                                       ArrayReader read = {}) {
  const Config config = io::parse_toml(toml);
  auto model = forward_models().make(
      config, "", ForwardContext{at::kDouble, at::kCPU, std::move(read), std::move(shape)});
  config.require_all_used();
  return model;
}

at::Tensor point(const Shape& shape, int64_t row, int64_t column) {
  at::Tensor x = at::zeros(batched(1, shape), at::kDouble);
  x.select(2, row).select(2, column).fill_(1);
  return x;
}

std::string words(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

// A point far from the edges becomes the kernel, with columns to the right and rows down.
TEST(Blur, APointBecomesTheKernel) {
  const at::Tensor kernel = Rng(1).uniform({4, 3}, at::kDouble);
  const auto read = [&](const std::filesystem::path&) { return kernel; };
  for (const char* boundary : {"periodic", "reflect", "zero"}) {
    const auto blur = model_of(std::string("name=\"blur\"\nkernel=\"file\"\nkernel_file=\"k\"\n") +
                                   "boundary=\"" + boundary + "\"\n",
                               {1, 11, 12}, read);
    const at::Tensor y = blur->apply(point({1, 11, 12}, 5, 6)).view({11, 12});
    EXPECT_LT(relative_error(y.narrow(0, 3, 4).narrow(1, 5, 3), kernel), 1e-14) << boundary;
    EXPECT_NEAR(y.sum().item<double>(), kernel.sum().item<double>(), 1e-13);
  }
}

TEST(Blur, BoundariesAreWhatTheySay) {
  // One step to the right: y[c] = x[c - 1].
  const at::Tensor kernel = at::tensor({0.0, 0.0, 1.0}, at::kDouble).view({1, 3});
  const auto read = [&](const std::filesystem::path&) { return kernel; };
  const at::Tensor x = at::arange(1, 6, at::kDouble).view({1, 1, 1, 5});
  const auto first = [&](const std::string& boundary) {
    return model_of(
               "name=\"blur\"\nkernel=\"file\"\nkernel_file=\"k\"\nboundary=\"" + boundary + "\"\n",
               {1, 1, 5}, read)
        ->apply(x)[0][0]
        .item<double>();
  };
  EXPECT_NEAR(first("periodic"), 5, 1e-14);
  EXPECT_NEAR(first("reflect"), 2, 1e-14);
  EXPECT_NEAR(first("zero"), 0, 1e-14);
}

// A Gaussian blurred by a Gaussian is one whose variances add; motion moves no centre of mass.
TEST(Blur, GaussianAndMotion) {
  const int64_t n = 48;
  const at::Tensor axis = at::arange(n, at::kDouble) - 23.0;
  const double s = 3, fwhm = 5, k = fwhm / std::sqrt(8 * std::log(2.0));
  const auto gaussian = [&](double sigma) {
    const at::Tensor g = at::exp(-0.5 * (axis / sigma).square());
    const at::Tensor image = at::outer(g, g);
    return (image / image.sum()).view({1, 1, n, n});
  };
  const auto blur = model_of("name=\"blur\"\nfwhm=5.0\nboundary=\"zero\"\n", {1, n, n});
  // The kernel is cut at 4 sigma.
  EXPECT_LT(relative_error(blur->apply(gaussian(s)), gaussian(std::hypot(s, k))), 3e-4);
  const auto motion =
      model_of("name=\"blur\"\nkernel=\"motion\"\nlength=11.0\nangle=30.0\n", {1, n, n});
  const at::Tensor y = motion->apply(point({1, n, n}, 23, 23)).view({n, n});
  const auto moment = [&](const at::Tensor& weight) { return (y * weight).sum().item<double>(); };
  const at::Tensor right = axis.view({1, n}), up = -axis.view({n, 1});
  EXPECT_NEAR(moment(at::ones({n, n}, at::kDouble)), 1, 1e-12);
  EXPECT_NEAR(moment(right), 0, 1e-12);
  // Variance L^2/12 along the motion; sharing among neighbours adds at most 1/4 per axis.
  EXPECT_NEAR(moment(right * right), 121.0 / 12 * 0.75, 0.25);
  EXPECT_NEAR(moment(up * up), 121.0 / 12 * 0.25, 0.25);
  EXPECT_NEAR(moment(right * up), 121.0 / 12 * std::cos(M_PI / 6) * 0.5, 0.05);
  // Without noise the naive inverse is the image where the kernel transmits.
  const auto sharp = model_of("name=\"blur\"\nfwhm=2.0\nridge=1e-9\n", {1, n, n});
  EXPECT_LT(relative_error(*sharp->naive_inverse(sharp->apply(gaussian(s))), gaussian(s)), 1e-4);
}

TEST(Inpainting, KeepsTheSeenPixels) {
  const auto box = model_of(
      "name=\"inpainting\"\nbox_height=2\nbox_width=3\nbox_top=1\nbox_left=0\n", {2, 4, 5});
  EXPECT_EQ(box->output_shape(), Shape{2 * (20 - 6)});
  const at::Tensor x = at::arange(40, at::kDouble).view({1, 2, 4, 5});
  const at::Tensor y = box->apply(x);
  EXPECT_EQ(y[0][0].item<double>(), 0);
  EXPECT_EQ(y[0][1].item<double>(), 20);  // channel fastest
  EXPECT_EQ(y[0][10].item<double>(), 8);  // after row 0: row 1, column 3
  const at::Tensor back = *box->adjoint(y);
  EXPECT_EQ(back[0][0][1][1].item<double>(), 0);
  EXPECT_EQ(back[0][1][3][4].item<double>(), 39);
  const at::Tensor filled = *box->naive_inverse(y);
  const double mean = (190.0 - (5 + 6 + 7 + 10 + 11 + 12)) / 14;
  EXPECT_NEAR(filled[0][0][1][1].item<double>(), mean, 1e-12);
  const auto random = model_of("name=\"inpainting\"\nmask=\"random\"\nseen=0.25\n", {1, 64, 64});
  // Binomial: 5 standard deviations of 4096 draws.
  EXPECT_NEAR(static_cast<double>(random->output_shape()[0]), 1024, 5 * std::sqrt(4096 * 0.1875));
}

TEST(SuperResolution, MeansAndPolynomials) {
  const auto area = model_of("name=\"super_resolution\"\nfactor=2\n", {1, 4, 4});
  const at::Tensor x = at::arange(16, at::kDouble).view({1, 1, 4, 4});
  EXPECT_LT(relative_error(area->apply(x), at::tensor({2.5, 4.5, 10.5, 12.5}, at::kDouble)), 1e-15);
  // Cubic convolution keeps constants everywhere and straight lines away from the edges.
  const auto cubic =
      model_of("name=\"super_resolution\"\nfactor=3\nfilter=\"bicubic\"\n", {1, 3, 36});
  const at::Tensor line = at::arange(36, at::kDouble).view({1, 1, 1, 36}).expand({1, 1, 3, 36});
  const at::Tensor y = cubic->apply(line.contiguous());
  EXPECT_NEAR(cubic->apply(at::ones({1, 1, 3, 36}, at::kDouble)).min().item<double>(), 1, 1e-14);
  for (int64_t k = 2; k < 10; ++k) EXPECT_NEAR(y[0][k].item<double>(), 3.0 * k + 1, 1e-12);
}

// The integral of a disc along a ray at distance s is 2 sqrt(R^2 - s^2), times pixel_size.
TEST(Radon, DiscAndPoint) {
  const int64_t n = 64;
  const double radius = 20, pixel = 0.5;
  at::Tensor x = at::zeros({1, 1, n, n}, at::kDouble);
  auto a = x.accessor<double, 4>();
  const int sub = 8;  // pixels on the rim by their covered share
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < n; ++c)
      for (int i = 0; i < sub * sub; ++i) {
        const double dx = c - 31.5 + (i % sub + 0.5) / sub - 0.5;
        const double dy = r - 31.5 + (i / sub + 0.5) / sub - 0.5;
        if (dx * dx + dy * dy < radius * radius) a[0][0][r][c] += 1.0 / (sub * sub);
      }
  for (const std::string integral : {"line", "strip"}) {
    const auto radon = model_of(
        "name=\"radon\"\nangles=31\ndetectors=91\npixel_size=0.5\nintegral=\"" + integral + "\"\n",
        {1, n, n});
    const at::Tensor y = radon->apply(x).view({31, 91});
    // A ray crosses the pixelated rim twice; each partly covered pixel is wrong by half a chord at
    // most, either way.
    double sum = 0;
    for (int64_t k = 0; k < 31; ++k)
      for (int64_t j = 45 - 16; j <= 45 + 16; ++j) {
        const double s = static_cast<double>(j) - 45;
        const double error =
            y[k][j].item<double>() - 2 * std::sqrt(radius * radius - s * s) * pixel;
        EXPECT_LT(std::abs(error), pixel) << integral << " view " << k << " ray " << s;
        sum += error;
      }
    // On average a pixel's width blurs the chord f(s) by f''/24, and a strip's as much again.
    const double curvature = -4 * 16.5 / std::sqrt(radius * radius - 16.5 * 16.5) / 33 * pixel;
    // Lines meet the rim's partly covered pixels at chance places: 2 % of a pixel on average.
    if (integral == "strip")
      EXPECT_NEAR(sum / (31 * 33), 2 * curvature / 24, 2e-3);
    else
      EXPECT_NEAR(sum / (31 * 33), curvature / 24, 0.02 * pixel);
    // Every view of strips sees all of the mass; lines see it up to their sampling.
    const double mass = x.sum().item<double>() * pixel;
    EXPECT_LT(((y.sum(1) - mass).abs().max() / mass).item<double>(),
              integral == "strip" ? 1e-12 : 2e-3);
    // Filtered back-projection of complete data: the inside of the disc comes back flat.
    const auto dense = model_of(
        "name=\"radon\"\nangles=180\npixel_size=0.5\nintegral=\"" + integral + "\"\n", {1, n, n});
    const at::Tensor back = dense->naive_inverse(dense->apply(x))->view({n, n});
    const at::Tensor inside = back.narrow(0, 22, 20).narrow(1, 22, 20);
    EXPECT_NEAR(inside.mean().item<double>(), 1, 0.01);
    EXPECT_LT((inside - 1).abs().max().item<double>(), 0.05);
    EXPECT_LT(back.narrow(0, 0, 6).abs().max().item<double>(), 0.05);
  }
  // Half the spacing, other units, a whole turn: the same image.
  const auto fine =
      model_of("name=\"radon\"\nangles=360\nrange=360.0\ndetector_spacing=0.5\n", {1, n, n});
  EXPECT_NEAR(fine->naive_inverse(fine->apply(x))->view({n, n})[32][32].item<double>(), 1, 0.02);
  // A pixel right of and above the centre: at 0 degrees s is its X, at 90 its Y.
  const auto two =
      model_of("name=\"radon\"\nangles=2\ndetectors=9\nintegral=\"line\"\n", {1, 9, 9});
  const at::Tensor p = two->apply(point({1, 9, 9}, 1, 6)).view({2, 9});
  EXPECT_NEAR(p[0][4 + 2].item<double>(), 1, 1e-12);
  EXPECT_NEAR(p[1][4 + 3].item<double>(), 1, 1e-12);
  EXPECT_NEAR(p.sum().item<double>(), 2, 1e-12);
}

TEST(PhaseRetrieval, ParsevalAndRecovery) {
  const int64_t n = 16;
  at::Tensor x = at::zeros({1, 1, n, n}, at::kDouble);
  x.narrow(2, 2, 9).narrow(3, 4, 8).copy_(Rng(3).uniform({1, 1, 9, 8}, at::kDouble));
  const auto magnitude = model_of("name=\"phase_retrieval\"\n", {1, n, n});
  const auto intensity = model_of("name=\"phase_retrieval\"\nquantity=\"intensity\"\n", {1, n, n});
  const at::Tensor y = magnitude->apply(x);
  EXPECT_EQ(y.size(1), 4 * n * n);
  EXPECT_NEAR(y.square().sum().item<double>(), x.square().sum().item<double>(), 1e-12);
  EXPECT_LT(relative_error(y.square(), intensity->apply(x)), 1e-12);
  // Zero frequency in the middle: the sum of the image.
  EXPECT_NEAR(y.view({32, 32})[16][16].item<double>(), x.sum().item<double>() / 32, 1e-12);
  EXPECT_LT(relative_error(magnitude->apply(x.flip({2, 3})), y), 1e-12);  // the known ambiguity
  const at::Tensor found = *magnitude->naive_inverse(y);
  EXPECT_LT((magnitude->apply(found) - y).norm().item<double>() / y.norm().item<double>(), 0.1);
  EXPECT_GE(found.min().item<double>(), 0);
}

TEST(MulticoilMri, AgreesWithSingleCoilAndItsFiles) {
  const Shape shape = {1, 12, 9};
  const at::Tensor x = Rng(1).normal(batched(2, shape), at::kDouble);
  const auto one = model_of("name=\"multicoil_mri\"\ncoils=1\nacceleration=2\n", shape);
  const auto single = model_of("name=\"mri\"\nacceleration=2\n", shape);
  const at::Tensor grid = single->apply(x);
  const auto& mri = dynamic_cast<const MulticoilMri&>(*one);
  const at::Tensor y = one->apply(x);
  const at::Tensor k = mri.kspace(y).flatten(1);
  EXPECT_LT(relative_error(at::cat({at::real(k), at::imag(k)}, 1), grid), 1e-13);
  EXPECT_LT(relative_error(mri.measurement(mri.kspace(y)), y), 1e-15);
  EXPECT_LT(relative_error(*one->adjoint(y), *single->adjoint(grid)), 1e-13);
  // Complex images in two channels: the real part alone is the one-channel model.
  const auto two = model_of("name=\"multicoil_mri\"\ncoils=1\nacceleration=2\n", {2, 12, 9});
  EXPECT_LT(relative_error(two->apply(at::cat({x, at::zeros_like(x)}, 1)), y), 1e-13);
  const at::Tensor turned = two->apply(at::cat({at::zeros_like(x), x}, 1));  // times i
  const int64_t half = y.size(1) / 2;
  EXPECT_LT(relative_error(turned.narrow(1, 0, half), -y.narrow(1, half, half)), 1e-13);
  // Full sampling and normalised maps: the adjoint is the inverse.
  const auto full = model_of("name=\"multicoil_mri\"\ncoils=5\nacceleration=1\n", shape);
  EXPECT_LT(relative_error(*full->adjoint(full->apply(x)), x), 1e-13);
  EXPECT_LT(relative_error(*full->naive_inverse(full->apply(x)), x), 1e-13);
}

// Whole rows, whole columns and scattered points, with weights and odd sizes, take different ways
// through the FFT: each is the one mask of the centred FFT of the coil images.
TEST(MulticoilMri, SampledLinesAndWeights) {
  const int64_t height = 9, width = 14, coils = 3;
  const at::Tensor maps = simulated_coil_maps(coils, height, width);
  const at::Tensor some = Rng(2).uniform({height, width}, at::kDouble);
  const at::Tensor rows = (some.narrow(1, 0, 1) > 0.5) * at::ones({height, width}, at::kDouble);
  const at::Tensor columns = (some.narrow(0, 0, 1) > 0.5) * at::ones({height, width}, at::kDouble);
  for (const int64_t channels : {1, 2})
    for (const at::Tensor& mask :
         {rows, columns, rows * some, columns * some, (some > 0.6).to(at::kDouble)}) {
      const MulticoilMri model(channels, maps, mask, {at::kDouble, at::kCPU});
      const at::Tensor x = Rng(3).normal({2, channels, height, width}, at::kDouble);
      const at::Tensor image =
          at::complex(x.select(1, 0),
                      channels == 2 ? x.select(1, 1) : at::zeros_like(x.select(1, 0)))
              .unsqueeze(1);
      const std::vector<int64_t> axes = {2, 3};
      const at::Tensor k = at::fft_fftshift(at::fft_fft2(at::fft_ifftshift(image * maps, axes),
                                                         c10::nullopt, axes, "ortho"),
                                            axes) *
                           mask;
      const at::Tensor y = model.apply(x);
      EXPECT_LT(relative_error(at::view_as_real(model.kspace(y)), at::view_as_real(k)), 1e-13);
      const at::Tensor v = Rng(4).normal(y.sizes(), at::kDouble);
      const double left = (y * v).sum().item<double>(),
                   right = (x * *model.adjoint(v)).sum().item<double>();
      EXPECT_NEAR(left, right, 1e-12 * y.norm().item<double>() * v.norm().item<double>());
    }
}

// Maps come back from the centre of k-space, up to a phase per pixel, where the object is.
TEST(CoilMaps, EstimatedFromTheCalibrationRegion) {
  const int64_t n = 64, coils = 6;
  const at::Tensor maps = simulated_coil_maps(coils, n, n);
  EXPECT_LT(relative_error(maps.abs().square().sum(0), at::ones({n, n}, at::kDouble)), 1e-14);
  const at::Tensor axis = (at::arange(n, at::kDouble) - 32) / 32;
  const at::Tensor radius = (axis.view({n, 1}).square() * 1.3 + axis.view({1, n}).square()).sqrt();
  const at::Tensor object =
      at::sigmoid((0.7 - radius) * 20) * (1 + 0.3 * (9 * axis.view({1, n})).sin());
  const auto full = MulticoilMri(1, maps, at::ones({n, n}, at::kDouble), {at::kDouble, at::kCPU});
  const at::Tensor kspace = full.kspace(full.apply(object.view({1, 1, n, n})))[0];
  const at::Tensor found = estimated_coil_maps(kspace, {});
  const at::Tensor agreement = (found.conj() * maps).sum(0).abs();
  const at::Tensor inside = agreement.masked_select(radius.lt(0.6));
  EXPECT_GT(inside.min().item<double>(), 0.999);
  EXPECT_EQ(found.abs().square().sum(0)[0][0].item<double>(), 0);  // no object in the corner
  // The phase per pixel is smooth: combining coils gives the object, real up to one smooth phase.
  const auto estimated =
      MulticoilMri(2, found, at::ones({n, n}, at::kDouble), {at::kDouble, at::kCPU});
  const at::Tensor image = estimated.adjoint(full.apply(object.view({1, 1, n, n})))->squeeze(0);
  const at::Tensor magnitude = (image[0].square() + image[1].square()).sqrt();
  EXPECT_LT(((magnitude - object).masked_select(radius.lt(0.6))).abs().max().item<double>(), 2e-3);
  EXPECT_NE(words([&] { estimated_coil_maps(kspace * 0, {}); }).find("empty"), std::string::npos);
}

TEST(ForwardModels, NewConfigErrors) {
  const auto fails = [](const std::string& toml, Shape shape = {1, 8, 8}) {
    return words([&] {
      model_of(toml, shape,
               [](const std::filesystem::path&) { return at::zeros({3}, at::kDouble); });
    });
  };
  for (const auto& [toml, word] : std::vector<std::pair<std::string, std::string>>{
           {"name=\"blur\"\nkernel=\"box\"", "gaussian | motion | file"},
           {"name=\"blur\"\nfwhm=-1.0", "fwhm"},
           {"name=\"blur\"\nfwhm=1e9", "four images"},
           {"name=\"blur\"\nkernel=\"file\"", "kernel_file"},
           {"name=\"blur\"\nkernel=\"file\"\nkernel_file=\"k\"", "[rows,columns]"},
           {"name=\"inpainting\"\nbox_top=6", "leaves the image"},
           {"name=\"inpainting\"\nbox_height=8\nbox_width=8", "every pixel"},
           {"name=\"inpainting\"\nmask=\"random\"\nseen=0.0", "seen"},
           {"name=\"super_resolution\"\nfactor=3", "divide"},
           {"name=\"mri\"\npattern=\"spiral\"", "cartesian"},
           {"name=\"mri\"\npattern=\"poisson\"\nacceleration=1", "acceleration"},
           {"name=\"mri\"\npattern=\"radial\"\nspokes=0", "spoke"},
           {"name=\"multicoil_mri\"\ncoil_maps=\"k\"", "complex"},
           {"name=\"multicoil_mri\"\ncoils=0", "coils"},
           {"name=\"radon\"\nangles=0", "angles"},
           {"name=\"radon\"\nrange=-3.0", "range"},
           {"name=\"radon\"\ndetector_spacing=1e-9", "too fine"},
           {"name=\"phase_retrieval\"\noversampling=0.5", "oversampling"},
           {"name=\"matrix\"\nmatrix=\"k\"", "[K,64]"},
           {"name=\"compose\"", "first"},
           {"name=\"compose\"\nfirst.name=\"mri\"\nsecond.name=\"identity\"", "exchange"}})
    EXPECT_NE(fails(toml).find(word), std::string::npos) << toml << " -> " << fails(toml);
}

// Refused before anything is allocated; the message names the key that would help.
TEST(Radon, MatrixThatWouldNotFitIsRefused) {
  const auto refusal = [](const std::string& keys, const Shape& shape) {
    return words([&] { model_of("name = \"radon\"\n" + keys, shape); });
  };
  const std::string fine = refusal("detector_spacing = 0.002\n", {1, 64, 64});
  EXPECT_NE(fine.find("detector_spacing"), std::string::npos) << fine;
  EXPECT_NE(fine.find("GB of memory"), std::string::npos) << fine;
  const std::string many = refusal("angles = 20000\n", {1, 64, 64});
  EXPECT_NE(many.find("fewer angles"), std::string::npos) << many;
  EXPECT_NE(refusal("angles = 2000000\ndetectors = 100000\n", {1, 4, 4}), "");
  // Few detectors see few pixels, however fine they are.
  EXPECT_EQ(refusal("angles = 4\ndetector_spacing = 0.002\ndetectors = 9\n", {1, 64, 64}), "");
}

}  // namespace
}  // namespace scoreprior
