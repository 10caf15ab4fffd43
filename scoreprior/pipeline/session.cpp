#include "scoreprior/pipeline/session.h"

#include <ATen/Context.h>

#include "scoreprior/core/errors.h"

namespace scoreprior {

Session make_session(const std::string& device, const std::string& dtype) {
  Session s;
  if (dtype == "float64")
    s.dtype = at::kDouble;
  else if (!dtype.empty() && dtype != "float32")
    throw UsageError("unknown dtype \"" + dtype + "\": float32 or float64");
  if (device == "cuda" && !at::hasCUDA())
    throw UsageError("no CUDA device is available to this build; use --device cpu");
  if (device == "cuda" || ((device.empty() || device == "auto") && at::hasCUDA()))
    s.device = at::kCUDA;
  else if (!device.empty() && device != "auto" && device != "cpu")
    throw UsageError("unknown device \"" + device + "\": auto, cpu or cuda");
  return s;
}

Session make_session(const Config& run) {
  const auto device = run.one_of("device", "auto", {"auto", "cpu", "cuda"});
  const auto dtype = run.one_of("dtype", "float32", {"float32", "float64"});
  return make_session(device, dtype);
}

}  // namespace scoreprior
