#include "scoreprior/likelihood/station_gains.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"

namespace scoreprior {
namespace {

// Every solution interval: rows whose time is within `hours` of its first.
std::vector<int64_t> gain_intervals(const VisibilityTable& table, double hours,
                                    std::vector<double>& starts) {
  std::vector<int64_t> out;
  for (const VisibilityRow& row : table.rows) {  // in time order
    if (starts.empty() || row.time - starts.back() > hours) starts.push_back(row.time);
    out.push_back(static_cast<int64_t>(starts.size()) - 1);
  }
  return out;
}

// For each site the site of its connected part with most signal; -1 without data.
std::vector<int64_t> gain_references(const VisibilityTable& table, const std::vector<int64_t>& rows,
                                     int64_t sites) {
  std::vector<int64_t> part(static_cast<size_t>(sites));
  std::iota(part.begin(), part.end(), 0);
  std::vector<double> signal(part.size(), -1);
  for (const int64_t k : rows) {
    const VisibilityRow& r = table.rows[static_cast<size_t>(k)];
    const int64_t a = part[static_cast<size_t>(r.t1)], b = part[static_cast<size_t>(r.t2)];
    for (int64_t& p : part)
      if (p == b) p = a;
    for (const int32_t s : {r.t1, r.t2}) {
      double& x = signal[static_cast<size_t>(s)];
      x = std::max(x, 0.0) + std::norm(r.vis) / (r.sigma * r.sigma);
    }
  }
  std::vector<int64_t> reference(part.size(), -1);
  for (size_t s = 0; s < part.size(); ++s) {
    if (signal[s] < 0) continue;
    for (size_t o = 0; o < part.size(); ++o)
      if (part[o] == part[s] && signal[o] >= 0 &&
          (reference[s] < 0 || signal[o] > signal[static_cast<size_t>(reference[s])]))
        reference[s] = static_cast<int64_t>(o);
  }
  return reference;
}

at::Tensor times_design(const at::Tensor& design, const at::Tensor& theta) {  // -> [B,T,K]
  return at::matmul(design, theta.unsqueeze(-1)).squeeze(-1);
}
at::Tensor times_transposed_design(const at::Tensor& design, const at::Tensor& by_row) {
  return at::matmul(design.transpose(1, 2), by_row.unsqueeze(-1)).squeeze(-1);  // -> [B,T,S]
}
at::Tensor design_product(const at::Tensor& left, const at::Tensor& weight,
                          const at::Tensor& right) {
  return at::matmul(left.transpose(1, 2), weight.unsqueeze(-1) * right);  // -> [B,T,S,S]
}
// x^T M x for every row x of a design, [B,T,K].
at::Tensor row_forms(const at::Tensor& design, const at::Tensor& matrix) {
  return (at::matmul(design, matrix) * design).sum(-1);
}
// Not finite, like the value, where the model is not: a sampler rejects such an image.
at::Tensor factor_of(const at::Tensor& matrix) {
  return std::get<0>(at::linalg_cholesky_ex(matrix));
}
at::Tensor half_log_det(const at::Tensor& cholesky) {
  return cholesky.diagonal(0, -2, -1).log().sum(-1);
}

}  // namespace

struct UncalibratedVisibilities::Model {
  at::Tensor re, im;  // [B,T,K] float64
};

struct UncalibratedVisibilities::State {
  at::Tensor theta;                  // [B,T,2S] in units of the prior's standard deviations
  at::Tensor misfit;                 // F [B,T]
  at::Tensor gain_re, gain_im;       // g_a conj(g_b) [B,T,K]
  at::Tensor p_re, p_im;             // times the model
  at::Tensor c_re, c_im;             // conj(p - d) p
  at::Tensor slope;                  // dF/dtheta
  at::Tensor weight;                 // |p|^2/sigma^2
  at::Tensor gauss_newton, hessian;  // with the prior; uniform phases with a ridge
  at::Tensor decrement;              // [B,T]
};

std::map<std::string, double> parse_gain_stds(const std::string& text) {
  std::map<std::string, double> out;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, comma - at);
    item.erase(std::remove(item.begin(), item.end(), ' '), item.end());
    at = comma + 1;
    const size_t colon = item.find(':');
    const char* number = colon == std::string::npos ? "" : item.c_str() + colon + 1;
    char* end = nullptr;
    const double value = std::strtod(number, &end);
    if (colon == 0 || end == number || *end || !(value >= 0) || !std::isfinite(value))
      throw ConfigError(
          {}, "gain_amp_std_by_site: expected a list \"LM:0.5,AA:0.05\", got \"" + text + "\"");
    out[item.substr(0, colon)] = value;
  }
  return out;
}

