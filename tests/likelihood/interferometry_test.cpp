#include "scoreprior/likelihood/interferometry.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>

#include "golden_table.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/likelihood/dirty_image.h"
#include "synthetic_table.h"

namespace scoreprior {
namespace {

using testing::golden_table;
using testing::GoldenCase;
using testing::relative_error;
using testing::synthetic_table;
using testing::with_noise;

struct Products {
  VisibilityTransform transform;
  at::Tensor floor2;
  std::vector<std::pair<std::string, std::unique_ptr<DataProduct>>> all;
};

Products products_of(const VisibilityTable& table, const SkyGrid& grid, at::ScalarType dtype,
                     ClosureCovariance diag) {
  std::vector<double> u, v;
  for (const auto& row : table.rows) u.push_back(row.u), v.push_back(row.v);
  Products p{VisibilityTransform(u, v, grid, Pulse::kTriangle, {dtype, at::kCPU}),
             visibility_floor(table, dtype, at::kCPU),
             {}};
  const auto closure = [&](ClosureKind kind, ClosureCovariance c) {
    return make_closure_product(table, kind, c, dtype, at::kCPU);
  };
  p.all.push_back({"vis", make_visibility_product(table, dtype, at::kCPU)});
  p.all.push_back({"amp", make_amplitude_product(table, dtype, at::kCPU)});
  p.all.push_back({"cphase", closure(ClosureKind::kPhase, ClosureCovariance::kIndependent)});
  p.all.push_back(
      {"logcamp", closure(ClosureKind::kLogAmplitude, ClosureCovariance::kIndependent)});
  p.all.push_back({"cphase_diag", closure(ClosureKind::kPhase, diag)});
  p.all.push_back({"logcamp_diag", closure(ClosureKind::kLogAmplitude, diag)});
  return p;
}

void compare_with_golden(const std::string& name, const std::string& table_prefix,
                         const std::string& prefix, at::ScalarType dtype) {
  const GoldenCase g("interferometry/" + name);
  const VisibilityTable table = golden_table(g, table_prefix);
  for (const std::string image : {"im32", "im64"}) {
    if (!g.has("x_" + image)) continue;
    const at::Tensor x = g.array("x_" + image, dtype).unsqueeze(0).unsqueeze(0);
    const SkyGrid grid = make_sky_grid(x.size(2), x.size(3), g.scalar("x_" + image + "_fov_uas"));
    const Products p = products_of(table, grid, dtype, ClosureCovariance::kEhtim);
    const auto parts = p.transform.parts(x);
    const ModelVisibilities m = model_visibilities(parts.first, parts.second, p.floor2);
    // Suggested by the reference's description: 1e-10 relative from stored arrays; float32 1e-4,
    // looser for the closures of faint model visibilities, whose phases amplify the rounding of the
    // transform.
    const bool exact = dtype == at::kDouble;
    if (g.has(prefix + image + "_vis")) {
      const at::Tensor vis = g.array(prefix + image + "_vis");
      EXPECT_LT(relative_error(m.re, at::real(vis)), exact ? 1e-10 : 1e-5);
      EXPECT_LT(relative_error(m.im, at::imag(vis)), exact ? 1e-10 : 1e-5);
    }
    for (const auto& product : p.all) {
      const auto misfit = product.second->misfit(m, true);
      const double to_chi2 = 2.0 / product.second->size();
      const auto gradient = misfit.gradient.parts(m);
      EXPECT_LT(relative_error(misfit.value * to_chi2,
                               at::scalar_tensor(
                                   g.scalar(prefix + image + "_chi2_" + product.first), at::kDouble)
                                   .unsqueeze(0)),
                exact ? 1e-9 : 1e-3)
          << product.first << " " << image;
      if (g.has(prefix + image + "_grad_" + product.first)) {
        EXPECT_LT(
            relative_error(p.transform.adjoint_parts(gradient.first, gradient.second) * to_chi2,
                           g.array(prefix + image + "_grad_" + product.first)),
            exact ? 1e-8 : 1e-2)
            << product.first << " " << image;
      }
      // The residuals' squares are the misfit.
      EXPECT_LT(relative_error(product.second->residuals(m).square().sum(0) / 2, misfit.value),
                exact ? 1e-12 : 1e-4);
    }
    if (g.has(prefix + image + "_cphase_model")) {
      const auto& cphase = static_cast<const ClosureProduct&>(*p.all[2].second);
      const auto& logcamp = static_cast<const ClosureProduct&>(*p.all[3].second);
      const at::Tensor d = cphase.model(m).flatten() - g.array(prefix + image + "_cphase_model");
      EXPECT_LT((d / 2).sin().abs().max().item<double>(), exact ? 1e-10 : 1e-2);
      EXPECT_LT(relative_error(logcamp.model(m), g.array(prefix + image + "_logcamp_model")),
                exact ? 1e-10 : 1e-2);
    }
  }
}

TEST(Interferometry, MatchesReferenceDemo) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  compare_with_golden("demo_obs", "obs_", "", at::kDouble);
  compare_with_golden("demo_obs", "obs_", "", at::kFloat);
}
TEST(Interferometry, MatchesReferenceM87) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo");
  compare_with_golden("m87_095_lo", "obs_", "", at::kDouble);
  compare_with_golden("m87_095_lo", "pre_", "pre_", at::kDouble);
  compare_with_golden("m87_095_lo", "obs_", "", at::kFloat);
}
TEST(Interferometry, MatchesReferenceM87Raw) {
  SP_REQUIRE_GOLDEN("interferometry/m87_095_lo_raw");
  compare_with_golden("m87_095_lo_raw", "obs_", "", at::kDouble);
}
TEST(Interferometry, FluxScaleIsTheReferencesMultiplier) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  const GoldenCase g("interferometry/demo_obs");
  InterferometryOptions options;
  options.total_flux = 0.6;
  for (const int64_t n : {32, 64})
    EXPECT_NEAR(1 / image_flux_scale(options, {}, make_sky_grid(n, n, 128)),
                g.scalar("flux_multiplier_im" + std::to_string(n)), 1e-9 * 800);
}

