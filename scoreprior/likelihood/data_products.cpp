#include "scoreprior/likelihood/data_products.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

constexpr double kTwoPi = 2 * M_PI;

at::Tensor wrap_angle(const at::Tensor& a) { return a - at::round(a / kTwoPi) * kTwoPi; }

at::Tensor table_column(const VisibilityTable& table, double (*of)(const VisibilityRow&)) {
  at::Tensor a = at::empty({static_cast<int64_t>(table.rows.size()), 1}, at::kDouble);
  double* p = a.data_ptr<double>();
  for (const VisibilityRow& row : table.rows) *p++ = of(row);
  return a;
}

void accumulate(at::Tensor& sum, const at::Tensor& term, double weight) {
  if (!term.defined()) return;
  if (sum.defined())
    sum = at::add(sum, term, weight);
  else
    sum = weight == 1 ? term : term * weight;
}

double gaussian_constant(const at::Tensor& sigma) {
  return -(sigma.log() + std::log(kTwoPi) / 2).sum().item<double>();
}

class VisibilityProduct final : public DataProduct {
 public:
  VisibilityProduct(const VisibilityTable& table, at::ScalarType dtype, at::Device device) {
    const at::Tensor sigma = table_column(table, [](const VisibilityRow& r) { return r.sigma; });
    re_ =
        table_column(table, [](const VisibilityRow& r) { return r.vis.real(); }).to(device, dtype);
    im_ =
        table_column(table, [](const VisibilityRow& r) { return r.vis.imag(); }).to(device, dtype);
    inverse_sigma_ = sigma.reciprocal().to(device, dtype);
    inverse_variance_ = sigma.square().reciprocal().to(device, dtype);
    log_constant_ = 2 * gaussian_constant(sigma);
  }
  int64_t size() const override { return 2 * re_.size(0); }
  double log_constant() const override { return log_constant_; }
  Misfit misfit(const ModelVisibilities& m, bool gradient) const override {
    const at::Tensor re = m.re - re_, im = m.im - im_;
    const at::Tensor g_re = re * inverse_variance_, g_im = im * inverse_variance_;
    Misfit out{(re * g_re + im * g_im).sum(0) / 2, {}};
    if (gradient) out.gradient.re = g_re, out.gradient.im = g_im;
    return out;
  }
  at::Tensor residuals(const ModelVisibilities& m) const override {
    return at::cat({(re_ - m.re) * inverse_sigma_, (im_ - m.im) * inverse_sigma_}, 0);
  }
  std::pair<at::Tensor, at::Tensor> residual_slopes(const ModelVisibilities&) const override {
    const at::Tensor slope = at::diag(-inverse_sigma_.squeeze(1)), none = at::zeros_like(slope);
    return {at::cat({slope, none}, 0).unsqueeze(0), at::cat({none, slope}, 0).unsqueeze(0)};
  }

 private:
  at::Tensor re_, im_, inverse_sigma_, inverse_variance_;  // [M,1]
  double log_constant_;
};

class AmplitudeProduct final : public DataProduct {
 public:
  AmplitudeProduct(const VisibilityTable& table, at::ScalarType dtype, at::Device device) {
    const at::Tensor sigma = table_column(table, [](const VisibilityRow& r) { return r.sigma; });
    data_ =
        at::tensor(amplitudes(table, Debias::kFloor), at::kDouble).unsqueeze(1).to(device, dtype);
    inverse_sigma_ = sigma.reciprocal().to(device, dtype);
    log_constant_ = gaussian_constant(sigma);
  }
  int64_t size() const override { return data_.size(0); }
  double log_constant() const override { return log_constant_; }
  Misfit misfit(const ModelVisibilities& m, bool gradient) const override {
    const at::Tensor r = residuals(m);
    Misfit out{r.square().sum(0) / 2, {}};
    if (gradient) out.gradient.log_amplitude = -r * inverse_sigma_ * m.amplitude;
    return out;
  }
  at::Tensor residuals(const ModelVisibilities& m) const override {
    return (data_ - m.amplitude) * inverse_sigma_;
  }
  std::pair<at::Tensor, at::Tensor> residual_slopes(const ModelVisibilities& m) const override {
    const at::Tensor scale = -inverse_sigma_ * m.inverse.sqrt();
    return {at::diag_embed((m.re * scale).t()), at::diag_embed((m.im * scale).t())};
  }

