// A program outside the tree: a Gaussian prior by name, its log-density and score at one image.
// log p = -(256/2) (ln 2 pi + 1) = -363.2 for the 16x16 standard normal at x = 1.
#include <ATen/ATen.h>

#include <iostream>

#include "scoreprior/io/toml.h"
#include "scoreprior/priors/prior.h"

int main() {
  const auto config = scoreprior::io::parse_toml("name = \"gaussian\"\nsigma = 1.0\n");
  scoreprior::PriorContext context;
  context.image_shape = {1, 16, 16};
  const auto prior = scoreprior::priors().make(config, "gaussian", context);
  const at::Tensor x = at::ones({1, 1, 16, 16});
  const auto [value, score] = prior->value_and_score(x, scoreprior::Rng(0));
  std::cout << "log p = " << value.item<double>() << ", |score| = " << score.norm().item<double>()
            << "\n";
  return 0;
}
