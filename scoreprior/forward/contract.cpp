#include "scoreprior/forward/contract.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <stdexcept>

namespace scoreprior {
namespace {

double contract_norm(const at::Tensor& a) {
  return a.detach().to(at::kCPU, at::kDouble).norm().item<double>();
}

/// |a - b| / |b|; infinite where either is not finite or the shapes differ.
double contract_distance(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return INFINITY;
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble),
                   y = b.detach().to(at::kCPU, at::kDouble);
  const double d = (x - y).norm().item<double>(), scale = y.norm().item<double>();
  if (d == 0) return 0;
  return std::isfinite(d) && scale > 0 ? d / scale : INFINITY;
}

double contract_dot(const at::Tensor& a, const at::Tensor& b) {
  return (a.detach().to(at::kCPU, at::kDouble) * b.detach().to(at::kCPU, at::kDouble))
      .sum()
      .item<double>();
}

class ContractCheck {
 public:
  ContractCheck(const ForwardModel& model, at::ScalarType dtype, at::Device device, const Rng& rng,
                const ContractOptions& options)
      : model_(model),
        dtype_(dtype),
        device_(device),
        rng_(rng),
        options_(options),
        rounding_(dtype == at::kDouble ? 1e-12 : 1e-5) {}

  std::vector<ContractFinding> run() {
    add("shapes", 0, "apply gives [B, output_shape], finite, in the model's dtype",
        [&] { return shapes(); });
    if (!findings_[0].kept()) return findings_;  // nothing else can be compared
    add("batch", rounding_, "apply(stack) against stacked singles", [&] { return batch(); });
    add("wrong input", 0, "an x without batch axis is std::invalid_argument",
        [&] { return wrong_input(); });
    if (model_.linear()) {
      add("linear", rounding_, "A(2a - 3b) against 2 A(a) - 3 A(b)", [&] { return linear(); });
      add("dot test", rounding_, "<Ax,y> against <x,A^T y>", [&] { return dot_test(); });
      add("gradient", rounding_, "reverse mode against A^T y", [&] { return linear_gradient(); });
    } else {
      add("gradient", dtype_ == at::kDouble ? 1e-6 : 2e-2,
          "reverse mode against a central difference", [&] { return gradient(); });
    }
    add("naive inverse", 0, "image-shaped and finite, where there is one",
        [&] { return naive_inverse(); });
    return findings_;
  }

 private:
  void add(const char* name, double limit, std::string text, const std::function<double()>& look) {
    ContractFinding f{name, INFINITY, limit, std::move(text)};
    try {
      f.error = look();
    } catch (const std::exception& e) {
      f.text = e.what();
    }
    findings_.push_back(std::move(f));
  }

  at::Tensor image(const char* name) const {
    const at::Tensor z =
        rng_.split(name).normal(batched(options_.batch, model_.input_shape()), at::kDouble);
    return (z * options_.spread + options_.centre).to(device_, dtype_);
  }
  at::Tensor measurement(const char* name) const {
    return rng_.split(name)
        .normal(batched(options_.batch, model_.output_shape()), at::kDouble)
        .to(device_, dtype_);
  }

  double shapes() const {
    const at::Tensor y = model_.apply(image("x"));
    const Shape want = batched(options_.batch, model_.output_shape());
    if (Shape(y.sizes().begin(), y.sizes().end()) != want)
      throw std::runtime_error("apply gives " +
                               to_string(Shape(y.sizes().begin(), y.sizes().end())) +
                               ", output_shape says " + to_string(want));
    if (y.scalar_type() != dtype_) throw std::runtime_error("apply changes the dtype");
    if (!at::isfinite(y).all().item<bool>()) throw std::runtime_error("apply is not finite");
    const Shape seen = model_.output_image();
    if (!seen.empty() && numel(seen) != numel(model_.output_shape()))
      throw std::runtime_error("output_image and output_shape differ in size");
    const int64_t channels = model_.output_channels();
    if (channels < 1 || numel(model_.output_shape()) % channels != 0)
      throw std::runtime_error("output_shape is not a multiple of output_channels");
    return 0;
  }