at::Tensor blob(int64_t batch, int64_t n, uint64_t seed, at::ScalarType dtype = at::kDouble) {
  const at::Tensor noise = Rng(seed).split("image").uniform({batch, 1, n, n}, at::kDouble);
  const at::Tensor r = at::linspace(-2, 2, n, at::kDouble);
  const at::Tensor envelope = at::exp(-(r.square().unsqueeze(1) + (r - 0.3).square().unsqueeze(0)));
  return ((0.2 + noise) * envelope).to(dtype);
}

InterferometryOptions all_products(const std::string& covariance) {
  InterferometryOptions o;
  o.vis_weight = 0.7, o.amp_weight = 0.6, o.cphase_weight = 1.3, o.logcamp_weight = 0.9;
  o.closure_covariance = covariance;
  o.normalized = true;
  o.fov_uas = 100;
  return o;
}

InterferometryLikelihood likelihood_of(const VisibilityTable& table, const InterferometryOptions& o,
                                       int64_t n, at::ScalarType dtype = at::kDouble) {
  return {table, o, n, n, dtype, at::kCPU};
}

TEST(Interferometry, GradientIsTheFiniteDifference) {
  const VisibilityTable table = with_noise(synthetic_table(6, 3, 50), Rng(1));
  for (const std::string covariance : {"exact", "ehtim", "independent"})
    for (const int product : {0, 1, 2, 3, 4}) {
      InterferometryOptions o = all_products(covariance);
      if (product < 4)
        for (int k = 0; k < 4; ++k)
          if (k != product) (&o.vis_weight)[k] = 0;
      for (const int64_t n : {8, 9}) {
        const auto likelihood = likelihood_of(table, o, n);
        const at::Tensor x = blob(2, n, 4);
        const auto result = likelihood.value_and_score(x, Rng(0));
        EXPECT_LT(relative_error(result.first, likelihood.log_prob(x, Rng(0))), 1e-13);
        const at::Tensor direction = Rng(5).normal({2, 1, n, n}, at::kDouble);
        const double h = 1e-6;
        const at::Tensor difference = (likelihood.log_prob(x + h * direction, Rng(0)) -
                                       likelihood.log_prob(x - h * direction, Rng(0))) /
                                      (2 * h);
        // Central differences: h^2 times third derivatives, and 1e-16/h of the value.
        EXPECT_LT(relative_error(difference, (result.second * direction).flatten(1).sum(1)), 2e-6)
            << covariance << " product " << product << " size " << n;
      }
    }
}

