#include "scoreprior/diffusion/score_model.h"

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

// Component k of the law at time t in the eigenbasis of C_k is N(alpha m_k, alpha^2 Lambda_k +
// std^2): one rotation there and back gives score and density together.
class MixtureScore final : public ScoreModel {
 public:
  struct Law {
    at::Tensor log_weights;  // [K]
    at::Tensor means;        // [K,D]
    at::Tensor variances;    // [K,D], or [K,1] when isotropic
    at::Tensor axes;         // [K,D,D] columns are eigenvectors; undefined when isotropic
  };
  MixtureScore(Law law, Shape shape, std::unique_ptr<Sde> sde, at::ScalarType dtype,
               at::Device device)
      : shape_(std::move(shape)), sde_(std::move(sde)), dtype_(dtype), device_(device) {
    for (at::Tensor* t : {&law.log_weights, &law.means, &law.variances, &law.axes})
      if (t->defined()) *t = t->to(device, dtype).contiguous();
    law_ = std::move(law);
  }

  const Sde& sde() const override { return *sde_; }
  Shape event_shape() const override { return shape_; }
  at::ScalarType dtype() const override { return dtype_; }
  at::Device device() const override { return device_; }

  at::Tensor score(const at::Tensor& x, const at::Tensor& t) const override {
    const int64_t d = law_.means.size(1), components = law_.means.size(0);
    SP_CHECK(x.dim() >= 2 && x.numel() == x.size(0) * d, "score", "expected x [B,...] with ", d,
             " pixels, got ", x.sizes());
    const at::Tensor alpha = sde_->mean_coeff(t).to(x.scalar_type()).reshape({1, -1, 1});
    const at::Tensor noise = sde_->std(t).square().to(x.scalar_type()).reshape({1, -1, 1});
    at::Tensor y = x.reshape({1, -1, d}) - alpha * law_.means.unsqueeze(1);  // [K,B,D]
    if (law_.axes.defined()) y = at::matmul(y, law_.axes);
    const at::Tensor precision =
        (alpha.square() * law_.variances.unsqueeze(1) + noise).reciprocal();
    at::Tensor pull = y * precision;
    at::Tensor share;
    if (components > 1) {
      const double pixels = law_.axes.defined() ? 1.0 : static_cast<double>(d);
      share = at::softmax(law_.log_weights.reshape({-1, 1}) - (pull * y).sum(2) * 0.5 +
                              precision.log().sum(2) * (0.5 * pixels),
                          0)
                  .unsqueeze(2);
    }
    if (law_.axes.defined()) pull = at::matmul(pull, law_.axes.transpose(1, 2));
    if (share.defined()) pull = (pull * share).sum(0);
    return pull.neg().reshape_as(x);
  }

 private:
  Law law_;
  Shape shape_;
  std::unique_ptr<Sde> sde_;
  at::ScalarType dtype_;
  at::Device device_;
};

at::Tensor law_array(const Config& config, const char* key) {
  const auto path = config.get<fs::path>(key);
  const at::Tensor a = io::read_npy(path).to(at::kDouble);
  if (!at::isfinite(a).all().item<bool>())
    throw DataError(path.string() + ": has values that are not finite");
  return a;
}

// covariances [K,D,D] to eigenvalues and eigenvectors.
void diagonalise(const Config& config, const char* key, const at::Tensor& cov,
                 MixtureScore::Law& law) {
  const int64_t k = law.means.size(0), d = law.means.size(1);
  const std::string file = config.get<fs::path>(key).string();
  if (cov.numel() != k * d * d)
    throw DataError(file + ": expected " + std::to_string(k) + " covariance(s) of " +
                    std::to_string(d) + " pixels, got an array " + to_string(cov.sizes().vec()));
  const at::Tensor c = cov.reshape({k, d, d});
  const double scale = c.abs().max().item<double>();
  if ((c - c.transpose(1, 2)).abs().max().item<double>() > 1e-6 * scale)
    throw DataError(file + ": the covariance is not symmetric");
  auto [values, axes] = at::linalg_eigh((c + c.transpose(1, 2)) / 2);
  if (values.min().item<double>() < -1e-6 * scale)
    throw DataError(file + ": the covariance has negative eigenvalues");
  law.variances = values.clamp_min(0);
  law.axes = axes;
}

