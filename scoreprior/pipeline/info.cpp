#include "scoreprior/pipeline/info.h"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/forward/visibilities.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/png.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/nets/score_net.h"
#include "scoreprior/pipeline/data_file.h"

namespace scoreprior {
namespace {
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

Json describe_array(const at::Tensor& a) {
  Json j;
  j["type"] = io::numpy_type_name(a.scalar_type());
  j["shape"] = Shape(a.sizes().begin(), a.sizes().end());
  if (a.numel() > 0 && !a.is_complex()) {
    const at::Tensor d = a.to(at::kDouble);
    const at::Tensor ok = d.masked_select(d.isfinite());
    if (ok.numel() > 0) {
      j["min"] = ok.min().item<double>();
      j["max"] = ok.max().item<double>();
      j["mean"] = ok.mean().item<double>();
    }
    j["non_finite"] = d.numel() - ok.numel();
  }
  return j;
}

Json describe_uvfits(const fs::path& path) {
  const VisibilityTable t = io::read_uvfits(path);
  Json j;
  j["kind"] = "UVFITS visibilities, Stokes I";
  j["source"] = t.source;
  j["ra_hours"] = t.ra_hours;
  j["dec_deg"] = t.dec_deg;
  j["frequency_ghz"] = t.rf_hz / 1e9;
  j["bandwidth_ghz"] = t.bw_hz / 1e9;
  j["mjd"] = t.mjd;
  std::set<double> times;
  double longest = 0, shortest = INFINITY, amplitude = 0;
  std::vector<double> snr;
  for (const auto& r : t.rows) {
    times.insert(r.time);
    const double length = std::hypot(r.u, r.v);
    longest = std::max(longest, length);
    shortest = std::min(shortest, length);
    amplitude = std::max(amplitude, std::abs(r.vis));
    snr.push_back(std::abs(r.vis) / r.sigma);
  }
  std::vector<std::string> names;
  for (const auto& s : t.sites) names.push_back(s.name);
  j["sites"] = names;
  j["visibilities"] = t.rows.size();
  j["time_stamps"] = times.size();
  if (!t.rows.empty()) {
    std::nth_element(snr.begin(), snr.begin() + snr.size() / 2, snr.end());
    j["hours"] = {*times.begin(), *times.rbegin()};
    j["baselines_glambda"] = {shortest / 1e9, longest / 1e9};
    j["resolution_uas"] = 1.0 / longest / kRadPerUas;
    j["largest_amplitude_jy"] = amplitude;
    j["median_snr"] = snr[snr.size() / 2];
  }
  j["convention"] = "V(u,v) = sum I exp(+2 pi i (u x + v y)), x east, y north";
  return j;
}

Json describe_fits(const fs::path& path) {
  const io::SkyImage image = io::read_fits_image(path);
  Json j;
  j["kind"] = "FITS sky image, row 0 north, column 0 east";
  j["source"] = image.source;
  j["pixels"] = Shape(image.pixels.sizes().begin(), image.pixels.sizes().end());
  j["pixel_uas"] = image.pixel_size_rad / kRadPerUas;
  j["field_uas"] = image.pixel_size_rad / kRadPerUas * static_cast<double>(image.pixels.size(1));
  j["total_flux_jy"] = image.pixels.sum().item<double>();
  j["frequency_ghz"] = image.frequency_hz / 1e9;
  return j;
}

Json node_json(const ConfigNode& node) {
  Json j;
  if (const auto* b = std::get_if<bool>(&node.value)) j = *b;
  if (const auto* i = std::get_if<int64_t>(&node.value)) j = *i;
  if (const auto* d = std::get_if<double>(&node.value)) j = *d;
  if (const auto* s = std::get_if<std::string>(&node.value)) j = *s;
  if (const auto* a = std::get_if<ConfigArray>(&node.value)) {
    j = Json::array();
    for (const auto& e : *a) j.push_back(node_json(*e));
  }
  return j;
}

Json table_json(const Config& table) {
  Json j = Json::object();
  for (const auto& key : table.keys())
    j[key] =
        table.is_table(key)
            ? table_json(table.table(key))
            : node_json(
                  *std::get<std::map<std::string, ConfigNodePtr>>(table.node()->value).at(key));
  return j;
}

// Trained numbers; a network this program does not know has only its tensors to count.
int64_t parameter_count(const ModelFile& model) {
  int64_t n = 0;
  try {
    const auto net = score_nets().make(model.net, "ncsnpp");
    for (const auto& [name, p] : net->parameters()) n += p.numel();
  } catch (const ConfigError&) {
    for (const auto& [name, w] : model.weights) n += w.numel();
  }
  return n;
}

Json describe_safetensors(const fs::path& path) {
  const io::Safetensors s = io::read_safetensors(path);
  int64_t count = 0;
  for (const auto& [name, t] : s.tensors) count += t.numel();
  Json j;
  if (s.metadata.count("scoreprior")) {
    const ModelFile model = read_model_file(path);
    j["kind"] = "scoreprior model";
    j["tensors"] = s.tensors.size();
    j["parameters"] = parameter_count(model);
    j["images"]["shape"] = model.image_shape;
    j["images"]["range"] = model.range;
    if (model.fov_uas > 0) j["images"]["fov_uas"] = model.fov_uas;
    j["net"] = table_json(model.net);
    j["sde"] = table_json(model.sde);
    j["record"] = table_json(model.record);
    return j;
  }
  j["kind"] = s.metadata.count("settings") && s.metadata.count("run_id")
                  ? "scoreprior training checkpoint"
                  : "safetensors";
  j["tensors"] = s.tensors.size();
  j["values"] = count;
  for (const auto& [k, v] : s.metadata) j["metadata"][k] = v;
  for (const auto& [name, t] : s.tensors) {
    j["names"][name] = io::numpy_type_name(t.scalar_type()) + " " +
                       to_string(Shape(t.sizes().begin(), t.sizes().end()));
  }
  return j;
}

// A record's loss curve as a few lines; the JSON has all of it.
void shorten_curve(Json& record) {
  if (!record.contains("curve_steps") || !record.contains("curve_loss")) return;
  const Json steps = record["curve_steps"], losses = record["curve_loss"];
  record.erase("curve_steps");
  record.erase("curve_loss");
  const size_t n = std::min(steps.size(), losses.size());
  if (n == 0) return;
  std::ostringstream text;
  constexpr size_t kPoints = 8;
  const size_t shown = std::min(kPoints, n);
  for (size_t k = 0; k < shown; ++k) {
    const size_t i = shown == 1 ? 0 : k * (n - 1) / (shown - 1);
    text << (k ? ", " : "") << losses[i].get<double>() << " (step " << steps[i].get<int64_t>()
         << ")";
  }
  const Json config = record.contains("config") ? record["config"] : Json();
  record.erase("config");
  record["curve"] = text.str();
  if (!config.is_null()) record["config"] = config;  // the longest stays last
}

void print_plain(const Json& j, const std::string& indent, std::string& out) {
  for (const auto& [key, value] : j.items()) {
    if (value.is_object()) {
      out += indent + key + ":\n";
      print_plain(value, indent + "  ", out);
      continue;
    }
    if (key == "doctor") {
      for (const auto& remark : value) out += indent + "note: " + remark.get<std::string>() + "\n";
      continue;
    }
    std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos;
         at += 1 + indent.size() + 4)
      text.replace(at, 1, "\n" + indent + "    ");
    out += indent + key + ": " + text + "\n";
  }
}

}  // namespace

