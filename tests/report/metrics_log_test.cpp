#include "scoreprior/report/metrics_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::report {
namespace {

class MetricsLogFile : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            ("sp-metrics-" + std::to_string(::getpid()) + ".jsonl");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::vector<nlohmann::json> records() const {
    std::vector<nlohmann::json> out;
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) out.push_back(nlohmann::json::parse(line));
    return out;
  }
  std::filesystem::path path_;
};

}  // namespace

TEST_F(MetricsLogFile, AppendsOneObjectPerLine) {
  {
    MetricsLog log(path_);
    log.append(1, {{"loss", 0.1}, {"lr", 2e-4}});
    log.append(2, {{"loss", NAN}});
    EXPECT_EQ(records().size(), 2u) << "a record is readable as soon as append returns";
  }
  EXPECT_EQ(io::read_text(path_),
            "{\"step\":1,\"loss\":0.1,\"lr\":0.0002}\n{\"step\":2,\"loss\":null}\n");
}

TEST_F(MetricsLogFile, ResumeDropsLaterRecordsAndACutLine) {
  {
    MetricsLog log(path_);
    for (int64_t i = 1; i <= 5; ++i) log.append(i, {{"loss", double(i)}});
  }
  std::ofstream(path_, std::ios::app) << "{\"step\":2,\"lo";
  {
    MetricsLog log(path_, 3);
    log.append(4, {{"loss", 40}});
  }
  const auto r = records();
  ASSERT_EQ(r.size(), 4u);
  EXPECT_EQ(r[2]["step"], 3);
  EXPECT_EQ(r[3]["loss"], 40);
  { MetricsLog fresh(path_); }
  EXPECT_TRUE(records().empty());
  EXPECT_THROW(MetricsLog("/nowhere/at/all.jsonl"), CannotCreateError);
}

}  // namespace scoreprior::report
