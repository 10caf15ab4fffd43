#include "scoreprior/flows/detail/realnvp_engine.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "scoreprior/core/errors.h"
#include "scoreprior/flows/detail/team.h"

namespace scoreprior::detail {

namespace realnvp_base {
#define SP_VECTOR_BYTES 16
#define SP_TILE_ROWS 6
#include "scoreprior/flows/detail/realnvp_engine.inc"
#undef SP_VECTOR_BYTES
#undef SP_TILE_ROWS
}  // namespace realnvp_base

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SP_REALNVP_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace realnvp_avx2 {
#define SP_VECTOR_BYTES 32
#define SP_TILE_ROWS 6
#include "scoreprior/flows/detail/realnvp_engine.inc"
#undef SP_VECTOR_BYTES
#undef SP_TILE_ROWS
}  // namespace realnvp_avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
namespace realnvp_avx512 {
#define SP_VECTOR_BYTES 64
#define SP_TILE_ROWS 12
#include "scoreprior/flows/detail/realnvp_engine.inc"
#undef SP_VECTOR_BYTES
#undef SP_TILE_ROWS
}  // namespace realnvp_avx512
#pragma GCC pop_options
#endif

template <class T>
std::unique_ptr<RealNvpEngine<T>> make_realnvp_engine(const RealNvpPlan& plan) {
#ifdef SP_REALNVP_X86
  // libtorch's own switch, so that both halves of a program follow it.
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string cap = limit ? limit : "";
  if (cap != "default" && cap != "avx2" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return std::make_unique<realnvp_avx512::Engine<T>>(plan);
  if (cap != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return std::make_unique<realnvp_avx2::Engine<T>>(plan);
#endif
  return std::make_unique<realnvp_base::Engine<T>>(plan);
}

template std::unique_ptr<RealNvpEngine<float>> make_realnvp_engine<float>(const RealNvpPlan&);
template std::unique_ptr<RealNvpEngine<double>> make_realnvp_engine<double>(const RealNvpPlan&);

}  // namespace scoreprior::detail
