// What a user can get wrong, and the one sentence and exit code that answer it.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>

#include "scoreprior/diffusion/model_file.h"
#include "scoreprior/io/npy.h"
#include "scoreprior/nets/score_net.h"
#include "tests/system/program.h"

namespace scoreprior {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

constexpr const char* kSimulate = R"([truth]
name = "blackhole"
image_size = 16
fov_uas = 128
[observe]
array = "eht2017"
total_flux = 0.6
start_hours = 0.0
stop_hours = 6.0
advance_seconds = 1800
)";

constexpr const char* kSky = R"(seed = 1
[data]
file = "@/sky/observation.uvfits"
[image]
size = 16
[prior]
name = "tv"
[likelihood]
name = "interferometry"
fov_uas = 128
[infer]
name = "dpi"
steps = 3
batch = 4
n_draws = 4
checkpoint_every = 1
[infer.flow]
name = "gaussian_diagonal"
)";

constexpr const char* kLinear = R"(seed = 1
[data]
file = "@/linear.npz"
[image]
size = 8
[prior]
name = "tv"
[likelihood]
name = "gaussian"
[infer]
name = "dpi"
steps = 3
batch = 4
n_draws = 4
checkpoint_every = 1
[infer.flow]
name = "gaussian_diagonal"
)";

constexpr const char* kScore = R"(seed = 1
[data]
file = "@/sky/observation.uvfits"
[prior]
name = "score_elbo"
[prior.score]
weights = "@/trained/model.safetensors"
[likelihood]
name = "interferometry"
fov_uas = 128
[infer]
steps = 1
batch = 2
n_draws = 2
[infer.flow]
name = "gaussian_diagonal"
)";

constexpr const char* kTrain = R"(seed = 3
[data]
name = "gaussian_field"
image_size = 8
[model]
name = "ncsnpp"
nf = 8
ch_mult = [1, 2]
num_res_blocks = 1
attn_resolutions = [4]
[sde]
type = "vp"
[training]
steps = 2
batch = 4
schedule = "constant"
validation_images = 4
warmup = 1
checkpoint_every = 1
sample_every = 0
)";

struct BadInput {
  std::string name;
  Words command;
  int code;
  std::string says;          // part of the sentence
  std::string copy;          // fixture copied into the row's folder as "work"
  int64_t largest_file = 0;  // bytes a file may grow to
  Words intact;              // files of the copy that must keep their bytes
};

class BadInputTest : public ::testing::Test {
 protected:
  static fs::path root() {
    static const fs::path folder = fresh_folder("scoreprior_bad_input");
    return folder;
  }
  static std::string at(const std::string& name) { return (root() / name).string(); }

  // "@" in a text is the folder of the fixtures.
  static std::string placed(std::string text) {
    for (size_t i; (i = text.find("@/")) != std::string::npos;) text.replace(i, 1, root().string());
    return text;
  }
  static std::string config(const std::string& name, const std::string& text) {
    write_bytes(root() / (name + ".toml"), placed(text));
    return at(name + ".toml");
  }
  // A configuration with one line exchanged.
  static std::string changed(const std::string& name, std::string text, const std::string& from,
                             const std::string& to) {
    const size_t i = text.find(from);
    if (i == std::string::npos) throw std::logic_error("no \"" + from + "\" in the configuration");
    return config(name, text.replace(i, from.size(), to));
  }

  static void must_work(Words command) {
    command.push_back("--quiet");
    const Outcome o = spawn({command, root()});
    ASSERT_EQ(o.code, 0) << command[0] << ": " << o.err;
  }

  static void make_fixtures() {
    must_work({"simulate", config("simulate", kSimulate), "--out", at("sky")});
    io::write_npz(root() / "linear.npz", {{"y", at::rand({1, 8, 8}, at::kDouble)},
                                          {"sigma", at::full({}, 0.1, at::kDouble)}});
    must_work({"train", config("train", kTrain), "--out", at("trained")});
    must_work({"run", config("linear", kLinear), "--out", at("finished")});
    config("sky", kSky);
    config("score", kScore);
    make_measurements();
    make_models();
  }

  static void write_arrays(const std::string& name, const at::Tensor& y, const at::Tensor& sigma) {
    io::write_npz(root() / name, {{"y", y}, {"sigma", sigma}});
  }

