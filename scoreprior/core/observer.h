#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace scoreprior {

using Metrics = std::vector<std::pair<std::string, double>>;

/// The one way out for progress: algorithms call it, the program draws a bar, writes JSONL, or
/// stays quiet.
class Observer {
 public:
  virtual ~Observer() = default;
  /// A stage of `total` steps begins (0 = unknown); `unit` names what is counted, e.g. "images".
  virtual void begin(const std::string& stage, int64_t total, const std::string& unit = "steps") {}
  /// `done` of the stage's steps are finished; metrics may be empty.
  virtual void step(int64_t done, const Metrics& metrics) {}
  virtual void end() {}
  /// One sentence a person should read.
  virtual void note(const std::string& sentence) {}
  /// True once the user asked to stop (Ctrl-C); algorithms finish the step, save, and return.
  virtual bool stop_requested() const { return false; }
};

}  // namespace scoreprior
