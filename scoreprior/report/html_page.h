#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace scoreprior::report {

/// How good a statement is news.
enum class Level { kGood, kNeutral, kWarning, kBad };

struct Statement {
  Level level = Level::kNeutral;
  std::string sentence;
};

/// Cells are text; the first column is a row's name, the others are set in figures.
struct Table {
  std::string title, note;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};

/// A page in one file: no scripts, no other resources; light, printable, readable on a phone.
/// Arguments called `markup` are SVG or HTML made by this module; all others are plain text and are
/// escaped.
class HtmlPage {
 public:
  HtmlPage(const std::string& title, const std::string& subtitle);

  HtmlPage& section(const std::string& title, const std::string& introduction = "");
  HtmlPage& paragraph(const std::string& text);
  HtmlPage& statements(const std::vector<Statement>& statements);
  HtmlPage& table(const Table& table);
  HtmlPage& preformatted(const std::string& text);
  /// Figures between begin_grid and end_grid share rows of at most `columns` (2, 3 or 8), each at
  /// least `min_width` CSS pixels wide.
  HtmlPage& begin_grid(int columns, int min_width);
  HtmlPage& figure(const std::string& markup, const std::string& caption = "");
  HtmlPage& end_grid();

  /// The whole document.
  std::string html() const;

 private:
  std::string title_, subtitle_, body_;
  std::vector<std::pair<std::string, std::string>> sections_;  // id, title
};

}  // namespace scoreprior::report