  static void make_measurements() {
    const at::Tensor y = at::rand({1, 8, 8}, at::kDouble),
                     s = at::full({1, 8, 8}, 0.1, at::kDouble);
    const auto spoilt = [](at::Tensor a, double value) {
      a = a.clone();
      a.view(-1)[5] = value;
      return a;
    };
    write_arrays("nan_y.npz", spoilt(y, NAN), s);
    write_arrays("nan_sigma.npz", y, spoilt(s, NAN));
    write_arrays("zero_sigma.npz", y, spoilt(s, 0));
    write_arrays("negative_sigma.npz", y, spoilt(s, -1));
    write_arrays("small_y.npz", y.narrow(1, 0, 4), s.narrow(1, 0, 4));
    write_arrays("empty_y.npz", at::empty({0}, at::kDouble), at::full({}, 0.1, at::kDouble));
    io::write_npz(root() / "no_y.npz", {{"x", y}});
    io::write_npy(root() / "y.npy", y);
    io::write_npy(root() / "truth_small.npy", y);
    io::write_npy(root() / "truth_nan.npy", spoilt(at::rand({1, 16, 16}, at::kDouble), NAN));
    io::write_npy(root() / "truth_zero.npy", at::zeros({1, 16, 16}, at::kDouble));
    io::write_npy(root() / "x.npy", at::rand({2, 1, 8, 8}, at::kDouble));
    io::write_npy(root() / "x_flat.npy", at::rand({8, 8}, at::kDouble));
    io::write_npy(root() / "x_255.npy", 255 * at::rand({2, 1, 8, 8}, at::kDouble));
    io::write_npy(root() / "x_far.npy", at::full({2, 1, 8, 8}, 1e30, at::kDouble));
    io::write_npy(root() / "t2.npy", at::rand({2}, at::kDouble));
    io::write_npy(root() / "t3.npy", at::rand({3}, at::kDouble));
    io::write_npy(root() / "stack_nan.npy", spoilt(at::rand({8, 8, 8}, at::kFloat), NAN));

    const std::string npz = slurp(root() / "linear.npz"), npy = slurp(root() / "x.npy");
    write_bytes(root() / "truncated.npz", npz.substr(0, npz.size() / 2));
    write_bytes(root() / "garbage.npz", std::string(300, 'x'));
    write_bytes(root() / "damaged.npz", std::string(npz).replace(300, 40, 40, '\x5a'));
    write_bytes(root() / "truncated.npy", npy.substr(0, npy.size() - 100));
    write_bytes(root() / "garbage.npy", "not an array");
    write_bytes(root() / "header.npy", std::string(npy).replace(14, 30, 30, '?'));
    for (int k = 0; k < 10; ++k)  // enough for a share in every split
      write_bytes(root() / "pictures" / ("broken" + std::to_string(k) + ".png"),
                  "\x89PNG\r\n\x1a\n but no more");
    write_bytes(root() / "picture" / "only.png", "\x89PNG\r\n\x1a\n but no more");
    write_bytes(root() / "notes.txt", "hello");
    fs::create_symlink("/dev/full", root() / "full.npy");

    const std::string good = slurp(root() / "sky" / "observation.uvfits");
    for (const size_t n : {size_t{0}, size_t{100}, size_t{3000}, good.size() / 4, good.size() / 2})
      write_bytes(root() / ("truncated_" + std::to_string(n) + ".uvfits"), good.substr(0, n));
    lengths_ = {0, 100, 3000, good.size() / 4, good.size() / 2};
    std::string noise(good.size(), '\0');
    std::mt19937 random(7);
    for (char& c : noise) c = static_cast<char>(random());
    write_bytes(root() / "noise.uvfits", noise);
    write_bytes(root() / "noise_after_header.uvfits", good.substr(0, 2880) + noise.substr(2880));
    fs::copy_file(root() / "sky" / "truth.fits", root() / "image.uvfits");
    fs::copy_file(root() / "sky" / "observation.uvfits", root() / "visibilities.fits");

    // Groups of 16 parameters and 4 hands of (re, im, weight), big-endian float32.
    size_t data = 0;
    while (good.compare(data, 4, "END ") != 0) data += 80;
    data = (data / 2880 + 1) * 2880;
    const size_t groups = header_number(good, "GCOUNT");
    std::string flagged = good, nan = good;
    for (size_t g = 0; g < groups; ++g)
      for (size_t hand = 0; hand < 4; ++hand)
        flagged.replace(data + 4 * (28 * g + 16 + 3 * hand + 2), 4, 4, '\0');
    nan.replace(data + 4 * (28 * 3 + 16), 4, "\x7f\xc0\x00\x00", 4);
    write_bytes(root() / "flagged.uvfits", flagged);
    write_bytes(root() / "nan.uvfits", nan);
  }

  static size_t header_number(const std::string& fits, const std::string& key) {
    return std::stoul(fits.substr(fits.find(key + " ") + 10, 20));
  }

  static void make_models() {
    const fs::path good = root() / "trained" / "model.safetensors";
    const std::string bytes = slurp(good);
    write_bytes(root() / "truncated.safetensors", bytes.substr(0, bytes.size() - 1000));
    write_bytes(root() / "headless.safetensors", bytes.substr(0, 5));
    write_bytes(root() / "garbage.safetensors", std::string(bytes).replace(8, 200, 200, '#'));
    ModelFile m = read_model_file(good);
    ModelFile less = m, bad = m;
    less.weights.erase(less.weights.begin());
    write_model_file(root() / "incomplete.safetensors", less);
    for (auto& [name, w] : bad.weights)
      if (w.is_floating_point()) w = at::full_like(w, NAN);
    write_model_file(root() / "nan.safetensors", bad);
    ModelFile narrow = m;
    narrow.fov_uas = 64;
    write_model_file(root() / "narrow.safetensors", narrow);
    make_model("colour.safetensors", m, {{"channels", int64_t{3}}}, {3, 8, 8}, "unit");
    make_model("centered.safetensors", m, {{"centered", true}}, {1, 8, 8}, "centered");
  }

  static void make_model(
      const std::string& file, ModelFile m,
      const std::vector<std::pair<std::string, decltype(ConfigNode::value)>>& keys,
      const Shape& shape, const std::string& range) {
    for (const auto& [key, value] : keys) {
      const auto node = std::make_shared<ConfigNode>();
      node->value = value;
      m.net.set(key, node);
    }
    const auto net = score_nets().make(m.net, "ncsnpp");
    net->initialize(Rng(1));
    m.weights = net->parameters();
    for (const auto& [name, b] : net->buffers()) m.weights[name] = b;
    m.image_shape = shape;
    m.range = range;
    write_model_file(root() / file, m);
    for (const auto& [key, value] : keys) {  // the tables are shared
      const auto node = std::make_shared<ConfigNode>();
      node->value = key == "channels" ? decltype(ConfigNode::value)(int64_t{1}) : false;
      m.net.set(key, node);
    }
  }

  static std::vector<BadInput> table();

