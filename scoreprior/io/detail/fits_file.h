#pragma once
/// An open FITS file that closes itself and turns cfitsio's error codes into one-sentence
/// exceptions.
#include <fitsio.h>

#include <filesystem>
#include <optional>
#include <string>

namespace scoreprior::io::detail {

class FitsFile {
 public:
  /// MissingFileError; DataError when it is not an uncompressed FITS file.
  static FitsFile open(const std::filesystem::path& path);
  /// `shown` is the final name, used in messages. CannotCreateError.
  static FitsFile create(const std::filesystem::path& path, const std::filesystem::path& shown);
  FitsFile(FitsFile&& other) noexcept;
  FitsFile& operator=(FitsFile&&) = delete;
  ~FitsFile();

  fitsfile* get() const { return file_; }
  /// DataError (reading) or IoError (writing) "<file>: <what>: <cfitsio's words>" unless status is
  /// 0.
  void check(int status, const std::string& what) const;
  [[noreturn]] void fail(const std::string& what) const;  ///< DataError "<file>: <what>"

  /// Header values of the current unit; nullopt when absent, DataError when of another type.
  std::optional<double> number(const std::string& key) const;
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<bool> flag(const std::string& key) const;
  std::string text(const std::string& key, const std::string& fallback = "") const;  ///< trimmed

  /// DataError "truncated" unless the data of the current unit hold `count` items of `item_bytes`.
  void require_data(uint64_t count, uint64_t item_bytes) const;
  uint64_t file_size() const { return size_; }

  void put(const std::string& key, double value, const char* comment = "");
  void put(const std::string& key, int64_t value, const char* comment = "");
  void put(const std::string& key, const std::string& value, const char* comment = "");
  /// Flushes; throws IoError when that fails.
  void close();

 private:
  FitsFile(fitsfile* file, std::string name, bool writing, uint64_t size)
      : file_(file), name_(std::move(name)), writing_(writing), size_(size) {}
  fitsfile* file_ = nullptr;
  std::string name_;
  bool writing_ = false;
  uint64_t size_ = 0;
};

/// "2017-04-05" of a modified Julian day, and back ("2017-04-05T..." too); nullopt when it is not a
/// date.
std::string date_of_mjd(int64_t mjd);
std::optional<int64_t> mjd_of_date(const std::string& date);

}  // namespace scoreprior::io::detail
