#include "scoreprior/pipeline/help.h"

#include <gtest/gtest.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/infer/inference.h"
#include "scoreprior/io/toml.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/pipeline/train.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

std::string usage_message(const std::string& family, const std::string& name) {
  try {
    help_family(family, name);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

TEST(Help, EveryEntryIsTomlWithItsName) {
  for (const auto& e : priors().entries()) {
    const Config c = io::parse_toml(help_family("prior", e.name));
    EXPECT_EQ(c.table("prior").get<std::string>("name"), e.name);
  }
  for (const auto& e : score_nets().entries()) {
    const Config c = io::parse_toml(help_family("net", e.name)).table("model").table("net");
    EXPECT_EQ(c.get<std::string>("name"), e.name);
    EXPECT_TRUE(c.has("nf"));
  }
  for (const auto& e : inferences().entries()) {
    const std::string page = help_family("infer", e.name);
    EXPECT_TRUE(io::parse_toml(page).table("infer").keys().size() > 3) << page;
  }
}

TEST(Help, SaysKeyDefaultAndMeaning) {
  const std::string page = help_family("prior", "score_elbo");
  EXPECT_NE(page.find("weight = 1.0"), std::string::npos) << page;
  EXPECT_NE(page.find("# factor on the bound"), std::string::npos) << page;
  EXPECT_NE(page.find("weights"), std::string::npos) << "the model file it cannot do without\n"
                                                     << page;
  EXPECT_NE(help_family("infer", "dpi").find("[infer.flow]"), std::string::npos);
}

TEST(Help, NamesThatDoNotExist) {
  EXPECT_NE(usage_message("priors", "").find("did you mean \"prior\""), std::string::npos);
  EXPECT_NE(usage_message("prior", "score_elb").find("did you mean \"score_elbo\""),
            std::string::npos);
  EXPECT_NE(usage_message("infer", "zzzzzzzz").find("see scoreprior help infer"),
            std::string::npos);
}

// The page of a command holds every key of its options, and is a configuration.
TEST(Help, CommandsShowTheirTables) {
  const auto tables = [](const std::string& command) {
    const std::string page = help_command(command);
    return io::parse_toml(page.substr(page.find("\n\n")));
  };
  const Config train = tables("train").table("training");
  TrainingOptions().fields(
      [&](const char* key, auto& value, const char* help) { EXPECT_TRUE(train.has(key)) << key; });
  EXPECT_EQ(train.get<int64_t>("steps"), TrainingOptions().steps);
  const Config run = tables("run");
  for (const char* name : {"run", "image", "data", "prior", "likelihood", "infer"})
    EXPECT_TRUE(run.has(name)) << name;
  EXPECT_TRUE(run.table("infer").has("flow"));
  const Config simulate = tables("simulate");
  EXPECT_TRUE(simulate.table("truth").has("index"));
  EXPECT_TRUE(simulate.table("observe").has("gain_std"));
}

}  // namespace
}  // namespace scoreprior
