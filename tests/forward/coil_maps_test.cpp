#include "scoreprior/forward/coil_maps.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "scoreprior/core/errors.h"

namespace scoreprior {
namespace {

at::Tensor centred_fft(const at::Tensor& x) {
  const std::vector<int64_t> axes = {1, 2};
  return at::fft_fftshift(at::fft_fft2(at::fft_ifftshift(x, axes), c10::nullopt, axes, "ortho"),
                          axes);
}

at::Tensor disc(int64_t n) {
  const at::Tensor axis = at::arange(n, at::kDouble) - static_cast<double>(n / 2);
  const at::Tensor r2 = axis.square().unsqueeze(1) + axis.square().unsqueeze(0);
  return at::sigmoid((0.1 * static_cast<double>(n * n) - r2) / static_cast<double>(n));
}

TEST(CoilMaps, GapsInTheCalibrationRegionAreRefused) {
  at::Tensor kspace = centred_fft(simulated_coil_maps(4, 32, 32) * disc(32));
  CoilCalibration o;
  o.region = 16;
  estimated_coil_maps(kspace, o);
  kspace.select(2, 11).fill_(0);  // within columns 8 to 23
  try {
    estimated_coil_maps(kspace, o);
    FAIL() << "columns that were not sampled were taken for measured";
  } catch (const DataError& e) {
    // Columns 12 to 19 or 20.
    EXPECT_NE(std::string(e.what()).find("has side 9"), std::string::npos) << e.what();
  }
  o.region = 9;
  estimated_coil_maps(kspace, o);
  kspace.select(1, 16).fill_(0);
  try {
    estimated_coil_maps(kspace, o);
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("has side 0"), std::string::npos) << e.what();
  }
}

TEST(CoilMaps, ObjectPhaseGoesIntoTheMaps) {
  const at::Tensor maps = simulated_coil_maps(4, 32, 32), object = disc(32);
  const at::Tensor turns = at::linspace(-2, 1, 32, at::kDouble).unsqueeze(1) +
                           at::linspace(0, 2, 32, at::kDouble).unsqueeze(0);
  const at::Tensor phase = at::polar(at::ones_like(turns), turns);
  const at::Tensor images = maps * object * phase;
  const at::Tensor with = with_object_phase(maps, centred_fft(images), 16);
  EXPECT_TRUE(at::allclose(with.abs(), maps.abs()));
  const at::Tensor left = at::angle((with.conj() * images).sum(0)).masked_select(object.gt(0.3));
  // The phase turns by 0.12 radian a pixel, and the window blurs by two pixels where the object
  // ends.
  EXPECT_LT(left.abs().max().item<double>(), 0.24);
}

}  // namespace
}  // namespace scoreprior
