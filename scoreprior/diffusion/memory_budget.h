#pragma once
#include <cstdint>
#include <functional>

namespace scoreprior {

/// Bytes this process may still take without swapping or being killed: the least of the machine's
/// available memory, what the control group leaves and what `ulimit -v` leaves, and with it the
/// freed memory that malloc keeps.
double usable_memory();

/// Bytes that a computation on the CPU may take: max_mib, or with max_mib = 0 half of
/// usable_memory(), so that what stands beside it (data, flow, optimiser) has room too.
double memory_budget(double max_mib);

/// The largest number of bytes in libtorch's tensors during `work` beyond those at its start.
double peak_allocation(const std::function<void()>& work);

/// Bytes that `work` will take when it is done again: libtorch's tensors at the peak of a second
/// run (the first one also fills caches) times 1.7, for the memory that malloc loses between blocks
/// (docs/logp_study.md).
double resident_bytes(const std::function<void()>& work);

/// Images of a piece, and network rows (images times probes) of a call.
struct Pieces {
  int64_t images = 0, rows = 0;
  bool limited = false;  ///< the images, by the memory and not by max_rows
};

/// The law  fixed + images * per_image + max(rows, images) * per_row <= budget,  pieces of about
/// equal size. One image always goes. per_image: what an image keeps through the whole computation;
/// per_row: a network row at its peak.
Pieces fit_into(double budget, double fixed, double per_image, double per_row, int64_t images,
                int64_t max_rows);

}  // namespace scoreprior
