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

#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

class SumPrior final : public LogDensity {
 public:
  struct Term {
    std::string key;
    std::unique_ptr<LogDensity> density;
  };
  explicit SumPrior(std::vector<Term> terms) : terms_(std::move(terms)) {}
  Shape event_shape() const override { return terms_.front().density->event_shape(); }

  at::Tensor log_prob(const at::Tensor& x, const Rng& rng) const override {
    at::Tensor total;
    for (const auto& t : terms_) {
      const at::Tensor value = t.density->log_prob(x, rng.split(t.key));
      total = total.defined() ? total + value : value;
    }
    return total;
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
  return std::make_unique<SumPrior>(std::move(terms));
}

}  // namespace scoreprior
