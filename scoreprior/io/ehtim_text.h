#pragma once
#include <filesystem>
#include <vector>

#include "scoreprior/core/visibility_table.h"
#include "scoreprior/io/fits_image.h"

namespace scoreprior::io {

/// An image as ehtim writes it in text: a header of SRC, RA, DEC, MJD, RF, FOVX, FOVY and lines
/// "x y I", x east and y north [arcsec], the north-east corner first where ehtim wrote it; pixels
/// are placed by x, y in whatever order. MissingFileError; DataError with the line of a mistake, or
/// of a pixel off the regular grid.
SkyImage read_ehtim_image(const std::filesystem::path& path);
/// 17 digits, so that pixels read back equal.
void write_ehtim_image(const std::filesystem::path& path, const SkyImage& image);

/// A text table of telescopes, one a line: NAME X Y Z SEFD_R SEFD_L [m, Jy], further columns and
/// lines beginning with # ignored. MissingFileError; DataError with the line of a mistake.
std::vector<Site> read_ehtim_array(const std::filesystem::path& path);
void write_ehtim_array(const std::filesystem::path& path, const std::vector<Site>& sites);

}  // namespace scoreprior::io
