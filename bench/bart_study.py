#!/usr/bin/python3
"""Multi-coil MRI at acceleration 4 and 8: our posterior mean beside `bart pics` with l1-wavelet regularisation.

    bart_study.py --bin build/ci/apps/scoreprior --out runs/bart-study [--images 0 1 2 3 4]

Coil sensitivities and k-space are BART's own: `phantom -S`, and for the row "BART's" also its Shepp-Logan phantom,
simulated in k-space (`phantom -k -s`); the images of the other rows are this program's `phantom` test images, sent
through `fmac` and `fft`. White noise of 0.03 (complex, relative to an image of peak about 1) is added. Both
programs get the same file of k-space, the same maps, and the knowledge that the image is real (`pics -c`). The
weight of the wavelets is the best of a scan on images 100 to 102. Needs Debian's bart and python3-numpy.
"""
import argparse, json, os, subprocess
import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIDE, COILS, NOISE = 32, 8, 0.03
ACCELERATIONS = [4, 8]
LAMBDAS = [10 ** (k / 4) for k in range(-10, -2)]
SCAN_IMAGES = [100, 101, 102]
CONFIG = """title = "Multi-coil MRI of BART's simulation"
seed = {seed}
[forward]
name = "multicoil_mri"
coil_maps = "{out}/maps.npy"
mask = "{out}/mask-{acceleration}.npy"
[likelihood]
name = "gaussian"
sigma = {noise}
[data]
file = "{data}"
[prior]
name = "score_elbo"
[prior.score]
weights = "{root}/models/phantom-32.safetensors"
[infer]
name = "split_gibbs"
n_draws = 16
batch = 16
rho_start = 1.0
anneal = 25
init_mean = 0.25
"""


