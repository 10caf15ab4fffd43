#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/infer/adam.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/infer/vi.h"

namespace scoreprior {
namespace {

struct MapOptions {
  int64_t steps = 2000;
  double lr = 0.01;
  double lr_final = 0.01;
  int64_t starts = 1;
  bool softplus = false;
  double init_mean = 0.5;
  double init_std = 0.05;
  double lambda_data = 1, lambda_prior = 1;
  double tolerance = 1e-4;
  int64_t checkpoint_every = 500;

  template <class F>
  void fields(F&& f) {
    f("steps", steps, "optimisation steps");
    f("lr", lr, "learning rate [pixel units]");
    f("lr_final", lr_final, "learning rate at the end, as a fraction of lr (half cosine)");
    f("starts", starts, "independent random starts, each giving one image");
    f("softplus", softplus, "positive pixels: x = softplus(u)");
    f("init_mean", init_mean, "mean of the starting images");
    f("init_std", init_std, "pixel standard deviation of the starting images");
    f("lambda_data", lambda_data, "weight of the log-likelihood");
    f("lambda_prior", lambda_prior, "weight of the log-prior");
    f("tolerance", tolerance,
      "converged when the last tenth of the steps gains less than this [nats] at the best start");
    f("checkpoint_every", checkpoint_every, "steps between checkpoints; 0 = only when interrupted");
  }
};

// Pixels by Adam: one row per start, rows independent of one another.
class MapInference final : public Inference {
 public:
  MapInference(const Config& config, const InferenceContext& context)
      : o_(config.read<MapOptions>()), context_(context) {
    if (o_.steps < 1) config.fail("steps", "steps must be positive");
    if (o_.starts < 1) config.fail("starts", "starts must be positive");
    if (!(o_.lr > 0)) config.fail("lr", "lr must be positive");
    if (o_.init_std < 0) config.fail("init_std", "init_std must not be negative");
    if (o_.softplus && !(o_.init_mean > 0))
      config.fail("init_mean", "softplus pixels have a positive mean");
  }