TEST(Interferometry, AutogradAgreesAndDifferentiatesTwice) {
  const auto likelihood =
      likelihood_of(with_noise(synthetic_table(5, 2, 50), Rng(1)), all_products("exact"), 8);
  const at::Tensor x = blob(2, 8, 4).requires_grad_(true);
  const at::Tensor value = likelihood.log_prob(x, Rng(0));
  const at::Tensor gradient = torch::autograd::grad({value.sum()}, {x}, {}, true, true)[0];
  EXPECT_LT(relative_error(gradient, likelihood.value_and_score(x, Rng(0)).second), 1e-13);
  const at::Tensor direction = Rng(5).normal({2, 1, 8, 8}, at::kDouble);
  const at::Tensor product = torch::autograd::grad({(gradient * direction).sum()}, {x})[0];
  const double h = 1e-5;
  const at::Tensor difference =
      (likelihood.value_and_score(x.detach() + h * direction, Rng(0)).second -
       likelihood.value_and_score(x.detach() - h * direction, Rng(0)).second) /
      (2 * h);
  EXPECT_LT(relative_error(product, difference), 1e-5);
}

TEST(Interferometry, TermsResidualsAndChiSquaresAgree) {
  const VisibilityTable table = with_noise(synthetic_table(6, 3, 50), Rng(1));
  for (const std::string covariance : {"exact", "ehtim", "independent"}) {
    InterferometryOptions o = all_products(covariance);
    o.vis_weight = o.amp_weight = o.cphase_weight = o.logcamp_weight = 1;
    const auto likelihood = likelihood_of(table, o, 8);
    const at::Tensor x = blob(3, 8, 4);
    at::Tensor sum = at::zeros({3}, at::kDouble);
    for (const auto& term : likelihood.terms(x, Rng(0))) sum = sum + term.second;
    EXPECT_LT(relative_error(sum, likelihood.log_prob(x, Rng(0))), 1e-13);
    o.normalized = false;
    const auto plain = likelihood_of(table, o, 8);
    EXPECT_LT(relative_error(plain.residuals(x).square().sum(1) * -0.5, plain.log_prob(x, Rng(0))),
              1e-12);
    EXPECT_EQ(plain.chi2(x).size(), covariance == "independent" ? 4u : 6u);
    // A batch is its images.
    for (int64_t b = 0; b < 3; ++b)
      EXPECT_LT(relative_error(plain.log_prob(x.narrow(0, b, 1), Rng(0)),
                               plain.log_prob(x, Rng(0)).narrow(0, b, 1)),
                1e-12);
  }
}

TEST(Interferometry, ClosureLikelihoodIgnoresStationGains) {
  const VisibilityTable table = with_noise(synthetic_table(6, 3, 100), Rng(1));
  VisibilityTable corrupted = table;
  for (VisibilityRow& row : corrupted.rows) {
    const auto gain = [&](int32_t site) {
      const auto n = Rng(7).at(site).at(std::lround(10 * row.time)).normals(2);
      return std::exp(std::complex<double>(0.3 * n[0], 3 * n[1]));
    };
    const std::complex<double> factor = gain(row.t1) * std::conj(gain(row.t2));
    row.vis *= factor;
    row.sigma *= std::abs(factor);
  }
  InterferometryOptions o;
  o.fov_uas = 100, o.total_flux = 0.6;
  const at::Tensor x = blob(2, 12, 4);
  EXPECT_LT(relative_error(likelihood_of(table, o, 12).log_prob(x, Rng(0)),
                           likelihood_of(corrupted, o, 12).log_prob(x, Rng(0))),
            1e-10);
}

