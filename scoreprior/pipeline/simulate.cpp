#include "scoreprior/pipeline/simulate.h"

#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/dataset.h"
#include "scoreprior/data/observation.h"
#include "scoreprior/data/observe.h"
#include "scoreprior/forward/forward_model.h"
#include "scoreprior/forward/visibilities.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/likelihood/likelihood.h"
#include "scoreprior/pipeline/array_file.h"
#include "scoreprior/pipeline/session.h"
#include "scoreprior/report/run_report.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;

struct TruthImage {
  at::Tensor x;  // [C,H,W] float64
  double fov_uas = 0;
  std::string name = "the true image";
};

// [truth]: `file` (.npy, .fits), or image `index` of a data set's split.
TruthImage load_truth_image(const Config& config) {
  TruthImage t;
  const auto file = config.get<fs::path>(
      "file", {}, "image file (FITS, PNG, TIFF or an array) instead of a data set");
  if (!file.empty()) {
    t.name = file.string();
    if (file.extension() == ".fits" || file.extension() == ".fit") {
      const io::SkyImage image = io::read_fits_image(file);
      t.x = image.pixels.unsqueeze(0);
      t.fov_uas = image.pixel_size_rad / kRadPerUas * static_cast<double>(image.pixels.size(1));
    } else {
      t.x = read_array_file(file).to(at::kDouble);
      if (t.x.dim() == 2) t.x = t.x.unsqueeze(0);
      if (t.x.dim() != 3) throw DataError(file.string() + ": expected an image [C,H,W]");
      t.fov_uas =
          config.get<double>("fov_uas", 0.0, "field of view [micro-arcseconds], for the sky");
    }
    if (!at::isfinite(t.x).all().item<bool>())
      throw DataError(file.string() + ": has pixels that are not finite");
    return t;
  }
  const auto index = config.get<int64_t>("index", 0, "which image of the split");
  const auto split = config.one_of("split", "test", {"train", "valid", "test"});
  const auto set = datasets().make(config, "blackhole", split);
  if (index < 0 || (set->size() > 0 && index >= set->size()))
    config.fail("index", "the split has " + std::to_string(set->size()) + " images");
  t.x = set->batch({index}, Rng(0))[0].to(at::kDouble);
  t.fov_uas = config.get<double>("fov_uas", 0.0);
  return t;
}

std::pair<double, ObserveOptions> observe_settings(const Config& table) {
  const auto flux = table.get<double>("total_flux", 0.6, "total flux of the image [Jy]");
  return {flux, table.read<ObserveOptions>()};
}

void simulate_sky(const Config& observe_table, TruthImage truth, const Rng& rng,
                  const fs::path& folder) {
  const auto [flux, options] = observe_settings(observe_table);
  if (!(flux > 0)) observe_table.fail("total_flux", "expected a positive flux [Jy]");
  if (truth.fov_uas <= 0) throw DataError("[truth] needs fov_uas for an observation of the sky");
  if (truth.x.size(0) != 1) throw DataError("an observation of the sky needs a one-channel image");
  if (!(truth.x.sum().item<double>() > 0))
    throw DataError(truth.name + ": its pixels sum to nothing; there is no light to observe");
  truth.x = truth.x * (flux / truth.x.sum().item<double>());
  const SkyGrid grid = make_sky_grid(truth.x.size(1), truth.x.size(2), truth.fov_uas);
  const auto model = [&](const VisibilityTable& t) {
    std::vector<double> u, v;
    for (const auto& r : t.rows) {
      u.push_back(r.u);
      v.push_back(r.v);
    }
    const VisibilityTransform transform(u, v, grid, Pulse::kTriangle,
                                        ForwardContext{at::kDouble, at::kCPU});
    const at::Tensor y = transform.apply(truth.x.unsqueeze(0))[0];
    const double* p = y.data_ptr<double>();
    std::vector<std::complex<double>> out(u.size());
    for (size_t k = 0; k < out.size(); ++k) out[k] = {p[k], p[k + out.size()]};
    return out;
  };
  const VisibilityTable table = observe(options, model, rng);
  io::write_uvfits(folder / "observation.uvfits", table);
  io::SkyImage sky{truth.x[0],  grid.pixel_rad, table.ra_hours, table.dec_deg,
                   table.rf_hz, table.mjd,      table.source};
  io::write_fits_image(folder / "truth.fits", sky);
}