  static void check(const BadInput& row, std::string* failures) {
    const fs::path folder = root() / "rows" / row.name;
    fs::create_directories(folder);
    if (!row.copy.empty())
      fs::copy(root() / row.copy, folder / "work", fs::copy_options::recursive);
    const auto before = files_below(folder);
    Spawn s{row.command, folder};
    for (auto& a : s.arguments) a = placed(a);
    s.largest_file = row.largest_file;
    const Outcome o = spawn(s);
    std::ostringstream bad;
    if (o.code != row.code) bad << "  exit code " << o.code << ", expected " << row.code << "\n";
    if (o.signal) bad << "  ended by signal " << o.signal << "\n";
    if (o.err.rfind("scoreprior: ", 0) != 0) bad << "  does not begin with \"scoreprior: \"\n";
    if (std::count(o.err.begin(), o.err.end(), '\n') != 1 || o.err.back() != '\n')
      bad << "  not one line\n";
    if (o.err.find(placed(row.says)) == std::string::npos)
      bad << "  does not say \"" << placed(row.says) << "\"\n";
    for (const char* leak :
         {"terminate", "what()", "frame #", "Exception raised", "internal error", "0x"})
      if (o.err.find(leak) != std::string::npos) bad << "  shows \"" << leak << "\"\n";
    const auto after = files_below(folder);
    for (const auto& file : row.intact)
      if (!before.count("work/" + file) || !after.count("work/" + file) ||
          before.at("work/" + file) != after.at("work/" + file))
        bad << "  " << file << " was damaged\n";
    for (const auto& name : temporaries_below(folder)) bad << "  left " << name << "\n";
    if (!bad.str().empty())
      *failures += row.name + ":\n" + bad.str() + "  it said: " + o.err + "\n";
  }

  static std::vector<size_t> lengths_;
};
std::vector<size_t> BadInputTest::lengths_;