UncalibratedVisibilities::UncalibratedVisibilities(const VisibilityTable& table,
                                                   const GainOptions& options, at::ScalarType dtype,
                                                   at::Device device)
    : rows_(static_cast<int64_t>(table.rows.size())),
      sites_(static_cast<int64_t>(table.sites.size())),
      marginal_(options.gains == "marginal"),
      uniform_(options.gain_phases == "uniform"),
      phase_std_(options.gain_phase_std),
      dtype_(dtype) {
  amplitude_std_.assign(static_cast<size_t>(sites_), options.gain_amp_std);
  for (const auto& [name, value] : parse_gain_stds(options.gain_amp_std_by_site)) {
    const auto site = std::find_if(table.sites.begin(), table.sites.end(),
                                   [n = name](const Site& s) { return s.name == n; });
    if (site == table.sites.end())
      throw ConfigError({}, "gain_amp_std_by_site: no site \"" + name + "\" in the observation");
    amplitude_std_[static_cast<size_t>(site - table.sites.begin())] = value;
  }
  interval_ = gain_intervals(table, options.gain_seconds / 3600, interval_hours_);
  intervals_ = static_cast<int64_t>(interval_hours_.size());
  std::vector<std::vector<int64_t>> rows_of(static_cast<size_t>(intervals_));
  for (int64_t k = 0; k < rows_; ++k)
    rows_of[static_cast<size_t>(interval_[static_cast<size_t>(k)])].push_back(k);
  width_ = 0;
  for (const auto& r : rows_of) width_ = std::max(width_, static_cast<int64_t>(r.size()));

  const Shape by_row = {intervals_, width_}, by_site = {intervals_, width_, sites_};
  slot_ = at::zeros({rows_}, at::kLong);
  place_ = at::zeros({intervals_ * width_}, at::kLong);
  data_re_ = at::zeros(by_row, at::kDouble);
  data_im_ = data_re_.clone(), iv_ = data_re_.clone();
  incidence_a_ = at::zeros(by_site, at::kDouble);
  incidence_b_ = incidence_a_.clone();
  precision_ = at::ones({intervals_, 2 * sites_}, at::kDouble);
  scale_ = at::zeros({intervals_, 2 * sites_}, at::kDouble);
  observed_ = at::zeros({intervals_, sites_}, at::kBool);
  for (int64_t t = 0; t < intervals_; ++t) {
    const auto& rows = rows_of[static_cast<size_t>(t)];
    std::vector<IntervalGains::Row> solver_rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t k = rows[i], slot = t * width_ + static_cast<int64_t>(i);
      const VisibilityRow& r = table.rows[static_cast<size_t>(k)];
      slot_.data_ptr<int64_t>()[k] = slot;
      place_.data_ptr<int64_t>()[slot] = k;
      data_re_.data_ptr<double>()[slot] = r.vis.real();
      data_im_.data_ptr<double>()[slot] = r.vis.imag();
      iv_.data_ptr<double>()[slot] = 1 / (r.sigma * r.sigma);
      incidence_a_.data_ptr<double>()[slot * sites_ + r.t1] = 1;
      incidence_b_.data_ptr<double>()[slot * sites_ + r.t2] = 1;
      log_constant_ -= std::log(2 * M_PI * r.sigma * r.sigma);
      solver_rows.push_back({r.t1, r.t2, r.vis.real(), r.vis.imag(), 1 / (r.sigma * r.sigma)});
    }
    std::vector<int64_t> reference = gain_references(table, rows, sites_);
    double* scale = scale_.data_ptr<double>() + t * 2 * sites_;
    for (int64_t s = 0; s < sites_; ++s) {
      int64_t& r = reference[static_cast<size_t>(s)];
      const bool seen = r >= 0;
      if (!seen || !uniform_) r = sites_;
      if (!seen) continue;
      observed_.data_ptr<bool>()[t * sites_ + s] = true;
      scale[s] = amplitude_std_[static_cast<size_t>(s)];
      if (!uniform_) {
        scale[sites_ + s] = phase_std_;
      } else if (r != s) {
        scale[sites_ + s] = 1;
        precision_.data_ptr<double>()[t * 2 * sites_ + sites_ + s] = 0;
        free_phases_ += 1;
      }
    }
    solvers_.emplace_back(std::move(solver_rows), std::vector<double>(scale, scale + sites_),
                          std::vector<double>(scale + sites_, scale + 2 * sites_),
                          std::move(reference), uniform_);
  }
  sum_ = (incidence_a_ + incidence_b_) * scale_.narrow(1, 0, sites_).unsqueeze(1);
  difference_ = (incidence_a_ - incidence_b_) * scale_.narrow(1, sites_, sites_).unsqueeze(1);
  for (at::Tensor* a : {&slot_, &place_, &data_re_, &data_im_, &iv_, &sum_, &difference_,
                        &precision_, &scale_, &incidence_a_, &incidence_b_})
    *a = a->to(device);
}

