#include "scoreprior/data/observation.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/visibilities.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/uvfits.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> observation_files(const Config& config) {
  if (!config.has("files")) return {config.get<fs::path>("file")};
  if (config.has("file")) config.fail("files", "give either file or files, not both");
  const FileLoc place = config.loc("files");
  std::vector<fs::path> files;
  for (const auto& name : config.get<std::vector<std::string>>("files")) {
    const fs::path path = name;
    files.push_back(path.is_relative() && place.line > 0 ? fs::path(place.file).parent_path() / path
                                                         : path);
  }
  if (files.empty()) config.fail("files", "expected at least one file");
  return files;
}

// Floating point and complex arrays stay, the others become float64.
at::Tensor measured_numbers(const at::Tensor& a, const std::string& name) {
  const at::Tensor x = a.is_floating_point() || a.is_complex() ? a : a.to(at::kDouble);
  if (x.numel() == 0) throw DataError(name + " is empty");
  if (!at::isfinite(x).all().item<bool>())
    throw DataError(name + " holds values that are not finite numbers");
  return x;
}

Observation observation_from_arrays(const io::Arrays& arrays, const std::string& file) {
  Observation o;
  for (const auto& [name, array] : arrays) {
    const std::string what = file + ": " + name;
    if (name == "y")
      o.y = measured_numbers(array, what);
    else if (name == "sigma")
      o.sigma = measured_numbers(array, what);
    else if (name == "truth")
      o.truth = measured_numbers(array, what);
    else
      o.extra[name] = array;
  }
  if (!o.y.defined()) throw DataError(file + ": no array y (the measurement)");
  if (o.sigma.defined()) {
    if (o.sigma.is_complex() || !o.sigma.gt(0).all().item<bool>())
      throw DataError(file + ": sigma is not positive everywhere");
    if (o.sigma.numel() == 1)
      o.sigma = o.sigma.reshape({});
    else if (o.sigma.sizes() != o.y.sizes())
      throw DataError(file + ": sigma has another shape than y");
  }
  if (o.truth.defined() && o.truth.dim() == 2) o.truth = o.truth.unsqueeze(0);
  if (o.truth.defined() && o.truth.dim() != 3)
    throw DataError(file + ": truth is not an image [C,H,W]");
  return o;
}

}  // namespace

Observation load_observation(const Config& config) {
  const std::vector<fs::path> files = observation_files(config);
  const std::string extension = files[0].extension().string();
  Observation o;
  if (extension == ".uvfits") {
    std::vector<VisibilityTable> tables;
    for (const auto& f : files) {
      tables.push_back(io::read_uvfits(f));
      check_table(tables.back(), f.string());
    }
    o.visibilities = prepare(tables, config.read<VisibilityOptions>());
    o.notes["source"] = o.visibilities->source;
    o.notes["mjd"] = std::to_string(o.visibilities->mjd);
  } else if (files.size() > 1) {
    config.fail("files", "only .uvfits files can be joined");
  } else if (extension == ".npz") {
    o = observation_from_arrays(io::read_npz(files[0]), files[0].string());
  } else if (extension == ".npy") {
    o = observation_from_arrays({{"y", io::read_npy(files[0])}}, files[0].string());
  } else {
    config.fail("file", "unknown kind of measurement \"" + files[0].filename().string() +
                            "\" (known: .uvfits, .npz, .npy)");
  }
  std::string names;
  for (const auto& f : files) names += (names.empty() ? "" : ", ") + f.string();
  o.notes["file"] = names;
  return o;
}

void save_observation(const fs::path& path, const Observation& o) {
  SP_CHECK(o.y.defined(), "save_observation", "expected a measurement y");
  io::Arrays arrays(o.extra.begin(), o.extra.end());
  arrays["y"] = o.y;
  if (o.sigma.defined()) arrays["sigma"] = o.sigma;
  if (o.truth.defined()) arrays["truth"] = o.truth;
  io::write_npz(path, arrays);
}

}  // namespace scoreprior
