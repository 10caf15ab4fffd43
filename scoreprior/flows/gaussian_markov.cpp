#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/flows/detail/gaussian_options.h"
#include "scoreprior/flows/detail/parameter_map.h"
#include "scoreprior/flows/detail/softplus_output.h"
#include "scoreprior/flows/flow.h"

namespace scoreprior {
namespace {

struct MarkovGaussianOptions : detail::GaussianOptions {
  int64_t radius = 2;
  template <class F>
  void fields(F&& f) {
    GaussianOptions::fields(f);
    f("radius", radius, "how far the neighbours reach that a pixel's mean depends on [pixels]");
  }
};

// Pixels in raster order, the channels of a pixel one after the other. Work arrays are [D,B] in
// that order, so that the innermost loops run over the batch; they and the parameters live on the
// CPU, since one pixel waits for the other.
class MarkovGaussian final : public Flow {
 public:
  MarkovGaussian(const MarkovGaussianOptions& o, Shape event, const FlowContext& context)
      : o_(o), event_(std::move(event)), output_(o.softplus) {
    device_ = context.device;
    type_ = at::TensorOptions().dtype(context.dtype).device(at::kCPU);
    find_neighbours();
    map_.add("mean", {o.dim});
    map_.add("log_std", {o.dim});
    if (slots_ > 0) map_.add("regression", {o.dim, slots_});
    parameters_ = at::zeros({map_.size()}, type_);
    gradient_ = at::zeros({map_.size()}, type_);
    initialize(Rng(0));
  }

  int64_t dim() const override { return o_.dim; }

  Sample sample(const at::Tensor& z_in, bool train) override {
    check_batched("gaussian_markov", "z", z_in, {o_.dim});
    const at::Tensor z = to_raster(z_in.to(type_));
    const at::Tensor scaled = z * part("log_std").exp().unsqueeze(1);
    at::Tensor v = scaled.clone();
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "gaussian_markov",
                               [&] { add_regression<scalar_t>(v, v, 1); });
    at::Tensor x = from_raster(v + part("mean").unsqueeze(1));
    at::Tensor log_det = part("log_std").sum().expand({z.size(1)}).contiguous();
    if (train) kept_ = {scaled, v, x};
    output_.apply(x, log_det);
    return {x.to(device_), log_det.to(device_)};
  }

  void backward(const at::Tensor& x_bar, const at::Tensor& log_det_bar) override {
    SP_CHECK(kept_.u.defined() && kept_.u.sizes() == x_bar.sizes(), "gaussian_markov",
             "backward() needs a preceding sample(z, true) of as many rows");
    const at::Tensor ld = log_det_bar.to(type_);
    const at::Tensor g = to_raster(output_.backward(kept_.u, x_bar.to(type_), ld));
    grad("mean").copy_(g.sum(1));
    at::Tensor w = g.clone();
    AT_DISPATCH_FLOATING_TYPES(w.scalar_type(), "gaussian_markov", [&] { reverse<scalar_t>(w); });
    grad("log_std").copy_((w * kept_.scaled).sum(1) + ld.sum());
  }

  Sample inverse(const at::Tensor& x_in) const override {
    check_batched("gaussian_markov", "x", x_in, {o_.dim});
    at::Tensor u = x_in.to(type_);
    at::Tensor log_det = -part("log_std").sum().expand({u.size(0)});
    output_.invert(u, log_det);
    const at::Tensor v = (to_raster(u) - part("mean").unsqueeze(1)).contiguous();
    at::Tensor z = v.clone();
    AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "gaussian_markov",
                               [&] { add_regression<scalar_t>(v, z, -1); });
    return {from_raster(z * (-part("log_std")).exp().unsqueeze(1)).to(device_),
            log_det.contiguous().to(device_)};
  }

  at::Tensor& flat_parameters() override { return parameters_; }
  at::Tensor& flat_grad() override { return gradient_; }
  std::map<std::string, at::Tensor> named_tensors() const override {
    return map_.views(parameters_);
  }
  void load(const std::map<std::string, at::Tensor>& weights, const std::string& file) override {
    map_.load(weights, file, parameters_);
  }

  void initialize(const Rng&) override {
    parameters_.zero_();
    double mean = o_.init_mean, std = o_.init_std;
    output_.unmap(mean, std);
    part("mean").fill_(mean);
    part("log_std").fill_(std::log(std));
  }

 private:
  at::Tensor part(const std::string& name) const { return map_.view(parameters_, name); }
  at::Tensor grad(const std::string& name) { return map_.view(gradient_, name); }

  at::Tensor to_raster(const at::Tensor& x) const {
    const int64_t batch = x.size(0);
    return x.reshape({batch, event_[0], event_[1], event_[2]})
        .permute({2, 3, 1, 0})
        .contiguous()
        .view({o_.dim, batch});
  }
  at::Tensor from_raster(const at::Tensor& x) const {
    const int64_t batch = x.size(1);
    return x.view({event_[1], event_[2], event_[0], batch})
        .permute({3, 2, 0, 1})
        .contiguous()
        .view({batch, o_.dim});
  }

