#include "apps/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>

namespace scoreprior {
namespace {

volatile std::sig_atomic_t stop_asked = 0;

extern "C" void ask_to_stop(int signal) {
  if (stop_asked) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  stop_asked = 1;
  static constexpr char kText[] = "\nStopping after this step; once more to stop at once.\n";
  const ssize_t ignored = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  (void)ignored;
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (!value || !*value) continue;
    std::string s(value);
    for (char& c : s) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s.find("utf-8") != std::string::npos || s.find("utf8") != std::string::npos;
  }
  return false;
}

int terminal_columns(std::FILE* stream) {
  winsize size{};
  if (::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  if (const char* columns = std::getenv("COLUMNS")) {
    const int n = std::atoi(columns);
    if (n > 0) return n;
  }
  return 80;
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// One column per code point: right for everything this program prints itself.
int columns_of(const std::string& s) {
  return static_cast<int>(
      std::count_if(s.begin(), s.end(), [](char c) { return !continues_character(c); }));
}

std::string cut(const std::string& s, int columns) {
  size_t i = 0;
  for (int n = 0; i < s.size(); ++n) {
    if (n == columns) return s.substr(0, i);
    ++i;
    while (i < s.size() && continues_character(s[i])) ++i;
  }
  return s;
}

// A stage name or metric may hold anything; a control character would break the one-line display.
std::string printable(std::string s) {
  for (char& c : s)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = ' ';
  return s;
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 3.2e8) return "?";
  const auto s = static_cast<long long>(seconds + 0.5);
  char text[48];
  if (s < 3600)
    std::snprintf(text, sizeof text, "%lld:%02lld", s / 60, s % 60);
  else if (s < 86400)
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  else
    std::snprintf(text, sizeof text, "%lldd %lldh", s / 86400, s / 3600 % 24);
  return text;
}

std::string short_number(double v) {
  char text[32];
  const double size = std::abs(v);
  const bool plain = v == 0 || (size >= 1e-3 && size < 1e6);
  std::snprintf(text, sizeof text, plain ? "%.4g" : "%.2e", v);
  return text;
}

std::string rate_text(const ProgressState& s) {
  if (!(s.rate > 0)) return "";
  if (s.rate >= 0.1) return short_number(s.rate) + "/s";
  return duration(1 / s.rate) + " each";
}

}  // namespace

std::string format_progress(const ProgressState& s, int columns, bool utf8) {
  const bool known = s.total > 0;
  const double part = known ? std::clamp(double(s.done) / double(s.total), 0.0, 1.0) : 0;
  std::string count = std::to_string(s.done);
  if (known) count += "/" + std::to_string(s.total);
  const std::string eta = known && s.rate > 0 && s.done < s.total
                              ? duration(double(s.total - s.done) / s.rate) + " left"
                              : "";
  const std::string percent =
      known ? std::to_string(static_cast<int>(std::floor(100 * part))) + "%" : "";

  std::string line = cut(printable(s.stage), std::max(columns, 0));
  const auto room = [&] { return columns - columns_of(line); };
  const auto add = [&](const std::string& text) {
    if (!text.empty() && columns_of(text) + 1 <= room()) line += " " + text;
  };
  // In the order of their worth: what is added first is what a narrow terminal keeps.
  constexpr int kBarColumns = 24;
  const int wanted = columns_of(percent + count + eta) + kBarColumns + 4;
  if (known && room() >= wanted) {
    const int full = static_cast<int>(std::lround(kBarColumns * part));
    std::string bar;
    for (int i = 0; i < kBarColumns; ++i) bar += i < full ? (utf8 ? "━" : "#") : (utf8 ? "─" : "-");
    add(bar);
  }
  add(percent);
  add(eta.empty() ? duration(s.seconds) : eta);
  add(s.unit.empty() ? count : count + " " + printable(s.unit));
  add(rate_text(s));
  for (const auto& [name, value] : s.metrics) add(printable(name) + " " + short_number(value));
  return line;
}

TerminalProgress::TerminalProgress(ProgressOptions options) : options_(options) {
  const char* term = std::getenv("TERM");
  terminal_ = ::isatty(::fileno(options_.stream)) && term && std::strcmp(term, "dumb") != 0;
  utf8_ = locale_is_utf8();
}

TerminalProgress::~TerminalProgress() { erase(); }

void TerminalProgress::erase() {
  if (!drawn_) return;
  std::fputs("\r\x1b[2K", options_.stream);
  std::fflush(options_.stream);
  drawn_ = false;
}

void TerminalProgress::begin(const std::string& stage, int64_t total, const std::string& unit) {
  Stage s;
  s.state.stage = stage;
  s.state.total = total;
  s.state.unit = unit;
  s.start = s.last_shown = s.rate_time = Clock::now();
  stages_.push_back(std::move(s));
}

void TerminalProgress::step(int64_t done, const Metrics& metrics) {
  if (options_.quiet || stages_.empty()) return;
  Stage& s = stages_.back();
  const auto now = Clock::now();
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  if (s.first < 0) {
    // A resumed stage reports a large count at once: time only what this process does.
    const bool fresh = done <= 1;
    s.first = s.rate_done = fresh ? 0 : done;
    if (!fresh) s.rate_time = now;
  }
  s.state.done = done;
  if (!metrics.empty()) s.state.metrics = metrics;
  s.state.seconds = seconds(now - s.start);
  const double span = seconds(now - s.rate_time);
  if (done > s.rate_done && span > 0.5) {
    const double rate = double(done - s.rate_done) / span;
    // About 10 s of memory, whatever the step takes.
    const double keep = s.state.rate > 0 ? std::exp(-span / 10) : 0;
    s.state.rate = keep * s.state.rate + (1 - keep) * rate;
    s.rate_time = now;
    s.rate_done = done;
  }
  const double interval = terminal_ ? options_.bar_interval : options_.line_interval;
  if (seconds(now - s.last_shown) >= interval) show(s, false);
}

void TerminalProgress::show(Stage& stage, bool last) {
  stage.last_shown = Clock::now();
  stage.shown = true;
  if (terminal_) {
    // The last column stays free: some terminals wrap when it is filled.
    const int columns = terminal_columns(options_.stream) - 1;
    const std::string line = format_progress(stage.state, columns, utf8_);
    std::fprintf(options_.stream, "\r\x1b[2K%s%s", line.c_str(), last ? "\n" : "");
    drawn_ = !last;
  } else {
    std::fprintf(options_.stream, "%s\n", format_progress(stage.state, 160, utf8_).c_str());
  }
  std::fflush(options_.stream);
}

void TerminalProgress::end() {
  if (stages_.empty()) return;
  Stage stage = std::move(stages_.back());
  stages_.pop_back();
  if (options_.quiet) return;
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - stage.start).count();
  stage.state.seconds = seconds;
  if (stage.state.done > 0 && seconds > 0 && stage.first >= 0)
    stage.state.rate = double(stage.state.done - stage.first) / seconds;
  // A stage too short to be seen is not worth a line.
  if (stage.shown || seconds >= 1)
    show(stage, true);
  else
    erase();
}

void TerminalProgress::note(const std::string& sentence) {
  if (options_.quiet) return;
  erase();
  std::fprintf(options_.stream, "%s\n", sentence.c_str());
  std::fflush(options_.stream);
  if (terminal_ && !stages_.empty() && stages_.back().shown) show(stages_.back(), false);
}

bool TerminalProgress::stop_requested() const { return interrupted(); }

void watch_interrupts() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return stop_asked != 0; }

}  // namespace scoreprior
