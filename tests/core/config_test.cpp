#include "scoreprior/core/config.h"

#include <gtest/gtest.h>

#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

struct WidgetOptions {
  int64_t width = 3;
  double scale = 0.5;
  std::string name = "widget";
  template <class F>
  void fields(F&& f) {
    f("width", width, "side [pixels]");
    f("scale", scale, "gain");
    f("name", name, "label");
  }
};

std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return std::to_string(e.exit_code()) + " " + e.what();
  }
  return "no error";
}

}  // namespace

TEST(Config, ReadsOptionsAndKeepsDefaults) {
  Config c = io::parse_toml("[w]\nwidth = 7\nscale = 2\n", "run.toml");
  const auto o = c.table("w").read<WidgetOptions>();
  EXPECT_EQ(o.width, 7);
  EXPECT_EQ(o.scale, 2.0);
  EXPECT_EQ(o.name, "widget");
  EXPECT_NO_THROW(c.require_all_used());
  const Config again = io::parse_toml(c.to_toml());
  EXPECT_EQ(again.table("w").get<std::string>("name"), "widget");
  EXPECT_EQ(again.table("w").get<double>("scale"), 2.0);
}

TEST(Config, UnknownKeyNamesFileLineAndNeighbour) {
  Config c = io::parse_toml("[w]\nwidht = 7\n", "run.toml");
  c.table("w").read<WidgetOptions>();
  EXPECT_EQ(message([&] { c.require_all_used(); }),
            "78 run.toml:2: unknown key \"widht\" in [w]; did you mean \"width\"?");
}

TEST(Config, WrongTypeIsOneSentence) {
  Config c = io::parse_toml("[w]\nwidth = \"wide\"\n", "run.toml");
  EXPECT_EQ(message([&] { c.table("w").read<WidgetOptions>(); }),
            "78 run.toml:2: \"width\" in [w]: expected an integer, got a string");
}

TEST(Config, OverridesReachEveryKey) {
  Config c = io::parse_toml("[w]\nwidth = 7\n", "run.toml");
  io::apply_overrides(c, {"w.width=9", "w.name=abc", "x.y=[1, 2]"});
  EXPECT_EQ(c.table("w").get<int64_t>("width"), 9);
  EXPECT_EQ(c.table("w").get<std::string>("name"), "abc");
  EXPECT_EQ(message([&] { c.require_all_used(); }), "78 unknown key \"x\"");
  EXPECT_EQ(message([&] { io::apply_override(c, "novalue"); }),
            "64 expected key=value, got \"novalue\"");
}

TEST(Config, SyntaxErrorHasALine) {
  const std::string m = message([] { io::parse_toml("a = 1\nb = = 2\n", "run.toml"); });
  EXPECT_EQ(m.substr(0, 14), "78 run.toml:2:") << m;
}

}  // namespace scoreprior