 private:
  at::Tensor data_, inverse_sigma_;  // [M,1]
  double log_constant_;
};

/// Time stamps are padded to equal size, so that all of them are one batched product: t blocks of k
/// closures over n baselines. A baseline belongs to one time stamp, which makes the transposed
/// gather a gather too.
class BlockClosureProduct final : public ClosureProduct {
 public:
  BlockClosureProduct(const VisibilityTable& table, ClosureKind kind, ClosureCovariance covariance,
                      at::ScalarType dtype, at::Device device)
      : set_(closures(table, kind)),
        phase_(kind == ClosureKind::kPhase),
        von_mises_(phase_ && covariance != ClosureCovariance::kExact) {
    const std::vector<ClosureBlock> blocks = closure_blocks(table, set_, covariance);
    const bool debiased = !phase_ && covariance == ClosureCovariance::kEhtim;
    const auto rows = static_cast<int64_t>(table.rows.size());
    const auto t = static_cast<int64_t>(blocks.size());
    std::vector<int64_t> slot(rows, -1);  // row -> its place among its block's baselines
    std::vector<std::vector<int64_t>> block_rows(t);
    int64_t k = 0, n = 0;
    for (int64_t b = 0; b < t; ++b) {
      for (int64_t i = 0; i < blocks[b].size; ++i)
        for (int64_t l = 0; l < set_.legs; ++l) {
          const int64_t row = set_.closures[blocks[b].first + i].row[l];
          if (slot[row] >= 0) continue;
          slot[row] = static_cast<int64_t>(block_rows[b].size());
          block_rows[b].push_back(row);
        }
      k = std::max(k, blocks[b].size);
      n = std::max(n, static_cast<int64_t>(block_rows[b].size()));
    }
    at::Tensor incidence = at::zeros({t, k, n}, at::kDouble);
    at::Tensor data = at::zeros({t, k}, at::kDouble);
    at::Tensor weight = at::zeros({t, k}, at::kDouble);
    at::Tensor transform = at::zeros({t, k, k}, at::kDouble);
    std::vector<int64_t> gather(t * n, 0), scatter(rows, t * n), order(size());
    auto incidence_at = incidence.accessor<double, 3>();
    auto data_at = data.accessor<double, 2>();
    for (int64_t b = 0; b < t; ++b) {
      const ClosureBlock& block = blocks[b];
      for (size_t j = 0; j < block_rows[b].size(); ++j) {
        gather[b * n + j] = block_rows[b][j];
        scatter[block_rows[b][j]] = b * n + static_cast<int64_t>(j);
      }
      for (int64_t i = 0; i < block.size; ++i) {
        const Closure& c = set_.closures[block.first + i];
        for (int64_t l = 0; l < set_.legs; ++l)
          incidence_at[b][i][slot[c.row[l]]] += c.coefficient[l];
        data_at[b][i] = debiased ? c.debiased : c.value;
        order[block.first + i] = b * k + i;
      }
      const at::Tensor corner = transform[b].narrow(0, 0, block.size).narrow(1, 0, block.size);
      if (von_mises_) {
        const at::Tensor d = data[b].narrow(0, 0, block.size);
        d.copy_(at::mv(block.transform, d));
        const at::Tensor concentration = block.sigma.square().reciprocal();
        weight[b].narrow(0, 0, block.size).copy_(concentration);
        corner.copy_(block.transform);
        log_constant_ -= (at::special_i0e(concentration) * kTwoPi).log().sum().item<double>();
      } else {
        corner.copy_(block.transform / block.sigma.unsqueeze(1));
        log_constant_ += gaussian_constant(block.sigma);
      }
    }
    data = data.unsqueeze(2), weight = weight.unsqueeze(2);
    blocks_ = t, block_size_ = k, block_rows_ = n;
    incidence_ = incidence.to(device, dtype);
    data_ = data.to(device, dtype);
    weight_ = weight.to(device, dtype);
    if (covariance != ClosureCovariance::kIndependent || !von_mises_)
      transform_ = transform.to(device, dtype);
    gather_ = at::tensor(gather, at::kLong).to(device);
    std::vector<int64_t> row_of_slot(t * n, rows);
    for (int64_t row = 0; row < rows; ++row)
      if (slot[row] >= 0) row_of_slot[scatter[row]] = row;
    row_of_slot_ = at::tensor(row_of_slot, at::kLong).view({t, n}).to(device);
    scatter_ = at::tensor(scatter, at::kLong).to(device);
    order_ = at::tensor(order, at::kLong).to(device);
  }