std::vector<BadInput> BadInputTest::table() {
  const std::string sky = at("sky.toml"), linear = at("linear.toml"), train = at("train.toml"),
                    score = at("score.toml"), simulate = at("simulate.toml");
  std::vector<BadInput> rows;
  const auto run = [&](const std::string& name, const std::string& file, const Words& overrides,
                       int code, const std::string& says) {
    Words command = {"run", file};
    command.insert(command.end(), overrides.begin(), overrides.end());
    for (const char* w : {"--quiet", "--out", "out"}) command.push_back(w);
    rows.push_back({name, command, code, says, "", 0, {}});
  };
  const auto train_with = [&](const std::string& name, const Words& overrides, int code,
                              const std::string& says) {
    run(name, train, overrides, code, says);
    rows.back().command[0] = "train";
  };
  const auto simulate_with = [&](const std::string& name, const Words& overrides, int code,
                                 const std::string& says) {
    run(name, simulate, overrides, code, says);
    rows.back().command[0] = "simulate";
  };
  const auto plain = [&](const std::string& name, const Words& command, int code,
                         const std::string& says) {
    rows.push_back({name, command, code, says, "", 0, {}});
  };

  // Usage: 64.
  plain("no_command", {}, 64, "command");
  plain("unknown_command", {"trian", train}, 64,
        "unknown command \"trian\"; did you mean \"train\"?");
  plain("unknown_option", {"run", sky, "--verbos"}, 64, "--verbos");
  plain("no_config_argument", {"run"}, 64, "CONFIG");
  plain("threads_not_a_number", {"run", sky, "--threads", "many"}, 64, "--threads");
  plain("threads_negative", {"run", sky, "--threads", "-2"}, 64, "--threads");
  plain("seed_negative", {"run", sky, "--seed", "-2"}, 64, "--seed");
  plain("override_without_value", {"run", sky, "infer.steps", "--out", "out"}, 64,
        "expected key=value, got \"infer.steps\"");
  plain("override_without_key", {"run", sky, "=3", "--out", "out"}, 64, "expected key=value");
  plain("override_empty_key", {"run", sky, "infer..steps=3", "--out", "out"}, 64,
        "empty key in \"infer..steps\"");
  plain("unknown_device", {"run", sky, "--device", "tpu", "--out", "out"}, 64, "--device");
  plain("unknown_device_sample", {"sample", "@/trained/model.safetensors", "--device", "tpu"}, 64,
        "--device");
  plain("unknown_dtype", {"eval", "sde", "--dtype", "float16"}, 64, "float16");
  plain("unknown_component", {"eval", "scor"}, 64,
        "unknown component \"scor\"; did you mean \"score\"?");
  plain("unknown_demo", {"demo", "blackhol", "--out", "out"}, 64, "unknown demo \"blackhol\"");
  plain("help_family", {"help", "priors"}, 64, "no family \"priors\"; did you mean \"prior\"?");
  plain("help_entry", {"help", "prior", "score_elb"}, 64,
        "unknown prior \"score_elb\"; did you mean \"score_elbo\"?");
  plain("eval_missing_input", {"eval", "prior", "--out", "logp=o.npy"}, 64, "--in x=FILE.npy");
  plain("eval_bad_assignment", {"eval", "prior", "--in", "x.npy"}, 64,
        "expected name=file.npy, got \"x.npy\"");
  plain("eval_unknown_output", {"eval", "sde", "--in", "t=@/t2.npy", "--out", "mean=o.npy"}, 64,
        "no output \"mean\"");
  plain("sample_no_images", {"sample", "@/trained/model.safetensors", "-n", "0"}, 64, "--count");

  // Configuration: 78.
  run("toml_syntax", changed("syntax", kSky, "size = 16", "size = = 16"), {}, 78,
      "@/syntax.toml:5: ");
  run("unknown_top_key", changed("top", kSky, "seed = 1", "sed = 1"), {}, 78,
      "@/top.toml:1: unknown key \"sed\"; did you mean \"seed\"?");
  run("unknown_table", changed("table", kSky, "[image]\nsize", "[image]\nsize = 16\n[imag]\nsize"),
      {}, 78, "@/table.toml:6: unknown key \"imag\"; did you mean \"image\"?");
  run("unknown_key", changed("nested", kSky, "batch = 4", "bach = 4"), {}, 78,
      "@/nested.toml:14: unknown key \"bach\" in [infer]; did you mean \"batch\"?");
  run("unknown_deep_key",
      changed("deep", kSky, "\"gaussian_diagonal\"", "\"gaussian_diagonal\"\nsoftpus = true"), {},
      78, "@/deep.toml:19: unknown key \"softpus\" in [infer.flow]; did you mean \"softplus\"?");
  run("unknown_override", sky, {"infer.stepz=3"}, 78,
      "unknown key \"stepz\" in [infer]; did you mean \"steps\"?");
  run("unknown_data_key", sky, {"data.min_snrr=3"}, 78, "did you mean \"min_snr\"?");
  run("wrong_type", changed("type", kSky, "steps = 3", "steps = \"many\""), {}, 78,
      "@/type.toml:13: \"steps\" in [infer]: expected an integer, got a string");
  run("fraction_of_a_step", sky, {"infer.steps=2.5"}, 78, "expected an integer, got a number");
  run("value_for_a_table", changed("value", kSky, "[image]\nsize = 16", "[image.size]\nx = 16"), {},
      78, "@/value.toml:4: \"size\" in [image]: expected an integer, got a table");
  run("table_is_a_value", sky, {"infer=3"}, 78, "expected a table [infer], got an integer");
  run("negative_steps", sky, {"infer.steps=-5"}, 78,
      "\"steps\" in [infer]: steps must be positive");
  run("negative_seed_key", sky, {"seed=-1"}, 78, "\"seed\": expected a non-negative integer");
  run("no_draws", sky, {"infer.n_draws=0"}, 78, "n_draws must be positive");
  run("negative_size", sky, {"image.size=-4"}, 78, "\"size\" in [image]");
  run("no_channels", sky, {"image.channels=0"}, 78, "\"channels\" in [image]");
  run("fov_negative", sky, {"likelihood.fov_uas=-1"}, 78, "fov_uas");
  run("weight_negative", sky, {"prior.weight=-1"}, 78, "\"weight\" in [prior]");
  run("unknown_prior", sky, {"prior.name=tsw"}, 78, "unknown prior \"tsw\"; did you mean \"tsv\"?");
  run("unknown_likelihood", sky, {"likelihood.name=gausian"}, 78, "did you mean \"gaussian\"?");
  run("unknown_inference", sky, {"infer.name=nuts"}, 78, "\"nuts\"");
  run("unknown_flow", sky, {"infer.flow.name=realnvpp"}, 78, "did you mean \"realnvp\"?");
  run("unknown_covariance", sky, {"likelihood.closure_covariance=exakt"}, 78, "closure_covariance");
  run("unknown_dtype_key", sky, {"run.dtype=float16"}, 78, "expected one of float32 | float64");
  run("no_file_key", changed("nofile", kSky, "file = \"@/sky/observation.uvfits\"", ""), {}, 78,
      "missing key \"file\" in [data]");
  run("unknown_measurement_kind", sky, {"data.file=@/notes.txt"}, 78,
      "unknown kind of measurement \"notes.txt\"");
  run("unknown_site", sky, {"data.drop_sites=[\"ZZ\"]"}, 78, "no site \"ZZ\" in the observation");
  run("sigma_zero_key", linear, {"likelihood.sigma=0"}, 78, "sigma must be positive");
  run("score_without_weights", sky, {"prior.name=score_elbo"}, 78, "weights");
  run("score_of_another_field", score, {"prior.score.weights=@/narrow.safetensors"}, 78,
      "\"fov_uas\" in [likelihood]: the images are 128 uas wide, those narrow.safetensors was "
      "trained on 64");
  run("score_of_another_size", score, {"image.size=16"}, 78, "[1,8,8]");
  train_with("training_steps", {"training.steps=-1"}, 78, "\"steps\" in [training]");
  train_with("training_batch", {"training.batch=0"}, 78, "\"batch\" in [training]");
  train_with("training_lr", {"training.lr=-0.1"}, 78, "\"lr\" in [training]");
  train_with("training_key", {"training.lrr=0.1"}, 78,
             "unknown key \"lrr\" in [training]; did you mean \"lr\"?");
  train_with("training_schedule", {"training.schedule=linear"}, 78,
             "expected one of constant | cosine");
  train_with("sde_beta", {"sde.beta_min=-1"}, 78, "beta_min");
  train_with("sde_type", {"sde.type=vpp"}, 78, "vpp");
  train_with("network_too_deep", {"model.ch_mult=[1,1,1,1,1,1]"}, 78, "ch_mult");
  train_with("network_no_width", {"model.nf=0"}, 78, "nf");
  train_with("network_other_size", {"model.image_size=16"}, 78, "\"image_size\" in [model]");
  train_with("data_size_zero", {"data.image_size=0"}, 78, "image_size");
  train_with("data_split_option", {"data.k0=-1"}, 78, "k0");
  simulate_with("observe_key", {"observe.arry=eht2017"}, 78,
                "unknown key \"arry\" in [observe]; did you mean \"array\"?");
  simulate_with("observe_array", {"observe.array=eht1917"}, 78, "eht1917");
  simulate_with("observe_times", {"observe.stop_hours=-1"}, 78, "stop_hours");
  simulate_with("observe_flux", {"observe.total_flux=0"}, 78, "total_flux");
  simulate_with("truth_index", {"truth.index=-1"}, 78, "\"index\" in [truth]");
  simulate_with("truth_split", {"truth.split=tests"}, 78, "expected one of train | valid | test");
  simulate_with("truth_size", {"truth.image_size=-3"}, 78, "image_size");

  // Missing: 66.
  run("missing_config", at("nowhere.toml"), {}, 66,
      "configuration file @/nowhere.toml does not exist");
  run("config_is_a_folder", at("sky"), {}, 66, "is a folder, not a file");
  run("missing_data", sky, {"data.file=@/nowhere.uvfits"}, 66, "@/nowhere.uvfits does not exist");
  run("missing_arrays", linear, {"data.file=@/nowhere.npz"}, 66, "@/nowhere.npz does not exist");
  run("not_simulated_yet",
      changed("simulated", kLinear, "[prior]\n", "[truth]\nname = \"phantom\"\n[prior]\n"),
      {"data.file=@/nowhere.npz"}, 66, "make it with: scoreprior simulate @/simulated.toml --out ");
  run("missing_truth", sky, {"data.truth=@/nowhere.fits"}, 66, "@/nowhere.fits does not exist");
  run("missing_model", score, {"prior.score.weights=@/nowhere.safetensors"}, 66,
      "@/nowhere.safetensors does not exist");
  simulate_with("missing_array_file", {"observe.array_file=@/nowhere.txt"}, 66,
                "@/nowhere.txt does not exist");
  train_with("missing_images", {"data.name=image_folder", "data.path=@/nowhere", "data.slope=3"},
             66, "@/nowhere");
  plain("missing_sample_model", {"sample", "@/nowhere.safetensors"}, 66,
        "model @/nowhere.safetensors does not exist");
  plain("missing_eval_array", {"eval", "sde", "--in", "t=@/nowhere.npy", "--out", "std=o.npy"}, 66,
        "@/nowhere.npy does not exist");
  plain("missing_info", {"info", "@/nowhere.npy"}, 66, "@/nowhere.npy does not exist");
  plain("missing_run_folder", {"report", "@/nowhere"}, 66,
        "@/nowhere is not a finished run folder");

  // Data: 65.
  for (const size_t n : lengths_) {
    const std::string file = "truncated_" + std::to_string(n) + ".uvfits";
    run("uvfits_" + std::to_string(n), sky, {"data.file=@/" + file}, 65, file);
  }
  run("uvfits_noise", sky, {"data.file=@/noise.uvfits"}, 65, "@/noise.uvfits: not a FITS file");
  run("uvfits_noise_after_header", sky, {"data.file=@/noise_after_header.uvfits"}, 65,
      "noise_after_header.uvfits: ");
  run("uvfits_is_an_image", sky, {"data.file=@/image.uvfits"}, 65, "image.uvfits: ");
  run("uvfits_flagged", sky, {"data.file=@/flagged.uvfits"}, 65, "every visibility is flagged");
  run("uvfits_nan", sky, {"data.file=@/nan.uvfits"}, 65, "visibility 4 is not a number");
  plain("uvfits_info", {"info", "@/truncated_3000.uvfits"}, 65, "truncated_3000.uvfits: ");
  run("no_snr", sky, {"data.min_snr=1e9"}, 65, "no visibilities are left after flagging");
  run("no_long_baseline", sky, {"data.min_uv=1e15"}, 65, "no baseline is longer than min_uv");
  run("no_weights", sky, {"likelihood.cphase_weight=0", "likelihood.logcamp_weight=0"}, 65,
      "nothing to fit");
  run("image_is_uvfits", sky, {"data.truth=@/visibilities.fits"}, 65,
      "@/visibilities.fits: a UVFITS file, not an image");
  run("truth_size_differs", sky, {"data.truth=@/truth_small.npy"}, 65,
      "the truth has the shape [1,8,8], expected [1,16,16]");
  run("truth_nan", sky, {"data.truth=@/truth_nan.npy"}, 65, "truth_nan.npy: ");
  run("truth_not_an_array", sky, {"data.truth=@/garbage.npy"}, 65, "garbage.npy: not an NPY file");
  run("truth_field_differs", sky, {"data.truth=@/sky/truth.fits", "likelihood.fov_uas=160"}, 65,
      "truth.fits: a field of");
  run("colour_sky", sky, {"image.channels=3"}, 78, "[3,16,16]");
  run("arrays_for_the_sky", sky, {"data.file=@/linear.npz"}, 65, "visibilities");
  run("sky_for_arrays", sky, {"likelihood.name=gaussian"}, 65, "no measurement vector y");
  run("y_nan", linear, {"data.file=@/nan_y.npz"}, 65,
      "nan_y.npz: y holds values that are not finite");
  run("sigma_nan", linear, {"data.file=@/nan_sigma.npz"}, 65,
      "nan_sigma.npz: sigma holds values that are not finite");
  run("sigma_zero", linear, {"data.file=@/zero_sigma.npz"}, 65, "sigma is not positive everywhere");
  run("sigma_negative", linear, {"data.file=@/negative_sigma.npz"}, 65,
      "sigma is not positive everywhere");
  run("y_size", linear, {"data.file=@/small_y.npz"}, 65,
      "the forward model gives 64 numbers, the observation has 32");
  run("y_empty", linear, {"data.file=@/empty_y.npz"}, 65, "y is empty");
  run("y_absent", linear, {"data.file=@/no_y.npz"}, 65, "no array y");
  run("npz_truncated", linear, {"data.file=@/truncated.npz"}, 65,
      "truncated.npz: not an NPZ (zip) file, or damaged");
  run("npz_garbage", linear, {"data.file=@/garbage.npz"}, 65,
      "garbage.npz: not an NPZ (zip) file, or damaged");
  run("npz_damaged", linear, {"data.file=@/damaged.npz"}, 65, "damaged.npz");
  const auto exact = [&](const std::string& name, const std::string& key, const std::string& says) {
    run(name, score, {"prior.name=score_ode", key}, 78, says);
  };
  exact("exact_t0", "prior.t0=1", "\"t0\" in [prior]: t0 must lie between 0 and 1");
  exact("exact_tolerance", "prior.rtol=-1e-3", "\"rtol\" in [prior]: tolerances must be positive");
  exact("exact_probes", "prior.n_probes=0", "\"n_probes\" in [prior]");
  exact("exact_memory", "prior.max_memory_mib=-1", "\"max_memory_mib\" in [prior]");
  // Numerical failures: what stopped log p, after everything was written.
  run("exact_step_limit", score, {"prior.name=score_ode", "prior.max_steps=1"}, 65,
      "prior: log p had no value in 2 of 2 evaluations: step limit reached at t = 0.00");
  run("exact_evaluation_limit", score, {"prior.name=score_ode", "prior.max_nfe=2"}, 65,
      "evaluation limit reached at t = 0.001 (exp4m");
  run("exact_blow_up", score, {"prior.name=score_ode", "infer.flow.init_mean=1e30"}, 65,
      "prior: log p had no value in 2 of 2 evaluations: ");
  run("model_truncated", score, {"prior.score.weights=@/truncated.safetensors"}, 65,
      "truncated.safetensors: truncated");
  run("model_headless", score, {"prior.score.weights=@/headless.safetensors"}, 65,
      "too short to be a safetensors file");
  run("model_garbage", score, {"prior.score.weights=@/garbage.safetensors"}, 65,
      "the safetensors header is not JSON");
  run("model_incomplete", score, {"prior.score.weights=@/incomplete.safetensors"}, 65,
      "incomplete.safetensors");
  run("model_nan", score, {"prior.score.weights=@/nan.safetensors"}, 65, "not finite");
  run("model_colour", score, {"prior.score.weights=@/colour.safetensors"}, 78, "[3,8,8]");
  run("model_centered", score, {"prior.score.weights=@/centered.safetensors"}, 65, "centered");
  run("model_is_an_array", score, {"prior.score.weights=@/x.npy"}, 65, "x.npy: ");
  simulate_with("simulate_nan", {"truth.file=@/truth_nan.npy"}, 65,
                "truth_nan.npy: has pixels that are not finite");
  rows.back().command[1] =
      changed("from_file", kSimulate, "name = \"blackhole\"\nimage_size = 16\n", "");
  simulate_with("simulate_dark", {"truth.file=@/truth_zero.npy"}, 65, "truth_zero.npy");
  rows.back().command[1] = at("from_file.toml");
  simulate_with("source_below_horizon",
                {"observe.elevation_min=89.9", "observe.elevation_max=89.95"}, 65,
                "no two telescopes see the source");
  train_with("images_broken", {"data.valid_fraction=0.3", "data.test_fraction=0.3"}, 65, "broken");
  rows.back().command[1] = changed("pictures", kTrain, "\"gaussian_field\"",
                                   "\"image_folder\"\npath = \"@/pictures\"\nsplit_by = \"range\"");
  train_with("only_image_broken", {}, 65, "@/picture/only.png: ");
  rows.back().command[1] =
      changed("picture", kTrain, "\"gaussian_field\"", "\"image_folder\"\npath = \"@/picture\"");
  train_with("images_nan", {"data.name=array_stack", "data.path=@/stack_nan.npy"}, 65,
             "stack_nan.npy");
  plain("npy_truncated", {"eval", "sde", "--in", "t=@/truncated.npy", "--out", "std=o.npy"}, 65,
        "truncated.npy: truncated");
  plain("npy_garbage", {"info", "@/garbage.npy"}, 65, "garbage.npy: not an NPY file");
  plain("npy_header", {"info", "@/header.npy"}, 65, "header.npy: ");
  plain("info_unknown", {"info", "@/notes.txt"}, 65, "unknown kind of file");
  plain("info_folder", {"info", "@/sky"}, 65, "not a run folder");
  const auto logp = [&](const std::string& name, const Words& rest, int code,
                        const std::string& says) {
    Words command = {"logp", "@/trained/model.safetensors"};
    command.insert(command.end(), rest.begin(), rest.end());
    plain(name, command, code, says);
  };
  plain("logp_no_images", {"logp", "@/trained/model.safetensors"}, 64, "IMAGES");
  logp("logp_method", {"@/x.npy", "--method", "exact"}, 64,
       "unknown method \"exact\": ode, elbo, path or all");
  logp("logp_kind", {"@/notes.txt"}, 64, "unknown kind of images \"@/notes.txt\"");
  logp("logp_key", {"@/x.npy", "ode.rtl=1e-3"}, 78,
       "unknown key \"rtl\" in [ode]; did you mean \"rtol\"?");
  logp("logp_tolerance", {"@/x.npy", "ode.rtol=-1"}, 78, "\"rtol\" in [ode]");
  logp("logp_probes", {"@/x.npy", "ode.n_probes=0"}, 78, "\"n_probes\" in [ode]");
  logp("logp_t0", {"@/x.npy", "path.t0=1.5"}, 78, "t0 must lie between 0 and 1");
  logp("logp_ode_t0", {"@/x.npy", "ode.t0=1"}, 78, "\"t0\" in [ode]: t0 must lie between 0 and 1");
  logp("logp_elbo_t0", {"@/x.npy", "elbo.t0=1"}, 78, "\"t0\" in [elbo]");
  logp("logp_atol", {"@/x.npy", "ode.atol=-1e-5"}, 78, "tolerances must be positive");
  logp("logp_no_tolerance", {"@/x.npy", "ode.atol=0", "ode.rtol=0"}, 78,
       "tolerances must be positive");
  logp("logp_no_steps", {"@/x.npy", "ode.max_steps=0"}, 78, "max_steps must be at least 1");
  logp("logp_memory", {"@/x.npy", "ode.max_memory_mib=-1"}, 78,
       "max_memory_mib must not be negative");
  logp("logp_paths", {"@/x.npy", "path.paths=0"}, 78, "paths must be at least 1");
  logp("logp_nan", {"@/stack_nan.npy", "--method", "path"}, 65,
       "stack_nan.npy: image 0 has pixels that are not finite");
  logp("logp_size", {"@/truth_nan.npy"}, 65,
       "truth_nan.npy: an array [1,16,16], expected images [N,1,8,8] as the model's");
  logp("logp_range", {"@/x_255.npy"}, 65, "the model's images are in [0,1]");
  logp("logp_centered", {"@/x_255.npy"}, 65, "the model's images are in [-1,1]");
  rows.back().command[1] = "@/centered.safetensors";
  logp("logp_channels", {"@/x.npy"}, 65, "expected images [N,3,8,8]");
  rows.back().command[1] = "@/colour.safetensors";
  logp("logp_array", {"@/truncated.npy"}, 65, "truncated.npy: truncated");
  logp("logp_picture", {"@/pictures"}, 65, "broken0.png");
  logp("logp_missing_images", {"@/nowhere.npy"}, 66, "@/nowhere.npy does not exist");
  logp("logp_missing_model", {"@/x.npy"}, 66, "@/nowhere.safetensors does not exist");
  rows.back().command[1] = "@/nowhere.safetensors";
  logp("logp_solver", {"@/x.npy", "ode.solver=rk4"}, 78,
       "the solver rk4 has no error estimate: it needs steps > 0");
  logp("logp_adjoint", {"@/x.npy", "ode.adjoint=direct"}, 78, "unknown key \"adjoint\" in [ode]");
  logp("logp_step_limit", {"@/x.npy", "--method", "ode", "ode.max_steps=1", "--quiet"}, 65,
       "ode: no value for 2 of 2 images: step limit reached at t = 0.00");
  logp("logp_blow_up",
       {"@/x_far.npy", "--method", "all", "images.check_range=false", "path.steps=4",
        "path.paths=1", "elbo.n_times=2", "elbo.replicates=2", "--quiet"},
       65, "ode: no value for 2 of 2 images: ");
  plain("eval_logp_step_limit",
        {"eval", "logp", "--set", "prior.name=score_ode", "--set", "prior.max_steps=1", "--set",
         "prior.score.weights=@/trained/model.safetensors", "--in", "x=@/x.npy", "--out",
         "logp=o.npy"},
        65, "eval logp: step limit reached at t = 0.00");
  logp("logp_model_nan", {"@/x.npy"}, 65, "not finite");
  rows.back().command[1] = "@/nan.safetensors";
  logp("logp_no_folder",
       {"@/x.npy", "--method", "path", "path.steps=2", "--quiet", "--out", "nowhere/o.npz"}, 73,
       "cannot write nowhere/o.npz");
  const Words elbo = {"--set", "prior.name=score_elbo", "--set",
                      "prior.score.weights=@/trained/model.safetensors"};
  const auto eval = [&](const std::string& name, Words command, int code, const std::string& says) {
    if (command[0] == "prior") command.insert(command.end(), elbo.begin(), elbo.end());
    command.insert(command.begin(), "eval");
    plain(name, command, code, says);
  };
  eval("eval_flat_image", {"prior", "--in", "x=@/x_flat.npy", "--out", "logp=o.npy"}, 78,
       "[1,8,8]");
  eval("eval_score_times",
       {"score", "--set", "score.weights=@/trained/model.safetensors", "--in", "x=@/x.npy", "--in",
        "t=@/t3.npy", "--out", "score=o.npy"},
       65, "expected x [B,C,H,W] and t [B]");
  eval("eval_score_shape",
       {"score", "--set", "score.weights=@/trained/model.safetensors", "--in", "x=@/t2.npy", "--in",
        "t=@/t2.npy", "--out", "score=o.npy"},
       65, "[2]");
  eval("eval_sde_shapes",
       {"sde", "--in", "t=@/t3.npy", "--in", "x=@/x.npy", "--out", "drift=o.npy"}, 65,
       "eval sde: the arrays do not fit");
  eval("eval_forward_shape",
       {"forward", "--set", "forward.image_size=16", "--in", "x=@/x.npy", "--out", "y=o.npy"}, 65,
       "x");
  eval("eval_flow_shape",
       {"flow", "--set", "flow.name=gaussian_diagonal", "--set", "flow.dim=5", "--in", "z=@/t2.npy",
        "--out", "x=o.npy"},
       65, "z");
  rows.push_back({"checkpoint_damaged",
                  {"train", train, "training.steps=4", "--quiet", "--out", "work"},
                  65,
                  "checkpoint.safetensors: ",
                  "torn_training",
                  0,
                  {"checkpoint.safetensors", "model.safetensors"}});
  rows.push_back({"state_damaged",
                  {"run", linear, "--quiet", "--out", "work"},
                  65,
                  "state.safetensors: ",
                  "torn_run",
                  0,
                  {"state.safetensors", "run.json"}});
  rows.push_back({"identity_damaged",
                  {"run", linear, "--quiet", "--out", "work"},
                  65,
                  "run.json: damaged",
                  "torn_identity",
                  0,
                  {"state.safetensors", "run.json"}});
  rows.push_back({"summary_damaged",
                  {"report", "work", "--quiet"},
                  65,
                  "summary.json: damaged",
                  "torn_summary",
                  0,
                  {"summary.json", "report.html", "draws.npy"}});
  rows.push_back({"draws_damaged",
                  {"report", "work", "--quiet"},
                  65,
                  "draws.npy: ",
                  "torn_draws",
                  0,
                  {"summary.json", "report.html", "draws.npy"}});

  // Outputs that cannot be made: 73.
  rows.push_back({"run_of_other_settings",
                  {"run", linear, "infer.steps=4", "--quiet", "--out", "work"},
                  73,
                  "belongs to a run with other settings",
                  "finished",
                  0,
                  {"config.toml", "run.json", "draws.npy", "state.safetensors", "summary.json",
                   "report.html"}});
  rows.push_back({"training_of_other_settings",
                  {"train", train, "training.lr=0.5", "--quiet", "--out", "work"},
                  73,
                  "lr = 0.5 here",
                  "trained",
                  0,
                  {"checkpoint.safetensors", "model.safetensors", "config.toml", "metrics.jsonl"}});
  for (const char* command : {"run", "train", "simulate"}) {
    const std::string file =
        at(std::string(command == std::string("run") ? "linear" : command) + ".toml");
    plain(std::string("file_in_the_way_") + command,
          {command, file, "--quiet", "--out", "@/notes.txt/out"}, 73, "notes.txt/out");
    plain(std::string("out_is_a_file_") + command,
          {command, file, "--quiet", "--out", "@/notes.txt"}, 73, "notes.txt");
  }
  plain("file_in_the_way_sample",
        {"sample", "@/trained/model.safetensors", "-n", "1", "--steps", "1", "--quiet", "--out",
         "@/notes.txt/out"},
        73, "notes.txt/out");
  plain("file_in_the_way_demo", {"demo", "blackhole", "--quiet", "--out", "@/notes.txt/out"}, 73,
        "notes.txt/out");
  plain("eval_no_folder", {"eval", "sde", "--in", "t=@/t2.npy", "--out", "std=nowhere/o.npy"}, 73,
        "cannot write nowhere/o.npy");

  // Full disks: 74, and what was there stays.
  plain("full_device", {"eval", "sde", "--in", "t=@/t2.npy", "--out", "std=@/full.npy"}, 74,
        "cannot write @/full.npy: No space left on device");
  rows.push_back({"full_simulate",
                  {"simulate", simulate, "--quiet", "--out", "work"},
                  74,
                  "observation.uvfits",
                  "sky",
                  20000,
                  {"observation.uvfits", "truth.fits", "truth.npy"}});
  rows.push_back({"full_train",
                  {"train", train, "training.steps=4", "--quiet", "--out", "work"},
                  74,
                  "checkpoint.safetensors",
                  "trained",
                  300000,
                  {"checkpoint.safetensors", "model.safetensors"}});
  rows.push_back({"full_run_state",
                  {"run", linear, "--quiet", "--out", "work"},
                  74,
                  "cannot write ",
                  "unfinished",
                  2900,
                  {"state.safetensors", "run.json", "config.toml"}});
  rows.push_back({"full_report",
                  {"report", "work", "--quiet"},
                  74,
                  "cannot write",
                  "finished",
                  2900,
                  {"summary.json", "report.html", "draws.npy", "run.json"}});
  return rows;
}