UncalibratedVisibilities::Model UncalibratedVisibilities::arranged(
    const ModelVisibilities& m) const {
  const auto by_interval = [&](const at::Tensor& a) {
    return a.detach().t().to(at::kDouble).index_select(1, place_).view({-1, intervals_, width_});
  };
  return {by_interval(m.re), by_interval(m.im)};
}

at::Tensor UncalibratedVisibilities::to_rows(const at::Tensor& by_interval) const {
  return by_interval.flatten(1).index_select(1, slot_).t().to(dtype_);
}

at::Tensor UncalibratedVisibilities::assemble(const at::Tensor& aa, const at::Tensor& ap,
                                              const at::Tensor& pp) const {
  const at::Tensor amplitude = design_product(sum_, aa, sum_),
                   phase = design_product(difference_, pp, difference_);
  const at::Tensor mixed =
      ap.defined() ? design_product(sum_, ap, difference_) : at::zeros_like(amplitude);
  return at::cat({at::cat({amplitude, mixed}, 3), at::cat({mixed.transpose(2, 3), phase}, 3)}, 2) +
         at::diag_embed(precision_.clamp_min(kPhaseRidge));
}

UncalibratedVisibilities::State UncalibratedVisibilities::evaluate(const Model& m,
                                                                   const at::Tensor& theta) const {
  State s;
  s.theta = theta;
  const at::Tensor u = times_design(sum_, theta.narrow(2, 0, sites_)),
                   v = times_design(difference_, theta.narrow(2, sites_, sites_));
  const at::Tensor size = u.exp();
  s.gain_re = size * v.cos(), s.gain_im = size * v.sin();
  s.p_re = s.gain_re * m.re - s.gain_im * m.im;
  s.p_im = s.gain_re * m.im + s.gain_im * m.re;
  const at::Tensor e_re = s.p_re - data_re_, e_im = s.p_im - data_im_;
  s.misfit =
      (iv_ * (e_re.square() + e_im.square())).sum(2) / 2 + (precision_ * theta.square()).sum(2) / 2;
  s.c_re = e_re * s.p_re + e_im * s.p_im;
  s.c_im = e_re * s.p_im - e_im * s.p_re;
  const at::Tensor c_re = iv_ * s.c_re, c_im = iv_ * s.c_im;
  s.slope =
      at::cat({times_transposed_design(sum_, c_re), -times_transposed_design(difference_, c_im)},
              2) +
      precision_ * theta;
  s.weight = iv_ * (s.p_re.square() + s.p_im.square());
  s.gauss_newton = assemble(s.weight, {}, s.weight);
  s.hessian = assemble(s.weight + c_re, -c_im, s.weight - c_re);
  return s;
}