  int64_t size() const override { return static_cast<int64_t>(set_.closures.size()); }
  double log_constant() const override { return log_constant_; }
  const ClosureSet& set() const override { return set_; }

  at::Tensor model(const ModelVisibilities& m) const override {
    const at::Tensor closure = block_model(m);
    return flat(phase_ ? wrap_angle(closure) : closure);
  }

  Misfit misfit(const ModelVisibilities& m, bool gradient) const override {
    if (size() == 0) return {at::zeros({m.re.size(1)}, m.re.options()), {}};
    Misfit out;
    at::Tensor g;  // dL/d(transformed model), [t,k,B]
    const at::Tensor r = transformed_residuals(m);
    if (von_mises_) {
      // 1 - cos r = 2 sin^2(r/2) keeps its digits for small r.
      out.value = ((r / 2).sin().square() * weight_).sum(IntList{0, 1}) * 2;
      if (gradient) g = -r.sin() * weight_;
    } else {
      out.value = r.square().sum(IntList{0, 1}) / 2;
      if (gradient) g = -r;
    }
    if (!gradient) return out;
    if (transform_.defined()) g = at::bmm(transform_.transpose(1, 2), g);
    const int64_t batch = m.re.size(1);
    g = at::bmm(incidence_.transpose(1, 2), g).reshape({-1, batch});
    g = at::cat({g, at::zeros({1, batch}, g.options())}, 0).index_select(0, scatter_);
    (phase_ ? out.gradient.phase : out.gradient.log_amplitude) = g;
    return out;
  }

  at::Tensor residuals(const ModelVisibilities& m) const override {
    if (size() == 0) return at::zeros({0, m.re.size(1)}, m.re.options());
    const at::Tensor r = transformed_residuals(m);
    return flat(von_mises_ ? (r / 2).sin() * weight_.sqrt() * 2 : r);
  }
  std::pair<at::Tensor, at::Tensor> residual_slopes(const ModelVisibilities& m) const override {
    at::Tensor s = transform_.defined() ? at::bmm(transform_, incidence_) : incidence_;  // [t,k,n]
    if (von_mises_) s = s * weight_.sqrt();
    // Spread over the rows of the table, [K,M].
    at::Tensor slopes = at::zeros({blocks_, block_size_, m.re.size(0) + 1}, s.options());
    slopes.scatter_add_(2, row_of_slot_.unsqueeze(1).expand_as(s), s);
    slopes = slopes.slice(2, 0, m.re.size(0)).flatten(0, 1).index_select(0, order_).unsqueeze(0);
    const at::Tensor re = (m.re * m.inverse).t().unsqueeze(1);  // [B,1,M]
    const at::Tensor im = (m.im * m.inverse).t().unsqueeze(1);
    if (phase_) return {slopes * im, slopes * -re};
    return {slopes * -re, slopes * -im};
  }

 private:
  using IntList = std::array<int64_t, 2>;

  /// Model closures [t,k,B], not wrapped.
  at::Tensor block_model(const ModelVisibilities& m) const {
    const at::Tensor& f = phase_ ? m.phase : m.log_amplitude;
    return at::bmm(incidence_,
                   f.index_select(0, gather_).reshape({blocks_, block_rows_, f.size(1)}));
  }
  at::Tensor transformed_residuals(const ModelVisibilities& m) const {
    at::Tensor closure = block_model(m);
    if (von_mises_) {
      closure = wrap_angle(closure);
      return data_ - (transform_.defined() ? at::bmm(transform_, closure) : closure);
    }
    at::Tensor r = data_ - closure;
    return at::bmm(transform_, phase_ ? wrap_angle(r) : r);
  }
  at::Tensor flat(const at::Tensor& padded) const {
    return padded.reshape({blocks_ * block_size_, padded.size(2)}).index_select(0, order_);
  }