  // Slot k of pixel i holds the pixel that many places before i, if it lies in the image.
  void find_neighbours() {
    const int64_t channels = event_[0], height = event_[1], width = event_[2];
    struct Step {
      int64_t dy, dx;
    };
    std::vector<Step> steps;
    for (int64_t dy = -o_.radius; dy <= 0; ++dy)
      for (int64_t dx = -o_.radius; dx <= (dy == 0 ? -1 : o_.radius); ++dx)
        if (-dy < height && std::abs(dx) < width) steps.push_back({dy, dx});
    slots_ = static_cast<int64_t>(steps.size()) * channels + channels - 1;
    neighbour_.assign(static_cast<size_t>(o_.dim * slots_), -1);
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t i = (y * width + x) * channels + c;
          int64_t* slot = neighbour_.data() + i * slots_;
          for (const Step& s : steps)
            for (int64_t d = 0; d < channels; ++d, ++slot)
              if (y + s.dy >= 0 && x + s.dx >= 0 && x + s.dx < width)
                *slot = ((y + s.dy) * width + x + s.dx) * channels + d;
          for (int64_t d = 0; d + 1 < channels; ++d, ++slot)
            if (d < c) *slot = i - c + d;
        }
  }

  // to_i += sign sum_k w_ik from_k, the first pixel first; both may be one tensor.
  template <class T>
  void add_regression(const at::Tensor& from, at::Tensor& to, T sign) const {
    if (slots_ == 0) return;
    const at::Tensor weights = part("regression");
    const T* w = weights.data_ptr<T>();
    const T* values = from.data_ptr<T>();
    T* out = to.data_ptr<T>();
    const int64_t batch = from.size(1);
    for (int64_t i = 0; i < o_.dim; ++i)
      for (int64_t k = 0; k < slots_; ++k) {
        const int64_t j = neighbour_[i * slots_ + k];
        if (j < 0) continue;
        const T a = sign * w[i * slots_ + k];
        for (int64_t b = 0; b < batch; ++b) out[i * batch + b] += a * values[j * batch + b];
      }
  }

  // The reverse of sampling: g holds the gradient in v, and at the end in scaled z; dL/dw_ik =
  // sum_b g_i v_k on the way.
  template <class T>
  void reverse(at::Tensor& g) {
    if (slots_ == 0) return;
    const at::Tensor weights = part("regression");
    at::Tensor weight_bar = grad("regression");
    const T* w = weights.data_ptr<T>();
    T* w_bar = weight_bar.data_ptr<T>();
    T* gradient = g.data_ptr<T>();
    const T* values = kept_.v.data_ptr<T>();
    const int64_t batch = g.size(1);
    for (int64_t i = o_.dim - 1; i >= 0; --i)
      for (int64_t k = 0; k < slots_; ++k) {
        const int64_t j = neighbour_[i * slots_ + k];
        if (j < 0) continue;
        const T a = w[i * slots_ + k];
        const T* from = gradient + i * batch;
        T* to = gradient + j * batch;
        const T* v = values + j * batch;
        T sum = 0;
        for (int64_t b = 0; b < batch; ++b) {
          to[b] += a * from[b];
          sum += from[b] * v[b];
        }
        w_bar[i * slots_ + k] = sum;
      }
  }

  struct Kept {
    at::Tensor scaled, v, u;  // [D,B], [D,B], [B,D]
  };
  MarkovGaussianOptions o_;
  Shape event_;  // [C,H,W]
  detail::SoftplusOutput output_;
  at::Device device_ = at::kCPU;  // of what comes and goes
  at::TensorOptions type_;
  int64_t slots_ = 0;
  std::vector<int64_t> neighbour_;  // [D,slots], -1: outside the image
  detail::ParameterMap map_;
  at::Tensor parameters_, gradient_;
  Kept kept_;
};

}  // namespace

/// A full Gaussian whose precision has a local Cholesky factor (a sparse variational precision,
/// [Tan18]):
///   u_i = mean_i + sum_{k in N(i)} w_ik (u_k - mean_k) + exp(log_std_i) z_i,
/// pixels in raster order, N(i) the earlier pixels within `radius` in each direction with all their
/// channels. log|det du/dz| = sum log_std. Neighbours alone make pixels correlate at any distance,
/// which is how the posterior of an image behaves under a local prior; D (K + 2) parameters, K =
/// 2 radius (radius + 1) channels + channels - 1. Without a known image it is one row of pixels.
std::unique_ptr<Flow> make_gaussian_markov(const Config& config, const FlowContext& context) {
  auto o = config.read<MarkovGaussianOptions>();
  if (o.radius < 0) config.fail("radius", "radius must not be negative");
  complete(o, config, context);
  Shape event = context.event;
  if (event.size() != 3 || numel(event) != o.dim) event = {1, 1, o.dim};
  return std::make_unique<MarkovGaussian>(o, event, context);
}

}  // namespace scoreprior
