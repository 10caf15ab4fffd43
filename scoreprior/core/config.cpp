#include "scoreprior/core/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace scoreprior {
namespace {

using Table = std::map<std::string, ConfigNodePtr>;

const char* type_name(const ConfigNode& n) {
  static const char* const names[] = {"nothing",  "a boolean", "an integer", "a number",
                                      "a string", "an array",  "a table"};
  return names[n.value.index()];
}

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else
      out += c;
  }
  return out + "\"";
}

std::string number_text(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto r = std::to_chars(buffer, buffer + sizeof buffer, v);
  std::string s(buffer, r.ptr);
  if (s.find_first_of(".e") == std::string::npos) s += ".0";
  return s;
}

std::string value_text(const ConfigNode& n) {
  if (auto b = std::get_if<bool>(&n.value)) return *b ? "true" : "false";
  if (auto i = std::get_if<int64_t>(&n.value)) return std::to_string(*i);
  if (auto d = std::get_if<double>(&n.value)) return number_text(*d);
  if (auto s = std::get_if<std::string>(&n.value)) return quoted(*s);
  if (auto a = std::get_if<ConfigArray>(&n.value)) {
    std::string s = "[";
    for (size_t k = 0; k < a->size(); ++k) s += (k ? ", " : "") + value_text(*(*a)[k]);
    return s + "]";
  }
  return "\"\"";
}

bool bare_key(const std::string& k) {
  return !k.empty() && std::all_of(k.begin(), k.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-';
  });
}

std::vector<std::pair<std::string, ConfigNode*>> in_order(const Table& t) {
  std::vector<std::pair<std::string, ConfigNode*>> v;
  for (const auto& [k, n] : t) v.emplace_back(k, n.get());
  std::stable_sort(v.begin(), v.end(),
                   [](auto& a, auto& b) { return a.second->order < b.second->order; });
  return v;
}

void write_table(const Table& table, const std::string& path, std::string& out) {
  std::string body;
  for (const auto& [key, node] : in_order(table)) {
    if (std::holds_alternative<Table>(node->value)) continue;
    std::string line = (bare_key(key) ? key : quoted(key)) + " = " + value_text(*node);
    if (!node->help.empty()) {
      if (line.size() < 32) line.resize(32, ' ');
      line += "  # " + node->help;
    }
    body += line + "\n";
  }
  if (!body.empty()) {
    if (!path.empty()) out += (out.empty() ? "[" : "\n[") + path + "]\n";
    out += body;
  }
  for (const auto& [key, node] : in_order(table))
    if (auto sub = std::get_if<Table>(&node->value))
      write_table(*sub, (path.empty() ? "" : path + ".") + (bare_key(key) ? key : quoted(key)),
                  out);
}

void mark_all(const ConfigNode& n) {
  const_cast<ConfigNode&>(n).used = true;
  if (auto t = std::get_if<Table>(&n.value))
    for (const auto& [k, child] : *t) mark_all(*child);
}

void check_used(const Table& table, const std::string& path) {
  std::vector<std::string> known;
  for (const auto& [k, n] : table)
    if (n->used) known.push_back(k);
  for (const auto& [key, node] : in_order(table)) {
    const std::string place = path.empty() ? "" : " in [" + path + "]";
    if (!node->used) {
      std::vector<std::string> candidates;
      for (const auto& k : known)
        if (k != key) candidates.push_back(k);
      const std::string near = did_you_mean(key, candidates);
      throw ConfigError(node->loc, "unknown key \"" + key + "\"" + place +
                                       (near.empty() ? "" : "; did you mean \"" + near + "\"?"));
    }
    if (auto sub = std::get_if<Table>(&node->value))
      check_used(*sub, (path.empty() ? "" : path + ".") + key);
  }
}

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::min((word.size() + 2) / 3 + 1, word.size());
  for (const auto& k : known) {
    std::vector<size_t> row(k.size() + 1);
    for (size_t j = 0; j <= k.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= k.size(); ++j) {
        const size_t up = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] != k[j - 1])});
        diagonal = up;
      }
    }
    if (row[k.size()] < best_distance) {
      best_distance = row[k.size()];
      best = k;
    }
  }
  return best;
}

Config::Config() : root_(std::make_shared<ConfigNode>()) { root_->value = Table{}; }
Config::Config(ConfigNodePtr root, std::string path)
    : root_(std::move(root)), path_(std::move(path)) {}

std::string Config::full_name(const std::string& key) const {
  return "\"" + key + "\"" + (path_.empty() ? "" : " in [" + path_ + "]");
}

ConfigNode* Config::lookup(const std::string& key) const {
  auto& table = std::get<Table>(root_->value);
  const auto it = table.find(key);
  if (it == table.end()) return nullptr;
  it->second->used = true;
  return it->second.get();
}