  ClosureSet set_;
  bool phase_, von_mises_;
  int64_t blocks_ = 0, block_size_ = 0, block_rows_ = 0;
  double log_constant_ = 0;
  at::Tensor incidence_;    ///< [t,k,n] closure coefficients
  at::Tensor data_;         ///< [t,k,1] closures; von Mises: transformed closures
  at::Tensor weight_;       ///< [t,k,1] 1/s'^2 (von Mises)
  at::Tensor transform_;    ///< [t,k,k] T (von Mises; undefined for the identity) or T/s'
  at::Tensor gather_;       ///< [t*n] row of each slot, 0 for none
  at::Tensor row_of_slot_;  ///< [t,n] the same, M for none
  at::Tensor scatter_;      ///< [M] slot of each row, t*n for none
  at::Tensor order_;        ///< [K] padded place of each closure
};

}  // namespace

at::Tensor visibility_floor(const VisibilityTable& table, at::ScalarType dtype, at::Device device) {
  return table_column(table, [](const VisibilityRow& r) { return 1e-12 * r.sigma * r.sigma; })
      .to(device, dtype);
}

at::Tensor DataProduct::reduced_chi2(const ModelVisibilities& model) const {
  return misfit(model, false).value * (2.0 / static_cast<double>(size()));
}

ModelVisibilities model_visibilities(at::Tensor re, at::Tensor im, const at::Tensor& floor2) {
  ModelVisibilities m;
  m.re = std::move(re), m.im = std::move(im);
  m.power = m.re * m.re + m.im * m.im;
  const at::Tensor safe = at::maximum(m.power, floor2);
  m.inverse = safe.reciprocal();
  m.amplitude = m.power.sqrt();
  m.phase = at::atan2(m.im, m.re);
  m.log_amplitude = (safe.log() + (m.power * m.inverse).clamp_max(1) - 1) / 2;
  return m;
}

void VisibilityGradient::add(const VisibilityGradient& other, double weight) {
  accumulate(re, other.re, weight);
  accumulate(im, other.im, weight);
  accumulate(phase, other.phase, weight);
  accumulate(log_amplitude, other.log_amplitude, weight);
}

std::pair<at::Tensor, at::Tensor> VisibilityGradient::parts(const ModelVisibilities& m) const {
  at::Tensor g_re = re, g_im = im;
  if (phase.defined()) {
    const at::Tensor p = phase * m.inverse;
    accumulate(g_re, p * m.im, -1);
    accumulate(g_im, p * m.re, 1);
  }
  if (log_amplitude.defined()) {
    const at::Tensor p = log_amplitude * m.inverse;
    accumulate(g_re, p * m.re, 1);
    accumulate(g_im, p * m.im, 1);
  }
  if (!g_re.defined()) g_re = at::zeros_like(m.re), g_im = at::zeros_like(m.im);
  return {g_re, g_im};
}

std::unique_ptr<DataProduct> make_visibility_product(const VisibilityTable& table,
                                                     at::ScalarType dtype, at::Device device) {
  return std::make_unique<VisibilityProduct>(table, dtype, device);
}

std::unique_ptr<DataProduct> make_amplitude_product(const VisibilityTable& table,
                                                    at::ScalarType dtype, at::Device device) {
  return std::make_unique<AmplitudeProduct>(table, dtype, device);
}

std::unique_ptr<ClosureProduct> make_closure_product(const VisibilityTable& table, ClosureKind kind,
                                                     ClosureCovariance covariance,
                                                     at::ScalarType dtype, at::Device device) {
  return std::make_unique<BlockClosureProduct>(table, kind, covariance, dtype, device);
}

}  // namespace scoreprior
