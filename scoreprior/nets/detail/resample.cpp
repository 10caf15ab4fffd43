#include "scoreprior/nets/detail/resample.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <vector>

#include "scoreprior/nets/detail/layers.h"
#include "scoreprior/nets/detail/simd.h"

namespace scoreprior::nets {
namespace {

// out[o] = sum_k coef[o][k] in[index[o][k]] along one axis: four terms at most.
struct Stencil {
  struct Row {
    int count = 0;
    int64_t index[4];
    double coef[4];
    void add(int64_t i, double c) {
      if (c == 0) return;
      index[count] = i;
      coef[count++] = c;
    }
  };
  int64_t in = 0;
  std::vector<Row> rows;

  Stencil transposed() const {
    Stencil t;
    t.in = static_cast<int64_t>(rows.size());
    t.rows.resize(in);
    for (int64_t o = 0; o < t.in; ++o)
      for (int k = 0; k < rows[o].count; ++k) t.rows[rows[o].index[k]].add(o, rows[o].coef[k]);
    return t;
  }
};

struct Stencils {
  Stencil height, width;
};
using StencilsPtr = std::shared_ptr<const Stencils>;

template <class MakeRow>
Stencil make_stencil(int64_t in, int64_t out, MakeRow&& make_row) {
  Stencil s;
  s.in = in;
  s.rows.resize(out);
  for (int64_t o = 0; o < out; ++o) make_row(s.rows[o], o);
  return s;
}

// taps[3-a] because a convolution runs the kernel backwards.
Stencil down_stencil(int64_t n, const Taps& taps) {
  return make_stencil(n, n / 2, [&](Stencil::Row& r, int64_t o) {
    for (int64_t a = 0; a < 4; ++a) {
      const int64_t i = 2 * o + a - 1;
      if (i >= 0 && i < n) r.add(i, taps[3 - a]);
    }
  });
}
Stencil up_stencil(int64_t n, const Taps& taps) {
  return make_stencil(n, 2 * n, [&](Stencil::Row& r, int64_t o) {
    for (int64_t a = 0; a < 4; ++a) {
      const int64_t z = o + a - 2;
      if (z >= 0 && z < 2 * n && z % 2 == 0) r.add(z / 2, 2 * taps[3 - a]);
    }
  });
}
Stencil same_stencil(int64_t n, const Taps& taps, int64_t pad, double gain) {
  return make_stencil(n, n + 2 * pad - 3, [&](Stencil::Row& r, int64_t o) {
    for (int64_t a = 0; a < 4; ++a) {
      const int64_t i = o + a - pad;
      if (i >= 0 && i < n) r.add(i, gain * taps[3 - a]);
    }
  });
}
Stencil mean_stencil(int64_t n) {
  return make_stencil(n, n / 2, [](Stencil::Row& r, int64_t o) {
    r.add(2 * o, 0.5);
    r.add(2 * o + 1, 0.5);
  });
}
Stencil nearest_stencil(int64_t n) {
  return make_stencil(n, 2 * n, [](Stencil::Row& r, int64_t o) { r.add(o / 2, 1.0); });
}

template <class T>
SP_INLINE void combine_rows(const T* const* in, const T* coef, int count, int64_t n, T* out) {
  switch (count) {
    case 1:
      for (int64_t j = 0; j < n; ++j) out[j] = coef[0] * in[0][j];
      break;
    case 2:
      for (int64_t j = 0; j < n; ++j) out[j] = coef[0] * in[0][j] + coef[1] * in[1][j];
      break;
    case 3:
      for (int64_t j = 0; j < n; ++j)
        out[j] = coef[0] * in[0][j] + coef[1] * in[1][j] + coef[2] * in[2][j];
      break;
    case 4:
      for (int64_t j = 0; j < n; ++j)
        out[j] = coef[0] * in[0][j] + coef[1] * in[1][j] + coef[2] * in[2][j] + coef[3] * in[3][j];
      break;
    default:
      for (int64_t j = 0; j < n; ++j) out[j] = 0;
  }
}
SP_SIMD void combine(const float* const* in, const float* coef, int count, int64_t n, float* out) {
  combine_rows(in, coef, count, n, out);
}
SP_SIMD void combine(const double* const* in, const double* coef, int count, int64_t n,
                     double* out) {
  combine_rows(in, coef, count, n, out);
}

template <class T>
void combine(const Stencil::Row& row, const T* base, int64_t stride, int64_t n, T* out) {
  const T* in[4] = {};
  T coef[4] = {};
  for (int k = 0; k < row.count; ++k) {
    in[k] = base + row.index[k] * stride;
    coef[k] = static_cast<T>(row.coef[k]);
  }
  combine(in, coef, row.count, n, out);
}

// One output row at a time: rows combine into a line that stays in cache, the line is then
// resampled.
template <class T>
void resample_images(const Stencils& s, const T* x, int64_t batch, int64_t channels, T* y) {
  const int64_t in_row = s.width.in * channels;
  const int64_t out_h = static_cast<int64_t>(s.height.rows.size());
  const int64_t out_w = static_cast<int64_t>(s.width.rows.size());
  const int64_t out_row = out_w * channels;
  at::parallel_for(0, batch * out_h, std::max<int64_t>(1, 16384 / std::max<int64_t>(in_row, 1)),
                   [&](int64_t begin, int64_t end) {
                     std::vector<T> line(in_row);
                     for (int64_t i = begin; i < end; ++i) {
                       const T* image = x + (i / out_h) * s.height.in * in_row;
                       combine(s.height.rows[i % out_h], image, in_row, in_row, line.data());
                       for (int64_t o = 0; o < out_w; ++o)
                         combine(s.width.rows[o], line.data(), channels, channels,
                                 y + i * out_row + o * channels);
                     }
                   });
}

at::Tensor resample_raw(const Stencils& s, const at::Tensor& x) {
  at::Tensor y = at::empty({x.size(0), x.size(1), static_cast<int64_t>(s.height.rows.size()),
                            static_cast<int64_t>(s.width.rows.size())},
                           x.options(), at::MemoryFormat::ChannelsLast);
  if (x.scalar_type() == at::kDouble)
    resample_images(s, x.data_ptr<double>(), x.size(0), x.size(1), y.data_ptr<double>());
  else
    resample_images(s, x.data_ptr<float>(), x.size(0), x.size(1), y.data_ptr<float>());
  return y;
}

// Other devices: two dense matrix products; the matrices are small and rarely the bottleneck there.
at::Tensor resample_matrices(const Stencils& s, const at::Tensor& x) {
  auto matrix = [&](const Stencil& t) {
    at::Tensor m = at::zeros({static_cast<int64_t>(t.rows.size()), t.in}, at::kDouble);
    auto a = m.accessor<double, 2>();
    for (size_t o = 0; o < t.rows.size(); ++o)
      for (int k = 0; k < t.rows[o].count; ++k)
        a[static_cast<int64_t>(o)][t.rows[o].index[k]] += t.rows[o].coef[k];
    return m.to(x.options());
  };
  return at::matmul(at::matmul(matrix(s.height), x), matrix(s.width).t());
}

struct Resample : torch::autograd::Function<Resample> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            StencilsPtr s, StencilsPtr adjoint) {
    ctx->saved_data["pair"] = at::IValue::make_capsule(c10::make_intrusive<Holder>(s, adjoint));
    return resample_raw(*s, x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list g) {
    const auto holder = ctx->saved_data["pair"].toCapsule();
    const auto* h = static_cast<const Holder*>(holder.get());
    return {Resample::apply(channels_last(g[0]), h->adjoint, h->forward), at::Tensor(),
            at::Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    Holder(StencilsPtr f, StencilsPtr a) : forward(std::move(f)), adjoint(std::move(a)) {}
    StencilsPtr forward, adjoint;
  };
};

template <class MakeStencil>
at::Tensor resample(const at::Tensor& x, MakeStencil&& make) {
  auto s = std::make_shared<Stencils>(Stencils{make(x.size(2)), make(x.size(3))});
  if (!x.is_cpu()) return channels_last(resample_matrices(*s, x));
  auto adjoint =
      std::make_shared<Stencils>(Stencils{s->height.transposed(), s->width.transposed()});
  return Resample::apply(channels_last(x), StencilsPtr(s), StencilsPtr(adjoint));
}

}  // namespace

at::Tensor fir_down(const at::Tensor& x, const Taps& taps) {
  return resample(x, [&](int64_t n) { return down_stencil(n, taps); });
}
at::Tensor fir_up(const at::Tensor& x, const Taps& taps) {
  return resample(x, [&](int64_t n) { return up_stencil(n, taps); });
}
at::Tensor fir_same(const at::Tensor& x, const Taps& taps, int64_t pad, double gain) {
  return resample(x, [&](int64_t n) { return same_stencil(n, taps, pad, gain); });
}
at::Tensor mean_down(const at::Tensor& x) {
  return resample(x, [](int64_t n) { return mean_stencil(n); });
}
at::Tensor nearest_up(const at::Tensor& x) {
  return resample(x, [](int64_t n) { return nearest_stencil(n); });
}

}  // namespace scoreprior::nets
