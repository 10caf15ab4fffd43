#include "scoreprior/report/html_page.h"

#include "scoreprior/report/svg_plot.h"

namespace scoreprior::report {
namespace {

constexpr const char* kStyle = R"css(
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #d9dfe5; --wash: #f6f8fa; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 40px 0 6px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p { margin: 6px 0 12px; max-width: 75ch; }
.subtitle, .note, figcaption, nav, footer { color: var(--soft); }
.subtitle { margin-top: 4px; }
nav { font-size: .9rem; margin: 10px 0 0; }
nav a { color: #2b6cb0; text-decoration: none; margin-right: 1.1em; white-space: nowrap; }
nav a:hover, nav a:focus { text-decoration: underline; }
.note, figcaption { font-size: .85rem; }
ul.verdict { list-style: none; margin: 12px 0; padding: 0; border: 1px solid var(--line); border-radius: 8px; }
ul.verdict li { display: flex; gap: 12px; padding: 9px 14px; border-top: 1px solid var(--line); }
ul.verdict li:first-child { border-top: 0; }
ul.verdict b { flex: none; width: 5.4em; font-size: .8rem; line-height: 1.5rem; text-align: center;
  border-radius: 5px; align-self: flex-start; }
.good b { background: #def7e5; color: #1c5c32; } .neutral b { background: #e6ecf2; color: #364554; }
.warning b { background: #fdefc9; color: #6e4700; } .bad b { background: #fbdcdc; color: #8a1c1c; }
.grid { display: grid; align-items: start; margin: 12px 0; }
figure { margin: 0; break-inside: avoid; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figure img { image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { margin-top: 4px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: 4px 0 8px; break-inside: avoid; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 10px 0; }
footer { margin-top: 44px; padding-bottom: 30px; font-size: .85rem; }
@media (max-width: 520px) { main, header, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 1.35rem; } ul.verdict li { flex-direction: column; gap: 3px; } }
@media print { @page { margin: 14mm; } body { font-size: 10.5pt; } nav { display: none; }
  .grid.c2 { grid-template-columns: repeat(2, 1fr) !important; }
  .grid.c3 { grid-template-columns: repeat(3, 1fr) !important; }
  .grid.c8 { grid-template-columns: repeat(8, 1fr) !important; }
  .scroll { overflow: visible; } th, td { white-space: normal; padding-right: 8px; }
  h2, h3 { break-after: avoid; } main, header, footer { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
)css";

}  // namespace

HtmlPage::HtmlPage(const std::string& title, const std::string& subtitle)
    : title_(title), subtitle_(subtitle) {}

HtmlPage& HtmlPage::section(const std::string& title, const std::string& introduction) {
  if (!sections_.empty()) body_ += "</section>\n";
  const std::string id = "s" + std::to_string(sections_.size() + 1);
  sections_.emplace_back(id, title);
  body_ += "<section id=\"" + id + "\"><h2>" + escape_markup(title) + "</h2>\n";
  if (!introduction.empty()) paragraph(introduction);
  return *this;
}

HtmlPage& HtmlPage::paragraph(const std::string& text) {
  body_ += "<p>" + escape_markup(text) + "</p>\n";
  return *this;
}

HtmlPage& HtmlPage::statements(const std::vector<Statement>& statements) {
  if (statements.empty()) return *this;
  body_ += "<ul class=\"verdict\">\n";
  for (const Statement& s : statements) {
    const char* kind = "neutral";
    const char* word = "Note";
    switch (s.level) {
      case Level::kGood:
        kind = "good", word = "Good";
        break;
      case Level::kNeutral:
        break;
      case Level::kWarning:
        kind = "warning", word = "Caution";
        break;
      case Level::kBad:
        kind = "bad", word = "Problem";
        break;
    }
    body_ += std::string("<li class=\"") + kind + "\"><b>" + word + "</b><span>" +
             escape_markup(s.sentence) + "</span></li>\n";
  }
  body_ += "</ul>\n";
  return *this;
}

HtmlPage& HtmlPage::table(const Table& table) {
  body_ += "<div>";
  if (!table.title.empty()) body_ += "<h3>" + escape_markup(table.title) + "</h3>\n";
  body_ += table.columns.empty() ? "<div class=\"scroll\"><table class=\"facts\">\n"
                                 : "<div class=\"scroll\"><table>\n";
  if (!table.columns.empty()) {
    body_ += "<thead><tr>";
    for (const auto& c : table.columns) body_ += "<th scope=\"col\">" + escape_markup(c) + "</th>";
    body_ += "</tr></thead>\n";
  }
  body_ += "<tbody>\n";
  for (const auto& row : table.rows) {
    body_ += "<tr>";
    for (const auto& cell : row) body_ += "<td>" + escape_markup(cell) + "</td>";
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
  if (!table.note.empty()) body_ += "<p class=\"note\">" + escape_markup(table.note) + "</p>\n";
  body_ += "</div>\n";
  return *this;
}

HtmlPage& HtmlPage::preformatted(const std::string& text) {
  body_ += "<pre>" + escape_markup(text) + "</pre>\n";
  return *this;
}

HtmlPage& HtmlPage::begin_grid(int columns, int min_width) {
  const int gap = columns > 4 ? 12 : 26;
  body_ += "<div class=\"grid c" + std::to_string(columns) +
           "\" style=\"gap:" + std::to_string(gap) +
           "px;grid-template-columns:repeat(auto-fill,minmax(min(100%,max(" +
           std::to_string(min_width) + "px,calc((100% - " + std::to_string((columns - 1) * gap) +
           "px)/" + std::to_string(columns) + "))),1fr))\">\n";
  return *this;
}

HtmlPage& HtmlPage::figure(const std::string& markup, const std::string& caption) {
  body_ += "<figure>" + markup;
  if (!caption.empty()) body_ += "<figcaption>" + escape_markup(caption) + "</figcaption>";
  body_ += "</figure>\n";
  return *this;
}

HtmlPage& HtmlPage::end_grid() {
  body_ += "</div>\n";
  return *this;
}

std::string HtmlPage::html() const {
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>" +
      escape_markup(title_) + "</title>\n<style>" + kStyle +
      "</style>\n</head>\n<body>\n<header><h1>" + escape_markup(title_) + "</h1>\n";
  if (!subtitle_.empty()) out += "<p class=\"subtitle\">" + escape_markup(subtitle_) + "</p>\n";
  if (sections_.size() > 2) {
    out += "<nav aria-label=\"Sections\">";
    for (const auto& [id, title] : sections_)
      out += "<a href=\"#" + id + "\">" + escape_markup(title) + "</a> ";
    out += "</nav>\n";
  }
  out += "</header>\n<main>\n" + body_;
  if (!sections_.empty()) out += "</section>\n";
  return out +
         "</main>\n<footer><p>Written by scoreprior. This page is complete in one "
         "file.</p></footer>\n"
         "</body>\n</html>\n";
}

}  // namespace scoreprior::report
