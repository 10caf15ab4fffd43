#pragma once
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "scoreprior/core/observer.h"

namespace scoreprior {

/// What one progress display knows of its stage.
struct ProgressState {
  std::string stage, unit;
  int64_t done = 0, total = 0;  ///< total 0 = unknown
  double seconds = 0;           ///< since the stage began
  double rate = 0;              ///< units per second, 0 = not known yet
  Metrics metrics;
};

/// One line of at most `columns` columns, e.g. "train ━━━━──── 42% 420/1000 steps 12.3/s 0:47 left
/// loss 0.0123". Parts that do not fit are left out, the least useful first; text is cut between
/// characters, never inside one.
std::string format_progress(const ProgressState& state, int columns, bool utf8);

struct ProgressOptions {
  bool quiet = false;  ///< no bars and no notes
  std::FILE* stream = stderr;
  double bar_interval = 0.1;  ///< [s] between redraws on a terminal
  double line_interval = 5;   ///< [s] between plain lines elsewhere
};

/// The program's Observer: a progress bar on a terminal, now and then a plain line elsewhere.
/// Stages may nest; the innermost is shown. stop_requested() is true after the first Ctrl-C (see
/// watch_interrupts).
class TerminalProgress : public Observer {
 public:
  explicit TerminalProgress(ProgressOptions options = {});
  ~TerminalProgress() override;

  void begin(const std::string& stage, int64_t total, const std::string& unit = "steps") override;
  void step(int64_t done, const Metrics& metrics) override;
  void end() override;
  void note(const std::string& sentence) override;
  bool stop_requested() const override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Stage {
    ProgressState state;
    Clock::time_point start, last_shown, rate_time;
    int64_t first = -1, rate_done = 0;  // first: where a resumed stage started
    bool shown = false;
  };
  void show(Stage& stage, bool last);
  void erase();

  ProgressOptions options_;
  bool terminal_ = false, utf8_ = false, drawn_ = false;
  std::vector<Stage> stages_;
};

/// SIGINT and SIGTERM ask running work to stop and save; a second one ends the program at once.
/// Call once in main().
void watch_interrupts();
/// True once the user asked to stop.
bool interrupted();

}  // namespace scoreprior
