#pragma once
/// A tree of settings that remembers where each was written, which were read, and with which
/// defaults.
///
/// Options are plain structs that declare each parameter once:
///
///   struct BoxBlurOptions {
///     int64_t width = 3;
///     template <class F> void fields(F&& f) { f("width", width, "side of the window [pixels],
///     odd"); }
///   };
///   auto options = config.read<BoxBlurOptions>();
///
/// Reading, `--help`, the resolved configuration and the docs are visitors of fields().

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {

struct ConfigNode;
using ConfigNodePtr = std::shared_ptr<ConfigNode>;
using ConfigArray = std::vector<ConfigNodePtr>;

/// One value as written. Integers read as doubles where a double is wanted, never the other way.
struct ConfigNode {
  std::variant<std::monostate, bool, int64_t, double, std::string, ConfigArray,
               std::map<std::string, ConfigNodePtr>>
      value;
  FileLoc loc;
  std::string help;  ///< filled by the option struct that read it
  bool used = false;
  bool is_default = false;  ///< put there by an option struct, not by the user
  int order = 0;            ///< position in its file, so that written files keep their order
};

class Config {
 public:
  Config();
  explicit Config(ConfigNodePtr root, std::string path = "");

  bool has(const std::string& key) const;
  /// The sub-table `key`; an empty one if it is absent.
  Config table(const std::string& key) const;
  bool is_table(const std::string& key) const;
  bool is_number(const std::string& key) const;
  bool is_string(const std::string& key) const;
  std::vector<std::string> keys() const;

  /// Throws ConfigError when absent or of another type. T: bool, int64_t, int, double, std::string,
  /// std::filesystem::path (relative to the file that names it), std::vector of int64_t, double,
  /// std::string.
  template <class T>
  T get(const std::string& key) const {
    T value{};
    if (!find(key, value)) throw ConfigError(loc(), "missing key " + full_name(key));
    return value;
  }
  template <class T>
  T get(const std::string& key, T fallback, const std::string& help = "") const {
    if (!find(key, fallback))
      remember_default(key, fallback, help);
    else
      annotate(key, help);
    return fallback;
  }
  /// Absent means nullopt.
  template <class T>
  std::optional<T> maybe(const std::string& key) const {
    T value{};
    if (!find(key, value)) return std::nullopt;
    return value;
  }

  /// An options struct filled from this table; absent keys keep their defaults (recorded for
  /// to_toml()).
  template <class Options>
  Options read(Options options = {}) const;

  /// ConfigError at the place of `key` (or of this table).
  [[noreturn]] void fail(const std::string& key, const std::string& message) const;
  /// The string value of key, which must be one of `allowed`.
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& allowed) const;

  /// Set "a.b.c" from the text of a TOML value (bare words are strings); used by key=value
  /// overrides.
  void set(const std::string& dotted_key, ConfigNodePtr value);

  /// ConfigError naming the first key that nobody read, with the nearest known key.
  void require_all_used() const;
  /// Marks every key below as read: for tables handed on verbatim.
  void mark_used() const;

  /// The resolved configuration: what was written plus the defaults that were read, as TOML.
  std::string to_toml() const;

  FileLoc loc(const std::string& key = "") const;
  const std::string& path() const { return path_; }
  std::string full_name(const std::string& key) const;  // `"width" in [forward]`
  const ConfigNodePtr& node() const { return root_; }

 private:
  ConfigNode* lookup(const std::string& key) const;
  bool find(const std::string& key, bool& out) const;
  bool find(const std::string& key, int& out) const;
  bool find(const std::string& key, int64_t& out) const;
  bool find(const std::string& key, uint64_t& out) const;
  bool find(const std::string& key, double& out) const;
  bool find(const std::string& key, std::string& out) const;
  bool find(const std::string& key, std::filesystem::path& out) const;
  bool find(const std::string& key, std::vector<int64_t>& out) const;
  bool find(const std::string& key, std::vector<double>& out) const;
  bool find(const std::string& key, std::vector<std::string>& out) const;
  void remember(const std::string& key, decltype(ConfigNode::value) value,
                const std::string& help) const;
  void annotate(const std::string& key, const std::string& help) const;

  void remember_default(const std::string& key, bool v, const std::string& help) const;
  void remember_default(const std::string& key, int v, const std::string& help) const;
  void remember_default(const std::string& key, int64_t v, const std::string& help) const;
  void remember_default(const std::string& key, uint64_t v, const std::string& help) const;
  void remember_default(const std::string& key, double v, const std::string& help) const;
  void remember_default(const std::string& key, const std::string& v,
                        const std::string& help) const;
  void remember_default(const std::string& key, const std::filesystem::path& v,
                        const std::string& help) const;
  void remember_default(const std::string& key, const std::vector<int64_t>& v,
                        const std::string& help) const;
  void remember_default(const std::string& key, const std::vector<double>& v,
                        const std::string& help) const;
  void remember_default(const std::string& key, const std::vector<std::string>& v,
                        const std::string& help) const;

  ConfigNodePtr root_;
  std::string path_;
};

template <class Options>
Options Config::read(Options options) const {
  options.fields([this](const char* key, auto& value, const char* help) {
    using T = std::decay_t<decltype(value)>;
    value = this->get<T>(key, value, help);
  });
  return options;
}

/// The word of `known` closest to `word` by edit distance, or "" when none is near.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& known);

}  // namespace scoreprior
