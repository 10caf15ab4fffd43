/** gaussian: normalised normal law over images, weight times
 *  log N(x; mean, Sigma) = -1/2 (x-mean)^T Sigma^-1 (x-mean) - 1/2 log det Sigma - D/2 log 2 pi
 * [nats] sigma            Sigma = diag(sigma^2), one number or an array of the image's size cost
 * O(D) sigma, factors   Sigma = diag(sigma^2) + F F^T, F [D,r] (array [r,D] or [r,C,H,W])      cost
 * O(D r) cov              full covariance [D,D], pixels in (C,H,W) order cost O(D^2), once O(D^3)
 *  Arrays are files; mean is a number or a file. */
#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/priors/penalty.h"

namespace scoreprior {
namespace {

// Residuals r = (x - mean) * scale; y = W r has quadratic form |y|^2 for a full covariance. With
// low rank, U holds the left singular vectors u_k of F / sigma and shrink_k = 1 / (1 + s_k^2): the
// form is |r - U c|^2 + sum shrink c^2, c = U^T r, which does not cancel where the factors are much
// larger than sigma.
class GaussianPrior final : public LogDensity {
 public:
  struct Law {
    Shape shape;
    at::Tensor mean, scale;   // [D]; scale undefined for a full covariance
    at::Tensor whiten;        // [D,D]
    at::Tensor axes, shrink;  // [D,r], [r]
    double log_norm = 0, weight = 1;
  };
  explicit GaussianPrior(Law law) : law_(std::move(law)) {}
  Shape event_shape() const override { return law_.shape; }

  at::Tensor log_prob(const at::Tensor& x, const Rng&) const override {
    check_batched("gaussian prior", "x", x, law_.shape);
    at::Tensor r = x.flatten(1) - law_.mean;
    at::Tensor form;
    if (law_.whiten.defined()) {
      form = r.matmul(law_.whiten.t()).square().sum(1);
    } else {
      r = r * law_.scale;
      if (law_.axes.defined()) {
        const at::Tensor c = r.matmul(law_.axes);
        form = (r - c.matmul(law_.axes.t())).square().sum(1) + (c.square() * law_.shrink).sum(1);
      } else {
        form = r.square().sum(1);
      }
    }
    return (form * -0.5 + law_.log_norm) * law_.weight;
  }

 private:
  Law law_;
};

struct GaussianTable {
  const Config& config;
  const PriorContext& context;

  at::Tensor array(const std::string& key) const {
    const auto path = config.get<std::filesystem::path>(key);
    if (!context.read_array) config.fail(key, "this program reads no array files");
    const at::Tensor a = context.read_array(path).to(at::kDouble);
    if (!at::isfinite(a).all().item<bool>())
      throw DataError(path.string() + ": has values that are not finite");
    return a;
  }
  // A number everywhere, or a file of D values.
  at::Tensor pixels(const std::string& key, double fallback, int64_t d) const {
    if (!config.has(key) || config.is_number(key))
      return at::full({d}, config.get<double>(key, fallback), at::kDouble);
    const at::Tensor a = array(key);
    if (a.numel() != d)
      throw DataError(config.get<std::filesystem::path>(key).string() + ": expected " +
                      std::to_string(d) + " values for \"" + key + "\", got an array " +
                      to_string(a.sizes().vec()));
    return a.flatten();
  }
};

}  // namespace

std::unique_ptr<LogDensity> make_gaussian_prior(const Config& config, const PriorContext& context) {
  const GaussianTable table{config, context};
  GaussianPrior::Law law;
  law.weight =
      checked_weight(config, config.get<double>("weight", 1.0, "factor on the log-density"));
  law.shape = context.image_shape;
  if (law.shape.empty()) {
    if (!config.is_string("mean"))
      config.fail("mean", "the image size is unknown: mean must be an array file");
    law.shape = table.array("mean").sizes().vec();
  }
  const int64_t d = numel(law.shape);
  law.mean = table.pixels("mean", 0.0, d);
  law.log_norm = -0.5 * static_cast<double>(d) * std::log(2 * M_PI);

  if (config.has("cov")) {
    for (const char* key : {"sigma", "factors"})
      if (config.has(key)) config.fail(key, std::string("give either cov or ") + key);
    const at::Tensor cov = table.array("cov");
    const std::string file = config.get<std::filesystem::path>("cov").string();
    if (cov.numel() != d * d)
      throw DataError(file + ": expected a covariance of " + std::to_string(d) +
                      " pixels, got an array " + to_string(cov.sizes().vec()));
    const auto [lower, info] = at::linalg_cholesky_ex(cov.reshape({d, d}));
    if (info.item<int64_t>() != 0)
      throw DataError(file + ": the covariance is not positive definite");
    law.log_norm -= lower.diagonal().log().sum().item<double>();
    law.whiten = at::linalg_solve_triangular(lower, at::eye(d, at::kDouble), /*upper=*/false);
  } else {
    const at::Tensor sigma = table.pixels("sigma", 1.0, d);
    if (!(sigma.min().item<double>() > 0)) config.fail("sigma", "sigma must be positive");
    law.scale = sigma.reciprocal();
    law.log_norm -= sigma.log().sum().item<double>();
    if (config.has("factors")) {
      const at::Tensor f = table.array("factors");
      if (f.numel() == 0 || f.numel() % d != 0)
        throw DataError(config.get<std::filesystem::path>("factors").string() +
                        ": expected factors [r," + std::to_string(d) + "], got an array " +
                        to_string(f.sizes().vec()));
      const auto [u, s, v] =
          at::linalg_svd((f.reshape({-1, d}) * law.scale).t(), /*full_matrices=*/false);
      law.axes = u;
      law.shrink = (1 + s.square()).reciprocal();
      law.log_norm += 0.5 * law.shrink.log().sum().item<double>();
    }
  }
  for (at::Tensor* t : {&law.mean, &law.scale, &law.whiten, &law.axes, &law.shrink})
    if (t->defined()) *t = t->to(context.device, context.dtype).contiguous();
  return std::make_unique<GaussianPrior>(std::move(law));
}

}  // namespace scoreprior
