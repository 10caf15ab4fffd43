#include "apps/progress.h"

// The display lives with the program, which has no test binary of its own.
#include "apps/progress.cpp"

#include <gtest/gtest.h>

#include <functional>

namespace scoreprior {
namespace {

ProgressState half_way() {
  ProgressState s;
  s.stage = "train";
  s.unit = "steps";
  s.done = 500;
  s.total = 1000;
  s.rate = 10;
  s.seconds = 50;
  s.metrics = {{"loss", 0.12345}, {"lr", 2e-4}};
  return s;
}

std::string lines_of(const ProgressOptions& base,
                     const std::function<void(TerminalProgress&)>& work) {
  std::FILE* file = std::tmpfile();
  ProgressOptions o = base;
  o.stream = file;
  {
    TerminalProgress p(o);
    work(p);
  }
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

}  // namespace

TEST(Progress, SaysWhatMatters) {
  EXPECT_EQ(
      format_progress(half_way(), 120, false),
      "train ############------------ 50% 0:50 left 500/1000 steps 10/s loss 0.1235 lr 2.00e-04");
  ProgressState open = half_way();
  open.total = 0;
  EXPECT_EQ(format_progress(open, 120, false), "train 0:50 500 steps 10/s loss 0.1235 lr 2.00e-04");
  ProgressState slow = half_way();
  slow.rate = 0.01;
  EXPECT_NE(format_progress(slow, 120, false).find("1:40 each"), std::string::npos);
}

TEST(Progress, FitsAnyWidthWithoutCuttingCharacters) {
  ProgressState s = half_way();
  s.stage = "Träning µ";
  for (const bool utf8 : {false, true})
    for (int columns = 0; columns < 140; ++columns) {
      const std::string line = format_progress(s, columns, utf8);
      EXPECT_LE(columns_of(line), columns);
      size_t i = 0;  // every lead byte has all its continuation bytes
      while (i < line.size()) {
        const auto c = static_cast<unsigned char>(line[i]);
        size_t more = c < 0x80 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
        for (++i; more > 0; --more, ++i)
          ASSERT_TRUE(i < line.size() && continues_character(line[i]));
      }
    }
  s.stage = "two\nlines\x1b[31m";
  EXPECT_EQ(format_progress(s, 80, false).find_first_of("\n\x1b"), std::string::npos);
}

TEST(Progress, OffATerminalWritesPlainLinesNowAndThen) {
  ProgressOptions o;
  o.line_interval = 0;
  const std::string all = lines_of(o, [](TerminalProgress& p) {
    p.begin("sample", 3, "images");
    for (int i = 1; i <= 3; ++i) p.step(i, {});
    p.end();
    p.note("Done.");
  });
  EXPECT_EQ(all.find('\r'), std::string::npos);
  EXPECT_EQ(all.find('\x1b'), std::string::npos);
  EXPECT_NE(all.find("3/3 images"), std::string::npos);
  EXPECT_NE(all.find("Done.\n"), std::string::npos);
  o.line_interval = 5;
  const std::string few = lines_of(o, [](TerminalProgress& p) {
    p.begin("sample", 1000);
    for (int i = 1; i <= 1000; ++i) p.step(i, {});
    p.end();
  });
  EXPECT_EQ(few, "") << "a stage of a few milliseconds is not worth a line";
  o.quiet = true;
  o.line_interval = 0;
  EXPECT_EQ(lines_of(o,
                     [](TerminalProgress& p) {
                       p.begin("sample", 3);
                       p.step(1, {});
                       p.note("Hello.");
                       p.end();
                       p.end();
                     }),
            "");
}

TEST(Interrupts, TheFirstAsksTheSecondKills) {
  EXPECT_EXIT(
      {
        watch_interrupts();
        TerminalProgress p;
        if (p.stop_requested()) std::_Exit(1);
        std::raise(SIGINT);
        std::_Exit(p.stop_requested() ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "once more");
  EXPECT_EXIT(
      {
        watch_interrupts();
        std::raise(SIGINT);
        std::raise(SIGINT);
        std::_Exit(3);
      },
      ::testing::KilledBySignal(SIGINT), "");
}

}  // namespace scoreprior
