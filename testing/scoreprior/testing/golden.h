#pragma once
/// Reference cases for the tests: folders with a manifest.json that names arrays, weights and
/// settings. They are looked for in $SCOREPRIOR_GOLDEN, else in ../shared/golden beside the source
/// tree.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "scoreprior/io/npy.h"
#include "scoreprior/io/safetensors.h"

namespace scoreprior::testing {

inline std::filesystem::path shared_dir() {
  if (const char* env = std::getenv("SCOREPRIOR_SHARED")) return env;
  return std::filesystem::path(SP_SOURCE_DIR) / ".." / "shared";
}
inline std::filesystem::path golden_dir() { return shared_dir() / "golden"; }

/// Skips the test with a clear message where the reference data is not at hand.
#define SP_REQUIRE_GOLDEN(case_name)                                               \
  if (!std::filesystem::exists(::scoreprior::testing::golden_dir() / (case_name))) \
  GTEST_SKIP() << "reference data " << (case_name) << " is not here (set SCOREPRIOR_SHARED)"

class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name) : folder_(golden_dir() / name) {
    std::ifstream in(folder_ / "manifest.json");
    in >> manifest_;
  }
  const nlohmann::json& manifest() const { return manifest_; }
  const nlohmann::json& config() const { return manifest_.at("config"); }
  bool has(const std::string& array) const { return manifest_.at("arrays").contains(array); }
  std::filesystem::path path(const std::string& array) const {
    return folder_ / manifest_.at("arrays").at(array).at("file").get<std::string>();
  }
  at::Tensor array(const std::string& name) const { return io::read_npy(path(name)); }
  at::Tensor array(const std::string& name, at::ScalarType t) const { return array(name).to(t); }
  double scalar(const std::string& name) const {
    return manifest_.at("scalars").at(name).at("value").get<double>();
  }
  std::filesystem::path weights_path(const std::string& name = "weights") const {
    return folder_ / manifest_.at("weights").at(name).at("file").get<std::string>();
  }
  std::map<std::string, at::Tensor> weights(const std::string& name = "weights") const {
    return io::read_safetensors(weights_path(name)).tensors;
  }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  nlohmann::json manifest_;
};

/// max|a-b| / max|b|, in float64.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().to(at::kCPU).to(at::kDouble).flatten();
  const at::Tensor y = b.detach().to(at::kCPU).to(at::kDouble).flatten();
  if (x.sizes() != y.sizes()) return INFINITY;
  if (y.numel() == 0) return 0;
  const double d = (x - y).abs().max().item<double>();
  return std::isnan(d) ? INFINITY : d / std::max(y.abs().max().item<double>(), 1e-300);
}

}  // namespace scoreprior::testing
