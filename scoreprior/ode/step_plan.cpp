#include "scoreprior/ode/step_plan.h"

#include <algorithm>

#include "scoreprior/core/errors.h"

namespace scoreprior::ode {
namespace {

// Gauss-Legendre on [-1,1], ten points.
constexpr double kGaussNode[] = {0.1488743389816312, 0.4333953941292472, 0.6794095682990244,
                                 0.8650633666889845, 0.9739065285171717};
constexpr double kGaussWeight[] = {0.2955242247147529, 0.2692667193099963, 0.2190863625159820,
                                   0.1494513491505806, 0.0666713443086881};

// Coefficients of the nodes with the given source indices, zero elsewhere.
std::vector<double> spread(size_t size, const std::vector<size_t>& where,
                           const std::vector<double>& values) {
  std::vector<double> out(size, 0.0);
  for (size_t j = 0; j < where.size(); ++j) out[where[j]] = values[j];
  return out;
}

}  // namespace

std::vector<double> interpolatory_weights(const Weight& w, double a, double b,
                                          const std::vector<double>& nodes) {
  std::vector<double> out(nodes.size(), 0.0);
  const double middle = 0.5 * (a + b), half = 0.5 * (b - a);
  for (int g = 0; g < 10; ++g) {
    const double x = middle + half * (g % 2 ? kGaussNode[g / 2] : -kGaussNode[g / 2]);
    const double share = kGaussWeight[g / 2] * half * (w ? w(x) : 1.0);
    for (size_t j = 0; j < nodes.size(); ++j) {
      double basis = 1;
      for (size_t i = 0; i < nodes.size(); ++i)
        if (i != j) basis *= (x - nodes[i]) / (nodes[j] - nodes[i]);
      out[j] += share * basis;
    }
  }
  return out;
}

std::vector<const char*> exponential_names() { return {"exp2", "exp3", "exp2m", "exp3m", "exp4m"}; }

Method::Method(const std::string& name) : name_(name) {
  if (name.rfind("exp", 0) == 0) {
    const auto known = exponential_names();
    SP_CHECK(std::find(known.begin(), known.end(), name) != known.end(), "ode",
             "expected one of the exp methods exp2 exp3 exp2m exp3m exp4m, got \"", name, "\"");
    order_ = name[3] - '0';
    kind_ = name.back() == 'm' ? Kind::kMultistep : Kind::kSingle;
    window_ = kind_ == Kind::kMultistep ? order_ - 1 : 1;
    return;
  }
  tableau_ = &tableau(name);
  order_ = tableau_->order;
}

int Method::stages(bool starting) const {
  if (kind_ == Kind::kRungeKutta) return tableau_->stages() - 1;
  if (kind_ == Kind::kSingle) return order_ - 1;
  return starting && order_ == 4 ? 2 : 1;
}

bool Method::interpolates_with_ends() const {
  return tableau_ && !tableau_->first_same_as_last && dense_weights(*tableau_, 0.5).empty();
}

int Method::error_order() const {
  return kind_ == Kind::kRungeKutta ? tableau_->error_order : order_ - 1;
}

StepPlan Method::single(int order, const std::vector<double>& past, double h, size_t sources,
                        const Weight& w) const {
  const double t = past[0];
  StepPlan p;
  p.error_order = order - 1;
  const auto integral = [&](double theta, const std::vector<size_t>& where,
                            const std::vector<double>& nodes, size_t size) {
    return spread(size, where, interpolatory_weights(w, t, t + theta * h, nodes));
  };
  if (order == 2) {
    p.c = {0.5};
    p.stage = {integral(0.5, {0}, {t}, sources)};
    p.result = integral(1, {0, sources}, {t, t + 0.5 * h}, sources + 1);
    p.error = integral(1, {0}, {t}, sources + 1);
  } else {
    p.c = {1.0 / 3, 2.0 / 3};
    p.stage = {integral(1.0 / 3, {0}, {t}, sources),
               integral(2.0 / 3, {0, sources}, {t, t + h / 3}, sources + 1)};
    p.result = integral(1, {0, sources + 1}, {t, t + 2 * h / 3}, sources + 2);
    p.error = integral(1, {0, sources}, {t, t + h / 3}, sources + 2);
  }
  for (size_t j = 0; j < p.error.size(); ++j) p.error[j] = p.result[j] - p.error[j];
  return p;
}

StepPlan Method::plan(const std::vector<double>& past, double h, size_t sources, const Weight& w,
                      bool starting) const {
  const double t = past[0];
  StepPlan p;
  if (kind_ == Kind::kRungeKutta) {
    const Tableau& m = *tableau_;
    const int stages = m.stages();
    const auto scaled = [&](const std::vector<double>& a, size_t size) {
      std::vector<double> out(size, 0.0);
      for (size_t j = 0; j < a.size(); ++j)
        out[j == 0 ? 0 : sources + j - 1] = a[j] * h * (w ? w(t + m.c[j] * h) : 1.0);
      return out;
    };
    for (int i = 1; i < stages; ++i) {
      p.c.push_back(m.c[i]);
      p.stage.push_back(scaled(m.a[i], sources + i - 1));
    }
    p.result = scaled(m.b, sources + stages - 1);
    if (m.adaptive()) p.error = scaled(m.e, sources + stages - 1);
    p.error_order = m.error_order;
    p.carry = m.first_same_as_last;
    return p;
  }
  if (kind_ == Kind::kSingle) return single(order_, past, h, sources, w);
  if (starting && order_ == 4) return single(3, past, h, sources, w);

  const size_t q = std::min<size_t>(past.size(), window_);
  std::vector<size_t> where;
  std::vector<double> nodes;
  for (size_t j = 0; j < q; ++j) where.push_back(j), nodes.push_back(past[j]);
  p.c = {1.0};
  p.stage = {spread(sources, where, interpolatory_weights(w, t, t + h, nodes))};
  where.push_back(sources);
  nodes.push_back(t + h);
  p.result = spread(sources + 1, where, interpolatory_weights(w, t, t + h, nodes));
  p.error = p.result;
  for (size_t j = 0; j < sources; ++j) p.error[j] -= p.stage[0][j];
  p.error_order = static_cast<int>(q);
  p.carry = true;
  return p;
}

std::vector<double> Method::dense(const std::vector<double>& past, double h, size_t sources,
                                  const Weight& w, bool starting, double theta) const {
  const double t = past[0];
  if (kind_ == Kind::kRungeKutta) {
    const std::vector<double> b = dense_weights(*tableau_, theta);
    std::vector<double> out(b.empty() ? 0 : sources + b.size() - 1, 0.0);
    for (size_t j = 0; j < b.size(); ++j)
      out[j == 0 ? 0 : sources + j - 1] = b[j] * h * (w ? w(t + tableau_->c[j] * h) : 1.0);
    return out;
  }
  std::vector<size_t> where{0};
  std::vector<double> nodes{t};
  size_t size = sources + 1;
  if (kind_ == Kind::kSingle || (starting && order_ == 4)) {
    const bool three = kind_ == Kind::kMultistep || order_ == 3;
    size = sources + (three ? 2 : 1);
    where.push_back(size - 1);
    nodes.push_back(t + h * (three ? 2.0 / 3 : 0.5));
  } else {
    for (size_t j = 1; j < std::min<size_t>(past.size(), window_); ++j)
      where.push_back(j), nodes.push_back(past[j]);
    where.push_back(sources);
    nodes.push_back(t + h);
  }
  return spread(size, where, interpolatory_weights(w, t, t + theta * h, nodes));
}

}  // namespace scoreprior::ode