std::unique_ptr<ScoreModel> make_analytic_score(const Config& config, at::ScalarType dtype,
                                                at::Device device) {
  const std::string name = config.one_of("name", "gaussian", {"gaussian", "mixture"});
  const bool mixture = name == "mixture";
  const char* mean_key = mixture ? "means" : "mean";
  const char* cov_key = mixture ? "covs" : "cov";
  MixtureScore::Law law;
  auto shape = config.maybe<std::vector<int64_t>>("shape");

  at::Tensor means;
  if (!mixture && config.is_number(mean_key)) {
    if (!shape) config.fail(mean_key, "a number needs `shape` beside it, e.g. shape = [1, 8, 8]");
    means = at::full(*shape, config.get<double>(mean_key), at::kDouble);
  } else {
    means = law_array(config, mean_key);
  }
  const int64_t k = mixture ? means.size(0) : 1;
  if (means.numel() == 0 || means.dim() < (mixture ? 2 : 1))
    config.fail(mean_key, "expected an array of pixels, got " + to_string(means.sizes().vec()));
  if (!shape) shape = Shape(means.sizes().begin() + (mixture ? 1 : 0), means.sizes().end());
  law.means = means.reshape({k, -1});
  if (numel(*shape) != law.means.size(1))
    config.fail("shape", to_string(*shape) + " does not hold the mean's " +
                             std::to_string(law.means.size(1)) + " pixels");

  if (mixture) {
    const at::Tensor w = law_array(config, "weights").flatten();
    if (w.numel() != k)
      config.fail("weights", "expected one weight for each of " + std::to_string(k) + " means");
    if (!(w.min().item<double>() > 0)) config.fail("weights", "expected positive weights");
    law.log_weights = (w / w.sum()).log();
  }
  if (config.has(cov_key)) {
    diagonalise(config, cov_key, law_array(config, cov_key), law);
  } else {
    const at::Tensor sigma = mixture ? law_array(config, "sigmas").flatten()
                                     : at::full({1}, config.get<double>("sigma"), at::kDouble);
    const char* key = mixture ? "sigmas" : "sigma";
    if (sigma.numel() != k)
      config.fail(key, "expected one sigma for each of " + std::to_string(k) + " means");
    if (!(sigma.min().item<double>() >= 0)) config.fail(key, "expected a standard deviation");
    law.variances = sigma.square().reshape({k, 1});
  }
  return std::make_unique<MixtureScore>(std::move(law), *shape, make_sde(config.table("sde")),
                                        dtype, device);
}

std::unique_ptr<ScoreModel> make_network_score(const Config& config, at::ScalarType dtype,
                                               at::Device device) {
  const auto path = config.get<fs::path>("weights");
  const ModelFile file = read_model_file(path);
  const bool own_net = config.has("net"), own_sde = config.has("sde");
  if (!file.described && !own_net)
    config.fail("weights",
                path.string() +
                    " holds weights without a description: its architecture must be given in [" +
                    (config.path().empty() ? "" : config.path() + ".") + "net]");
  const Config net_table = own_net ? config.table("net") : file.net;
  const Config sde_table = own_sde || !file.described ? config.table("sde") : file.sde;

  std::unique_ptr<ScoreNet> net;
  std::unique_ptr<Sde> sde;
  const auto make = [&] {
    net = score_nets().make(net_table, "ncsnpp");
    sde = make_sde(sde_table);
  };
  if (own_net || own_sde) {
    make();
  } else {
    try {  // mistakes inside the file are the file's, not the configuration's
      make();
      net_table.require_all_used();
      sde_table.require_all_used();
    } catch (const ConfigError& e) {
      throw DataError(path.string() + ": its description cannot be used: " + e.what());
    }
  }
  const std::string range = net_table.get<bool>("centered", false) ? "centered" : "unit";
  if (file.described)
    check_model_images(path.string(), file.image_shape, file.range, net->image_shape(), range);
  net->load(file.weights, path.string());
  net->to(dtype, device);
  net->freeze();
  if (config.get<bool>("bfloat16", false)) {
    if (dtype != at::kFloat) config.fail("bfloat16", "goes with dtype = \"float32\" only");
    net->use_bfloat16_convolutions();
  }
  return std::make_unique<NetworkScore>(std::move(net), std::move(sde), dtype, device, range);
}

}  // namespace

NetworkScore::NetworkScore(std::unique_ptr<ScoreNet> net, std::unique_ptr<Sde> sde,
                           at::ScalarType dtype, at::Device device, std::string range)
    : net_(std::move(net)),
      sde_(std::move(sde)),
      dtype_(dtype),
      device_(device),
      range_(std::move(range)) {}

at::Tensor NetworkScore::net_output(const at::Tensor& x, const at::Tensor& t,
                                    const Rng* dropout) const {
  check_batched("score", "x", x, net_->image_shape());
  return net_->forward(x, sde_->network_label(t), dropout);
}

at::Tensor NetworkScore::score(const at::Tensor& x, const at::Tensor& t) const {
  return net_output(x, t) * expand_like_batch(sde_->net_to_score(t).to(x.scalar_type()), x);
}

std::unique_ptr<ScoreModel> make_score_model(const Config& config, at::ScalarType dtype,
                                             at::Device device) {
  if (config.has("name")) return make_analytic_score(config, dtype, device);
  if (!config.has("weights"))
    config.fail(
        "",
        "a score model needs `weights = \"model.safetensors\"`, or `name` = gaussian or mixture");
  return make_network_score(config, dtype, device);
}

}  // namespace scoreprior
