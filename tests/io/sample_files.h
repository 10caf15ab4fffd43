#pragma once
/// One small valid file of every format that is read, made from a seed.
#include <ATen/ATen.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace scoreprior::io::testing_files {

struct FileFormat {
  std::string name, extension;
  std::function<void(const std::filesystem::path&)> write, read;
  std::string companion;  ///< extension of a second file of the pair, mutated in turn
};

/// Every reader of scoreprior/io.
const std::vector<FileFormat>& file_formats();

/// An ISMRMRD file of a 2-D Cartesian scan: value(slice, coil, line, sample), or `kspace`, on every
/// line but those of `skip_lines`; a noise scan first, and one line measured twice.
struct IsmrmrdSample {
  int slices = 2, coils = 3, lines = 8, samples = 12;
  std::vector<int> skip_lines = {1};
  at::Tensor kspace = {};  ///< complex64 of those four sizes
  float real(int s, int c, int l, int x) const {
    if (kspace.defined()) return at::real(kspace[s][c][l][x]).item<float>();
    return static_cast<float>(1000 * s + 100 * c + 10 * l + x);
  }
  float imag(int s, int c, int l, int x) const {
    if (kspace.defined()) return at::imag(kspace[s][c][l][x]).item<float>();
    return -0.5f * real(s, c, l, x);
  }
};
void write_ismrmrd(const std::filesystem::path& path, const IsmrmrdSample& sample);
std::string ismrmrd_header_xml(int x, int y, int z, int recon_x, int recon_y, int lines);
void write_fastmri(const std::filesystem::path& path);
/// Of this k-space [slices,coils,H,W], whose image is the central recon_h x recon_w; `mask` [W] or
/// undefined.
void write_fastmri(const std::filesystem::path& path, const at::Tensor& kspace, int recon_h,
                   int recon_w, const at::Tensor& mask);

}  // namespace scoreprior::io::testing_files
