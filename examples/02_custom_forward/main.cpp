// The whole program with one model more: `imager simulate`, `check`, `run`, ... know row_means.
#include "apps/cli.h"
#include "row_means.h"

int main(int argc, char** argv) {
  scoreprior::mutable_forward_models().add("row_means", "mean of every row", make_row_means);
  return scoreprior::run_cli(argc, argv);
}