UncalibratedVisibilities::State UncalibratedVisibilities::minimise(const Model& m) const {
  const int64_t batch = m.re.size(0);
  const at::Tensor re = m.re.to(at::kCPU).contiguous(), im = m.im.to(at::kCPU).contiguous();
  at::Tensor theta = at::zeros({batch, intervals_, 2 * sites_}, at::kDouble),
             decrement = at::zeros({batch, intervals_}, at::kDouble);
  const double *m_re = re.data_ptr<double>(), *m_im = im.data_ptr<double>();
  double *out = theta.data_ptr<double>(), *last = decrement.data_ptr<double>();
  at::parallel_for(0, batch * intervals_, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      last[i] = solvers_[static_cast<size_t>(i % intervals_)].minimise(
          m_re + i * width_, m_im + i * width_, out + i * 2 * sites_);
  });
  State s = evaluate(m, theta.to(iv_.device()));
  s.decrement = decrement.to(iv_.device());
  return s;
}

DataProduct::Misfit UncalibratedVisibilities::misfit(const ModelVisibilities& model,
                                                     bool gradient) const {
  SP_CHECK(!(at::GradMode::is_enabled() && model.re.requires_grad()), "interferometry",
           "second derivatives of a likelihood with station gains are not offered");
  at::NoGradGuard no_grad;
  const Model m = arranged(model);
  const State s = minimise(m);
  at::Tensor value = s.misfit.sum(1);
  at::Tensor forms;  // d (ln det)/2 / d ln|p|^2, over |p|^2/sigma^2
  if (marginal_) {
    // 1 + 2 pi P for a uniform phase: the Laplace integral where P is large, and 1 where it is 0.
    const at::Tensor prior =
        at::where(precision_.gt(0), precision_, at::full_like(precision_, 1 / (2 * M_PI)));
    const at::Tensor amplitude = factor_of(design_product(sum_, s.weight, sum_) +
                                           at::diag_embed(prior.narrow(1, 0, sites_)));
    const at::Tensor phase = factor_of(design_product(difference_, s.weight, difference_) +
                                       at::diag_embed(prior.narrow(1, sites_, sites_)));
    value = value + (half_log_det(amplitude) + half_log_det(phase)).sum(1) +
            free_phases_ * std::log(2 * M_PI) / 2;
    if (gradient)
      forms = (row_forms(sum_, at::cholesky_inverse(amplitude)) +
               row_forms(difference_, at::cholesky_inverse(phase))) /
              2;
  }
  Misfit out{value.to(dtype_), {}};
  if (!gradient) return out;
  const at::Tensor e_re = s.p_re - data_re_, e_im = s.p_im - data_im_;
  // conj(e) G = a + i b: dF = (a dm_re - b dm_im)/sigma^2.
  at::Tensor g_re = e_re * s.gain_re + e_im * s.gain_im,
             g_im = -(e_re * s.gain_im - e_im * s.gain_re);
  if (marginal_) {
    const at::Tensor gain2 = s.gain_re.square() + s.gain_im.square();
    const at::Tensor pull = at::cat({2 * times_transposed_design(sum_, s.weight * forms),
                                     at::zeros_like(s.theta.narrow(2, 0, sites_))},
                                    2);
    auto [factor, info] = at::linalg_cholesky_ex(s.hessian);
    const at::Tensor bad = info.ne(0);  // the search ended on a saddle or at its step limit
    if (bad.any().item<bool>())
      factor = at::where(bad.unsqueeze(2).unsqueeze(3), factor_of(s.gauss_newton), factor);
    const at::Tensor follow = at::cholesky_solve(pull.unsqueeze(3), factor).squeeze(3);
    const at::Tensor l_re = times_design(sum_, follow.narrow(2, 0, sites_)),
                     l_im = times_design(difference_, follow.narrow(2, sites_, sites_));
    // Z = conj(l) G conj(p) + l conj(e) G.
    const at::Tensor q_re = s.gain_re * s.p_re + s.gain_im * s.p_im,
                     q_im = s.gain_im * s.p_re - s.gain_re * s.p_im;
    const at::Tensor a = e_re * s.gain_re + e_im * s.gain_im,
                     b = e_re * s.gain_im - e_im * s.gain_re;
    const at::Tensor z_re = l_re * q_re + l_im * q_im + l_re * a - l_im * b,
                     z_im = l_re * q_im - l_im * q_re + l_re * b + l_im * a;
    g_re = g_re + 2 * forms * gain2 * m.re - z_re;
    g_im = g_im + 2 * forms * gain2 * m.im + z_im;
  }
  out.gradient.re = to_rows(iv_ * g_re);
  out.gradient.im = to_rows(iv_ * g_im);
  return out;
}

