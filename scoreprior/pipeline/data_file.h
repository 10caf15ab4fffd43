#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "scoreprior/core/visibility_table.h"
#include "scoreprior/io/fits_image.h"
#include "scoreprior/io/npy.h"

namespace scoreprior {

/// A measurement or image file of any format, with what its numbers mean.
struct DataFile {
  std::string kind;        ///< "fastMRI volume", "BART array", ...
  std::string convention;  ///< axes, sign, orientation, units, centring of Fourier transforms
  io::Arrays arrays;       ///< everything numeric, pixels and visibilities too
  std::map<std::string, std::string> texts;
  std::optional<io::SkyImage> sky;
  std::optional<VisibilityTable> visibilities;
  std::vector<Site> sites;  ///< of a table of telescopes
  std::string header;       ///< XML of a fastMRI or ISMRMRD file
};

/// Visibilities and telescopes of any file also stand in `arrays`, under names from which the NPZ,
/// MAT and HDF5 files that `convert` makes of them are read back as what they were. Texts there are
/// bytes (uint8). k-space of a scanner's file has `read_axis`, -1 or -2, the axis of the read-out.
///
/// By extension (and content, where one extension serves several formats): .uvfits .fits .npy .npz
/// .png .tif .h5 (fastMRI, ISMRMRD, any) .mat .cfl/.hdr .txt (ehtim image or array), IDX
/// (*-ubyte, .idx, also .gz), .bin (CIFAR-10), *.tfrecord*. MissingFileError, DataError.
DataFile read_data_file(const std::filesystem::path& path);
/// Whether read_data_file knows the name.
bool is_data_file(const std::filesystem::path& path);

/// Sentences about what looks like another convention than the one that is expected: k-space whose
/// peak is in the corner, image and k-space exchanged, pixels of 0 to 255 or [-1,1], a sky image
/// with east to the right, u and v of the other sign; empty when nothing does.
std::vector<std::string> examine_data_file(const DataFile& file, const std::filesystem::path& path);

}  // namespace scoreprior