TEST_F(BadInputTest, EveryMistakeGetsOneSentenceAndItsExitCode) {
  make_fixtures();
  ASSERT_FALSE(HasFatalFailure());
  const auto torn = [](const std::string& name, const char* from, const char* file, size_t keep) {
    fs::copy(root() / from, root() / name, fs::copy_options::recursive);
    fs::resize_file(root() / name / file, keep);
  };
  torn("torn_training", "trained", "checkpoint.safetensors", 5000);
  torn("torn_run", "finished", "state.safetensors", 300);
  fs::remove(root() / "torn_run" / "summary.json");
  torn("torn_identity", "finished", "run.json", 20);
  torn("torn_summary", "finished", "summary.json", 50);
  torn("torn_draws", "finished", "draws.npy", 150);
  fs::copy(root() / "finished", root() / "unfinished", fs::copy_options::recursive);
  fs::remove(root() / "unfinished" / "summary.json");

  const std::vector<BadInput> rows = table();
  std::set<std::string> names;
  for (const auto& row : rows) EXPECT_TRUE(names.insert(row.name).second) << row.name << " twice";
  const auto before = files_below(root());

  std::atomic<size_t> next{0};
  std::vector<std::string> failures(rows.size());
  const auto work = [&] {
    for (size_t k; (k = next++) < rows.size();) check(rows[k], &failures[k]);
  };
  std::vector<std::thread> workers;
  for (int k = 0; k < 2; ++k) workers.emplace_back(work);
  for (auto& w : workers) w.join();

  size_t failed = 0;
  for (const auto& f : failures) {
    failed += !f.empty();
    if (!f.empty()) ADD_FAILURE() << f;
  }
  std::cout << rows.size() << " mistakes, " << failed << " answered wrongly\n";
  auto after = files_below(root());
  for (const auto& [name, bytes] : before) {
    EXPECT_TRUE(after.count(name)) << name << " was removed";
    EXPECT_TRUE(after[name] == bytes) << name << " was damaged";
  }
  if (!HasFailure()) fs::remove_all(root());
}

