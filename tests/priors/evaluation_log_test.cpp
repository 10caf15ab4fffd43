#include "scoreprior/priors/detail/evaluation_log.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>
#include <vector>

namespace scoreprior::detail {
namespace {

TEST(EvaluationLog, AddsUpOverImages) {
  EvaluationLog log;
  EXPECT_TRUE(log.summary().numbers.empty());
  EXPECT_EQ(log.summary().status, Status::kConverged);
  EvaluationLog::Entry e;
  e.images = 3;
  e.values["nfe"] = at::tensor({10.0, 20.0, 60.0}, at::kDouble);
  e.values["error"] = at::tensor({NAN, -2.0, -4.0}, at::kDouble);
  e.values["unknown"] = at::full({3}, NAN, at::kDouble);
  e.means["rows"] = 4;
  log.add(e);
  e = EvaluationLog::Entry();
  e.images = 1;
  e.failed = 1;
  e.status = Status::kMaxSteps;
  e.failure = "step limit reached";
  e.values["nfe"] = at::tensor({2.0}, at::kDouble);
  e.means["rows"] = 0;
  log.add(e);
  const Summary s = log.summary();
  EXPECT_EQ(s.status, Status::kMaxSteps);
  EXPECT_EQ(s.numbers, (std::map<std::string, double>{{"images", 4},
                                                      {"failed", 1},
                                                      {"nfe_mean", 23},
                                                      {"nfe_max", 60},
                                                      {"error_mean", -3},
                                                      {"error_max", -2},
                                                      {"rows_mean", 3}}));
  EXPECT_EQ(
      s.warnings,
      (std::vector<std::string>{"log p had no value in 1 of 4 evaluations: step limit reached"}));
}

TEST(EvaluationLog, ManyThreadsLoseNothing) {
  EvaluationLog log;
  std::vector<std::thread> workers;
  for (int k = 0; k < 4; ++k)
    workers.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        EvaluationLog::Entry e;
        e.images = 2;
        e.means["nfe"] = 7;
        log.add(e);
      }
    });
  for (auto& w : workers) w.join();
  EXPECT_EQ(log.summary().numbers.at("images"), 4000);
  EXPECT_EQ(log.summary().numbers.at("nfe_mean"), 7);
}

}  // namespace
}  // namespace scoreprior::detail