bool Config::has(const std::string& key) const {
  const auto& t = std::get<Table>(root_->value);
  const auto it = t.find(key);
  return it != t.end() && !it->second->is_default;
}

Config Config::table(const std::string& key) const {
  const std::string path = path_.empty() ? key : path_ + "." + key;
  auto& table = std::get<Table>(root_->value);
  auto it = table.find(key);
  if (it == table.end()) {
    auto node = std::make_shared<ConfigNode>();
    node->value = Table{};
    node->used = node->is_default = true;
    node->order = 1000 + static_cast<int>(table.size());
    node->loc = root_->loc;
    it = table.emplace(key, node).first;
  }
  it->second->used = true;
  if (!std::holds_alternative<Table>(it->second->value))
    throw ConfigError(it->second->loc,
                      "expected a table [" + path + "], got " + type_name(*it->second));
  return Config(it->second, path);
}

bool Config::is_table(const std::string& key) const {
  const auto& t = std::get<Table>(root_->value);
  const auto it = t.find(key);
  return it != t.end() && std::holds_alternative<Table>(it->second->value);
}
bool Config::is_number(const std::string& key) const {
  const auto& t = std::get<Table>(root_->value);
  const auto it = t.find(key);
  return it != t.end() && (std::holds_alternative<double>(it->second->value) ||
                           std::holds_alternative<int64_t>(it->second->value));
}
bool Config::is_string(const std::string& key) const {
  const auto& t = std::get<Table>(root_->value);
  const auto it = t.find(key);
  return it != t.end() && std::holds_alternative<std::string>(it->second->value);
}
std::vector<std::string> Config::keys() const {
  std::vector<std::string> out;
  for (const auto& [k, n] : in_order(std::get<Table>(root_->value))) out.push_back(k);
  return out;
}

FileLoc Config::loc(const std::string& key) const {
  if (!key.empty()) {
    const auto& t = std::get<Table>(root_->value);
    const auto it = t.find(key);
    if (it != t.end()) return it->second->loc;
  }
  return root_->loc;
}

void Config::fail(const std::string& key, const std::string& message) const {
  throw ConfigError(loc(key), (key.empty() ? "" : full_name(key) + ": ") + message);
}

std::string Config::one_of(const std::string& key, const std::string& fallback,
                           const std::vector<std::string>& allowed) const {
  std::string help;
  for (const auto& a : allowed) help += (help.empty() ? "" : " | ") + a;
  const std::string v = get<std::string>(key, fallback, help);
  if (std::find(allowed.begin(), allowed.end(), v) == allowed.end())
    fail(key, "expected one of " + help + ", got \"" + v + "\"");
  return v;
}

namespace {
[[noreturn]] void wrong_type(const ConfigNode& n, const std::string& name, const char* wanted) {
  throw ConfigError(n.loc, name + ": expected " + wanted + ", got " + type_name(n));
}
}  // namespace

bool Config::find(const std::string& key, bool& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  if (auto v = std::get_if<bool>(&n->value)) return out = *v, true;
  wrong_type(*n, full_name(key), "true or false");
}
bool Config::find(const std::string& key, int64_t& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  if (auto v = std::get_if<int64_t>(&n->value)) return out = *v, true;
  wrong_type(*n, full_name(key), "an integer");
}
bool Config::find(const std::string& key, int& out) const {
  int64_t wide = 0;
  if (!find(key, wide)) return false;
  if (wide != static_cast<int>(wide)) fail(key, "integer out of range");
  out = static_cast<int>(wide);
  return true;
}
bool Config::find(const std::string& key, uint64_t& out) const {
  int64_t wide = 0;
  if (!find(key, wide)) return false;
  if (wide < 0) fail(key, "expected a non-negative integer");
  out = static_cast<uint64_t>(wide);
  return true;
}
bool Config::find(const std::string& key, double& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  if (auto v = std::get_if<double>(&n->value)) return out = *v, true;
  if (auto v = std::get_if<int64_t>(&n->value)) return out = static_cast<double>(*v), true;
  wrong_type(*n, full_name(key), "a number");
}
bool Config::find(const std::string& key, std::string& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  if (auto v = std::get_if<std::string>(&n->value)) return out = *v, true;
  wrong_type(*n, full_name(key), "a string");
}
bool Config::find(const std::string& key, std::filesystem::path& out) const {
  std::string s;
  if (!find(key, s)) return false;
  ConfigNode* n = lookup(key);
  out = s;
  if (s.empty()) return true;
  if (out.is_relative() && n->loc.line > 0)
    out = std::filesystem::path(n->loc.file).parent_path() / out;
  // Absolute from here on, so that a written configuration means the same from any folder.
  out = std::filesystem::absolute(out).lexically_normal();
  n->value = out.string();
  return true;
}
bool Config::find(const std::string& key, std::vector<int64_t>& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  auto a = std::get_if<ConfigArray>(&n->value);
  if (!a) wrong_type(*n, full_name(key), "an array of integers");
  out.clear();
  for (const auto& e : *a) {
    auto v = std::get_if<int64_t>(&e->value);
    if (!v) wrong_type(*e, full_name(key), "an array of integers");
    out.push_back(*v);
  }
  return true;
}
bool Config::find(const std::string& key, std::vector<double>& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  auto a = std::get_if<ConfigArray>(&n->value);
  if (!a) wrong_type(*n, full_name(key), "an array of numbers");
  out.clear();
  for (const auto& e : *a) {
    if (auto v = std::get_if<double>(&e->value))
      out.push_back(*v);
    else if (auto i = std::get_if<int64_t>(&e->value))
      out.push_back(static_cast<double>(*i));
    else
      wrong_type(*e, full_name(key), "an array of numbers");
  }
  return true;
}
bool Config::find(const std::string& key, std::vector<std::string>& out) const {
  ConfigNode* n = lookup(key);
  if (!n) return false;
  auto a = std::get_if<ConfigArray>(&n->value);
  if (!a) wrong_type(*n, full_name(key), "an array of strings");
  out.clear();
  for (const auto& e : *a) {
    auto v = std::get_if<std::string>(&e->value);
    if (!v) wrong_type(*e, full_name(key), "an array of strings");
    out.push_back(*v);
  }
  return true;
}

