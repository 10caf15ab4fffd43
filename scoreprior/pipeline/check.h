#pragma once
#include <string>
#include <vector>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"

namespace scoreprior {

/// One line of a dry run: a fact, or a test with its verdict.
struct CheckLine {
  enum class Verdict { kFact, kPassed, kLook, kFailed };
  std::string part;      ///< "data", "operator", "likelihood", "prior", "network", "cost"
  std::string name;      ///< what was looked at
  std::string measured;  ///< a number or a few words
  std::string text;      ///< limit or meaning
  Verdict verdict = Verdict::kFact;
};

struct CheckReport {
  std::vector<CheckLine> lines;
  std::string settings;  ///< the resolved configuration as TOML
  bool passed() const;   ///< no line failed; lines to look at do not count
};

/// What `run` would do with this configuration, without doing it:
///
///   data        counts, ranges, sigma and signal-to-noise of every data product; how large the
///               model of a plain image is beside them; chi^2 of the truth, where there is one
///   operator    the contract of the forward model (check_contract): shapes, batches, linearity,
///               dot test, gradient, in float64 and in the run's dtype
///   likelihood  finite, batch = stacked singles, gradient against central differences in float64
///   prior       the same with one fixed stream of random numbers
///   cost        seconds of one gradient of each; time and memory of the whole run, from steps of
///               one gradient each or, of split_gibbs, from three iterations (see forecast.h)
///
/// and what `train` would do with a configuration that has [training] or [model] and no [prior]:
///
///   data        the data set can be read; sizes, range of its pixels
///   network     parameters; loss and gradient of the first step are finite
///   cost        seconds of a step, time and memory of the whole training
///
/// Throws like `run` or `train` for a configuration or data that these would not accept.
CheckReport check(const Config& config, Observer& observer);

/// The report as a table, the settings first.
std::string check_text(const CheckReport& report);

}  // namespace scoreprior