  Draws run(const Target& target, const Rng& rng, Observer& observer,
            StateStore& store) const override {
    const auto begin_time = std::chrono::steady_clock::now();
    const Shape event = target_event_shape(target);
    const int64_t dim = numel(event);
    const auto type = at::TensorOptions().dtype(context_.dtype);
    const double level =
        o_.softplus ? o_.init_mean + std::log(-std::expm1(-o_.init_mean)) : o_.init_mean;
    at::Tensor u =
        (rng.split("start").normal({o_.starts, dim}, context_.dtype) * o_.init_std + level)
            .flatten();
    BufferAdam adam(u, BufferAdamOptions{});
    std::vector<double> curve;
    int64_t step = 0, dropped = 0;
    restore(store, u, adam, step, dropped, curve);

    Draws draws;
    draws.summary.status = Status::kMaxSteps;
    const Rng densities = rng.split("densities");
    at::Tensor best_value = at::full({o_.starts}, -INFINITY, type),
               best = at::zeros({o_.starts, dim}, type);
    observer.begin("maximum a posteriori", o_.steps);
    // The last pass only looks: the image returned is the one whose value is reported.
    for (; step <= o_.steps; ++step) {
      const at::Tensor rows = u.view({o_.starts, dim});
      const at::Tensor x = o_.softplus ? at::softplus(rows, 1, 50) : rows;
      const at::Tensor images = x.view(batched(o_.starts, event)).to(context_.device);
      const Rng here = densities.at(step);
      const auto [lp, gp] = target.prior.value_and_score(images, here.split("prior"));
      const auto [ll, gl] = target.likelihood.value_and_score(images, here.split("likelihood"));
      const at::Tensor value =
          (ll.to(type) * o_.lambda_data + lp.to(type) * o_.lambda_prior).flatten();
      at::Tensor g =
          (gl.to(type) * o_.lambda_data + gp.to(type) * o_.lambda_prior).view({o_.starts, dim});
      const at::Tensor good = at::isfinite(value).logical_and(at::isfinite(g).all(1));
      dropped += o_.starts - good.sum().item<int64_t>();
      if (step == o_.steps) {
        best = x.clone();
        best_value = value;
        break;
      }
      if (o_.softplus) g = g * at::sigmoid(rows);
      g = at::where(good.unsqueeze(1), -g, at::zeros({}, type));
      const double top = at::where(good, value, at::full({}, -INFINITY, type)).max().item<double>();
      curve.push_back(-top);
      const double t = static_cast<double>(step) / static_cast<double>(o_.steps);
      adam.step(u, g.flatten(),
                o_.lr * (o_.lr_final + (1 - o_.lr_final) * 0.5 * (1 + std::cos(M_PI * t))));
      observer.step(step + 1, {{"loss", -top}});
      const bool stop = observer.stop_requested();
      if (stop || (o_.checkpoint_every > 0 && (step + 1) % o_.checkpoint_every == 0))
        store.save({{"u", u.clone()},
                    {"adam_m", adam.first().clone()},
                    {"adam_v", adam.second().clone()},
                    {"counters",
                     at::tensor(std::vector<int64_t>{step + 1, dropped, adam.steps(), o_.steps},
                                at::kLong)},
                    {"curve_loss", at::tensor(curve, at::kDouble)}});
      if (stop) {
        draws.summary.status = Status::kInterrupted;
        best = o_.softplus ? at::softplus(u.view({o_.starts, dim}), 1, 50)
                           : u.view({o_.starts, dim}).clone();
        ++step;
        break;
      }
    }
    observer.end();

    const int64_t tenth = std::max<int64_t>(o_.steps / 10, 1);
    const double gain = static_cast<int64_t>(curve.size()) > tenth
                            ? curve[curve.size() - 1 - tenth] - curve.back()
                            : INFINITY;
    Summary& s = draws.summary;
    if (!at::isfinite(best).all().item<bool>() ||
        (!curve.empty() && !std::isfinite(curve.back()))) {
      s.status = Status::kDiverged;
      s.message = "the density or its gradient is not finite";
    } else if (s.status == Status::kInterrupted) {
      s.message =
          detail::concat("stopped after ", step, " of ", o_.steps, " steps; run again to go on");
    } else if (std::abs(gain) <= o_.tolerance) {
      s.status = Status::kConverged;
      s.message = detail::concat("gained ", gain, " nats over the last ", tenth, " steps");
    } else {
      s.message = detail::concat("still gaining: ", gain, " nats over the last ", tenth, " steps");
    }
    draws.x = best.view(batched(o_.starts, event));
    draws.history["loss"] = at::tensor(curve, at::kDouble);
    s.numbers["steps"] = static_cast<double>(curve.size());
    s.numbers["nonfinite_densities"] = static_cast<double>(dropped);
    s.numbers["density_evaluations"] = static_cast<double>(curve.size() * o_.starts);
    s.numbers["gain"] = gain;
    s.numbers["invalid_draws"] = 0;
    if (s.status != Status::kInterrupted)
      s.numbers["log_posterior"] = best_value.max().item<double>();
    s.numbers["seconds"] =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_time).count();
    observer.note(s.message);
    return draws;
  }

 private:
  void restore(StateStore& store, at::Tensor& u, BufferAdam& adam, int64_t& step, int64_t& dropped,
               std::vector<double>& curve) const {
    std::map<std::string, at::Tensor> s;
    if (!store.load(s)) return;
    const auto take = [&s](const std::string& name, at::Tensor into) {
      const auto it = s.find(name);
      if (it == s.end()) throw DataError("checkpoint: no tensor \"" + name + "\"");
      if (it->second.sizes() != into.sizes() || it->second.scalar_type() != into.scalar_type())
        throw DataError("checkpoint: \"" + name + "\" belongs to another problem");
      into.copy_(it->second);
    };
    take("u", u);
    take("adam_m", adam.first());
    take("adam_v", adam.second());
    at::Tensor counters = at::zeros({4}, at::kLong);
    take("counters", counters);
    const int64_t* n = counters.data_ptr<int64_t>();
    if (n[3] != o_.steps)
      throw DataError("checkpoint: made for " + std::to_string(n[3]) + " steps, now " +
                      std::to_string(o_.steps) + " are asked for; the schedules differ");
    step = n[0];
    dropped = n[1];
    adam.set_steps(n[2], 0);
    at::Tensor c = at::zeros({step}, at::kDouble);
    take("curve_loss", c);
    curve.assign(c.data_ptr<double>(), c.data_ptr<double>() + step);
  }

  MapOptions o_;
  InferenceContext context_;
};

}  // namespace

/// argmax of w_data log p(y|x) + w_prior log p(x); with `softplus` in the parametrisation x =
/// softplus(u).
std::unique_ptr<Inference> make_map(const Config& config, const InferenceContext& context) {
  return std::make_unique<MapInference>(config, context);
}

}  // namespace scoreprior