std::string describe_file(const fs::path& path, bool json) {
  Json j;
  j["file"] = path.string();
  if (fs::is_directory(path)) {
    if (!fs::exists(path / "run.json"))
      throw DataError(path.string() + ": a folder, but not a run folder (no run.json)");
    j["kind"] = "run folder";
    j["run"] = Json::parse(io::read_text(path / "run.json"), nullptr, false);
    j["finished"] = fs::exists(path / "summary.json");
    if (j["finished"])
      j["summary"] = Json::parse(io::read_text(path / "summary.json"), nullptr, false);
  } else {
    io::require_file(path, "file");
    std::string extension = path.extension().string();
    for (auto& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (extension == ".uvfits")
      j.update(describe_uvfits(path));
    else if (extension == ".fits" || extension == ".fit")
      j.update(describe_fits(path));
    else if (extension == ".safetensors")
      j.update(describe_safetensors(path));
    else if (extension == ".npy") {
      j["kind"] = "NPY array";
      j.update(describe_array(io::read_npy(path)));
    } else if (extension == ".npz") {
      j["kind"] = "NPZ arrays";
      for (const auto& [name, a] : io::read_npz(path)) j["arrays"][name] = describe_array(a);
    } else if (extension == ".png") {
      const io::Raster r = io::read_png(path);
      j["kind"] = "PNG image";
      j["pixels"] = {r.height, r.width, r.channels};
    } else if (!is_data_file(path)) {
      throw DataError(path.string() +
                      ": unknown kind of file (known: .uvfits .fits .npy .npz .safetensors .png "
                      ".tif .h5 .mat .cfl "
                      ".txt .idx *-ubyte .bin .tfrecord, run folders)");
    }
    if (is_data_file(path)) {
      const DataFile d = read_data_file(path);
      if (!j.contains("kind")) {
        j["kind"] = d.kind;
        for (const auto& [name, a] : d.arrays) j["arrays"][name] = describe_array(a);
        for (const auto& [key, text] : d.texts) j["texts"][key] = text;
      }
      if (!j.contains("convention") && !d.convention.empty()) j["convention"] = d.convention;
      for (const auto& remark : examine_data_file(d, path)) j["doctor"].push_back(remark);
    }
  }
  if (json) return j.dump(2) + "\n";
  if (j.contains("record")) shorten_curve(j["record"]);
  std::string out;
  print_plain(j, "", out);
  return out;
}

}  // namespace scoreprior
