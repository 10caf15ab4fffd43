#include "scoreprior/report/metrics_log.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::report {

MetricsLog::MetricsLog(const std::filesystem::path& path, int64_t keep_through) : path_(path) {
  std::string kept;
  std::error_code ec;
  if (keep_through >= 0 && std::filesystem::exists(path, ec)) {
    const std::string text = io::read_text(path);
    for (size_t from = 0, end; (end = text.find('\n', from)) != std::string::npos; from = end + 1) {
      const std::string line = text.substr(from, end - from);
      const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!record.is_object() || !record.contains("step") || !record["step"].is_number()) continue;
      if (record["step"].get<int64_t>() <= keep_through) kept += line + "\n";
    }
  }
  io::write_text(path, kept);
  file_ = std::fopen(path.c_str(), "abe");
  if (!file_)
    throw CannotCreateError("cannot write " + path.string() + ": " + std::strerror(errno));
}

MetricsLog::~MetricsLog() {
  if (file_) std::fclose(file_);
}

void MetricsLog::append(int64_t step, const Metrics& metrics) {
  nlohmann::ordered_json record;
  record["step"] = step;
  for (const auto& [name, value] : metrics) {
    if (std::isfinite(value))
      record[name] = value;
    else
      record[name] = nullptr;
  }
  const std::string line =
      record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0)
    throw IoError("cannot write " + path_.string() + ": " + std::strerror(errno));
}

}  // namespace scoreprior::report
