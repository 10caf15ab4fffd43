#include "scoreprior/diffusion/elbo.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/diffusion/memory_budget.h"

namespace scoreprior {
namespace {

// Point number `index` of the golden-ratio sequence with a random start, exact in 64-bit fixed
// point.
double golden_point(double shift, int64_t index) {
  const auto phase = static_cast<uint64_t>(shift * 0x1.0p53) << 11;
  const uint64_t place = phase + static_cast<uint64_t>(index) * 0x9E3779B97F4A7C15ull;
  return static_cast<double>(place >> 11) * 0x1.0p-53;
}

int64_t floor_half(int64_t row) { return row >= 0 ? row / 2 : (row - 1) / 2; }

// Every network input of the bound as one flat batch of rows: times x images, then the offset's
// images. Row r adds
//   -a_r/2 (|e|^2 + 2 e.z) + c_r,   e = std s(alpha x + std z, t)
// to its image, because |s + z/std|^2 - |z/std|^2 = (|e|^2 + 2 e.z) / std^2.
struct ElboRows {
  at::Tensor t, z, image;       // [R], [R,event...], [R] index into x
  at::Tensor alpha, std, a, c;  // [R] float64
  int64_t integral_rows = 0;
};

ElboRows lay_out(const ScoreModel& model, const ElboOptions& o, const at::Tensor& x,
                 const ElboDraws& draws) {
  const Sde& sde = model.sde();
  const int64_t batch = x.size(0);
  const double pixels = static_cast<double>(numel(model.event_shape()));
  check_batched("elbo", "x", x, model.event_shape());
  SP_CHECK(draws.times.dim() == 2 && draws.times.size(1) == batch, "elbo", "expected times [n,",
           batch, "], got ", draws.times.sizes());
  const int64_t n = draws.times.size(0);
  SP_CHECK(draws.noise.dim() == x.dim() + 1 && draws.noise.size(0) == n &&
               draws.noise.sizes().slice(1) == x.sizes(),
           "elbo", "expected noise [", n, ",B,event...] for x ", x.sizes(), ", got ",
           draws.noise.sizes());

  ElboRows rows;
  rows.integral_rows = n * batch;
  const at::Tensor times = draws.times.to(x.device(), at::kDouble).flatten();
  const at::Tensor image =
      at::arange(batch, at::TensorOptions().dtype(at::kLong).device(x.device()));
  rows.t = times;
  rows.z = draws.noise.to(x.device(), x.scalar_type()).flatten(0, 1);
  rows.image = image.repeat({n});

  const at::Tensor std = sde.std(times), g2 = sde.diffusion(times).square();
  const at::Tensor div = sde.drift_coeff(times) * pixels;
  const double share = 1.0 / static_cast<double>(n);
  at::Tensor w;
  if (!o.importance) {
    w = at::ones_like(times);
  } else if (sde.has_importance()) {
    w = std.square() * (sde.importance_norm(o.t0)) / g2;
  } else {
    w = at::full_like(times, 1 - o.t0);
  }
  rows.a = w * g2 / std.square() * share;
  rows.c = w * div * share;

  if (draws.noise_offset.defined()) {
    SP_CHECK(draws.noise_offset.sizes() == x.sizes(), "elbo", "expected noise_offset of x's shape ",
             x.sizes(), ", got ", draws.noise_offset.sizes());
    const at::Tensor z = draws.noise_offset.to(x.device(), x.scalar_type());
    const at::Tensor t0 = at::full({batch}, o.t0, times.options());
    at::Tensor c = sde.mean_coeff(t0).log() * pixels;
    if (!draws.centred_offset) c = c - 0.5 * (sum_event(z.to(at::kDouble).square()) - pixels);
    rows.t = at::cat({rows.t, t0});
    rows.z = at::cat({rows.z, z});
    rows.image = at::cat({rows.image, image});
    rows.a = at::cat({rows.a, at::ones_like(t0)});
    rows.c = at::cat({rows.c, c});
  }
  rows.alpha = sde.mean_coeff(rows.t);
  rows.std = sde.std(rows.t);
  return rows;
}

// Row sums back to images: the integral's rows and the offset's.
at::Tensor fold(const at::Tensor& per_row, int64_t batch) {
  return per_row.reshape({-1, batch}).sum(0);
}

at::Tensor row_coefficient(const at::Tensor& a, int64_t begin, int64_t end,
                           const at::Tensor& like) {
  return expand_like_batch(a.slice(0, begin, end).to(like.scalar_type()), like);
}

// E log prior(alpha x + std z), or its value at the given z.
at::Tensor prior_term(const Sde& sde, const at::Tensor& x, const at::Tensor& z) {
  const at::Tensor one = at::ones({1}, at::TensorOptions().dtype(at::kDouble).device(x.device()));
  const double alpha = sde.mean_coeff(one).item<double>(), std = sde.std(one).item<double>();
  if (z.defined()) return sde.prior_log_prob(alpha * x + std * z.to(x.device(), x.scalar_type()));
  const double pixels = static_cast<double>(x.numel()) / static_cast<double>(x.size(0));
  const double s = sde.prior_std();
  return sde.prior_log_prob(alpha * x) - 0.5 * pixels * (std / s) * (std / s);
}

ElboTerms terms_from(const ElboRows& rows, const at::Tensor& values, const at::Tensor& prior,
                     int64_t batch) {
  ElboTerms terms;
  terms.prior = prior;
  terms.integral = fold(values.slice(0, 0, rows.integral_rows), batch);
  terms.offset = values.size(0) > rows.integral_rows ? values.slice(0, rows.integral_rows)
                                                     : at::zeros_like(prior);
  return terms;
}

// Rows of a network call that the memory holds, by what one image takes.
int64_t rows_in_memory(const ScoreModel& model, const ElboOptions& o, const at::Tensor& x,
                       bool with_grad) {
  // What is free on an accelerator is not asked for.
  if (x.size(0) == 0 || (o.max_memory_mib == 0 && !x.device().is_cpu())) return o.max_batch;
  std::atomic<double>& known = with_grad ? model.row_bytes().product : model.row_bytes().forward;
  if (known == 0) {
    const at::Tensor image = x.slice(0, 0, 1).detach().clone(), t = at::full({1}, 0.5, x.options());
    known = std::max(1.0, resident_bytes([&] {
                       at::AutoGradMode on(with_grad);
                       const at::Tensor leaf = image.requires_grad_(with_grad);
                       const at::Tensor s = model.score(leaf, t);
                       if (with_grad)
                         torch::autograd::grad({s}, {leaf}, {at::ones_like(s)}, c10::nullopt, false,
                                               true);
                     }));
  }
  // A row also is five images outside the network: itself, its noise, score, cotangent, gradient.
  const double outside = 5.0 * static_cast<double>(x.numel()) / static_cast<double>(x.size(0)) *
                         static_cast<double>(x.element_size());
  return fit_into(memory_budget(o.max_memory_mib), 0, 0, known + outside, o.max_batch, o.max_batch)
      .rows;
}

// -a/2 (|e|^2 + 2 e.z) + c of rows begin..end
at::Tensor row_values(const ElboRows& rows, int64_t begin, int64_t end, const at::Tensor& e,
                      const at::Tensor& z) {
  const at::Tensor quad = sum_event(e * (e + 2 * z)).to(at::kDouble);
  return (rows.a.slice(0, begin, end) * quad * -0.5 + rows.c.slice(0, begin, end))
      .to(e.scalar_type());
}

}  // namespace

void check_options(const Config& config, const ElboOptions& o) {
  if (!(o.t0 > 0 && o.t0 < 1)) config.fail("t0", "t0 must lie between 0 and 1");
  if (o.n_times < 1) config.fail("n_times", "n_times must be at least 1");
  if (o.max_batch < 1) config.fail("max_batch", "max_batch must be at least 1");
  if (!(o.max_memory_mib >= 0))
    config.fail("max_memory_mib", "max_memory_mib must not be negative");
}

at::Tensor ElboTerms::value() const { return prior + integral + offset; }

ElboDraws draw_elbo(const ScoreModel& model, const ElboOptions& o, int64_t batch, const Rng& rng) {
  SP_CHECK(o.n_times > 0, "elbo", "expected n_times > 0, got ", o.n_times);
  SP_CHECK(o.t0 > 0 && o.t0 < 1, "elbo", "expected t0 in (0,1), got ", o.t0);
  const Sde& sde = model.sde();
  const Shape event = model.event_shape();
  const bool within = o.antithetic && o.n_times % 2 == 0;  // pairs inside an image
  const bool across = o.antithetic && !within;             // pairs of neighbouring rows
  const int64_t draws = within ? o.n_times / 2 : o.n_times;
  const int64_t first = rng.row();
  const int64_t first_unit = across ? floor_half(first) : first;  // a unit = what shares times
  const int64_t last_unit = across ? floor_half(first + batch - 1) : first + batch - 1;
  const int64_t units = batch > 0 ? last_unit - first_unit + 1 : 0;
  const Rng base = rng.from_row(-first), per_unit = base.from_row(first_unit);

  // Cumulative weights [units, draws], float64.
  at::Tensor u = per_unit.split("elbo.times").uniform({units, draws}, at::kDouble);
  if (o.stratified) {
    const std::vector<double> shift = base.split("elbo.shift").uniforms(draws);
    double* p = u.data_ptr<double>();
    for (int64_t k = 0; k < units; ++k)
      for (int64_t j = 0; j < draws; ++j)
        *p++ = (static_cast<double>(j) + golden_point(shift[j], first_unit + k)) / draws;
  }
  at::Tensor times =
      o.importance && sde.has_importance() ? sde.importance_time(u, o.t0) : o.t0 + (1 - o.t0) * u;
  const at::ScalarType dtype = model.dtype();
  Shape wide{units, draws};
  wide.insert(wide.end(), event.begin(), event.end());
  at::Tensor noise = per_unit.split("elbo.noise").normal(wide, dtype);

  if (across) {
    std::vector<int64_t> unit(batch);
    std::vector<double> sign(batch);
    for (int64_t b = 0; b < batch; ++b) {
      unit[b] = floor_half(first + b) - first_unit;
      sign[b] = (first + b) % 2 == 0 ? 1 : -1;
    }
    const at::Tensor which = at::tensor(unit, at::kLong);
    times = times.index_select(0, which);
    noise = noise.index_select(0, which);
    noise = noise * expand_like_batch(at::tensor(sign, at::kDouble).to(dtype), noise);
  }
  if (within) {
    times = times.repeat_interleave(2, 1);
    noise = at::stack({noise, -noise}, 2).flatten(1, 2);
  }

  ElboDraws out;
  out.times = times.transpose(0, 1).contiguous().to(model.device());
  out.noise = noise.transpose(0, 1).contiguous().to(model.device());
  if (o.offset)
    out.noise_offset =
        rng.split("elbo.offset").normal(batched(batch, event), dtype).to(model.device());
  out.centred_offset = true;
  return out;
}

ElboTerms elbo(const ScoreModel& model, const ElboOptions& o, const at::Tensor& x,
               const ElboDraws& draws) {
  const ElboRows rows = lay_out(model, o, x, draws);
  const int64_t total = rows.t.size(0);
  // One graph for autograd holds all calls whatever their size.
  const bool graph = at::GradMode::is_enabled() && x.requires_grad();
  const int64_t call = graph ? o.max_batch : rows_in_memory(model, o, x, false);
  std::vector<at::Tensor> values;
  for (int64_t begin = 0; begin < total; begin += call) {
    const int64_t end = std::min(begin + call, total);
    const at::Tensor z = rows.z.slice(0, begin, end);
    const at::Tensor noisy = row_coefficient(rows.alpha, begin, end, x) *
                                 x.index_select(0, rows.image.slice(0, begin, end)) +
                             row_coefficient(rows.std, begin, end, x) * z;
    const at::Tensor s = model.score(noisy, rows.t.slice(0, begin, end).to(x.scalar_type()));
    values.push_back(row_values(rows, begin, end, row_coefficient(rows.std, begin, end, x) * s, z));
  }
  return terms_from(rows, values.empty() ? x.new_zeros({0}) : at::cat(values),
                    prior_term(model.sde(), x, draws.noise_prior), x.size(0));
}

std::pair<ElboTerms, at::Tensor> elbo_and_grad(const ScoreModel& model, const ElboOptions& o,
                                               const at::Tensor& x_in, const ElboDraws& draws) {
  const at::Tensor x = x_in.detach();
  const ElboRows rows = lay_out(model, o, x, draws);
  const int64_t total = rows.t.size(0);
  std::vector<at::Tensor> values;
  at::Tensor grad;
  at::Tensor prior;
  {
    at::AutoGradMode on(true);
    const at::Tensor leaf = x.detach().requires_grad_(true);
    prior = prior_term(model.sde(), leaf, draws.noise_prior);
    grad = torch::autograd::grad({prior.sum()}, {leaf})[0];
    prior = prior.detach();
  }
  const int64_t call = rows_in_memory(model, o, x, true);
  for (int64_t begin = 0; begin < total; begin += call) {
    const int64_t end = std::min(begin + call, total);
    const at::Tensor z = rows.z.slice(0, begin, end), image = rows.image.slice(0, begin, end);
    const at::Tensor std = row_coefficient(rows.std, begin, end, x);
    const at::Tensor alpha = row_coefficient(rows.alpha, begin, end, x);
    at::AutoGradMode on(true);
    const at::Tensor leaf =
        (alpha * x.index_select(0, image) + std * z).detach().requires_grad_(true);
    const at::Tensor s = model.score(leaf, rows.t.slice(0, begin, end).to(x.scalar_type()));
    const at::Tensor e = std * s.detach();
    values.push_back(row_values(rows, begin, end, e, z));
    // d/dx of -a/2 (|e|^2 + 2 e.z) is -a alpha J_e^T (e + z): one vector-Jacobian product.
    const at::Tensor pull = row_coefficient(rows.a, begin, end, x) * std * (e + z) * -1;
    const at::Tensor back = torch::autograd::grad({s}, {leaf}, {pull})[0];
    at::NoGradGuard off;
    grad.index_add_(0, image, alpha * back);
  }
  return {terms_from(rows, values.empty() ? x.new_zeros({0}) : at::cat(values), prior, x.size(0)),
          grad};
}

}  // namespace scoreprior
