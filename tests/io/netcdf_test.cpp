#include "scoreprior/io/netcdf.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

class NetcdfFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("sp-netcdf-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

InferenceData some_draws() {
  InferenceData d;
  d.attributes = {{"inference_library", "scoreprior"}, {"inference_library_version", "0.1.0"}};
  d.groups["posterior"].variables["image"] = {
      Rng(1).normal({2, 50, 8, 9}), {"chain", "draw", "row", "column"}, {{"units", "Jy/pixel"}}};
  d.groups["posterior"].variables["flux"] = {
      Rng(2).normal({2, 50}, at::kDouble), {"chain", "draw"}, {}};
  d.groups["sample_stats"].variables["diverging"] = {
      Rng(3).uniform({2, 50}, at::kDouble) < 0.1, {"chain", "draw"}, {}};
  d.groups["sample_stats"].variables["n_steps"] = {
      at::arange(100, at::TensorOptions(at::kInt)).view({2, 50}), {"chain", "draw"}, {}};
  d.groups["observed_data"].variables["y"] = {Rng(4).normal({7}, at::kDouble), {"datum"}, {}};
  d.groups["log_likelihood"].variables["y"] = {
      Rng(5).normal({2, 50, 7}, at::kDouble), {"chain", "draw", "datum"}, {}};
  d.groups["constant_data"].variables["sigma"] = {at::full({}, 0.25, at::kDouble), {}, {}};
  return d;
}

}  // namespace

using Netcdf = NetcdfFolder;

TEST_F(Netcdf, ReadsBackWhatItWrote) {
  const InferenceData written = some_draws();
  const auto path = folder_ / "draws.nc";
  write_netcdf(path, written);
  const InferenceData read = read_netcdf(path);
  EXPECT_EQ(read.attributes.at("inference_library"), "scoreprior");
  for (const auto& [name, group] : written.groups) {
    ASSERT_EQ(read.groups.count(name), 1u) << name;
    const auto& back = read.groups.at(name);
    EXPECT_EQ(back.attributes.at("inference_library_version"), "0.1.0");
    EXPECT_EQ(back.attributes.at("created_at").size(), 25u);
    for (const auto& [variable, v] : group.variables) {
      const auto& b = back.variables.at(variable);
      EXPECT_EQ(b.values.scalar_type(), v.values.scalar_type()) << variable;
      EXPECT_TRUE(at::equal(b.values, v.values)) << variable;
      EXPECT_EQ(b.dims, v.dims);
      EXPECT_EQ(b.attributes, v.attributes);
    }
  }
  const auto& chain = read.groups.at("posterior").variables.at("chain");
  EXPECT_TRUE(at::equal(chain.values, at::arange(2, at::TensorOptions(at::kLong))));
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_EQ(entry.path(), path) << "a temporary file is left";
}

TEST_F(Netcdf, KeepsNonFiniteDrawsAndEmptyGroups) {
  InferenceData d;
  at::Tensor x = Rng(1).normal({1, 4, 3}, at::kDouble);
  x[0][1][2] = std::numeric_limits<double>::quiet_NaN();
  x[0][2][0] = std::numeric_limits<double>::infinity();
  d.groups["posterior"].variables["x"] = {x, {"chain", "draw", "k"}, {}};
  d.groups["observed_data"];
  write_netcdf(folder_ / "a.nc", d);
  const auto back = read_netcdf(folder_ / "a.nc");
  EXPECT_TRUE(at::allclose(back.groups.at("posterior").variables.at("x").values, x, 0, 0, true));
  EXPECT_TRUE(back.groups.at("observed_data").variables.empty());
}

TEST_F(Netcdf, SaysWhatIsWrong) {
  InferenceData d;
  d.groups["posterior"].variables["a"] = {at::zeros({1, 3}), {"chain", "draw"}, {}};
  d.groups["posterior"].variables["b"] = {at::zeros({1, 4}), {"chain", "draw"}, {}};
  EXPECT_THROW(write_netcdf(folder_ / "a.nc", d), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a.nc"));
  d.groups["posterior"].variables["b"] = {
      at::zeros({1, 3}, at::kComplexDouble), {"chain", "draw"}, {}};
  EXPECT_THROW(write_netcdf(folder_ / "a.nc", d), std::invalid_argument);
  d.groups["posterior"].variables.erase("b");
  EXPECT_THROW(write_netcdf(folder_ / "no" / "a.nc", d), CannotCreateError);
  EXPECT_THROW(read_netcdf(folder_ / "none.nc"), MissingFileError);
  write_text(folder_ / "text.nc", "this is not a NetCDF file");
  EXPECT_THROW(read_netcdf(folder_ / "text.nc"), DataError);
  write_netcdf(folder_ / "a.nc", some_draws());
  const std::string whole = read_text(folder_ / "a.nc");
  write_text(folder_ / "cut.nc", whole.substr(0, whole.size() / 2));
  EXPECT_THROW(read_netcdf(folder_ / "cut.nc"), DataError);
}

// The same file through another library, where a Python with one is at hand (SP_PYTHON names it).
TEST_F(Netcdf, OtherLibrariesReadIt) {
  std::string python;
  const char* named = std::getenv("SP_PYTHON");
  for (const char* p : {named ? named : "python3", "/usr/bin/python3"})
    if (python.empty() &&
        std::system((std::string(p) + " -c 'import netCDF4' 2>/dev/null").c_str()) == 0)
      python = p;
  if (python.empty()) GTEST_SKIP() << "no Python with netCDF4";
  const auto path = folder_ / "draws.nc";
  write_netcdf(path, some_draws());
  const auto script = folder_ / "check.py";
  write_text(script, R"py(
import sys, netCDF4
f = netCDF4.Dataset(sys.argv[1])
assert set(f.groups) == {'posterior', 'sample_stats', 'observed_data', 'log_likelihood', 'constant_data'}
p = f['posterior']
assert p['image'].dimensions == ('chain', 'draw', 'row', 'column') and p['image'].shape == (2, 50, 8, 9)
assert p['image'].units == 'Jy/pixel' and p.inference_library == 'scoreprior' and p.created_at
assert list(p['chain'][:]) == [0, 1] and list(p['draw'][:3]) == [0, 1, 2]
assert f['sample_stats']['diverging'].dtype == 'int8'
try:
    import arviz
except ImportError:
    sys.exit(0)
i = arviz.from_netcdf(sys.argv[1])
assert i.posterior['flux'].dims == ('chain', 'draw')
assert i.sample_stats['diverging'].dtype == bool
assert float(arviz.summary(i, var_names=['flux'])['mean'].iloc[0]) < 1
)py");
  EXPECT_EQ(std::system((python + " " + script.string() + " " + path.string()).c_str()), 0);
}

}  // namespace scoreprior::io
