#include "scoreprior/infer/adam.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace detail {

struct BufferAdamCoefficients {
  double gradient_scale, beta1, beta2, eps, rate, fix2;
};

namespace adam_base {
#include "scoreprior/infer/detail/adam_kernel.inc"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SP_ADAM_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace adam_avx2 {
#include "scoreprior/infer/detail/adam_kernel.inc"
}
#pragma GCC pop_options
#endif

}  // namespace detail

namespace {

constexpr int64_t kPiece =
    1 << 14;  // elements: the five streams of a piece fit the second-level cache

template <class T>
struct BufferAdamKernels {
  double (*squares)(const T*, int64_t) = detail::adam_base::sum_of_squares<T>;
  void (*sweep)(T*, const T*, T*, T*, int64_t,
                const detail::BufferAdamCoefficients&) = detail::adam_base::adam_sweep<T>;
  void (*average)(const T*, T*, int64_t, double) = detail::adam_base::average_sweep<T>;

  BufferAdamKernels() {
#ifdef SP_ADAM_X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
    squares = detail::adam_avx2::sum_of_squares<T>;
    sweep = detail::adam_avx2::adam_sweep<T>;
    average = detail::adam_avx2::average_sweep<T>;
#endif
  }
};

template <class T>
double adam_step(T* p, const T* g, T* m, T* v, T* average, int64_t n, const BufferAdamOptions& o,
                 int64_t step, double learning_rate) {
  static const BufferAdamKernels<T> kernels;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  std::vector<double> sums(pieces);
  at::parallel_for(0, pieces, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      sums[i] = kernels.squares(g + i * kPiece, std::min(kPiece, n - i * kPiece));
  });
  double total = 0;
  for (double s : sums) total += s;
  const double norm = std::sqrt(total);
  if (!std::isfinite(norm)) return norm;

  detail::BufferAdamCoefficients c{};
  c.gradient_scale = o.clip > 0 ? o.clip / std::max(norm + 1e-6, o.clip) : 1.0;
  c.beta1 = o.beta1;
  c.beta2 = o.beta2;
  c.eps = o.eps;
  c.rate = learning_rate / (1 - std::pow(o.beta1, static_cast<double>(step)));
  c.fix2 = 1 / (1 - std::pow(o.beta2, static_cast<double>(step)));
  at::parallel_for(0, pieces, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * kPiece, count = std::min(kPiece, n - at);
      kernels.sweep(p + at, g + at, m + at, v + at, count, c);
      if (average) kernels.average(p + at, average + at, count, o.ema);
    }
  });
  return norm;
}

}  // namespace

BufferAdam::BufferAdam(const at::Tensor& parameters, const BufferAdamOptions& options)
    : options_(options), m_(at::zeros_like(parameters)), v_(at::zeros_like(parameters)) {
  SP_CHECK(parameters.dim() == 1 && parameters.is_contiguous() && parameters.device().is_cpu(),
           "adam", "expected one flat contiguous CPU buffer");
  if (options.ema > 0) average_ = at::zeros_like(parameters);
}

double BufferAdam::step(at::Tensor& parameters, const at::Tensor& gradient, double learning_rate) {
  SP_CHECK(parameters.sizes() == m_.sizes() && gradient.sizes() == m_.sizes() &&
               gradient.is_contiguous() && gradient.scalar_type() == m_.scalar_type(),
           "adam", "expected parameters and gradient ", m_.sizes(), ", got ", parameters.sizes(),
           " and ", gradient.sizes());
  const int64_t n = m_.numel();
  double norm;
  if (m_.scalar_type() == at::kFloat)
    norm =
        adam_step(parameters.data_ptr<float>(), gradient.data_ptr<float>(), m_.data_ptr<float>(),
                  v_.data_ptr<float>(), average_.defined() ? average_.data_ptr<float>() : nullptr,
                  n, options_, steps_ + 1, learning_rate);
  else
    norm =
        adam_step(parameters.data_ptr<double>(), gradient.data_ptr<double>(), m_.data_ptr<double>(),
                  v_.data_ptr<double>(), average_.defined() ? average_.data_ptr<double>() : nullptr,
                  n, options_, steps_ + 1, learning_rate);
  if (std::isfinite(norm)) {
    ++steps_;
    if (average_.defined()) ++averaged_steps_;
  }
  return norm;
}

at::Tensor BufferAdam::averaged(const at::Tensor& parameters) const {
  if (!average_.defined() || averaged_steps_ == 0) return parameters;
  return average_ / (1 - std::pow(options_.ema, static_cast<double>(averaged_steps_)));
}

void BufferAdam::restart_average() {
  if (average_.defined()) average_.zero_();
  averaged_steps_ = 0;
}

}  // namespace scoreprior
