#pragma once
#include <filesystem>

#include "scoreprior/core/visibility_table.h"

namespace scoreprior::io {

/// UVFITS, Stokes I from RR and LL, in the row order and baseline direction of VisibilityTable.
/// Throws MissingFileError; DataError with one sentence for anything that is not a readable UVFITS
/// file (FITS image, truncated, no AN table, no unflagged data).
VisibilityTable read_uvfits(const std::filesystem::path& path);
/// Random-groups UVFITS that standard readers (ehtim, AIPS, astropy) load; RR = LL = vis, weight
/// 1/(2 sigma^2) each.
void write_uvfits(const std::filesystem::path& path, const VisibilityTable& table);

}  // namespace scoreprior::io