at::Tensor UncalibratedVisibilities::residuals(const ModelVisibilities& model) const {
  at::NoGradGuard no_grad;
  const State s = minimise(arranged(model));
  const at::Tensor root = iv_.sqrt(), prior = (s.theta * precision_.sqrt()).to(dtype_);
  return at::cat(
      {to_rows((data_re_ - s.p_re) * root), to_rows((data_im_ - s.p_im) * root),
       prior.narrow(2, 0, sites_).flatten(1).t(), prior.narrow(2, sites_, sites_).flatten(1).t()},
      0);
}

std::pair<at::Tensor, at::Tensor> UncalibratedVisibilities::residual_slopes(
    const ModelVisibilities& model) const {
  at::NoGradGuard no_grad;
  const State s = minimise(arranged(model));
  const int64_t batch = s.theta.size(0), all = 2 * rows_ + 2 * intervals_ * sites_;
  const at::Tensor root = iv_.sqrt();
  // d e/d theta and d e/d m of an interval, [B,2K + 2S,2S] and [B,2K,2K], both over sigma.
  at::Tensor re = at::zeros({batch, all, rows_}, at::kDouble).to(iv_.device()), im = re.clone();
  for (int64_t t = 0; t < intervals_; ++t) {
    const auto row = [&](const at::Tensor& a) { return (a.select(1, t) * root[t]); };
    const at::Tensor gr = at::diag_embed(row(s.gain_re)), gi = at::diag_embed(row(s.gain_im));
    const at::Tensor by_model = at::cat({at::cat({gr, -gi}, 2), at::cat({gi, gr}, 2)}, 1);
    const at::Tensor pr = row(s.p_re).unsqueeze(2), pi = row(s.p_im).unsqueeze(2);
    const at::Tensor by_gain = at::cat({at::cat({pr * sum_[t], -pi * difference_[t]}, 2),
                                        at::cat({pi * sum_[t], pr * difference_[t]}, 2)},
                                       1);
    const at::Tensor factor = factor_of(s.gauss_newton.select(1, t));
    const at::Tensor follow =
        -at::cholesky_solve(at::matmul(by_gain.transpose(1, 2), by_model), factor);
    const at::Tensor data = by_model + at::matmul(by_gain, follow);
    const at::Tensor prior = follow * precision_[t].sqrt().unsqueeze(1);
    // Padding stands last.
    const int64_t n = iv_[t].gt(0).sum().item<int64_t>();
    const at::Tensor k = place_.narrow(0, t * width_, n);
    const at::Tensor site = at::arange(sites_, k.options()) + (2 * rows_ + t * sites_);
    const auto put = [&](const at::Tensor& rows, const at::Tensor& block) {
      re.index_put_({at::arange(batch, k.options()).view({-1, 1, 1}), rows.view({1, -1, 1}),
                     k.view({1, 1, -1})},
                    block.narrow(2, 0, n));
      im.index_put_({at::arange(batch, k.options()).view({-1, 1, 1}), rows.view({1, -1, 1}),
                     k.view({1, 1, -1})},
                    block.narrow(2, width_, n));
    };
    put(k, data.narrow(1, 0, n));
    put(k + rows_, data.narrow(1, width_, n));
    put(site, prior.narrow(1, 0, sites_));
    put(site + intervals_ * sites_, prior.narrow(1, sites_, sites_));
  }
  return {re.to(dtype_), im.to(dtype_)};
}

