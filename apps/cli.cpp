#include "apps/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <new>

#include "apps/progress.h"
#include "scoreprior/core/errors.h"
#include "scoreprior/core/runtime.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/pipeline/check.h"
#include "scoreprior/pipeline/convert.h"
#include "scoreprior/pipeline/demo.h"
#include "scoreprior/pipeline/eval.h"
#include "scoreprior/pipeline/help.h"
#include "scoreprior/pipeline/info.h"
#include "scoreprior/pipeline/logp.h"
#include "scoreprior/pipeline/run.h"
#include "scoreprior/pipeline/sample.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/pipeline/simulate.h"
#include "scoreprior/pipeline/train.h"

namespace scoreprior {
namespace {

constexpr int kInterrupted = 75;  // EX_TEMPFAIL: run the same command again to go on

struct CommonArguments {
  std::string config;
  std::vector<std::string> overrides, set;
  std::string out, device, dtype, command_line;
  int64_t seed = -1;
  int threads = 0;
  bool quiet = false;

  void add_to(CLI::App& app) {
    app.add_option("--device", device, "auto | cpu | cuda (default: auto)")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    app.add_option("--threads", threads, "threads (default: every core this process may use)")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--seed", seed, "seed of every random choice")->check(CLI::NonNegativeNumber);
    app.add_flag("--quiet", quiet, "no progress, only warnings and errors");
  }
  void add_config(CLI::App& app, bool required = true) {
    auto* option = app.add_option("CONFIG", config, "configuration file (TOML)");
    if (required) option->required();
    app.add_option("OVERRIDES", overrides, "key=value, e.g. infer.steps=2000");
    app.add_option("--set", set, "key=value, like OVERRIDES")->take_all();
    app.add_option("--out", out, "folder or file to write");
    add_to(app);
  }
  Config read() const { return with_overrides(io::read_toml(config)); }
  Config with_overrides(Config c) const {
    io::apply_overrides(c, overrides);
    io::apply_overrides(c, set);
    if (seed >= 0) io::apply_override(c, "seed=" + std::to_string(seed));
    if (!device.empty()) io::apply_override(c, "run.device=" + device);
    if (!dtype.empty()) io::apply_override(c, "run.dtype=" + dtype);
    return c;
  }
  std::string stem() const { return std::filesystem::path(config).stem().string(); }
  std::string folder() const { return out.empty() ? "runs/" + stem() : out; }
};

std::pair<std::string, std::string> split_assignment(const std::string& text) {
  const size_t eq = text.find('=');
  if (eq == std::string::npos || eq == 0)
    throw UsageError("expected name=file.npy, got \"" + text + "\"");
  return {text.substr(0, eq), text.substr(eq + 1)};
}

void run_eval(const CommonArguments& common, const std::string& component,
              const std::vector<std::string>& in, const std::vector<std::string>& out) {
  EvalRequest request;
  request.config = common.config.empty() ? Config() : io::read_toml(common.config);
  io::apply_overrides(request.config, common.set);
  const Session session = make_session(common.device, common.dtype);
  request.dtype = session.dtype;
  request.device = session.device;
  request.note = [](const std::string& sentence) {
    std::cerr << "scoreprior: " << sentence << std::endl;
  };
  for (const auto& a : in) {
    const auto [name, file] = split_assignment(a);
    request.in[name] = io::read_npy(file);
  }
  std::map<std::string, std::string> files;
  for (const auto& a : out) {
    const auto [name, file] = split_assignment(a);
    files[name] = file;
    request.out.insert(name);
  }
  const io::Arrays results = evaluate(component, request);
  for (const auto& [name, file] : files) io::write_npy(file, results.at(name));
}

// A run without a result is an error after everything was written, so that scripts notice.
int code_of(const RunOutcome& o) {
  if (o.status == Status::kInterrupted) return kInterrupted;
  if (o.status == Status::kDiverged || o.status == Status::kFailed) throw DataError(o.message);
  return 0;
}

// The first line of a message: libtorch appends a stack trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// What is wrong with a command line, in one line.
std::string complaint(CLI::App& app, int argc, char** argv, const CLI::ParseError& e) {
  if (argc < 2 || argv[1][0] == '-' || !app.get_subcommands().empty()) return first_line(e.what());
  std::vector<std::string> known;
  for (const CLI::App* c : app.get_subcommands([](const CLI::App*) { return true; }))
    known.push_back(c->get_name());
  const std::string near = did_you_mean(argv[1], known);
  return "unknown command \"" + std::string(argv[1]) + "\"" +
         (near.empty() ? "" : "; did you mean \"" + near + "\"?");
}

int dispatch(CLI::App& app, int argc, char** argv) {
  CommonArguments common;
  for (int i = 0; i < argc; ++i) common.command_line += (i ? " " : "") + std::string(argv[i]);
  std::function<int()> action;
  const auto progress = [&] {
    ProgressOptions options;
    options.quiet = common.quiet;
    return std::make_unique<TerminalProgress>(options);
  };

  auto* run_app = app.add_subcommand("run", "posterior inference -> run folder with report.html");
  common.add_config(*run_app);
  run_app->footer([] { return help_command("run"); });
  run_app->callback([&] {
    action = [&] {
      auto observer = progress();
      return code_of(run(common.read(), {common.folder(), common.command_line}, *observer));
    };
  });

  auto* train_app =
      app.add_subcommand("train", "train a score model -> model.safetensors; resumes");
  common.add_config(*train_app);
  train_app->footer([] { return help_command("train"); });
  train_app->callback([&] {
    action = [&] {
      auto observer = progress();
      const Summary s = train(common.read(), common.folder(), *observer);
      return s.status == Status::kInterrupted ? kInterrupted : 0;
    };
  });

  auto* simulate_app =
      app.add_subcommand("simulate", "image -> measurement file (.uvfits or .npz) and truth");
  common.add_config(*simulate_app);
  simulate_app->footer([] { return help_command("simulate"); });
  simulate_app->callback([&] {
    action = [&] {
      auto observer = progress();
      simulate(common.read(), common.folder(), *observer);
      return 0;
    };
  });

  auto* check_app = app.add_subcommand(
      "check", "dry run of a configuration: operator, gradients, scales, memory and time");
  common.add_config(*check_app);
  check_app->footer([] { return help_command("run"); });
  check_app->callback([&] {
    action = [&] {
      auto observer = progress();
      const CheckReport report = check(common.read(), *observer);
      std::cout << check_text(report) << std::flush;
      return report.passed() ? 0 : 65;
    };
  });

  SampleRequest sampling;
  auto* sample_app =
      app.add_subcommand("sample", "unconditional draws of a score model, as NPY and PNG");
  sample_app->add_option("MODEL", sampling.model, "model.safetensors")->required();
  sample_app->add_option("-n,--count", sampling.count, "number of images")->capture_default_str();
  sampling.sampler.fields([&](std::string key, auto& value, const char* help) {
    std::replace(key.begin(), key.end(), '_', '-');
    sample_app->add_option("--" + key, value, help)->capture_default_str();
  });
  sample_app->add_option("--out", common.out, "folder to write (default: samples)");
  common.add_to(*sample_app);
  sample_app->callback([&] {
    action = [&] {
      auto observer = progress();
      sampling.folder = common.out.empty() ? "samples" : common.out;
      sampling.seed = static_cast<uint64_t>(std::max<int64_t>(common.seed, 0));
      sample(sampling, make_session(common.device, ""), *observer);
      return 0;
    };
  });

  std::string density_model, density_images, density_method = "all";
  bool density_json = false;
  auto* logp_app = app.add_subcommand(
      "logp", "log p of images under a score model: exact ODE, bound, path estimator");
  logp_app
      ->add_option("MODEL", density_model, "model.safetensors, or a TOML with [score] or [prior]")
      ->required();
  logp_app
      ->add_option("IMAGES", density_images,
                   ".npy, .npz, .png, .fits, folder, or name of a data set")
      ->required();
  logp_app->add_option("OVERRIDES", common.overrides, "key=value, e.g. ode.rtol=1e-4");
  logp_app->add_option("--set", common.set, "key=value, like OVERRIDES")->take_all();
  logp_app->add_option("--method", density_method, "ode | elbo | path | all")
      ->capture_default_str();
  logp_app->add_option("--out", common.out, "also write the numbers to this .npz");
  logp_app->add_flag("--json", density_json, "print JSON instead of the table");
  logp_app->add_option("--dtype", common.dtype, "float64 | float32");
  common.add_to(*logp_app);
  logp_app->footer(logp_help());
  logp_app->callback([&] {
    action = [&] {
      Config config;
      if (std::filesystem::path(density_model).extension() == ".toml") {
        config = io::read_toml(density_model);
      } else {
        auto node = std::make_shared<ConfigNode>();
        node->value = density_model;
        config.set("score.weights", node);
      }
      auto observer = progress();
      const Config whole = common.with_overrides(config);
      const LogpResult r =
          log_densities(whole, density_images, density_method, whole.get<uint64_t>("seed", 0),
                        make_session(whole.table("run")), *observer);
      if (!common.out.empty()) io::write_npz(common.out, logp_arrays(r));
      std::cout << (density_json ? logp_json(r) : logp_text(r)) << std::flush;
      if (r.interrupted) return kInterrupted;
      if (const std::string failure = logp_failure(r); !failure.empty()) throw DataError(failure);
      return 0;
    };
  });

  std::string component;
  std::vector<std::string> eval_in, eval_out;
  auto* eval_app = app.add_subcommand("eval", "evaluate one component on arrays");
  eval_app->add_option("COMPONENT", component, "what to evaluate")->required();
  eval_app->add_option("--config", common.config, "configuration file (TOML)");
  eval_app->add_option("--in", eval_in, "name=file.npy")->take_all();
  eval_app->add_option("--out", eval_out, "name=file.npy")->take_all();
  eval_app->add_option("--set", common.set, "key=value")->take_all();
  eval_app->add_option("--dtype", common.dtype, "float64 | float32");
  common.add_to(*eval_app);
  std::string components = "Components:\n";
  for (const auto& c : eval_components()) components += "  " + c.name + ": " + c.help + "\n";
  eval_app->footer(components);
  eval_app->callback([&] {
    action = [&] {
      run_eval(common, component, eval_in, eval_out);
      return 0;
    };
  });

  std::string folder;
  auto* report_app = app.add_subcommand("report", "rebuild report.html of a run folder");
  report_app->add_option("RUN", folder, "run folder")->required();
  common.add_to(*report_app);
  report_app->callback([&] {
    action = [&] {
      auto observer = progress();
      rebuild_report(folder, *observer);
      return 0;
    };
  });

  std::string file;
  bool json = false;
  auto* info_app = app.add_subcommand("info", "describe a data file, model or run folder");
  info_app->add_option("FILE", file, "file or run folder")->required();
  info_app->add_flag("--json", json, "as JSON");
  info_app->callback([&] {
    action = [&] {
      std::cout << describe_file(file, json) << std::flush;
      return 0;
    };
  });

  std::string convert_in, convert_out;
  ConvertOptions converting;
  auto* convert_app =
      app.add_subcommand("convert", "a data or image file in another format, by the extensions");
  convert_app
      ->add_option("IN", convert_in, "uvfits, fits, npy, npz, h5, mat, cfl, tif, png, txt, ...")
      ->required();
  convert_app
      ->add_option("OUT", convert_out, "npy, npz, h5, mat, cfl, png, tif, idx, fits, txt, uvfits")
      ->required();
  convert_app->add_option("--array", converting.array, "which array, for formats that hold one");
  convert_app->add_option("--fov-uas", converting.fov_uas,
                          "field of view of a sky image [micro-arcseconds]");
  convert_app->callback([&] {
    action = [&] {
      std::cout << convert_file(convert_in, convert_out, converting) << std::flush;
      return 0;
    };
  });

  std::string demo_name;
  auto* demo_app = app.add_subcommand("demo", "a whole problem on data made here");
  demo_app->add_option("NAME", demo_name, "2d | denoise | blackhole")->required();
  demo_app->add_option("OVERRIDES", common.overrides, "key=value");
  demo_app->add_option("--out", common.out, "folder to write");
  common.add_to(*demo_app);
  demo_app->callback([&] {
    action = [&] {
      auto observer = progress();
      return code_of(demo(
          demo_name, common.out, common.command_line,
          [&](Config c) { return common.with_overrides(std::move(c)); }, *observer));
    };
  });

  std::string help_topic, help_name;
  auto* help_app =
      app.add_subcommand("help", "priors, networks, data sets, ... and the settings of each");
  help_app->add_option("FAMILY", help_topic, "e.g. prior");
  help_app->add_option("NAME", help_name, "e.g. score_elbo");
  help_app->callback([&] {
    action = [&] {
      std::cout << (help_topic.empty() ? help_families() : help_family(help_topic, help_name))
                << std::flush;
      return 0;
    };
  });

  app.require_subcommand(1);
  app.set_version_flag("--version",
                       std::string("scoreprior ") + SP_VERSION + " (" + SP_BUILD_TYPE + ")");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // prints help or the version
    throw UsageError(complaint(app, argc, argv, e) + " (see scoreprior --help)");
  }
  set_threads(common.threads);
  watch_interrupts();
  return action();
}

}  // namespace

int run_cli(int argc, char** argv) {
  keep_freed_memory();
  CLI::App app{"Bayesian inverse imaging with score-based priors", "scoreprior"};
  int code = 70;
  try {
    return dispatch(app, argc, argv);
  } catch (const Error& e) {
    code = e.exit_code();
    std::cerr << "scoreprior: " << e.what() << std::endl;
  } catch (const std::bad_alloc&) {
    code = 71;
    std::cerr << "scoreprior: out of memory; try a smaller batch" << std::endl;
  } catch (const std::filesystem::filesystem_error& e) {
    code = 74;
    std::cerr << "scoreprior: " << e.what() << std::endl;
  } catch (const std::exception& e) {
    std::cerr << "scoreprior: internal error: " << first_line(e.what()) << std::endl;
  }
  return code;
}

}  // namespace scoreprior