// Bytes changed at random may still be a measurement, or be refused; they never crash the reader.
TEST_F(BadInputTest, CorruptVisibilitiesNeverCrash) {
  const fs::path folder = fresh_folder("scoreprior_corrupt");
  write_bytes(folder / "simulate.toml", kSimulate);
  ASSERT_EQ(spawn({{"simulate", "simulate.toml", "--out", "sky", "--quiet"}, folder}).code, 0);
  const std::string good = slurp(folder / "sky" / "observation.uvfits");
  for (unsigned seed = 0; seed < 8; ++seed) {
    std::mt19937 random(seed);
    std::string bad = good;
    // Half of the seeds aim at the header, where lengths are.
    const size_t reach = seed % 2 ? bad.size() : 5760;
    for (int k = 0; k < 30; ++k)
      bad[random() % reach] = static_cast<char>(seed % 4 < 2 ? random() : '0' + random() % 10);
    write_bytes(folder / "bad.uvfits", bad);
    const Outcome o = spawn({{"info", "bad.uvfits"}, folder});
    EXPECT_TRUE(o.code == 0 || o.code == 65)
        << "seed " << seed << ": code " << o.code << ", signal " << o.signal << ": " << o.err;
    if (o.code == 65) {
      EXPECT_EQ(o.err.rfind("scoreprior: bad.uvfits: ", 0), 0u) << o.err;
    }
  }
  if (!HasFailure()) fs::remove_all(folder);
}

}  // namespace
}  // namespace scoreprior