// Through [forward], with the noise of [likelihood].
void simulate_measurement(const Config& config, const TruthImage& truth, const Rng& rng,
                          const fs::path& folder) {
  const Config noise = config.table("likelihood");
  const auto name = noise.get<std::string>("name", "gaussian");
  if (name == "gaussian" && !noise.has("sigma")) noise.get<double>("sigma", 0.1, "noise level");
  LikelihoodContext context;
  context.image_shape = Shape(truth.x.sizes().begin(), truth.x.sizes().end());
  context.dtype = at::kDouble;
  context.read_array = read_array_file;
  context.forward = config.table("forward");
  const auto model = forward_models().make(
      context.forward, "identity",
      ForwardContext{at::kDouble, at::kCPU, context.read_array, context.image_shape});
  if (model->input_shape() != context.image_shape)
    throw DataError(truth.name + " has the shape " + to_string(context.image_shape) +
                    ", the forward model takes " + to_string(model->input_shape()));
  Observation blank;
  blank.y = at::zeros(model->output_shape(), at::kDouble);
  const auto likelihood = likelihoods().make(noise, "gaussian", blank, context);
  noise.mark_used();  // the same file also configures `run`
  save_observation(folder / "observation.npz", likelihood->simulate(truth.x.unsqueeze(0), rng));
}

// At the (u,v), times and sigmas of the observation that [data] names.
void simulate_like(const Config& config, const TruthImage& truth, const Rng& rng,
                   const fs::path& folder) {
  LikelihoodContext context;
  context.image_shape = Shape(truth.x.sizes().begin(), truth.x.sizes().end());
  context.dtype = at::kDouble;
  const Observation like = load_observation(config.table("data"));
  const auto likelihood =
      likelihoods().make(config.table("likelihood"), "interferometry", like, context);
  io::write_uvfits(folder / "observation.uvfits",
                   *likelihood->simulate(truth.x.unsqueeze(0), rng).visibilities);
}

}  // namespace

void read_simulation_settings(const Config& config) {
  load_truth_image(config.table("truth"));
  observe_settings(config.table("observe"));
}

void simulate(const Config& config, const fs::path& folder, Observer& observer) {
  const Rng rng =
      Rng(config.get<uint64_t>("seed", 0, "seed of every random choice")).split("simulate");
  const TruthImage truth = load_truth_image(config.table("truth"));
  const Config likelihood = config.table("likelihood"), data = config.table("data");
  const bool observe = config.has("observe");
  const bool sky = observe || (likelihood.is_string("name") &&
                               likelihood.get<std::string>("name") == "interferometry");
  if (sky && !observe && !data.has("file") && !data.has("files"))
    likelihood.fail("name",
                    "an observation of the sky needs a table [observe], or [data] file = an "
                    "observation to imitate");
  io::make_folder(folder);
  if (observe) {
    simulate_sky(config.table("observe"), truth, rng, folder);
  } else if (sky) {
    simulate_like(config, truth, rng, folder);
  } else {
    simulate_measurement(config, truth, rng, folder);
  }
  // One file may configure both `simulate` and `run`: what belongs to `run` is not this command's
  // to judge.
  config.maybe<std::string>("title");
  for (const char* other : {"run", "data", "prior", "infer", "image", "likelihood"})
    if (config.is_table(other)) config.table(other).mark_used();
  config.require_all_used();
  io::write_npy(folder / "truth.npy", truth.x);
  report::write_sample_grid(truth.x.unsqueeze(0), folder / "truth.png",
                            sky ? report::Colormap::kAfmhot : report::Colormap::kGray);
  observer.note("simulated " +
                (folder / (sky ? "observation.uvfits" : "observation.npz")).string());
}

}  // namespace scoreprior
