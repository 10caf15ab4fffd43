#include "scoreprior/diffusion/model_file.h"

#include "scoreprior/core/errors.h"
#include "scoreprior/io/safetensors.h"
#include "scoreprior/io/toml.h"

namespace scoreprior {
namespace {

constexpr const char* kMetadataKey = "scoreprior";

ConfigNodePtr model_node(decltype(ConfigNode::value) value) {
  auto node = std::make_shared<ConfigNode>();
  node->value = std::move(value);
  return node;
}

// The field of the training images in the configuration that the record repeats.
double recorded_field(const Config& record) {
  if (!record.is_string("config")) return 0;
  const Config config = io::parse_toml(record.get<std::string>("config"));
  if (!config.is_table("data")) return 0;
  return config.table("data").maybe<double>("fov_uas").value_or(0);
}

}  // namespace

ModelFile read_model_file(const std::filesystem::path& path) {
  const std::string name = path.string();
  io::Safetensors file = io::read_safetensors(path);
  if (file.tensors.empty()) throw DataError(name + ": holds no weights");
  ModelFile model;
  model.weights = std::move(file.tensors);
  const auto it = file.metadata.find(kMetadataKey);
  if (it == file.metadata.end()) return model;
  try {
    const Config root = io::parse_toml(it->second, name);
    model.described = true;
    model.net = root.table("net");
    model.sde = root.table("sde");
    model.record = root.table("record");
    const Config images = root.table("images");
    model.image_shape = images.get<std::vector<int64_t>>("shape");
    model.range = images.one_of("range", "unit", {"unit", "centered"});
    model.fov_uas = images.get<double>("fov_uas", recorded_field(model.record));
  } catch (const ConfigError& e) {
    throw DataError(name + ": its description cannot be read: " + e.what());
  }
  if (model.image_shape.size() != 3)
    throw DataError(name + ": its description has an image shape that is not [C,H,W]");
  return model;
}

void write_model_file(const std::filesystem::path& path, const ModelFile& model) {
  Config root;
  ConfigArray shape;
  for (const int64_t d : model.image_shape) shape.push_back(model_node(d));
  root.set("net", model_node(model.net.node()->value));
  root.set("sde", model_node(model.sde.node()->value));
  root.set("images.shape", model_node(shape));
  root.set("images.range", model_node(model.range));
  if (model.fov_uas > 0) root.set("images.fov_uas", model_node(model.fov_uas));
  root.set("record", model_node(model.record.node()->value));
  io::write_safetensors(path, {model.weights, {{kMetadataKey, root.to_toml()}}});
}

void check_model_images(const std::string& model, const Shape& model_shape,
                        const std::string& model_range, const Shape& shape,
                        const std::string& range) {
  if (shape != model_shape)
    throw DataError(model + " describes images " + to_string(model_shape) +
                    " [channels,height,width], not " + to_string(shape));
  if (!model_range.empty() && !range.empty() && range != model_range)
    throw DataError(model + " describes " + model_range + " pixels (" +
                    (model_range == "unit" ? "[0,1]" : "[-1,1]") + "), not " + range + " ones");
}

}  // namespace scoreprior