// Under the truth every product's chi^2 has mean 1: sum of squares over all seeds against its chi^2
// law. With the true covariance the reduced chi^2 also has variance 2/N.
TEST(Interferometry, ChiSquareIsOneUnderTheTruth) {
  InterferometryOptions o = all_products("exact");
  o.vis_weight = o.amp_weight = o.cphase_weight = o.logcamp_weight = 1;
  o.units = "jy";
  const at::Tensor x = blob(1, 10, 4) * 0.02;
  VisibilityTable table = synthetic_table(6, 4);
  const Observation clean = [&] {
    for (auto& row : table.rows) row.sigma = 1e-12;
    return likelihood_of(table, o, 10).simulate(x, Rng(0));
  }();
  table = *clean.visibilities;
  for (auto& row : table.rows) row.sigma = std::abs(row.vis) / (30 + 10 * (row.t2 - row.t1));
  std::map<std::string, std::vector<double>> chi2;
  std::map<std::string, int64_t> n;
  const int seeds = 60;
  const auto truth = likelihood_of(table, o, 10);
  for (int s = 0; s < seeds; ++s) {
    const Observation data = truth.simulate(x, Rng(100).at(s));
    const auto likelihood = likelihood_of(*data.visibilities, o, 10);
    for (const auto& c : likelihood.chi2(x)) chi2[c.first].push_back(c.second.item<double>());
  }
  const double rows = static_cast<double>(table.rows.size());
  n["chi2_vis"] = 2 * rows, n["chi2_amp"] = rows;
  n["chi2_cphase_exact"] = 4 * 10, n["chi2_logcamp_exact"] = 4 * 9;
  for (const auto& size : n) {
    double mean = 0, variance = 0;
    for (double c : chi2[size.first]) mean += c / seeds;
    for (double c : chi2[size.first]) variance += (c - mean) * (c - mean) / (seeds - 1);
    // Mean: 4.5 standard errors, plus 3/SNR^2 for the second order of the closures' noise.
    EXPECT_NEAR(mean, 1, 4.5 * std::sqrt(2.0 / size.second / seeds) + 3.0 / (40 * 40))
        << size.first;
    // Variance of a sample variance: about 2/(seeds-1) relative squared.
    EXPECT_NEAR(variance * size.second / 2, 1, 4.5 * std::sqrt(2.0 / (seeds - 1))) << size.first;
  }
}

TEST(Interferometry, NoiseIsNamedAndGaussian) {
  InterferometryOptions o;
  o.units = "jy";
  const VisibilityTable table = synthetic_table(6, 40);
  const auto likelihood = likelihood_of(table, o, 8);
  const at::Tensor x = blob(1, 8, 4);
  const auto a = likelihood.simulate(x, Rng(1)), b = likelihood.simulate(x, Rng(1)),
             c = likelihood.simulate(x, Rng(2));
  EXPECT_EQ(a.visibilities->rows[7].vis, b.visibilities->rows[7].vis);
  double sum = 0;
  for (size_t k = 0; k < table.rows.size(); ++k) {
    EXPECT_NE(a.visibilities->rows[k].vis, c.visibilities->rows[k].vis);
    sum += std::norm(a.visibilities->rows[k].vis - c.visibilities->rows[k].vis) /
           (2 * table.rows[k].sigma * table.rows[k].sigma);
  }
  const double n = 2.0 * table.rows.size();  // chi^2 of the difference: mean n, variance 2n
  EXPECT_NEAR(sum, n, 4.5 * std::sqrt(2 * n));
}

TEST(Interferometry, NormalizedDensitiesIntegrateToOne) {
  // One triangle, von Mises: the density over data phases.
  VisibilityTable table = synthetic_table(3, 1, 2.0);
  for (auto& row : table.rows) row.vis = std::polar(0.6, 0.1), row.sigma = 0.3;
  InterferometryOptions o;
  o.logcamp_weight = 0, o.closure_covariance = "independent", o.normalized = true, o.units = "jy";
  const at::Tensor x = blob(1, 8, 4);
  double integral = 0;
  const int steps = 400;
  for (int k = 0; k < steps; ++k) {
    table.rows[0].vis = std::polar(0.6, 2 * M_PI * k / steps);
    integral +=
        std::exp(likelihood_of(table, o, 8).log_prob(x, Rng(0)).item<double>()) * 2 * M_PI / steps;
  }
  EXPECT_NEAR(integral, 1, 1e-10);  // the trapezoid rule is spectrally exact on a circle
}

TEST(Interferometry, ZeroModelVisibilitiesHaveFiniteGradients) {
  const VisibilityTable table = with_noise(synthetic_table(5, 2, 50), Rng(1));
  for (const auto dtype : {at::kDouble, at::kFloat})
    for (const std::string covariance : {"exact", "ehtim", "independent"}) {
      const auto likelihood = likelihood_of(table, all_products(covariance), 8, dtype);
      for (const double level : {0.0, 1e-30, 1e-9}) {
        const auto result =
            likelihood.value_and_score(at::full({1, 1, 8, 8}, level, dtype), Rng(0));
        EXPECT_TRUE(at::isfinite(result.first).all().item<bool>()) << level;
        EXPECT_TRUE(at::isfinite(result.second).all().item<bool>()) << level;
      }
    }
}

