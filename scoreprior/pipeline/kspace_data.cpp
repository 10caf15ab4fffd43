#include "scoreprior/pipeline/kspace_data.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/kspace.h"
#include "scoreprior/forward/kspace_model.h"
#include "scoreprior/forward/mri_masks.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

// Sets a key of [forward] as if it had been written.
void complete(const Config& forward, const std::string& key, const fs::path& file) {
  auto node = std::make_shared<ConfigNode>();
  node->value = file.string();
  Config(forward).set(key, std::move(node));
}

}  // namespace

Observation load_kspace_observation(const Config& config, LikelihoodContext& context) {
  const Config data = config.table("data"), forward = config.table("forward");
  for (const char* other : {"file", "files"})
    if (data.has(other)) data.fail(other, std::string("give ") + other + " or kspace, not both");
  const KSpaceSlice k = load_kspace(data, context.image_shape);
  const fs::path file = fs::absolute(data.get<fs::path>("kspace")).lexically_normal(),
                 measured = file.string() + ":sampled";
  const auto has_any = [&](std::initializer_list<const char*> keys) {
    return std::any_of(keys.begin(), keys.end(), [&](const char* key) { return forward.has(key); });
  };
  if (!has_any({"mask", "pattern", "acceleration"})) complete(forward, "mask", measured);
  if (forward.is_string("name") && forward.get<std::string>("name") == "multicoil_mri" &&
      !has_any({"coil_maps", "calibration", "coils"}))
    complete(forward, "calibration", file);
  context.read_array = [k, file, measured, read = context.read_array](const fs::path& path) {
    const fs::path whole = fs::absolute(path).lexically_normal();
    return whole == measured ? k.sampled : whole == file ? k.kspace : read(path);
  };

  const ForwardContext exact{at::kDouble, at::kCPU, context.read_array, context.image_shape};
  const auto model = forward_models().make(forward, "identity", exact);
  const auto* face = dynamic_cast<const KSpaceModel*>(model.get());
  if (!face)
    forward.fail("name", "[data] kspace needs a model of magnetic resonance: mri or multicoil_mri");
  const at::Tensor asked = sampling_mask(forward, context.image_shape, exact).ne(0),
                   missing = asked.logical_and(k.sampled.eq(0));
  const int64_t absent = missing.sum().item<int64_t>();
  if (absent > 0)
    throw DataError(file.string() + ": " + std::to_string(absent) + " of the " +
                    std::to_string(asked.sum().item<int64_t>()) +
                    " points that [forward] samples were not measured; without mask and pattern it "
                    "samples those that were");
  if (face->coils() != k.kspace.size(0))
    throw DataError(file.string() + ": k-space of " + std::to_string(k.kspace.size(0)) +
                    " coils, the model has " + std::to_string(face->coils()));
  Observation o;
  o.y = face->measurement(k.kspace.unsqueeze(0))[0];
  if (k.sigma > 0) o.sigma = at::scalar_tensor(k.sigma * model->noise_scale(), at::kDouble);
  o.notes["file"] = file.string();
  const int64_t points = asked.sum().item<int64_t>();
  o.notes["kspace"] =
      k.summary + detail::concat("; ", points, " of ", asked.numel(),
                                 " points sampled, acceleration ",
                                 static_cast<double>(asked.numel()) / static_cast<double>(points));
  return o;
}

}  // namespace scoreprior
