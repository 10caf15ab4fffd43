/// phase_retrieval: the Fourier transform without its phase.
///   y = |Y| (magnitude) or |Y|^2 (intensity), Y = orthonormal DFT of the image in the corner of a
///   grid oversampling times as large, zero frequency at (h/2, w/2)
///   Shapes [B,C,H,W] -> [B,h*w*C], (h,w,C) with C fastest; not linear
///   Gradient: Re conj-phase back-projection; 0 where Y = 0, where the magnitude has none
///   Units: image units (magnitude) or their square; sum |Y|^2 = sum x^2
///   naive inverse: hybrid input-output [Fienup82] with the image's support and x >= 0 from fixed
///   random phases, the best of a few starts by misfit; the point reflection of x, and shifts that
///   stay in the support, have the same y

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/measurement_order.h"

namespace scoreprior {
namespace {

struct PhaseRetrievalOptions {
  double oversampling = 2;
  std::string quantity = "magnitude";
  template <class F>
  void fields(F&& f) {
    f("oversampling", oversampling, "grid per image side; 2 determines the phases almost surely");
    f("quantity", quantity, "magnitude or intensity");
  }
};

constexpr int64_t kPhaseAxes[2] = {2, 3};

class PhaseRetrieval final : public ForwardModel {
 public:
  PhaseRetrieval(Shape shape, int64_t height, int64_t width, bool intensity)
      : shape_(std::move(shape)), grid_({shape_[0], height, width}), intensity_(intensity) {}
  Shape input_shape() const override { return shape_; }
  Shape output_shape() const override { return {numel(grid_)}; }
  bool linear() const override { return false; }

  at::Tensor apply(const at::Tensor& x) const override {
    check_batched("phase_retrieval", "x", x, shape_);
    const at::Tensor k = at::fft_fftshift(transform(x), kPhaseAxes);
    return to_measurement(intensity_ ? at::real(k * k.conj()) : k.abs());
  }
  std::optional<at::Tensor> naive_inverse(const at::Tensor& y) const override {
    check_batched("phase_retrieval", "y", y, output_shape());
    at::NoGradGuard no_grad;
    at::Tensor magnitude = from_measurement(y, grid_).clamp_min(0);
    if (intensity_) magnitude = magnitude.sqrt();
    magnitude = at::fft_ifftshift(magnitude, kPhaseAxes);
    at::Tensor best, best_misfit;
    for (int64_t start = 0; start < kStarts; ++start) {
      const at::Tensor x = hybrid_input_output(magnitude, start);
      const at::Tensor misfit = (transform(x).abs() - magnitude).square().sum({1, 2, 3}, true);
      if (!best.defined()) {
        best = x, best_misfit = misfit;
      } else {
        best = at::where(misfit < best_misfit, x, best);
        best_misfit = at::minimum(misfit, best_misfit);
      }
    }
    return best;
  }

 private:
  static constexpr int64_t kStarts = 4, kHybridSteps = 300, kReductionSteps = 50;

  at::Tensor transform(const at::Tensor& x) const {
    return at::fft_fft2(x, at::IntArrayRef({grid_[1], grid_[2]}), kPhaseAxes, "ortho");
  }
  at::Tensor support(const at::Tensor& wide) const {
    return wide.narrow(2, 0, shape_[1]).narrow(3, 0, shape_[2]);
  }
  at::Tensor hybrid_input_output(const at::Tensor& magnitude, int64_t start) const {
    // One phase for every image of the batch, so that a row does not depend on its neighbours.
    const at::Tensor phase =
        Rng(0).split("phases").at(start).uniform(grid_, at::kDouble) * (2 * M_PI);
    const at::Tensor turn = phase.to(magnitude.device(), magnitude.scalar_type()).unsqueeze(0);
    at::Tensor x = at::real(at::fft_ifft2(at::polar(magnitude, turn.expand_as(magnitude)),
                                          c10::nullopt, kPhaseAxes, "ortho"));
    for (int64_t step = 0; step < kHybridSteps + kReductionSteps; ++step) {
      const at::Tensor k = at::fft_fft2(x, c10::nullopt, kPhaseAxes, "ortho");
      const at::Tensor seen = at::real(
          at::fft_ifft2(at::polar(magnitude, at::angle(k)), c10::nullopt, kPhaseAxes, "ortho"));
      at::Tensor next = step < kHybridSteps ? x - 0.9 * seen : at::zeros_like(x);
      const at::Tensor inside = support(seen);
      support(next).copy_(at::where(inside > 0, inside, support(next)));
      x = next;
    }
    return support(x).contiguous();
  }

  Shape shape_, grid_;
  bool intensity_;
};

}  // namespace

std::unique_ptr<ForwardModel> make_phase_retrieval(const Config& config,
                                                   const ForwardContext& context) {
  Shape shape = image_shape(config, context);
  const auto o = config.read<PhaseRetrievalOptions>();
  const bool intensity =
      config.one_of("quantity", "magnitude", {"magnitude", "intensity"}) == "intensity";
  if (!(o.oversampling >= 1 && o.oversampling <= 16))
    config.fail("oversampling", "oversampling must be between 1 and 16");
  const auto side = [&](int64_t n) {
    return static_cast<int64_t>(std::ceil(o.oversampling * static_cast<double>(n)));
  };
  return std::make_unique<PhaseRetrieval>(shape, side(shape[1]), side(shape[2]), intensity);
}

}  // namespace scoreprior
