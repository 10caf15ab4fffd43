#include "apps/cli.h"

int main(int argc, char** argv) { return scoreprior::run_cli(argc, argv); }
