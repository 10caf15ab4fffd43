#include "scoreprior/diffusion/divergence.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/nets/double_backward.h"

namespace scoreprior {
namespace {

// Below this many rows a network call is mostly overhead.
constexpr int64_t kFullCall = 16;

at::Tensor repeat_images(const at::Tensor& x, int64_t count) {
  if (count == 1) return x.clone();
  Shape s{count};
  s.insert(s.end(), x.sizes().begin(), x.sizes().end());
  return x.unsqueeze(0).expand(s).flatten(0, 1);
}

at::Tensor vector_jacobian(const at::Tensor& y, const at::Tensor& x, const at::Tensor& e,
                           bool retain, bool graph) {
  return torch::autograd::grad({y}, {x}, {e}, retain || graph, graph)[0];
}

// How close pixels of one colour come: sum of 1/distance^4 over the offsets (y,x) between them, of
// pixels `channels` apart. A channel counts as one pixel.
double crowding(int64_t colours, int64_t row_step, int64_t channel_step, int64_t channels,
                int64_t height, int64_t width) {
  const auto reach = static_cast<int64_t>(2 * std::sqrt(static_cast<double>(colours))) + 1;
  const int64_t rows = std::min(height - 1, reach), columns = std::min(width - 1, reach);
  double sum = 0;
  for (int64_t y = -rows; y <= rows; ++y)
    for (int64_t x = -columns; x <= columns; ++x) {
      const int64_t r2 = y * y + x * x + channels * channels;
      if (r2 == 0 || (x + row_step * y + channel_step * channels) % colours != 0) continue;
      sum += 1.0 / static_cast<double>(r2 * r2);
    }
  return sum;
}

}  // namespace

at::Tensor colour_masks(const Shape& event, int64_t colours) {
  SP_CHECK(colours > 0 && !event.empty(), "divergence", "expected colours > 0, got ", colours);
  const int64_t width = event.back(), height = event.size() > 1 ? event[event.size() - 2] : 1;
  const int64_t channels = numel(event) / std::max<int64_t>(width * height, 1);
  const auto best = [&](auto&& cost) {
    int64_t at = 0;
    double least = std::numeric_limits<double>::infinity();
    for (int64_t step = 0; step < colours; ++step)
      if (const double c = cost(step); c < least) least = c, at = step;
    return at;
  };
  const int64_t row_step =
      height > 1 ? best([&](int64_t a) { return crowding(colours, a, 0, 0, height, width); }) : 0;
  const int64_t channel_step = channels > 1 ? best([&](int64_t d) {
    double sum = 0;
    for (int64_t c = 1; c < std::min<int64_t>(channels, 4); ++c)
      sum += crowding(colours, row_step, d, c, height, width);
    return sum;
  })
                                            : 0;
  const at::Tensor c = at::arange(channels, at::kLong).reshape({channels, 1, 1}),
                   y = at::arange(height, at::kLong).reshape({1, height, 1}),
                   x = at::arange(width, at::kLong);
  const at::Tensor colour = (x + y * row_step + c * channel_step).remainder(colours);
  Shape shape = event;
  shape.insert(shape.begin(), colours);
  return (at::arange(colours, at::kLong).reshape({colours, 1}) == colour.reshape({1, -1}))
      .reshape(shape);
}

ScoreDivergence::ScoreDivergence(const ScoreModel& model, at::Tensor probes,
                                 std::vector<double> weights, int64_t max_rows)
    : model_(model), probes_(std::move(probes)), weights_(std::move(weights)), max_rows_(max_rows) {
  SP_CHECK(probes_.dim() >= 3 && probes_.size(0) == static_cast<int64_t>(weights_.size()),
           "divergence", "expected one weight for each of the probes ", probes_.sizes());
}

int64_t ScoreDivergence::repeats(int64_t images, int64_t probes) const {
  const int64_t full =
      probes_.size(0) >= 4 * kFullCall ? max_rows_ : std::min(kFullCall, max_rows_);
  return std::clamp<int64_t>(full / std::max<int64_t>(images, 1), 1, probes);
}

// [padded * A, event...], zero beyond count.
at::Tensor ScoreDivergence::some_probes(int64_t first, int64_t count, int64_t padded,
                                        const at::Tensor& rows) const {
  at::Tensor e = probes_.slice(0, first, first + count);
  if (e.size(1) != 1) {
    e = e.index_select(1, rows);
  } else {
    Shape s = e.sizes().vec();
    s[1] = rows.numel();
    e = e.expand(s);
  }
  e = e.flatten(0, 1);
  if (padded == count) return e;
  Shape rest = e.sizes().vec();
  rest[0] = (padded - count) * rows.numel();
  return at::cat({e, at::zeros(rest, e.options())});
}

ScoreDivergence::Value ScoreDivergence::value(const at::Tensor& x, const at::Tensor& t,
                                              const at::Tensor& rows, bool graph) const {
  at::AutoGradMode on(true);
  const int64_t n = probes_.size(0), images = x.size(0), group = repeats(images, n);
  const at::Tensor in =
      graph ? repeat_images(x, group) : repeat_images(x.detach(), group).requires_grad_(true);
  const at::Tensor s = model_.score(in, t.repeat({group}));
  work_.forwards += images * group;
  std::vector<at::Tensor> forms;
  for (int64_t p = 0; p < n; p += group) {
    const int64_t count = std::min(group, n - p);
    const at::Tensor e = some_probes(p, count, group, rows);
    const at::Tensor pull = vector_jacobian(s, in, e, p + group < n, graph);
    work_.vjps += images * group;
    forms.push_back(sum_event(pull * e).reshape({group, images}).slice(0, 0, count));
  }
  Value out;
  out.forms = at::cat(forms).transpose(0, 1);
  out.score = s.slice(0, 0, images);
  if (!graph) {
    out.forms = out.forms.detach();
    out.score = out.score.detach();
  }
  out.trace =
      at::matmul(out.forms, at::tensor(weights_, at::kDouble).to(x.device(), x.scalar_type()));
  return out;
}

at::Tensor ScoreDivergence::pullback(const at::Tensor& x, const at::Tensor& t,
                                     const at::Tensor& rows, const at::Tensor& a,
                                     const at::Tensor& b, at::Tensor* score) const {
  at::AutoGradMode on(true);
  const DoubleBackwardScope twice;
  const int64_t n = b.defined() ? probes_.size(0) : 0, images = x.size(0);
  const int64_t group = n ? repeats(images, n) : 1;
  // Probes that share one graph.
  const int64_t bundle =
      n ? std::max(group, max_rows_ / std::max<int64_t>(images, 1) / group * group) : 1;
  at::Tensor back;
  for (int64_t first = 0; first < std::max<int64_t>(n, 1); first += bundle) {
    const at::Tensor in = repeat_images(x.detach(), group).requires_grad_(true);
    const at::Tensor s = model_.score(in, t.repeat({group}));
    work_.forwards += images * group;
    at::Tensor total;
    if (first == 0) {
      const at::Tensor own = s.slice(0, 0, images);
      if (score) *score = own.detach();
      total = (own * a).sum();
    }
    for (int64_t p = first; p < std::min(n, first + bundle); p += group) {
      const int64_t count = std::min(group, n - p);
      const at::Tensor e = some_probes(p, count, group, rows);
      const at::Tensor pull = vector_jacobian(s, in, e, true, true);
      work_.vjps += images * group;
      work_.second_order += images * group;
      std::vector<double> w(weights_.begin() + p, weights_.begin() + p + count);
      w.resize(group, 0.0);
      const at::Tensor share =
          (at::tensor(w, at::kDouble).to(x.device(), x.scalar_type()).unsqueeze(1) * b.unsqueeze(0))
              .flatten();
      const at::Tensor part = (sum_event(pull * e) * share).sum();
      total = total.defined() ? total + part : part;
    }
    // A score linear in x has a constant divergence: nothing to differentiate.
    if (!total.requires_grad()) continue;
    at::Tensor g = torch::autograd::grad({total}, {in}, {}, c10::nullopt, false,
                                         /*allow_unused=*/true)[0];
    if (!g.defined()) continue;
    Shape split{group};
    split.insert(split.end(), x.sizes().begin(), x.sizes().end());
    g = group == 1 ? g : g.reshape(split).sum(0);
    back = back.defined() ? back + g : g;
  }
  return back.defined() ? back.detach() : at::zeros_like(x);
}

}  // namespace scoreprior