TEST(Interferometry, FloatAgreesWithDouble) {
  const VisibilityTable table = with_noise(synthetic_table(6, 3, 50), Rng(1));
  const auto exact = likelihood_of(table, all_products("exact"), 16);
  const auto single = likelihood_of(table, all_products("exact"), 16, at::kFloat);
  const at::Tensor x = blob(4, 16, 4);
  const auto a = exact.value_and_score(x, Rng(0));
  const auto b = single.value_and_score(x.to(at::kFloat), Rng(0));
  // Rounding 6e-8 of the flux times the signal-to-noise ratio of faint visibilities (about 50 here,
  // closures more).
  EXPECT_LT(relative_error(b.first, a.first), 1e-4);
  EXPECT_LT(relative_error(b.second, a.second), 1e-3);
}

TEST(Interferometry, WrapsAtHalfATurn) {
  // Data at +179.9 degrees and a model at -179.9 differ by 0.2 degrees, not by 359.8.
  VisibilityTable table = synthetic_table(3, 1);
  for (auto& row : table.rows) row.u = row.v = 0, row.vis = 1, row.sigma = 0.01;
  table.rows[0].vis = std::polar(1.0, M_PI - 0.002);
  InterferometryOptions o;
  o.logcamp_weight = 0, o.units = "jy";
  const auto likelihood = likelihood_of(table, o, 4);
  ModelVisibilities m;
  const auto product = make_closure_product(table, ClosureKind::kPhase, ClosureCovariance::kExact,
                                            at::kDouble, at::kCPU);
  const at::Tensor re =
      at::tensor(std::vector<double>{std::cos(-M_PI + 0.002), 1, 1}, at::kDouble).unsqueeze(1);
  const at::Tensor im =
      at::tensor(std::vector<double>{std::sin(-M_PI + 0.002), 0, 0}, at::kDouble).unsqueeze(1);
  m = model_visibilities(re, im, visibility_floor(table, at::kDouble, at::kCPU));
  EXPECT_NEAR(product->misfit(m, false).value.item<double>(), 0.5 * 0.004 * 0.004 / (3 * 1e-4),
              1e-12);
}

TEST(Interferometry, DirtyImageAndBeamMatchReference) {
  SP_REQUIRE_GOLDEN("interferometry/demo_obs");
  const GoldenCase g("interferometry/demo_obs");
  const VisibilityTable table = golden_table(g);
  for (const int64_t n : {32, 64}) {
    const std::string image = "im" + std::to_string(n);
    const SkyGrid grid = make_sky_grid(n, n, 128);
    EXPECT_LT(relative_error(dirty_image(table, grid), g.array("dirtyimage_" + image)), 1e-10);
    EXPECT_LT(relative_error(dirty_beam(table, grid), g.array("dirtybeam_" + image)), 1e-10);
    const GaussianBeam beam = fit_beam(table);
    EXPECT_LT(relative_error(gaussian_image(beam, grid), g.array("cleanbeam_" + image)), 1e-9);
  }
  for (const auto weighting : {VisibilityWeighting::kUniform, VisibilityWeighting::kNatural}) {
    const GaussianBeam b = fit_beam(table, weighting);
    const at::Tensor want =
        g.array(weighting == VisibilityWeighting::kUniform ? "beam_uniform" : "beam_natural");
    EXPECT_NEAR(b.major_rad / want[0].item<double>(), 1, 1e-10);
    EXPECT_NEAR(b.minor_rad / want[1].item<double>(), 1, 1e-10);
    EXPECT_NEAR(b.theta, want[2].item<double>(), 1e-9);
  }
  EXPECT_NEAR(resolution_rad(table) / g.scalar("res_rad"), 1, 1e-14);
  const GaussianBeam ellipse{40 * kRadPerUas, 25 * kRadPerUas, 0.6};
  EXPECT_LT(relative_error(gaussian_image(ellipse, make_sky_grid(32, 32, 128), 0.6, 10 * kRadPerUas,
                                          -5 * kRadPerUas),
                           g.array("gauss32")),
            1e-10);
}

template <class T>
ConfigNodePtr setting(T value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = value;
  return node;
}

