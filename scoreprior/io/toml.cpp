#include "scoreprior/io/toml.h"

#include <toml++/toml.h>

#include <cctype>

#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

ConfigNodePtr from_toml(const toml::node& in, const std::string& file) {
  auto out = std::make_shared<ConfigNode>();
  out->loc = {file, static_cast<int>(in.source().begin.line)};
  out->order = out->loc.line;
  if (auto t = in.as_table()) {
    std::map<std::string, ConfigNodePtr> table;
    for (const auto& [key, node] : *t) table[std::string(key.str())] = from_toml(node, file);
    out->value = std::move(table);
  } else if (auto a = in.as_array()) {
    ConfigArray array;
    for (const auto& node : *a) array.push_back(from_toml(node, file));
    out->value = std::move(array);
  } else if (auto b = in.as_boolean()) {
    out->value = b->get();
  } else if (auto i = in.as_integer()) {
    out->value = int64_t{i->get()};
  } else if (auto d = in.as_floating_point()) {
    out->value = d->get();
  } else if (auto s = in.as_string()) {
    out->value = s->get();
  } else {
    throw ConfigError(out->loc, "dates and times are not used here");
  }
  return out;
}

Config parse(const std::string& text, const std::string& file) {
  try {
    const toml::table root = toml::parse(text, file);
    auto node = from_toml(root, file);
    node->loc = {file, 0};
    return Config(node);
  } catch (const toml::parse_error& e) {
    throw ConfigError(
        {file.empty() ? "configuration" : file, static_cast<int>(e.source().begin.line)},
        std::string(e.description()));
  }
}

void forget_location(ConfigNode& node) {
  node.loc = {"", 0};
  if (auto a = std::get_if<ConfigArray>(&node.value))
    for (auto& e : *a) forget_location(*e);
  if (auto t = std::get_if<std::map<std::string, ConfigNodePtr>>(&node.value))
    for (auto& [k, e] : *t) forget_location(*e);
}

}  // namespace

Config read_toml(const std::filesystem::path& path) {
  require_file(path, "configuration file");
  return parse(read_text(path), path.string());
}

Config parse_toml(const std::string& text, const std::string& name) { return parse(text, name); }

void apply_override(Config& config, const std::string& assignment) {
  const size_t eq = assignment.find('=');
  if (eq == std::string::npos || eq == 0)
    throw UsageError("expected key=value, got \"" + assignment + "\"");
  const std::string key = assignment.substr(0, eq), text = assignment.substr(eq + 1);
  ConfigNodePtr value;
  try {
    const toml::table t = toml::parse("v = " + text);
    if (t.size() == 1) value = from_toml(*t.get("v"), "");
  } catch (const toml::parse_error&) {
  }
  if (!value) {  // a bare word: model=my.safetensors
    value = std::make_shared<ConfigNode>();
    value->value = text;
  }
  forget_location(*value);
  config.set(key, value);
}

void apply_overrides(Config& config, const std::vector<std::string>& assignments) {
  for (const auto& a : assignments) apply_override(config, a);
}

}  // namespace scoreprior::io
