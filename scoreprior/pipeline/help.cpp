#include "scoreprior/pipeline/help.h"

#include <ATen/ATen.h>

#include <exception>
#include <functional>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/data/observation.h"
#include "scoreprior/data/visibilities.h"
#include "scoreprior/diffusion/dsm_loss.h"
#include "scoreprior/diffusion/optimizer.h"
#include "scoreprior/diffusion/sampler.h"
#include "scoreprior/flows/flow.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/pipeline/posterior_report.h"
#include "scoreprior/pipeline/problem.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/pipeline/simulate.h"
#include "scoreprior/pipeline/train.h"
#include "scoreprior/priors/prior.h"
#include "scoreprior/sde/sde.h"

namespace scoreprior {
namespace {

struct HelpEntry {
  std::string name, help;
  std::function<void(const Config&)> read;
};

struct HelpFamily {
  std::string name, table, what;
  std::vector<HelpEntry> entries;
};

template <class Catalogue, class... Extra>
HelpFamily help_of(const std::string& name, const std::string& table, const std::string& what,
                   const Catalogue& catalogue, const Extra&... extra) {
  HelpFamily f{name, table, what, {}};
  for (const auto& e : catalogue.entries())
    f.entries.push_back(
        {e.name, e.help, [make = e.make, extra...](const Config& c) { make(c, extra...); }});
  return f;
}

// Small stand-ins for what a run would know.
std::vector<HelpFamily> help_catalogues() {
  const Shape shape = {1, 16, 16};
  PriorContext prior;
  prior.image_shape = shape;
  LikelihoodContext likelihood;
  likelihood.image_shape = shape;
  ForwardContext forward;
  Observation observation;
  observation.y = at::zeros({1, 16, 16}, at::kDouble);
  return {
      help_of("prior", "prior", "what images look like", priors(), prior),
      help_of("likelihood", "likelihood", "how data follow from an image", likelihoods(),
              observation, likelihood),
      help_of("forward", "forward", "instruments of the gaussian likelihood", forward_models(),
              forward),
      help_of("infer", "infer", "ways to the posterior", inferences(), InferenceContext{}),
      help_of("flow", "infer.flow", "normalising flows", flows(), FlowContext{2}),
      help_of("data", "data", "data sets to train on, and of true images", datasets(),
              std::string("train")),
      help_of("net", "model.net", "score networks", score_nets()),
  };
}

// The keys a component reads from an empty table, and what it says it cannot do without.
std::string settings_read(const Config& table, const std::function<void(const Config&)>& read) {
  try {
    read(table);
  } catch (const ConfigError& e) {
    return e.what();
  } catch (const std::exception&) {
    // A data set without files, an observation of another kind: its keys were read before.
  }
  return "";
}

std::string name_one(const Config& table, const HelpFamily& family, const std::string& name) {
  std::string names;
  for (const auto& e : family.entries) names += (names.empty() ? "" : " | ") + e.name;
  table.get<std::string>("name", name, names);
  for (const auto& e : family.entries)
    if (e.name == name) return settings_read(table, e.read);
  return "";
}

const HelpFamily& family_called(const std::vector<HelpFamily>& families, const std::string& name) {
  std::vector<std::string> known;
  for (const auto& f : families) {
    if (f.name == name) return f;
    known.push_back(f.name);
  }
  const std::string near = did_you_mean(name, known);
  throw UsageError("no family \"" + name + "\"" +
                   (near.empty() ? "; see scoreprior help" : "; did you mean \"" + near + "\"?"));
}

std::string padded(std::string s, size_t width) {
  s.resize(std::max(width, s.size() + 2), ' ');
  return s;
}

}  // namespace

std::string help_families() {
  std::string out;
  for (const auto& f : help_catalogues()) {
    out += padded(f.name, 12) + f.what + ", [" + f.table + "]\n" + std::string(12, ' ');
    for (const auto& e : f.entries) out += e.name + " ";
    out.back() = '\n';
  }
  return out +
         "\nscoreprior help FAMILY [NAME] says more; scoreprior COMMAND --help lists a command's "
         "tables.\n";
}

std::string help_family(const std::string& family, const std::string& name) {
  const auto families = help_catalogues();
  const HelpFamily& f = family_called(families, family);
  std::string out;
  if (name.empty()) {
    for (const auto& e : f.entries) out += padded(e.name, 20) + e.help + "\n";
    return out + "\nscoreprior help " + f.name + " NAME lists the settings of one.\n";
  }
  std::vector<std::string> known;
  for (const auto& e : f.entries) {
    known.push_back(e.name);
    if (e.name != name) continue;
    const Config root;
    Config table = root;
    for (size_t begin = 0, dot; begin <= f.table.size(); begin = dot + 1) {
      dot = std::min(f.table.find('.', begin), f.table.size());
      table = table.table(f.table.substr(begin, dot - begin));
    }
    table.get<std::string>("name", e.name, e.help);
    const std::string needs = settings_read(table, e.read);
    return root.to_toml() + (needs.empty() ? "" : "\n# " + needs + "\n");
  }
  const std::string near = did_you_mean(name, known);
  throw UsageError(
      "unknown " + f.name + " \"" + name + "\"" +
      (near.empty() ? "; see scoreprior help " + f.name : "; did you mean \"" + near + "\"?"));
}

std::string help_command(const std::string& command) {
  const auto families = help_catalogues();
  std::string needs;
  const auto need = [&](const std::string& what) {
    if (!what.empty()) needs += "# " + what + "\n";
  };
  const auto component = [&](const Config& table, const char* family, const char* name) {
    need(name_one(table, family_called(families, family), name));
  };
  const Config root;
  root.get<uint64_t>("seed", 0, "seed of every random choice");
  settings_read(root.table("run"), [](const Config& c) { make_session(c); });
  if (command == "run") {
    root.table("image").read<ImageOptions>();
    need(settings_read(root.table("data"), load_observation));
    root.table("data").read<VisibilityOptions>();
    component(root.table("prior"), "prior", "score_elbo");
    component(root.table("likelihood"), "likelihood", "interferometry");
    component(root.table("forward"), "forward", "identity");
    component(root.table("infer"), "infer", "dpi");
    root.table("report").read<ReportOptions>();
  } else if (command == "train") {
    component(root.table("data"), "data", "blackhole");
    component(root.table("model").table("net"), "net", "ncsnpp");
    settings_read(root.table("model").table("sde"), make_sde);
    const Config training = root.table("training");
    training.read<TrainingOptions>();
    training.read<DsmOptions>();
    training.read<AdamOptions>();
    root.table("sampling").read<SamplerOptions>();
  } else {
    SP_CHECK(command == "simulate", "help_command", "no tables of ", command);
    settings_read(root, read_simulation_settings);
  }
  return "Tables of CONFIG with their defaults (scoreprior help: the other components and "
         "theirs):\n\n" +
         root.to_toml() + (needs.empty() ? "" : "\n# Still missing:\n" + needs);
}

}  // namespace scoreprior
