#pragma once
#include <filesystem>
#include <string>

namespace scoreprior {

struct ConvertOptions {
  std::string array;   ///< which array, for formats that hold one
  double fov_uas = 0;  ///< field of view, to make a sky image of pixels without one
};

/// Reads any file that read_data_file knows and writes its content in the format of the output's
/// extension: .npy .npz .h5 .mat .cfl .png .tif .idx .fits .txt (ehtim image or array)
/// .uvfits. From BART arrays the axes are brought to [coils,H,W] (io::from_bart_order); to BART
/// complex arrays of 3 to 5 axes are taken as [coils,H,W], [slices,coils,H,W] or
/// [slices,coils,E2,H,W], the read-out first where the file says which axis that is, and all others
/// as given. Returns what
/// was written, under which convention, and the doctor's remarks, one a line. UsageError for
/// impossible pairs (visibilities to a picture) and unknown extensions.
std::string convert_file(const std::filesystem::path& in, const std::filesystem::path& out,
                         const ConvertOptions& options);

}  // namespace scoreprior
