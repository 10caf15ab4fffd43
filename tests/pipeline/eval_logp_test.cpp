#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {
namespace {

EvalRequest request(const std::string& prior) {
  EvalRequest r;
  r.config = io::parse_toml(
      "[prior]\n" + prior +
      "[prior.score]\nname = \"gaussian\"\nmean = 0.5\nsigma = 0.2\nshape = [1, 3, 3]\n"
      "[prior.score.sde]\ntype = \"vp\"\n");
  r.dtype = at::kDouble;
  r.out = {"logp", "nfe"};
  r.in["x"] = 0.5 + 0.2 * Rng(1).normal({3, 1, 3, 3}, at::kDouble);
  return r;
}

// One image that fails is NaN and a sentence; the others keep their values. Without any value it is
// an error.
TEST(EvalLogp, AnImageThatFailsDoesNotTakeTheOthersWithIt) {
  for (const std::string name : {"score_ode", "score_elbo"}) {
    EvalRequest r = request("name = \"" + name + "\"\n");
    const at::Tensor whole = evaluate("logp", r).at("logp");
    std::vector<std::string> notes;
    r.note = [&](const std::string& s) { notes.push_back(s); };
    r.in["x"][1].fill_(NAN);
    const at::Tensor part = evaluate("logp", r).at("logp");
    for (const int b : {0, 2})
      EXPECT_NEAR(part[b].item<double>(), whole[b].item<double>(), 1e-8) << name;
    EXPECT_FALSE(at::isfinite(part[1]).item<bool>()) << name;
    ASSERT_EQ(notes.size(), 1u) << name;
    EXPECT_NE(notes[0].find("in 1 of 3 images"), std::string::npos) << notes[0];
    r.in["x"].fill_(NAN);
    EXPECT_THROW(evaluate("logp", r), DataError) << name;
  }
}

TEST(EvalLogp, GradientsThatDisagreeAreNoted) {
  EvalRequest r = request(
      "name = \"score_ode\"\nsteps = 2\ncheck_gradient = true\ngradient_tolerance = 1e-9\n");
  r.out.insert("grad");
  std::vector<std::string> notes;
  r.note = [&](const std::string& s) { notes.push_back(s); };
  evaluate("logp", r);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("two gradients differ"), std::string::npos) << notes[0];
}

}  // namespace
}  // namespace scoreprior
