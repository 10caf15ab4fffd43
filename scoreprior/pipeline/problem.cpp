#include "scoreprior/pipeline/problem.h"

#include <ATen/ATen.h>

#include <cmath>
#include <sstream>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/observation.h"
#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/likelihood/interferometry.h"
#include "scoreprior/pipeline/array_file.h"
#include "scoreprior/pipeline/kspace_data.h"
#include "scoreprior/priors/prior.h"

namespace scoreprior {
namespace {

// Whether the images are brightness on the sky, as far as the configuration says.
bool observes_sky(const Config& config) {
  const auto ends = [](const std::string& name) {
    return std::filesystem::path(name).extension() == ".uvfits";
  };
  const Config data = config.table("data"), likelihood = config.table("likelihood");
  if (likelihood.is_string("name")) return likelihood.get<std::string>("name") == "interferometry";
  if (data.is_string("file")) return ends(data.get<std::string>("file"));
  return data.has("files");  // only visibilities are read from several files
}

// A true image in the units of x, [C,H,W]; FITS files are in Jy/pixel.
at::Tensor load_truth(const std::filesystem::path& path, const Shape& shape,
                      const std::optional<Sky>& sky) {
  at::Tensor truth;
  if (path.extension() == ".fits" || path.extension() == ".fit") {
    if (!sky) throw DataError(path.string() + ": a FITS truth needs an interferometric likelihood");
    const io::SkyImage image = io::read_fits_image(path);
    const double fov =
        image.pixel_size_rad / kRadPerUas * static_cast<double>(image.pixels.size(1));
    if (std::abs(fov / sky->fov_uas - 1) > 1e-3)
      throw DataError(path.string() + ": a field of " + std::to_string(fov) + " uas, expected " +
                      std::to_string(sky->fov_uas));
    truth = image.pixels.unsqueeze(0) / sky->jy_per_unit;
  } else {
    truth = read_array_file(path);
    if (truth.dim() == 2) truth = truth.unsqueeze(0);
  }
  if (Shape(truth.sizes().begin(), truth.sizes().end()) != shape)
    throw DataError(path.string() + ": the truth has the shape " +
                    to_string(Shape(truth.sizes().begin(), truth.sizes().end())) + ", expected " +
                    to_string(shape));
  truth = truth.to(at::kDouble);
  if (!at::isfinite(truth).all().item<bool>())
    throw DataError(path.string() + ": the truth has pixels that are not finite");
  return truth;
}

// A prior learned pixels of one size on the sky: with others, every ring it draws has another size.
void check_prior_field(const Config& prior, const Config& likelihood, double fov_uas) {
  for (const auto& key : prior.keys()) {
    if (!prior.is_table(key)) continue;
    const Config table = prior.table(key);
    check_prior_field(table, likelihood, fov_uas);
    if (key != "score" || !table.is_string("weights")) continue;
    const auto file = table.get<std::filesystem::path>("weights");
    if (!std::filesystem::exists(file)) continue;  // a report is rebuilt without the model
    const double trained = read_model_file(file).fov_uas;
    if (trained > 0 && std::abs(fov_uas / trained - 1) > 1e-3) {
      std::ostringstream message;
      message << "the images are " << fov_uas << " uas wide, those " << file.filename().string()
              << " was trained on " << trained << "; set [likelihood] fov_uas = " << trained
              << ", or train a model with [data] fov_uas = " << fov_uas;
      likelihood.fail("fov_uas", message.str());
    }
  }
}

// A file that also says how its data are simulated tells what to do when they are not there yet.
void require_data(const Config& config) {
  const Config data = config.table("data");
  if (!config.is_table("truth") || !data.is_string("file")) return;
  const auto file = data.get<std::filesystem::path>("file");
  const std::string& source = config.loc("truth").file;
  if (std::filesystem::exists(file) || source.empty()) return;
  throw MissingFileError("file " + file.string() +
                         " does not exist yet; make it with: scoreprior " + "simulate " + source +
                         " --out " + file.parent_path().string());
}

}  // namespace

std::optional<std::filesystem::path> first_flow(const Config& config) {
  const auto folder = config.maybe<std::filesystem::path>("start_from");
  if (folder && config.table("infer").get<std::string>("name", "dpi") != "dpi")
    config.fail("start_from", "start_from hands on a flow: it goes with infer.name = \"dpi\" only");
  return folder;
}

void skip_simulation_tables(const Config& config) {
  for (const char* table : {"truth", "observe"})
    if (config.is_table(table)) config.table(table).mark_used();
}

std::unique_ptr<LogDensity> load_prior(const Config& config, const Session& session) {
  const auto image = config.table("image").read<ImageOptions>();
  if (image.size < 0) config.table("image").fail("size", "expected a size of 1 or more, or 0");
  if (image.channels < 1) config.table("image").fail("channels", "expected 1 or more");
  PriorContext context;
  context.read_array = io::read_npy;
  if (image.size > 0) context.image_shape = {image.channels, image.size, image.size};
  context.dtype = session.dtype;
  context.device = session.device;
  if (observes_sky(config)) context.range = "unit";  // brightness is not negative
  return priors().make(config.table("prior"), "score_elbo", context);
}

Measurement load_measurement(const Config& config, const Shape& shape, const Session& session) {
  Measurement m;
  const Config data = config.table("data");
  require_data(config);
  LikelihoodContext context;
  context.image_shape = shape;
  context.dtype = session.dtype;
  context.device = session.device;
  context.read_array = read_array_file;
  context.forward = config.table("forward");
  m.observation =
      data.has("kspace") ? load_kspace_observation(config, context) : load_observation(data);
  m.read_array = context.read_array;
  const char* kind = m.observation.visibilities ? "interferometry" : "gaussian";
  m.likelihood = likelihoods().make(config.table("likelihood"), kind, m.observation, context);
  if (m.likelihood->event_shape() != shape)
    throw DataError("the likelihood is for images " + to_string(m.likelihood->event_shape()) +
                    ", the prior for " + to_string(shape));
  if (auto* radio = dynamic_cast<const InterferometryLikelihood*>(m.likelihood.get()))
    m.sky = Sky{radio->grid().pixel_rad / kRadPerUas * static_cast<double>(radio->grid().width),
                radio->flux_scale(), radio->position_known()};
  if (m.sky) check_prior_field(config.table("prior"), config.table("likelihood"), m.sky->fov_uas);
  const auto truth = data.get<std::filesystem::path>(
      "truth", {}, "true image of simulated data: FITS, PNG, TIFF or an array");
  if (!truth.empty())
    m.truth = load_truth(truth, shape, m.sky);
  else if (m.observation.truth.defined())
    m.truth = m.observation.truth.to(at::kDouble);
  return m;
}

}  // namespace scoreprior
