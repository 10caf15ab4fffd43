#include "scoreprior/io/detail/fits_file.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io::detail {
namespace {

std::string trimmed_text(const std::string& s) {
  const size_t a = s.find_first_not_of(" \t"), b = s.find_last_not_of(" \t");
  return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}

std::string fits_error_text(int status) {
  char text[FLEN_STATUS] = "";
  fits_get_errstatus(status, text);
  fits_clear_errmsg();
  return text;
}

constexpr size_t kCard = 80, kBlock = 36 * kCard;

// The first cards of a table, each a whole number: after another value cfitsio goes on with a
// number of columns that was never set, and allocates for it.
void require_table_cards(const std::string& name, const char* cards) {
  constexpr const char* kKeys[] = {"BITPIX", "NAXIS",  "NAXIS1", "NAXIS2",
                                   "PCOUNT", "GCOUNT", "TFIELDS"};
  for (const char* key : kKeys) {
    cards += kCard;
    const std::string card(cards, kCard);
    std::string value = trimmed_text(card.substr(10, card.find('/', 10) - 10));
    char* end = nullptr;
    std::strtoll(value.c_str(), &end, 10);
    if (trimmed_text(card.substr(0, 8)) != key || card.compare(8, 2, "= ") != 0 || value.empty() ||
        *end != 0)
      throw DataError(name + ": damaged header: a table without a whole number " + key);
  }
}

// The name of a column is a text in quotes: an unquoted one of 70 characters overruns cfitsio's
// buffer of 70.
void require_column_name(const std::string& name, const char* card) {
  if (std::memcmp(card, "TTYPE", 5) != 0) return;
  const std::string value = trimmed_text(std::string(card + 10, kCard - 10));
  if (std::memcmp(card + 8, "= ", 2) != 0 || value.empty() || value[0] != '\'')
    throw DataError(name + ": damaged header: " + trimmed_text(std::string(card, 8)) +
                    " is no text in quotes");
}

// What cfitsio must not be given: a .gz, which it would unpack into memory and so defeat the size
// checks, and a table with absurdly many columns or without their number, for which it allocates
// before it looks further, or with a column's name that it copies beyond its buffer.
void refuse_dangerous_file(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::ifstream in(path, std::ios::binary);
  std::vector<char> cards(kBlock * 64);
  for (bool first = true; in; first = false) {
    in.read(cards.data(), static_cast<std::streamsize>(cards.size()));
    const size_t got = static_cast<size_t>(in.gcount());
    if (first && got >= 2 && cards[0] == '\x1f' && cards[1] == '\x8b')
      throw DataError(name + ": compressed with gzip; unpack it first");
    if (first && (got < 80 || std::memcmp(cards.data(), "SIMPLE  =", 9) != 0))
      throw DataError(name + ": not a FITS file");
    for (size_t at = 0; at + kCard <= got; at += kCard) {
      if (at % kBlock == 0 && at + 8 * kCard <= got &&
          std::memcmp(cards.data() + at, "XTENSION= '", 11) == 0 &&
          std::string(cards.data() + at + 11, 8).find("TABLE") != std::string::npos)
        require_table_cards(name, cards.data() + at);
      require_column_name(name, cards.data() + at);
      if (std::memcmp(cards.data() + at, "TFIELDS ", 8) != 0) continue;
      const long long columns =
          std::strtoll(std::string(cards.data() + at + 10, 70).c_str(), nullptr, 10);
      if (columns < 0 || columns > 999)
        throw DataError(name + ": damaged header: TFIELDS = " + std::to_string(columns));
    }
  }
}

}  // namespace

FitsFile FitsFile::open(const std::filesystem::path& path) {
  require_file(path, "file");
  const std::string name = path.string();
  refuse_dangerous_file(path);
  std::error_code ec;
  const uint64_t size = std::filesystem::file_size(path, ec);
  fitsfile* file = nullptr;
  int status = 0;
  fits_open_diskfile(&file, path.c_str(), READONLY, &status);
  if (status) throw DataError(name + ": not a readable FITS file: " + fits_error_text(status));
  return FitsFile(file, name, false, size);
}

FitsFile FitsFile::create(const std::filesystem::path& path, const std::filesystem::path& shown) {
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  fitsfile* file = nullptr;
  int status = 0;
  fits_create_diskfile(&file, path.c_str(), &status);
  if (status)
    throw CannotCreateError("cannot write " + shown.string() + ": " + fits_error_text(status));
  return FitsFile(file, shown.string(), true, 0);
}

FitsFile::FitsFile(FitsFile&& o) noexcept
    : file_(o.file_), name_(std::move(o.name_)), writing_(o.writing_), size_(o.size_) {
  o.file_ = nullptr;
}

FitsFile::~FitsFile() {
  int status = 0;
  if (file_) fits_close_file(file_, &status);
  fits_clear_errmsg();
}

