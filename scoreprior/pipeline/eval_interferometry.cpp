#include <ATen/ATen.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/data/visibilities.h"
#include "scoreprior/io/uvfits.h"
#include "scoreprior/likelihood/dirty_image.h"
#include "scoreprior/likelihood/interferometry.h"
#include "scoreprior/pipeline/eval.h"

namespace scoreprior {
namespace {

constexpr double kDegrees = 180 / M_PI;

at::Tensor table_array(const VisibilityTable& table, double (*of)(const VisibilityRow&)) {
  at::Tensor a = at::empty({static_cast<int64_t>(table.rows.size())}, at::kDouble);
  double* p = a.data_ptr<double>();
  for (const VisibilityRow& row : table.rows) *p++ = of(row);
  return a;
}

at::Tensor closure_array(const ClosureSet& set, double Closure::*member, double unit) {
  at::Tensor a = at::empty({static_cast<int64_t>(set.closures.size())}, at::kDouble);
  double* p = a.data_ptr<double>();
  for (const Closure& c : set.closures) *p++ = c.*member * unit;
  return a;
}

at::Tensor block_sigmas(const VisibilityTable& table, const ClosureSet& set,
                        ClosureCovariance covariance, double unit) {
  std::vector<at::Tensor> parts = {at::zeros({0}, at::kDouble)};
  for (const ClosureBlock& b : closure_blocks(table, set, covariance))
    parts.push_back(b.sigma * unit);
  return at::cat(parts);
}

}  // namespace

/// Tables of the file's products, and models, chi^2 [B] and d chi^2/dx [B,1,H,W] of the images x.
/// Phases of the data and their sigmas are in degrees, model phases in radians. The products *_diag
/// use `closure_covariance`.
io::Arrays eval_interferometry(const EvalRequest& request) {
  const Config config = request.config.table("likelihood");
  config.get<std::string>("name", "interferometry");
  const VisibilityTable table =
      prepare(io::read_uvfits(config.get<std::filesystem::path>("uvfits")),
              config.read<VisibilityOptions>());
  check_visibilities(table);
  const auto options = config.read<InterferometryOptions>();
  const ClosureCovariance covariance = closure_covariance_from(
      config.one_of("closure_covariance", "exact", {"exact", "ehtim", "independent"}));
  const Pulse pulse = pulse_from(config.one_of("pulse", "triangle", {"triangle", "delta"}));
  config.one_of("units", "flux_scaled", {"jy", "flux_scaled"});

  io::Arrays out;
  const ClosureSet phases = closures(table, ClosureKind::kPhase);
  const ClosureSet logs = closures(table, ClosureKind::kLogAmplitude);
  out["obs_u"] = table_array(table, [](const VisibilityRow& r) { return r.u; });
  out["obs_v"] = table_array(table, [](const VisibilityRow& r) { return r.v; });
  out["obs_time"] = table_array(table, [](const VisibilityRow& r) { return r.time; });
  out["obs_vis"] =
      at::complex(table_array(table, [](const VisibilityRow& r) { return r.vis.real(); }),
                  table_array(table, [](const VisibilityRow& r) { return r.vis.imag(); }));
  out["obs_sigma"] = table_array(table, [](const VisibilityRow& r) { return r.sigma; });
  out["amp"] = at::tensor(amplitudes(table, Debias::kFloor), at::kDouble);
  out["amp_sigma"] = out["obs_sigma"];
  out["cphase"] = closure_array(phases, &Closure::value, kDegrees);
  out["cphase_sigma"] = closure_array(phases, &Closure::sigma, kDegrees);
  out["logcamp"] = closure_array(logs, &Closure::value, 1);
  out["logcamp_sigma"] = closure_array(logs, &Closure::sigma, 1);
  out["cphase_diag_sigma"] = block_sigmas(table, phases, covariance, kDegrees);
  out["logcamp_diag_sigma"] = block_sigmas(table, logs, covariance, 1);
  if (!request.has("x")) return out;

  const at::Tensor x = request.input("x");
  if (x.dim() != 4 || x.size(1) != 1) throw DataError("x must be [B,1,H,W]");
  if (options.image_size != 0 &&
      (x.size(2) != options.image_size || x.size(3) != options.image_size))
    throw DataError("x is not " + std::to_string(options.image_size) + " pixels wide and high");
  const SkyGrid grid = make_sky_grid(x.size(2), x.size(3), options.fov_uas);
  const double scale = image_flux_scale(options, table, grid);
  std::vector<double> u, v;
  for (const VisibilityRow& row : table.rows) u.push_back(row.u), v.push_back(row.v);
  const VisibilityTransform transform(u, v, grid, pulse, {request.dtype, request.device});
  const auto parts = transform.parts(x * scale);
  const ModelVisibilities model = model_visibilities(
      parts.first, parts.second, visibility_floor(table, request.dtype, request.device));
  out["model_vis"] = at::complex(model.re.t().contiguous(), model.im.t().contiguous());
  out["model_amp"] = model.amplitude.t();

  const auto add = [&](const std::string& name, const DataProduct& product) {
    if (!request.wants("chi2_" + name) && !request.wants("grad_" + name)) return;
    if (product.size() == 0) throw DataError("the file has no data of the kind \"" + name + "\"");
    const DataProduct::Misfit misfit = product.misfit(model, true);
    const double to_chi2 = 2.0 / static_cast<double>(product.size());
    const auto gradient = misfit.gradient.parts(model);
    out["chi2_" + name] = misfit.value * to_chi2;
    out["grad_" + name] =
        transform.adjoint_parts(gradient.first, gradient.second) * (to_chi2 * scale);
  };
  const auto closure = [&](ClosureKind kind, ClosureCovariance c) {
    return make_closure_product(table, kind, c, request.dtype, request.device);
  };
  const auto cphase = closure(ClosureKind::kPhase, ClosureCovariance::kIndependent);
  const auto logcamp = closure(ClosureKind::kLogAmplitude, ClosureCovariance::kIndependent);
  if (cphase->size() > 0) out["model_cphase"] = cphase->model(model).t();
  if (logcamp->size() > 0) out["model_logcamp"] = logcamp->model(model).t();
  add("vis", *make_visibility_product(table, request.dtype, request.device));
  add("amp", *make_amplitude_product(table, request.dtype, request.device));
  add("cphase", *cphase);
  add("logcamp", *logcamp);
  add("cphase_diag", *closure(ClosureKind::kPhase, covariance));
  add("logcamp_diag", *closure(ClosureKind::kLogAmplitude, covariance));
  if (request.wants("dirty_image")) out["dirty_image"] = dirty_image(table, grid);
  return out;
}

}  // namespace scoreprior