at::Tensor UncalibratedVisibilities::reduced_chi2(const ModelVisibilities& model) const {
  at::NoGradGuard no_grad;
  const State s = minimise(arranged(model));
  const at::Tensor square =
      (iv_ * ((s.p_re - data_re_).square() + (s.p_im - data_im_).square())).flatten(1).sum(1);
  const at::Tensor factor = factor_of(s.gauss_newton);
  const at::Tensor inverse = at::cholesky_inverse(factor);
  const at::Tensor fixed =
      s.weight *
      (row_forms(sum_, inverse.narrow(2, 0, sites_).narrow(3, 0, sites_)) +
       row_forms(difference_, inverse.narrow(2, sites_, sites_).narrow(3, sites_, sites_)));
  const at::Tensor freedom = static_cast<double>(2 * rows_) - fixed.flatten(1).sum(1);
  // Two sites alone fix nothing but their own gains.
  return at::where(freedom.gt(0.5), square / freedom, at::full_like(square, NAN)).to(dtype_);
}

GainSolution UncalibratedVisibilities::solve(const ModelVisibilities& model) const {
  at::NoGradGuard no_grad;
  const State s = minimise(arranged(model));
  const at::Tensor theta = s.theta * scale_;
  return {theta.narrow(2, 0, sites_), theta.narrow(2, sites_, sites_), s.decrement};
}

std::vector<std::complex<double>> UncalibratedVisibilities::draw(const Rng& rng) const {
  std::vector<std::vector<std::complex<double>>> gain;
  for (int64_t t = 0; t < intervals_; ++t) {
    const auto a = rng.split("amplitude").at(t).normals(sites_);
    const auto n = rng.split("phase").at(t).normals(sites_);
    const auto u = rng.split("phase").at(t).uniforms(sites_);
    gain.emplace_back();
    for (size_t s = 0; s < a.size(); ++s)
      gain.back().push_back(std::polar(std::exp(amplitude_std_[s] * a[s]),
                                       uniform_ ? 2 * M_PI * u[s] : phase_std_ * n[s]));
  }
  std::vector<std::complex<double>> out;
  const at::Tensor a = incidence_a_.argmax(2).flatten().to(at::kCPU),
                   b = incidence_b_.argmax(2).flatten().to(at::kCPU), slot = slot_.to(at::kCPU);
  for (int64_t k = 0; k < rows_; ++k) {
    const auto& g = gain[static_cast<size_t>(interval_[static_cast<size_t>(k)])];
    const int64_t at = slot.data_ptr<int64_t>()[k];
    out.push_back(g[static_cast<size_t>(a.data_ptr<int64_t>()[at])] *
                  std::conj(g[static_cast<size_t>(b.data_ptr<int64_t>()[at])]));
  }
  return out;
}

}  // namespace scoreprior
