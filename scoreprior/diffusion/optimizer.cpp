#include "scoreprior/diffusion/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

constexpr int64_t kChunk =
    1 << 14;  // elements a thread takes at a time; also the grid of the norm's partial sums
constexpr int64_t kSlotAlignment = 16;  // parameters start on 64-byte boundaries of a float buffer

struct AdamCoefficients {
  double clip, beta1, beta2, epsilon, step_size, root_correction, ema;
};

// p -= lr mhat / (sqrt(vhat) + eps) with the bias corrections folded into step_size and
// root_correction.
template <class T>
inline __attribute__((always_inline)) void adam_loop(int64_t n, const AdamCoefficients& k,
                                                     T* __restrict p, const T* __restrict g,
                                                     T* __restrict m, T* __restrict v,
                                                     T* __restrict a) {
  const T clip = static_cast<T>(k.clip), b1 = static_cast<T>(k.beta1), b2 = static_cast<T>(k.beta2);
  const T c1 = static_cast<T>(1 - k.beta1), c2 = static_cast<T>(1 - k.beta2),
          eps = static_cast<T>(k.epsilon);
  const T rate = static_cast<T>(k.step_size), root = static_cast<T>(k.root_correction);
  const T keep = static_cast<T>(k.ema), take = static_cast<T>(1 - k.ema);
  for (int64_t i = 0; i < n; ++i) {
    const T gi = g[i] * clip;
    const T mi = b1 * m[i] + c1 * gi, vi = b2 * v[i] + c2 * gi * gi;
    const T pi = p[i] - rate * mi / (std::sqrt(vi) * root + eps);
    m[i] = mi;
    v[i] = vi;
    p[i] = pi;
    a[i] = keep * a[i] + take * pi;
  }
}

// One copy per instruction set (this file is compiled without errno for sqrt, so that the loop
// vectorises).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define SP_ADAM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SP_ADAM_CLONES
#endif
SP_ADAM_CLONES void adam_chunk(int64_t n, const AdamCoefficients& k, float* p, const float* g,
                               float* m, float* v, float* a) {
  adam_loop(n, k, p, g, m, v, a);
}
SP_ADAM_CLONES void adam_chunk(int64_t n, const AdamCoefficients& k, double* p, const double* g,
                               double* m, double* v, double* a) {
  adam_loop(n, k, p, g, m, v, a);
}
#undef SP_ADAM_CLONES

template <class T>
double sum_of_squares(const T* g, int64_t n) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> partial(chunks);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double lane[8] = {};
      const int64_t stop = std::min(n, (c + 1) * kChunk);
      int64_t i = c * kChunk;
      for (; i + 8 <= stop; i += 8)
        for (int j = 0; j < 8; ++j)
          lane[j] += static_cast<double>(g[i + j]) * static_cast<double>(g[i + j]);
      for (; i < stop; ++i) lane[0] += static_cast<double>(g[i]) * static_cast<double>(g[i]);
      for (const double l : lane) partial[c] += l;
    }
  });
  double sum = 0;
  for (const double s : partial) sum += s;
  return sum;
}

template <class T>
void adam_sweep(const AdamCoefficients& k, at::Tensor& p, const at::Tensor& g, at::Tensor& m,
                at::Tensor& v, at::Tensor& a) {
  T *pp = p.data_ptr<T>(), *pm = m.data_ptr<T>(), *pv = v.data_ptr<T>(), *pa = a.data_ptr<T>();
  const T* pg = g.data_ptr<T>();
  const int64_t n = p.numel();
  at::parallel_for(0, (n + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * kChunk, to = std::min(n, end * kChunk);
    adam_chunk(to - from, k, pp + from, pg + from, pm + from, pv + from, pa + from);
  });
}

// The same update in tensor operations, for devices without a kernel here.
void adam_tensors(const AdamCoefficients& k, at::Tensor& p, const at::Tensor& g, at::Tensor& m,
                  at::Tensor& v, at::Tensor& a) {
  m.mul_(k.beta1).add_(g, (1 - k.beta1) * k.clip);
  v.mul_(k.beta2).addcmul_(g, g, (1 - k.beta2) * k.clip * k.clip);
  p.addcdiv_(m, v.sqrt().mul_(k.root_correction).add_(k.epsilon), -k.step_size);
  a.mul_(k.ema).add_(p, 1 - k.ema);
}

}  // namespace

double learning_rate(const AdamOptions& o, int64_t step, int64_t total) {
  if (step < o.warmup) return o.lr * static_cast<double>(step) / static_cast<double>(o.warmup);
  if (o.schedule != "cosine") return o.lr;
  const double span = static_cast<double>(std::max<int64_t>(total - o.warmup, 1));
  const double done = std::min(1.0, static_cast<double>(step - o.warmup) / span);
  return o.lr * 0.5 * (1 + std::cos(M_PI * done));
}

