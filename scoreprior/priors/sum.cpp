/** sum: log p(x) = sum over sub-tables of their log p(x). Each sub-table is a prior with its own
 * `weight`; its `name` defaults to the table's key:
 *
 *    [prior]
 *    name = "sum"
 *    [prior.score_elbo]
 *    score.weights = "model.safetensors"
 *    [prior.tv]
 *    weight = 100.0
 *    [prior.bright]
 *    name = "flux"
 *    target_flux = 2.3
 *
 *  A prior that knows the image size (score model, flow) must stand before those that do not,
 * unless the problem says it. Stochastic terms draw from the stream named after their key. */
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "scoreprior/core/posterior_faces.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

class SumPrior : public LogDensity {
 public:
  struct Term {
    std::string key;
    std::unique_ptr<LogDensity> density;
  };
  explicit SumPrior(std::vector<Term> terms) : terms_(std::move(terms)) {}
  Shape event_shape() const override { return terms_.front().density->event_shape(); }

  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    return log_prob_without(x, rng, terms_.size());
  }
  /// The sum over every term but number `without`.
  at::Tensor log_prob_without(const at::Tensor& x, const Rng& rng, size_t without) const {
    at::Tensor total;
    for (size_t i = 0; i < terms_.size(); ++i) {
      if (i == without) continue;
      const at::Tensor value = terms_[i].density->log_prob(x, rng.split(terms_[i].key));
      total = total.defined() ? total + value : value;
    }
    return total;
  }
  const std::vector<Term>& all() const { return terms_; }
  /// Those of the terms, by their keys.
  Summary diagnostics() const override {
    Summary all{Status::kConverged, "", {}, {}};
    for (const auto& t : terms_) {
      all.status = std::max(all.status, t.density->diagnostics().status);
      add_diagnostics(t.key, *t.density, all);
    }
    return all;
  }

  std::pair<at::Tensor, at::Tensor> value_and_score(const at::Tensor& x,
                                                    const Rng& rng) const override {
    std::pair<at::Tensor, at::Tensor> total;
    for (const auto& t : terms_) {
      const auto [value, score] = t.density->value_and_score(x, rng.split(t.key));
      total = total.first.defined() ? std::make_pair(total.first + value, total.second + score)
                                    : std::make_pair(value, score);
    }
    return total;
  }

  std::vector<std::pair<std::string, at::Tensor>> terms(const at::Tensor& x,
                                                        const Rng& rng) const override {
    at::NoGradGuard off;
    std::vector<std::pair<std::string, at::Tensor>> parts;
    for (const auto& t : terms_)
      parts.emplace_back(t.key, t.density->log_prob(x, rng.split(t.key)));
    return parts;
  }

 private:
  std::vector<Term> terms_;
};

/// A sum with one diffusion model: the others are its rest().
class DenoisingSum final : public SumPrior, public DenoisingPrior {
 public:
  DenoisingSum(std::vector<Term> terms, size_t denoiser) : SumPrior(std::move(terms)) {
    bool jacobian = true;
    for (size_t i = 0; i < all().size(); ++i)
      if (i != denoiser)
        jacobian &= dynamic_cast<const ResidualJacobian*>(all()[i].density.get()) != nullptr;
    if (jacobian)
      rest_ = std::make_unique<RestWithJacobian>(*this, denoiser);
    else
      rest_ = std::make_unique<Rest>(*this, denoiser);
  }
  at::Tensor draw_given_noisy(const at::Tensor& noisy, double sigma, double steps,
                              const Rng& rng) const override {
    return dynamic_cast<const DenoisingPrior&>(*all()[rest_->without].density)
        .draw_given_noisy(noisy, sigma, steps, rng);
  }
  const LogDensity* rest() const override { return all().size() > 1 ? rest_.get() : nullptr; }

 private:
  struct Rest : LogDensity {
    Rest(const SumPrior& sum, size_t without) : sum(sum), without(without) {}
    Shape event_shape() const override { return sum.event_shape(); }
    at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
      return sum.log_prob_without(x, rng, without);
    }
    const SumPrior& sum;
    size_t without;
  };
  /// When every other term knows its Jacobian.
  struct RestWithJacobian final : Rest, ResidualJacobian {
    using Rest::Rest;
    at::Tensor linear_part() const override {
      std::vector<at::Tensor> parts;
      for (const ResidualJacobian* face : faces()) parts.push_back(face->linear_part());
      return at::cat(parts, 0);
    }
    at::Tensor slopes(const at::Tensor& x) const override {
      // Block-diagonal over the terms.
      int64_t columns = 0;
      for (const ResidualJacobian* face : faces()) columns += face->linear_part().size(0);
      std::vector<at::Tensor> rows;
      int64_t first = 0;
      for (const ResidualJacobian* face : faces()) {
        const int64_t mine = face->linear_part().size(0);
        at::Tensor s = face->slopes(x);
        if (!s.defined()) s = at::eye(mine, x.options()).unsqueeze(0);
        rows.push_back(at::constant_pad_nd(s.expand({x.size(0), s.size(1), mine}),
                                           {first, columns - first - mine}));
        first += mine;
      }
      return at::cat(rows, 1);
    }
    std::vector<const ResidualJacobian*> faces() const {
      std::vector<const ResidualJacobian*> out;
      for (size_t i = 0; i < sum.all().size(); ++i)
        if (i != without)
          out.push_back(&dynamic_cast<const ResidualJacobian&>(*sum.all()[i].density));
      return out;
    }
  };
  std::unique_ptr<Rest> rest_;
};

}  // namespace

std::unique_ptr<LogDensity> make_sum_prior(const Config& config, const PriorContext& context_in) {
  PriorContext context = context_in;
  std::vector<SumPrior::Term> terms;
  for (const auto& key : config.keys()) {
    if (!config.is_table(key)) continue;
    const Config table = config.table(key);
    auto density = priors().make(table, key, context);
    if (context.image_shape.empty()) context.image_shape = density->event_shape();
    if (density->event_shape() != context.image_shape)
      table.fail("", "this prior is for images " + to_string(density->event_shape()) +
                         ", the others for " + to_string(context.image_shape));
    terms.push_back({key, std::move(density)});
  }
  if (terms.empty()) config.fail("name", "a sum needs sub-tables, e.g. [prior.tv]");
  const auto denoises = [](const SumPrior::Term& t) {
    return dynamic_cast<const DenoisingPrior*>(t.density.get()) != nullptr;
  };
  if (std::count_if(terms.begin(), terms.end(), denoises) == 1) {
    const auto at = std::find_if(terms.begin(), terms.end(), denoises) - terms.begin();
    return std::make_unique<DenoisingSum>(std::move(terms), static_cast<size_t>(at));
  }
  return std::make_unique<SumPrior>(std::move(terms));
}

}  // namespace scoreprior
