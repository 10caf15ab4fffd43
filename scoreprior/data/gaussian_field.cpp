#include "scoreprior/data/gaussian_field.h"

#include <ATen/ATen.h>

#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {

GaussianField::GaussianField(const GaussianFieldOptions& options, const std::string& split)
    : options_(options),
      split_(split),
      rng_(Rng(options.seed).split("gaussian_field").split(split)) {
  const int64_t n = options.image_size;
  SP_CHECK(n >= 1 && options.channels >= 1 && options.std > 0 && options.k0 > 0, "gaussian_field",
           "expected positive image_size, channels, std and k0");
  const at::Tensor k2 = (at::fft_fftfreq(n, 1.0 / static_cast<double>(n), at::kDouble)).square();
  spectrum_ =
      at::pow(k2.unsqueeze(1) + k2.unsqueeze(0) + options.k0 * options.k0, -options.slope / 2);
  spectrum_ =
      spectrum_ * (options.std * options.std / spectrum_.mean());  // C(0) is the mean eigenvalue
}

Shape GaussianField::image_shape() const {
  return {options_.channels, options_.image_size, options_.image_size};
}

std::string GaussianField::describe() const {
  return detail::concat("Gaussian random field, ", split_, " split, ", to_string(image_shape()),
                        ", mean ", options_.mean, ", std ", options_.std, ", slope ",
                        options_.slope, ", seed ", options_.seed);
}

at::Tensor GaussianField::batch(const std::vector<int64_t>& indices, const Rng& /*rng*/) const {
  std::vector<at::Tensor> white;
  for (const int64_t index : indices) {
    SP_CHECK(index >= 0, "gaussian_field", "expected an index >= 0, got ", index);
    white.push_back(rng_.at(index).normal(batched(1, image_shape()), at::kDouble));
  }
  const at::Tensor x = at::fft_ifft2(at::fft_fft2(at::cat(white)) * at::sqrt(spectrum_));
  return (at::real(x) + options_.mean).to(at::kFloat);
}

at::Tensor GaussianField::covariance() const {
  const int64_t n = options_.image_size;
  const at::Tensor c = at::real(at::fft_ifft2(spectrum_.to(at::kComplexDouble)));
  const at::Tensor axis = at::arange(n, at::kLong);
  const at::Tensor lag = at::remainder(axis.unsqueeze(1) - axis.unsqueeze(0), n);  // [n,n]
  const at::Tensor rows = lag.view({n, 1, n, 1}), columns = lag.view({1, n, 1, n});
  return c.flatten().index({(rows * n + columns).flatten()}).view({n * n, n * n}).contiguous();
}

at::Tensor GaussianField::log_prob(const at::Tensor& x) const {
  check_batched("gaussian_field", "x", x, image_shape());
  const at::Tensor spectrum = spectrum_.to(x.options());
  const double pixels = static_cast<double>(options_.image_size * options_.image_size);
  const at::Tensor waves = at::fft_fft2(x - options_.mean, c10::nullopt, {-2, -1}, "ortho");
  const at::Tensor quadratic =
      sum_event((at::real(waves).square() + at::imag(waves).square()) / spectrum);
  const double constant = static_cast<double>(options_.channels) *
                          (pixels * std::log(2 * M_PI) + at::log(spectrum_).sum().item<double>());
  return -0.5 * (quadratic + constant);
}

std::unique_ptr<Dataset> make_gaussian_field(const Config& config, const std::string& split) {
  const auto options = config.read<GaussianFieldOptions>();
  const auto require = [&](bool good, const char* key) {
    if (!good) config.fail(key, std::string(key) + " must be positive");
  };
  require(options.image_size >= 1, "image_size");
  require(options.channels >= 1, "channels");
  require(options.std > 0, "std");
  require(options.k0 > 0, "k0");
  return std::make_unique<GaussianField>(options, split);
}

}  // namespace scoreprior
