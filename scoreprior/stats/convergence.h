#pragma once
/// Have the chains converged, and how many independent draws are they worth? [Vehtari21]
/// x [chains, draws, event...] -> [event...] float64. Every chain is split in two halves. NaN where
/// a value is not finite or there are fewer than 4 draws a chain; 1 (R-hat) and the number of draws
/// (ESS) where all values are equal.

#include <ATen/core/Tensor.h>

namespace scoreprior::stats {

/// Rank-normalised split R-hat: the larger of the bulk's and the folded draws' (eqs. 2-4 of normal
/// scores of ranks).
at::Tensor rhat(const at::Tensor& x);
/// Effective sample size of the rank-normalised draws: for means and medians.
at::Tensor ess_bulk(const at::Tensor& x);
/// The smaller effective sample size of the 5 % and 95 % quantiles.
at::Tensor ess_tail(const at::Tensor& x);
/// Effective sample size of the plain mean, and the mean's Monte Carlo standard error std /
/// sqrt(ESS).
at::Tensor ess_mean(const at::Tensor& x);
at::Tensor mcse_mean(const at::Tensor& x);

}  // namespace scoreprior::stats