class Bart:
    """Runs `bart` in a folder; arrays [coils,H,W] are BART's dimensions 3, 0 and 1."""

    def __init__(self, folder, prefix):
        self.folder, self.prefix = folder, prefix

    def __call__(self, *words):
        subprocess.run([*self.prefix, "bart", *map(str, words)], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def read(self, name):
        header = open(os.path.join(self.folder, name + ".hdr")).read().split("\n")[1].split()
        d = [int(v) for v in header] + [1] * 16
        a = np.fromfile(os.path.join(self.folder, name + ".cfl"), np.complex64).reshape(d[3], d[2], d[1], d[0])
        return (a[:, 0].transpose(0, 2, 1) if d[2] == 1 else a[:, :, :, 0].transpose(0, 2, 1)).astype(complex)

    def write(self, name, a):
        open(os.path.join(self.folder, name + ".hdr"), "w").write(
            f"# Dimensions\n{a.shape[1]} {a.shape[2]} 1 {a.shape[0]} 1\n")
        a.transpose(0, 2, 1).astype(np.complex64).tofile(os.path.join(self.folder, name + ".cfl"))


def errors(x, truth):
    """PSNR [dB] of the truth's peak, normalised root of the mean square."""
    return (10 * np.log10(truth.max() ** 2 / np.mean((x - truth) ** 2)),
            np.sqrt(np.sum((x - truth) ** 2) / np.sum(truth ** 2)))


class Study:
    def __init__(self, args):
        self.args, self.out = args, os.path.abspath(args.out)
        os.makedirs(self.out, exist_ok=True)
        self.bart = Bart(self.out, args.prefix.split())
        self.bart("phantom", "-x", SIDE, "-S", COILS, "raw_maps")
        raw = self.bart.read("raw_maps")
        self.scale = np.sqrt((abs(raw) ** 2).sum(0).max())  # BART's maps come in its own, large units
        self.maps = raw / self.scale
        np.save(os.path.join(self.out, "maps.npy"), self.maps)
        self.bart.write("maps", self.maps)
        self.masks = {a: self.mask(a) for a in ACCELERATIONS}
        for a, mask in self.masks.items():
            np.save(os.path.join(self.out, f"mask-{a}.npy"), mask.astype(float))

    def mask(self, acceleration):
        """This program's variable-density Poisson discs: where the transform of a bright pixel is not zero. (BART's
        pattern of this size does not go below acceleration 7.)"""
        config, x, y = (os.path.join(self.out, name) for name in ("mask.toml", "pixel.npy", "samples.npy"))
        open(config, "w").write(f'[forward]\nname = "mri"\nimage_size = {SIDE}\npattern = "poisson"\n'
                                f"acceleration = {acceleration}.0\ncentre_lines = 6\n")
        pixel = np.zeros((1, 1, SIDE, SIDE))
        pixel[0, 0, SIDE // 2, SIDE // 2] = 1
        np.save(x, pixel)
        self.program("eval", "forward", "--config", config, "--in", f"x={x}", "--out", f"y={y}")
        return np.hypot(*np.load(y).reshape(2, SIDE, SIDE)) > 0

    def program(self, *words):
        quiet = [] if words[0] == "eval" else ["--quiet"]
        subprocess.run([*self.args.prefix.split(), self.args.bin, *words, "--threads", "1", *quiet], check=True,
                       stdout=subprocess.DEVNULL)

    def full_kspace(self, image):
        """Noise-free k-space [coils,H,W] and the image it is of."""
        if image == "bart":
            self.bart("phantom", "-x", SIDE, "-k", "-s", COILS, "analytic")
            full = self.bart.read("analytic") / self.scale
            self.bart.write("analytic", full)
            # The image that the whole k-space shows: least squares with all samples.
            self.bart("pics", "-S", "-w", 1, "-c", "-l2", "-r", 1e-6, "-i", 100, "analytic", "maps", "object")
            truth = self.bart.read("object")[0].real
            peak = truth.max()
            return full / peak, truth / peak
        folder = os.path.join(self.out, f"image-{image}")
        if not os.path.exists(folder):
            self.program("simulate", os.path.join(HERE, "configs/forward/denoise.toml"), f"truth.index={image}",
                         "--out", folder)
        truth = np.load(os.path.join(folder, "truth.npy"))[0].astype(float)
        self.bart.write("object", truth[None].astype(complex))
        self.bart("fmac", "object", "maps", "seen")
        self.bart("fft", "-u", 3, "seen", "full")
        return self.bart.read("full"), truth

    def measure(self, image, acceleration):
        """The name of the noisy, undersampled k-space, and the truth."""
        full, truth = self.full_kspace(image)
        rng = np.random.default_rng([acceleration, 7 if image == "bart" else 1000 + image])
        noise = (rng.normal(size=full.shape) + 1j * rng.normal(size=full.shape)) * (NOISE / np.sqrt(2))
        name = f"kspace-{image}-{acceleration}"
        self.bart.write(name, (full + noise) * self.masks[acceleration])
        return name, truth

    def pics(self, name, weight):
        self.bart("pics", "-S", "-c", "-R", f"W:3:0:{weight:.4g}", "-i", 200, name, "maps", "reconstruction")
        return self.bart.read("reconstruction")[0].real

    def posterior(self, image, acceleration, name, truth):
        """Mean, chi^2 and coverage of 50 and 90 % of our draws on the same k-space."""
        k = self.bart.read(name)[:, self.masks[acceleration]].T.flatten()  # points, coils fastest
        data = os.path.join(self.out, name + ".npz")
        np.savez(data, y=np.concatenate([k.real, k.imag]), truth=truth[None])
        folder = os.path.join(self.out, f"run-{image}-{acceleration}")
        if not os.path.exists(os.path.join(folder, "summary.json")):
            config = os.path.join(self.out, f"run-{image}-{acceleration}.toml")
            open(config, "w").write(CONFIG.format(seed=0 if image == "bart" else image, out=self.out, noise=NOISE,
                                                  acceleration=acceleration, data=data, root=HERE))
            self.program("run", config, "--out", folder)
        s = json.load(open(os.path.join(folder, "summary.json")))
        m = s["metrics"]
        naive = np.load(os.path.join(folder, "naive.npy"))[0]
        mean = np.load(os.path.join(folder, "mean.npy"))[0]
        return (mean.astype(float), naive.astype(float), s["chi2"]["chi2"]["mean"],
                m["pixels of the truth in the central 50 %"], m["pixels of the truth in the central 90 %"])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--images", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    ap.add_argument("--prefix", default="", help="command in front of the program, e.g. taskset -c 1")
    args = ap.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    study = Study(args)
    print("| image | acceleration (samples) | PSNR zero-filled | pics, l1-wavelet | mean | NRMSE zero-filled | pics "
          "| mean | chi^2 | in 50 % | in 90 % |")
    print("|" + "---|" * 11)
    for acceleration in ACCELERATIONS:
        quality = {}
        for image in SCAN_IMAGES:
            name, truth = study.measure(image, acceleration)
            for weight in LAMBDAS:
                quality.setdefault(weight, []).append(errors(study.pics(name, weight), truth)[0])
        weight = max(quality, key=lambda w: np.mean(quality[w]))
        real = SIDE * SIDE / study.masks[acceleration].sum()
        rows = []
        for image in [*args.images, "bart"]:
            name, truth = study.measure(image, acceleration)
            wavelet = study.pics(name, weight)
            mean, naive, *rest = study.posterior(image, acceleration, name, truth)
            e = [errors(a, truth) for a in (naive, wavelet, mean)]
            row = [v[0] for v in e] + [v[1] for v in e] + rest
            if image == "bart":
                print(f"| BART's | {real:.2f} | " + " | ".join(f"{v:.{d}f}" for v, d in zip(row, DIGITS)) + " |",
                      flush=True)
            else:
                rows.append(row)
        a = np.array(rows)
        print(f"| {len(rows)} phantoms | {real:.2f} | " +
              " | ".join(f"{m:.{d}f} ± {s:.{d}f}" for m, s, d in zip(a.mean(0), a.std(0, ddof=1), DIGITS)) +
              f" | <!-- wavelet weight {weight:.3g}, scan PSNR {np.mean(quality[weight]):.2f} -->", flush=True)


DIGITS = [1, 1, 1, 3, 3, 3, 2, 2, 2]

if __name__ == "__main__":
    main()
