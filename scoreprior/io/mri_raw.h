#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <filesystem>
#include <map>
#include <string>

namespace scoreprior::io {

/// What an ISMRMRD header (XML) says about the geometry of a Cartesian scan.
struct IsmrmrdHeader {
  std::array<int64_t, 3> encoded{0, 0, 0}, recon{0, 0, 0};  ///< matrix sizes x, y, z
  std::array<double, 3> encoded_fov_mm{0, 0, 0}, recon_fov_mm{0, 0, 0};
  /// Phase encoding numbers y and z: first, last, and the one at the centre of k-space.
  struct Limits {
    int64_t minimum = 0, maximum = 0, centre = 0;
  } step_1, step_2;
  std::string trajectory = "cartesian", system;
};
/// DataError "<name>: ..." for broken XML, an absent encoding or impossible sizes.
IsmrmrdHeader parse_ismrmrd_header(const std::string& xml, const std::string& name);

/// A fastMRI volume (HDF5). k-space is centred: k = 0 at index H/2, W/2, and
/// image = fftshift(ifft2(ifftshift(kspace), orthonormal)).
struct FastmriVolume {
  at::Tensor kspace;        ///< [slices, coils, H, W] complex64; one coil in single-coil files
  at::Tensor target;        ///< [slices, h, w]; may be absent
  std::string target_name;  ///< reconstruction_rss or reconstruction_esc
  at::Tensor mask;          ///< [W] of test files; may be absent
  IsmrmrdHeader header;
  std::string header_xml;
  /// Crop rule of the data set's own baseline: the centre of height recon x and width recon y of
  /// the header (the file's first axis is the oversampled read-out), replaced by the target's size
  /// when there is one, and made square with side W when k-space is narrower than that.
  int64_t crop_height = 0, crop_width = 0;
  /// Columns at the left and right that were never measured and hold zeros.
  int64_t pad_left = 0, pad_right = 0;
  std::map<std::string, std::string> attributes;  ///< acquisition, patient_id, max, norm, ...
};
/// Whether the file has what makes it one: an array kspace and a text ismrmrd_header. (Arrays of
/// other programs are often called kspace too.) MissingFileError, DataError.
bool is_fastmri(const std::filesystem::path& path);
/// MissingFileError, DataError (no kspace, not complex, no header).
FastmriVolume read_fastmri(const std::filesystem::path& path);

/// The k-space of an ISMRMRD file (HDF5, group "dataset"), Cartesian, its read-outs put on the
/// grid: row = kspace_encode_step_1 - centre + E1/2, the read-out centred on center_sample. Noise
/// scans, navigators and calibration-only lines are left out, averages and repeated lines are
/// averaged.
struct IsmrmrdScan {
  at::Tensor kspace;   ///< [slices, coils, E1, N], or [slices, coils, E2, E1, N] when E2 > 1
  at::Tensor sampled;  ///< [E1] or [E2,E1] bool: lines that were measured in any slice
  IsmrmrdHeader header;
  std::string header_xml;
};
/// MissingFileError; DataError (not Cartesian, several contrasts, phases, repetitions or sets,
/// changing numbers of coils or samples, lines beyond the matrix, damaged).
IsmrmrdScan read_ismrmrd(const std::filesystem::path& path);

}  // namespace scoreprior::io