void FitsFile::close() {
  int status = 0;
  fits_close_file(file_, &status);
  file_ = nullptr;
  check(status, "closing");
}

void FitsFile::check(int status, const std::string& what) const {
  if (!status) return;
  const std::string message = what + ": " + fits_error_text(status);
  if (writing_) throw IoError("cannot write " + name_ + ": " + message);
  throw DataError(name_ + ": " + message);
}

void FitsFile::fail(const std::string& what) const { throw DataError(name_ + ": " + what); }

std::optional<double> FitsFile::number(const std::string& key) const {
  double value = 0;
  int status = 0;
  fits_read_key(file_, TDOUBLE, key.c_str(), &value, nullptr, &status);
  if (status == KEY_NO_EXIST || status == VALUE_UNDEFINED) return fits_clear_errmsg(), std::nullopt;
  check(status, "header key " + key);
  return value;
}

std::optional<int64_t> FitsFile::integer(const std::string& key) const {
  LONGLONG value = 0;
  int status = 0;
  fits_read_key(file_, TLONGLONG, key.c_str(), &value, nullptr, &status);
  if (status == KEY_NO_EXIST || status == VALUE_UNDEFINED) return fits_clear_errmsg(), std::nullopt;
  check(status, "header key " + key);
  return value;
}

std::optional<bool> FitsFile::flag(const std::string& key) const {
  int value = 0, status = 0;
  fits_read_key(file_, TLOGICAL, key.c_str(), &value, nullptr, &status);
  if (status == KEY_NO_EXIST || status == VALUE_UNDEFINED) return fits_clear_errmsg(), std::nullopt;
  check(status, "header key " + key);
  return value != 0;
}

std::string FitsFile::text(const std::string& key, const std::string& fallback) const {
  char value[FLEN_VALUE] = "";
  int status = 0;
  fits_read_key(file_, TSTRING, key.c_str(), value, nullptr, &status);
  if (status == KEY_NO_EXIST || status == VALUE_UNDEFINED) return fits_clear_errmsg(), fallback;
  check(status, "header key " + key);
  return trimmed_text(value);
}

void FitsFile::require_data(uint64_t count, uint64_t item_bytes) const {
  LONGLONG head = 0, data = 0, end = 0;
  int status = 0;
  fits_get_hduaddrll(file_, &head, &data, &end, &status);
  check(status, "damaged header");
  const uint64_t start = static_cast<uint64_t>(data);
  const uint64_t available = start < size_ ? size_ - start : 0;
  if (item_bytes == 0 || count > available / item_bytes)
    fail("truncated: the header announces " + std::to_string(count) + " records of " +
         std::to_string(item_bytes) + " bytes, the file has " + std::to_string(available) +
         " bytes of data");
}

void FitsFile::put(const std::string& key, double value, const char* comment) {
  int status = 0;
  // 17 significant digits, so that reading gives the same double.
  fits_write_key_dbl(file_, key.c_str(), value, 16, comment, &status);
  check(status, "header key " + key);
}
void FitsFile::put(const std::string& key, int64_t value, const char* comment) {
  int status = 0;
  fits_write_key_lng(file_, key.c_str(), value, comment, &status);
  check(status, "header key " + key);
}
void FitsFile::put(const std::string& key, const std::string& value, const char* comment) {
  int status = 0;
  fits_write_key_str(file_, key.c_str(), value.c_str(), comment, &status);
  check(status, "header key " + key);
}

// Days <-> civil date in the proleptic Gregorian calendar [Hinnant, "chrono-compatible low-level
// date algorithms"].
std::string date_of_mjd(int64_t mjd) {
  const int64_t z = mjd - 40587 + 719468;
  const int64_t era = (z >= 0 ? z : z - 146096) / 146097;
  const int64_t doe = z - era * 146097;
  const int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
  const int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
  const int64_t mp = (5 * doy + 2) / 153;
  const int64_t d = doy - (153 * mp + 2) / 5 + 1, m = mp < 10 ? mp + 3 : mp - 9;
  const int64_t y = yoe + era * 400 + (m <= 2);
  char text[64];
  std::snprintf(text, sizeof text, "%04lld-%02d-%02d", static_cast<long long>(y),
                static_cast<int>(m), static_cast<int>(d));
  return text;
}

std::optional<int64_t> mjd_of_date(const std::string& date) {
  int y = 0, m = 0, d = 0;
  if (std::sscanf(date.c_str(), "%4d-%2d-%2d", &y, &m, &d) != 3) return std::nullopt;
  if (m < 1 || m > 12 || d < 1 || d > 31 || y < 1) return std::nullopt;
  y -= m <= 2;
  const int64_t era = y / 400, yoe = y - era * 400;
  const int64_t doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
  const int64_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
  return era * 146097 + doe - 719468 + 40587;
}

}  // namespace scoreprior::io::detail