void Config::annotate(const std::string& key, const std::string& help) const {
  if (ConfigNode* n = lookup(key); n && n->help.empty()) n->help = help;
}

void Config::remember(const std::string& key, decltype(ConfigNode::value) value,
                      const std::string& help) const {
  auto& table = std::get<Table>(root_->value);
  auto node = std::make_shared<ConfigNode>();
  node->value = std::move(value);
  node->used = node->is_default = true;
  node->help = help;
  node->loc = {root_->loc.file, 0};
  node->order = 1000 + static_cast<int>(table.size());
  table.emplace(key, node);
}

void Config::remember_default(const std::string& key, bool v, const std::string& help) const {
  remember(key, v, help);
}
void Config::remember_default(const std::string& key, int v, const std::string& help) const {
  remember(key, int64_t{v}, help);
}
void Config::remember_default(const std::string& key, int64_t v, const std::string& help) const {
  remember(key, v, help);
}
void Config::remember_default(const std::string& key, uint64_t v, const std::string& help) const {
  remember(key, static_cast<int64_t>(v), help);
}
void Config::remember_default(const std::string& key, double v, const std::string& help) const {
  remember(key, v, help);
}
void Config::remember_default(const std::string& key, const std::string& v,
                              const std::string& help) const {
  remember(key, v, help);
}
void Config::remember_default(const std::string& key, const std::filesystem::path& v,
                              const std::string& help) const {
  remember(key, v.string(), help);
}
namespace {
template <class T>
ConfigArray to_array(const std::vector<T>& v) {
  ConfigArray a;
  for (const auto& e : v) {
    auto n = std::make_shared<ConfigNode>();
    n->value = e;
    a.push_back(n);
  }
  return a;
}
}  // namespace
void Config::remember_default(const std::string& key, const std::vector<int64_t>& v,
                              const std::string& help) const {
  remember(key, to_array(v), help);
}
void Config::remember_default(const std::string& key, const std::vector<double>& v,
                              const std::string& help) const {
  remember(key, to_array(v), help);
}
void Config::remember_default(const std::string& key, const std::vector<std::string>& v,
                              const std::string& help) const {
  remember(key, to_array(v), help);
}

void Config::set(const std::string& dotted_key, ConfigNodePtr value) {
  Config at = *this;
  size_t begin = 0;
  for (size_t dot; (dot = dotted_key.find('.', begin)) != std::string::npos; begin = dot + 1) {
    const std::string key = dotted_key.substr(begin, dot - begin);
    if (key.empty()) throw UsageError("empty key in \"" + dotted_key + "\"");
    const bool present = at.has(key);
    at = at.table(key);
    if (!present) at.root_->loc = {};
    at.root_->used = present && at.root_->used;
    at.root_->is_default = false;
  }
  const std::string last = dotted_key.substr(begin);
  if (last.empty()) throw UsageError("empty key in \"" + dotted_key + "\"");
  auto& table = std::get<Table>(at.root_->value);
  value->order = table.count(last) ? table[last]->order : 500 + static_cast<int>(table.size());
  table[last] = std::move(value);
}

void Config::require_all_used() const { check_used(std::get<Table>(root_->value), path_); }
void Config::mark_used() const { mark_all(*root_); }

std::string Config::to_toml() const {
  std::string out;
  write_table(std::get<Table>(root_->value), "", out);
  return out;
}

}  // namespace scoreprior