TEST(Interferometry, MakerChecksItsTable) {
  Observation data;
  data.visibilities = synthetic_table(5, 2);
  const LikelihoodContext context{{1, 8, 8}, at::kDouble, at::kCPU, Config(), {}};
  const auto make = [&](std::function<void(Config&)> configure, const Observation& d,
                        const LikelihoodContext& where) {
    Config c;
    c.set("name", setting(std::string("interferometry")));
    configure(c);
    auto likelihood = likelihoods().make(c, "", d, where);
    c.require_all_used();
    return likelihood;
  };
  EXPECT_EQ(make([](Config&) {}, data, context)->event_shape(), Shape({1, 8, 8}));
  const auto refuses = [&](const char* key, auto value) {
    EXPECT_THROW(make([&](Config& c) { c.set(key, setting(value)); }, data, context), ConfigError)
        << key;
  };
  refuses("fov_uas", 0.0);
  refuses("image_size", int64_t{9});
  refuses("cphase_weight", -1.0);
  refuses("units", std::string("kelvin"));
  refuses("closure_covariance", std::string("full"));
  refuses("pulse", std::string("gauss"));
  refuses("fov_uss", 100.0);
  refuses("total_flux", -1.0);
  EXPECT_THROW(make([](Config&) {}, Observation(), context), DataError);
  EXPECT_THROW(make([](Config&) {}, data, {{3, 8, 8}, at::kDouble, at::kCPU, Config(), {}}),
               ConfigError);
}

TEST(Interferometry, DataFitsAndErrors) {
  const VisibilityTable table = with_noise(synthetic_table(5, 3, 50), Rng(1));
  InterferometryOptions o;
  const auto likelihood = likelihood_of(table, o, 8);
  const at::Tensor x = blob(2, 8, 4);
  const auto fits = likelihood.data_fits(x);
  ASSERT_EQ(fits.size(), 3u + 6u);  // amp, cphase, logcamp and six triangles
  for (const auto& f : fits) {
    EXPECT_EQ(f.x.sizes(), f.data.sizes());
    EXPECT_EQ(f.model.size(0), 2);
    EXPECT_EQ(f.model.size(1), f.x.size(0));
  }
  EXPECT_EQ(fits[3].product, "cphase A-B-C");
  EXPECT_EQ(likelihood.naive_image().sizes(), at::IntArrayRef({1, 1, 8, 8}));
  VisibilityTable two = synthetic_table(2, 3);
  EXPECT_THROW(likelihood_of(two, o, 8), DataError);  // no closures at all
  VisibilityTable bad = table;
  bad.rows[2].sigma = -1;
  EXPECT_THROW(likelihood_of(bad, o, 8), DataError);
}

// J d = slopes T d against central differences of the residuals along d. Data are drawn from the
// image itself, so that the 1 - cos products sit where they are quadratic: there cos(r) - 1 is of
// the order of the phase errors squared, 1e-4.
TEST(InterferometryLikelihood, SlopesAreTheResidualsDerivative) {
  const at::Tensor x = Rng(3).uniform({2, 1, 8, 8}, at::kDouble) + 0.1;
  for (const char* covariance : {"exact", "ehtim", "independent"}) {
    InterferometryOptions o;
    o.closure_covariance = covariance;
    o.units = "jy";
    o.vis_weight = 0.5, o.amp_weight = 2;
    const InterferometryLikelihood first(synthetic_table(5, 2, 1e4), o, 8, 8, at::kDouble,
                                         at::kCPU);
    const auto data = first.simulate(x.slice(0, 0, 1), Rng(4));
    const InterferometryLikelihood likelihood(*data.visibilities, o, 8, 8, at::kDouble, at::kCPU);
    const at::Tensor here = x.slice(0, 0, 1).expand({2, 1, 8, 8}).contiguous();
    const at::Tensor d = Rng(5).normal({2, 1, 8, 8}, at::kDouble);
    const at::Tensor slopes = likelihood.slopes(here);
    const at::Tensor j =
        at::bmm(slopes, d.flatten(1).matmul(likelihood.linear_part().t()).unsqueeze(2)).squeeze(2);
    const double e = 1e-6;
    at::Tensor differences =
        (likelihood.residuals(here + d * e) - likelihood.residuals(here - d * e)) / (2 * e);
    // residuals() are each product's own; slopes carry the square root of its weight.
    const int64_t rows = static_cast<int64_t>(data.visibilities->rows.size());
    differences.slice(1, 0, 2 * rows).mul_(std::sqrt(0.5));
    differences.slice(1, 2 * rows, 3 * rows).mul_(std::sqrt(2.0));
    ASSERT_EQ(j.sizes(), differences.sizes());
    EXPECT_LT(relative_error(j, differences), 1e-4) << covariance;
  }
}

}  // namespace
}  // namespace scoreprior