FlatAdam::FlatAdam(const std::map<std::string, at::Tensor>& parameters) {
  SP_CHECK(!parameters.empty(), "FlatAdam", "expected at least one parameter");
  at::NoGradGuard no_grad;
  const at::Tensor& first = parameters.begin()->second;
  int64_t total = 0;
  for (const auto& [name, p] : parameters) {
    SP_CHECK(p.scalar_type() == first.scalar_type() && p.device() == first.device(), "FlatAdam",
             "expected parameters of one type on one device, ", name, " differs");
    SP_CHECK(p.requires_grad() && p.is_leaf(), "FlatAdam", name, " asks for no gradient");
    slots_.push_back({name, p, {}, total});
    count_ += p.numel();
    total += (p.numel() + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  }
  weights_ = at::zeros({total}, first.options().requires_grad(false));
  for (at::Tensor* t : {&gradient_, &mean_, &square_}) *t = at::zeros_like(weights_);
  for (auto& s : slots_) {
    const auto view = [&](const at::Tensor& flat) {
      return flat.narrow(0, s.offset, s.parameter.numel()).view(s.parameter.sizes());
    };
    const at::Tensor home = view(weights_);
    home.copy_(s.parameter);
    s.parameter.set_data(home);
    s.gradient = view(gradient_);
    s.parameter.mutable_grad() = s.gradient;
  }
  average_ = weights_.clone();
}

void FlatAdam::zero_grad() {
  at::NoGradGuard no_grad;
  gradient_.zero_();
  for (auto& s : slots_)
    if (!s.parameter.grad().is_same(s.gradient)) s.parameter.mutable_grad() = s.gradient;
}

double FlatAdam::gradient_norm() const {
  if (!gradient_.is_cpu()) return gradient_.to(at::kDouble).norm().item<double>();
  const int64_t n = gradient_.numel();
  return std::sqrt(gradient_.scalar_type() == at::kFloat
                       ? sum_of_squares(gradient_.data_ptr<float>(), n)
                       : sum_of_squares(gradient_.data_ptr<double>(), n));
}

FlatAdam::Outcome FlatAdam::step(const AdamOptions& o, double lr, double clip_offset) {
  at::NoGradGuard no_grad;
  for (auto& s : slots_) {  // autograd may have put a tensor of its own in the place of the view
    at::Tensor& g = s.parameter.mutable_grad();
    if (g.is_same(s.gradient)) continue;
    if (g.defined())
      s.gradient.copy_(g);
    else
      s.gradient.zero_();
    g = s.gradient;
  }
  Outcome out;
  out.grad_norm = gradient_norm();
  if (!std::isfinite(out.grad_norm)) return out;
  const double n = static_cast<double>(++updates_);
  AdamCoefficients k{};
  k.clip = o.clip > 0 ? o.clip / std::max(out.grad_norm + clip_offset, o.clip) : 1;
  k.beta1 = o.beta1;
  k.beta2 = o.beta2;
  k.epsilon = o.epsilon;
  k.step_size = lr / (1 - std::pow(o.beta1, n));
  k.root_correction = 1 / std::sqrt(1 - std::pow(o.beta2, n));
  k.ema = o.ema_warmup ? std::min(o.ema_rate, (1 + n) / (10 + n)) : o.ema_rate;
  if (!weights_.is_cpu())
    adam_tensors(k, weights_, gradient_, mean_, square_, average_);
  else if (weights_.scalar_type() == at::kFloat)
    adam_sweep<float>(k, weights_, gradient_, mean_, square_, average_);
  else
    adam_sweep<double>(k, weights_, gradient_, mean_, square_, average_);
  out.applied = true;
  return out;
}

void FlatAdam::swap_average() {
  at::NoGradGuard no_grad;
  const at::Tensor held = weights_.clone();
  weights_.copy_(average_);
  average_.copy_(held);
}

std::map<std::string, at::Tensor> FlatAdam::average() const {
  std::map<std::string, at::Tensor> out;
  for (const auto& s : slots_)
    out[s.name] =
        average_.narrow(0, s.offset, s.parameter.numel()).view(s.parameter.sizes()).clone();
  return out;
}

std::map<std::string, at::Tensor> FlatAdam::state() const {
  return {{"weights", weights_},
          {"adam_mean", mean_},
          {"adam_square", square_},
          {"average", average_},
          {"updates", at::full({1}, updates_, at::kLong)}};
}

void FlatAdam::load_state(const std::map<std::string, at::Tensor>& state, const std::string& file) {
  at::NoGradGuard no_grad;
  const auto fetch = [&](const char* name, const at::Tensor& like) -> const at::Tensor& {
    const auto it = state.find(name);
    if (it == state.end() || (like.defined() && (it->second.sizes() != like.sizes() ||
                                                 it->second.scalar_type() != like.scalar_type())))
      throw DataError(file + ": the state of another network, \"" + name + "\" does not fit");
    return it->second;
  };
  for (const auto& [name, target] : {std::pair<const char*, at::Tensor*>{"weights", &weights_},
                                     {"adam_mean", &mean_},
                                     {"adam_square", &square_},
                                     {"average", &average_}})
    target->copy_(fetch(name, *target));
  updates_ = fetch("updates", at::Tensor()).item<int64_t>();
}

}  // namespace scoreprior