  double batch() const {
    const at::Tensor x = image("x"), y = model_.apply(x);
    double worst = 0;
    for (int64_t b = 0; b < options_.batch; ++b)
      worst =
          std::max(worst, contract_distance(model_.apply(x.narrow(0, b, 1)), y.narrow(0, b, 1)));
    return worst;
  }

  double wrong_input() const {
    try {
      model_.apply(image("x").select(0, 0));
    } catch (const std::invalid_argument&) {
      return 0;
    }
    throw std::runtime_error("an x without batch axis was accepted; use check_batched");
  }

  double linear() const {
    const at::Tensor a = image("x"), b = image("second x");
    const at::Tensor ya = model_.apply(a), yb = model_.apply(b);
    const double d = contract_norm(model_.apply(2 * a - 3 * b) - (2 * ya - 3 * yb));
    return d == 0 ? 0 : d / (2 * contract_norm(ya) + 3 * contract_norm(yb));
  }

  double dot_test() const {
    const at::Tensor x = image("x"), y = measurement("y"), ax = model_.apply(x);
    const auto aty = model_.adjoint(y);
    if (!aty) throw std::runtime_error("a linear model must have an adjoint");
    if (aty->sizes() != x.sizes()) throw std::runtime_error("adjoint is not image-shaped");
    if (aty->scalar_type() != dtype_) throw std::runtime_error("adjoint changes the dtype");
    const double difference = std::abs(contract_dot(ax, y) - contract_dot(x, *aty));
    return difference == 0 ? 0 : difference / (contract_norm(ax) * contract_norm(y));
  }

  at::Tensor reverse_mode(const at::Tensor& at_x, const at::Tensor& y) const {
    at::AutoGradMode enable(true);
    const at::Tensor x = at_x.detach().clone().requires_grad_(true);
    return torch::autograd::grad({(model_.apply(x) * y).sum()}, {x})[0];
  }

  double linear_gradient() const {
    const at::Tensor y = measurement("y");
    return contract_distance(reverse_mode(image("x"), y), model_.adjoint(y).value());
  }

  /// Along one random direction per image. The step balances the truncation of the difference
  /// against rounding.
  double gradient() const {
    const at::Tensor x = image("x"), y = measurement("y"), d = measurement_direction(x);
    const double step = dtype_ == at::kDouble ? 1e-5 : 1e-2;
    const at::Tensor reverse = sum_event((reverse_mode(x, y) * d).to(at::kDouble));
    const at::Tensor difference =
        sum_event((model_.apply(x + step * d) - model_.apply(x - step * d)).to(at::kDouble) *
                  y.to(at::kDouble)) /
        (2 * step);
    return contract_distance(reverse, difference);
  }
  at::Tensor measurement_direction(const at::Tensor& x) const {
    return rng_.split("direction").normal(x.sizes(), at::kDouble).to(device_, dtype_) *
           options_.spread;
  }

  double naive_inverse() const {
    const auto image_of_y = model_.naive_inverse(model_.apply(image("x")));
    if (!image_of_y) return 0;
    if (Shape(image_of_y->sizes().begin(), image_of_y->sizes().end()) !=
        batched(options_.batch, model_.input_shape()))
      throw std::runtime_error("naive_inverse is not image-shaped");
    if (!at::isfinite(*image_of_y).all().item<bool>())
      throw std::runtime_error("naive_inverse is not finite");
    return 0;
  }

  const ForwardModel& model_;
  at::ScalarType dtype_;
  at::Device device_;
  Rng rng_;
  ContractOptions options_;
  double rounding_;
  std::vector<ContractFinding> findings_;
};

}  // namespace

std::vector<ContractFinding> check_contract(const ForwardModel& model, at::ScalarType dtype,
                                            at::Device device, const Rng& rng,
                                            const ContractOptions& options) {
  return ContractCheck(model, dtype, device, rng, options).run();
}

}  // namespace scoreprior
