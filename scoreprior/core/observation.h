#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>

#include "scoreprior/core/visibility_table.h"

namespace scoreprior {

/// What was measured. Linear-Gaussian problems use y and sigma; interferometry uses the table.
struct Observation {
  at::Tensor y;      ///< [M] or [event...] measurement vector, if any
  at::Tensor sigma;  ///< scalar or the shape of y: one standard deviation per real number
  std::optional<VisibilityTable> visibilities;  ///< interferometric data
  at::Tensor truth;                             ///< [C,H,W] simulated data only
  std::map<std::string, at::Tensor> extra;      ///< masks, coil maps, ...
  std::map<std::string, std::string> notes;     ///< provenance: file, object, date
};

}  // namespace scoreprior
