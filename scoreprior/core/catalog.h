#pragma once
/// A family of components by name. A family's entries are the lines of its `catalog.def`:
///
///   SP_ENTRY(box_blur, make_box_blur, "mean over a square window")
///
/// which its catalog.cpp expands twice: once to declare the makers, once to insert them.
/// Out-of-tree code adds its own with `forward_models().add("mine", "...", make_mine)` before it
/// calls run_cli.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "scoreprior/core/config.h"

namespace scoreprior {

template <class Interface, class... Extra>
class Catalog {
 public:
  using Maker = std::function<std::unique_ptr<Interface>(const Config&, Extra...)>;
  struct Entry {
    std::string name, help;
    Maker make;
  };

  explicit Catalog(std::string family) : family_(std::move(family)) {}

  void add(const std::string& name, const std::string& help, Maker make) {
    for (auto& e : entries_)
      if (e.name == name) {
        e = {name, help, std::move(make)};
        return;
      }
    entries_.push_back({name, help, std::move(make)});
  }

  /// The component that the table's key `name` asks for (`fallback` when the table does not say).
  std::unique_ptr<Interface> make(const Config& config, const std::string& fallback,
                                  Extra... extra) const {
    const std::string name = config.get<std::string>("name", fallback);
    for (const auto& e : entries_)
      if (e.name == name) return e.make(config, std::forward<Extra>(extra)...);
    std::string known;
    for (const auto& n : names()) known += (known.empty() ? "" : ", ") + n;
    const std::string near = did_you_mean(name, names());
    config.fail("name", "unknown " + family_ + " \"" + name + "\"" +
                            (near.empty() ? " (known: " + known + ")"
                                          : "; did you mean \"" + near + "\"?"));
  }

  std::vector<std::string> names() const {
    std::vector<std::string> v;
    for (const auto& e : entries_) v.push_back(e.name);
    return v;
  }
  const std::vector<Entry>& entries() const { return entries_; }
  const std::string& family() const { return family_; }

 private:
  std::string family_;
  std::vector<Entry> entries_;
};

}  // namespace scoreprior
