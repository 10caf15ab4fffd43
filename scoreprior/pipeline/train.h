#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "scoreprior/core/config.h"
#include "scoreprior/core/observer.h"
#include "scoreprior/core/shape.h"
#include "scoreprior/core/summary.h"
#include "scoreprior/diffusion/sampler.h"

namespace scoreprior {

/// [training] also holds the keys of DsmOptions (the loss) and AdamOptions (the optimiser).
struct TrainingOptions {
  int64_t steps = 20000;
  int64_t batch = 64;
  int64_t accumulate = 1;
  int64_t pool = 0;
  int64_t log_every = 50;
  int64_t validate_every = 1000;
  int64_t validation_images = 256;
  int64_t checkpoint_every = 500;
  int64_t sample_every = 5000;
  int64_t samples = 16;
  int64_t bad_steps = 20;
  bool bfloat16 = false;
  template <class F>
  void fields(F&& f) {
    f("steps", steps, "updates of the weights");
    f("batch", batch, "images per update");
    f("accumulate", accumulate, "parts an update's batch is computed in, to save memory");
    f("pool", pool, "of generated sets: distinct images, kept in memory (0 = always new ones)");
    f("log_every", log_every, "steps between lines of metrics.jsonl");
    f("validate_every", validate_every, "steps between validations (0 = never)");
    f("validation_images", validation_images, "held-out images of a validation");
    f("checkpoint_every", checkpoint_every, "steps between checkpoints");
    f("sample_every", sample_every, "steps between sample grids (0 = never)");
    f("samples", samples, "images of a sample grid");
    f("bad_steps", bad_steps, "non-finite losses in a row that end the training");
    f("bfloat16", bfloat16, "convolutions in bfloat16, everything else in float32");
  }
};

/// Trains a score network by denoising score matching and leaves in `folder`
///   model.safetensors       moving average of the weights, with its description and training
///   record (refreshed at
///                           every checkpoint)
///   checkpoint.safetensors  state to resume from
///   metrics.jsonl, tensorboard/, samples/step_*.npy and .png, config.toml
///   report.html             curves, samples and settings, refreshed at every validation
///
/// Tables: [data] (a dataset), [model] or [model.net] (a network; image_size, channels and centered
/// follow the data), [sde] or [model.sde], [training], [sampling] (SamplerOptions), [run]; `seed`.
///
/// Images, times, noise and dropout of a step are functions of (seed, step): training that was
/// stopped at any point and resumed ends with the same bits as the uninterrupted one (same number
/// of threads). A folder with a checkpoint is resumed when its settings agree (steps may be raised
/// with a constant learning rate), else refused. A step with a non-finite loss or gradient changes
/// nothing and is counted; bad_steps of them in a row end the training with Status::kDiverged.
/// Summary numbers: steps, images, seconds, images_per_second, loss, validation_loss,
/// skipped_steps, data_wait_share, parameters.
/// Throws ConfigError, CannotCreateError, DataError (damaged checkpoint), IoError (disk full).
Summary train(const Config& config, const std::filesystem::path& folder, Observer& observer);

/// What the first steps of a training find and cost.
struct TrainingTrial {
  TrainingOptions options;
  SamplerOptions sampler;
  std::string data, range, process;  ///< range: unit or centered
  Shape image_shape;
  int64_t training_images = 0, validation_images = 0;  ///< of the sets; 0 = made without end
  double lowest = 0, highest = 0;                      ///< pixel of one batch and of the held-out
  int64_t parameters = 0;
  double loss = 0;                            ///< of the first step, mean over the batch
  double grad_norm = 0;                       ///< of all parameters; NaN when the step was skipped
  double read_seconds = 0, step_seconds = 0;  ///< of a batch and of an update, after the first
  double forward_seconds = 0;                 ///< of one image in the network, without gradient
  double step_bytes = 0;                      ///< in tensors at the peak of an update
};

/// Three steps of the training `train` would do; writes nothing. Throws like `train` for a
/// configuration or data that it would not accept.
TrainingTrial try_training(const Config& config, Observer& observer);

}  // namespace scoreprior
