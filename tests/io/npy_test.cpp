#include "scoreprior/io/npy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "scoreprior/core/errors.h"
#include "scoreprior/core/rng.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/safetensors.h"

namespace scoreprior::io {
namespace {
std::filesystem::path scratch() {
  static const auto dir = [] {
    auto d = std::filesystem::temp_directory_path() / ("sp-io-" + std::to_string(::getpid()));
    std::filesystem::create_directories(d);
    return d;
  }();
  return dir;
}
}  // namespace

TEST(Npy, RoundTripsEveryType) {
  const auto path = scratch() / "a.npy";
  const at::Tensor x = Rng(1).normal({3, 4, 5}, at::kDouble) * 50;
  for (auto t :
       {at::kDouble, at::kFloat, at::kLong, at::kInt, at::kByte, at::kBool, at::kComplexDouble}) {
    const at::Tensor a = x.to(t);
    write_npy(path, a);
    const at::Tensor b = read_npy(path);
    EXPECT_EQ(b.scalar_type(), t);
    EXPECT_TRUE(at::equal(a, b));
  }
  write_npy(path, at::ones({}, at::kDouble));
  EXPECT_EQ(read_npy(path).dim(), 0);
}

TEST(Npz, RoundTrips) {
  const auto path = scratch() / "a.npz";
  write_npz(path, {{"x", Rng(1).normal({3, 4})}, {"n", at::ones({2}, at::kLong)}});
  const Arrays back = read_npz(path);
  EXPECT_EQ(back.size(), 2u);
  EXPECT_TRUE(at::equal(back.at("x"), Rng(1).normal({3, 4})));
}

TEST(Npy, EveryTruncationIsADataError) {
  const std::string bytes = to_npy_bytes(Rng(1).normal({3, 4}));
  for (size_t n = 0; n < bytes.size(); n += 7)
    EXPECT_THROW(from_npy_bytes(bytes.data(), n, "x.npy"), DataError) << n;
}

TEST(Safetensors, RoundTripsAndRefusesTruncation) {
  const auto path = scratch() / "m.safetensors";
  write_safetensors(path, {{{"w", Rng(1).normal({3, 4})}, {"b", at::zeros({0})}}, {{"k", "v"}}});
  const Safetensors back = read_safetensors(path);
  EXPECT_TRUE(at::equal(back.tensors.at("w"), Rng(1).normal({3, 4})));
  EXPECT_EQ(back.metadata.at("k"), "v");
  const std::string bytes = read_text(path);
  for (size_t n = 0; n < bytes.size(); n += 11) {
    write_text(path, bytes.substr(0, n));
    EXPECT_THROW(read_safetensors(path), DataError) << n;
  }
}

TEST(AtomicFile, FailedWriteLeavesTheOldFile) {
  const auto path = scratch() / "t.txt";
  write_text(path, "old");
  EXPECT_THROW(write_atomically(path,
                                [](const std::filesystem::path& p) {
                                  write_text(p, "half");
                                  throw IoError("disk full");
                                }),
               IoError);
  EXPECT_EQ(read_text(path), "old");
  EXPECT_THROW(read_text(scratch() / "absent"), MissingFileError);
  EXPECT_THROW(write_text(scratch() / "no" / "such", "x"), CannotCreateError);
}

}  // namespace scoreprior::io
