#!/usr/bin/python3
"""Every forward model end to end: draws under a shipped prior beside the naive inverse and a total-variation MAP.

    forward_study.py --bin build/ci/apps/scoreprior --out runs/forward-study [--rows denoise ...] [--images 0 1 ...]
    forward_study.py ... --scan              TV weights, on images 100 and 101
    forward_study.py ... --montage FILE.png  a picture of finished runs
    forward_study.py ... --truths FILE.npy   posteriors of images [N,C,H,W] of a file, chi^2 and coverage: images that the
                                             prior's own model drew show whether the sampler is calibrated

For every row (configs/forward/ROW.toml) and test image: `simulate`, `run` as configured, and `run` with the prior
`tv` and the method `map`. Prints one table row per forward model, mean +- standard deviation over images. Finished
runs are not repeated. The TV weights below are the best of a scan (in quarter decades) on images 100 and 101 (the
first four rows, radon_sparse, inpainting_box, blur_gaussian) or on image 100 alone (the others); none is a reported
one. Needs Debian's python3-numpy, and python3-pil for the picture.
"""
import argparse, json, os, re, subprocess
import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Row: its name in the picture.
ROWS = {
    "mri_poisson": "MRI, Poisson discs", "mri_cartesian": "MRI, Cartesian", "mri_radial": "MRI, radial",
    "multicoil_mri": "MRI, 8 coils", "radon_sparse": "CT, 12 views", "radon_limited": "CT, 90 degrees",
    "inpainting_box": "inpainting, box", "inpainting_random": "inpainting, 30 %",
    "blur_gaussian": "Gaussian blur", "blur_motion": "motion blur", "super_resolution_area": "4 x, area",
    "super_resolution_bicubic": "4 x, bicubic", "denoise": "noise", "low_dft": "low Fourier",
    "phase_retrieval": "phase retrieval", "compose": "blur + inpainting", "matrix": "real matrix",
    "complex_matrix": "complex matrix", "visibilities": "visibilities", "inpainting_colour": "colour, 30 %",
}
WEIGHTS = {
    "mri_poisson": 5.62e3, "mri_cartesian": 1.78e4, "mri_radial": 1e3, "multicoil_mri": 5.62e3,
    "radon_sparse": 1e4, "radon_limited": 3.16e3, "inpainting_box": 1.78e4, "inpainting_random": 3.16e4,
    "blur_gaussian": 1e3, "blur_motion": 3.16e3, "super_resolution_area": 3.16e3,
    "super_resolution_bicubic": 3.16e3, "denoise": 5.62e3, "low_dft": 5.62e3, "phase_retrieval": 3.16e4,
    "compose": 1e3, "matrix": 1e4, "complex_matrix": 5.62e3, "visibilities": 1.78e4, "inpainting_colour": 1e4,
}
SCAN = [2.5, 3, 3.5, 4, 4.5]  # log10 of the weight; then a quarter decade to either side of the best
SCAN_IMAGES = [100, 101]
TV = """[image]
size = 32
channels = {channels}
[prior]
name = "tv"
weight = {weight}
[infer]
name = "map"
steps = 600
lr = {lr}
init_mean = {mean}
"""


# ------------------------------------------------------------------ what the configurations need

def write_inputs(folder):
    """The matrices and the (u,v) that configs/forward names."""
    rng = np.random.default_rng(0)
    np.save(os.path.join(folder, "matrix.npy"), rng.normal(size=(256, 1024)) / 32)
    np.save(os.path.join(folder, "matrix_real.npy"), rng.normal(size=(128, 1024)) / 32)
    np.save(os.path.join(folder, "matrix_imag.npy"), rng.normal(size=(128, 1024)) / 32)
    np.save(os.path.join(folder, "uv.npy"), tracks())


def tracks(dec_deg=12.391, wavelength=1.3e-3, step_hours=0.5, lowest_deg=10.0):
    """(u,v) [wavelengths] of the EHT 2017 array on M87, wherever both sites see it above 10 degrees."""
    sites = []
    for line in open(os.path.join(HERE, "configs", "arrays", "eht2017.txt")):
        words = line.split()
        if len(words) >= 4 and not line.startswith("#"):
            sites.append([float(w) for w in words[1:4]])
    dec, rows = np.radians(dec_deg), []
    for hour in np.arange(0, 24, step_hours):
        h = np.radians(15 * hour)  # hour angle at Greenwich
        source = np.array([np.cos(dec) * np.cos(h), -np.cos(dec) * np.sin(h), np.sin(dec)])
        east = np.array([np.sin(h), np.cos(h), 0.0])
        north = np.array([-np.sin(dec) * np.cos(h), np.sin(dec) * np.sin(h), np.cos(dec)])
        up = [s for s in map(np.array, sites) if np.dot(s, source) > np.sin(np.radians(lowest_deg)) * np.linalg.norm(s)]
        for i, a in enumerate(up):
            for b in up[i + 1:]:
                rows.append([np.dot(a - b, east) / wavelength, np.dot(a - b, north) / wavelength])
    return np.array(rows)


# ------------------------------------------------------------------ runs

def program(args, *words):
    subprocess.run([*args.prefix.split(), args.bin, *words, "--threads", "1", "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)


def configuration(row, args):
    text = open(os.path.join(HERE, "configs", "forward", row + ".toml")).read()
    if args.truths:
        text = re.sub(r"\[truth\].*?\n\n", "", text, flags=re.S)
    return text.replace('"../../models/', f'"{HERE}/models/').replace('"../../runs/forward/', f'"{args.out}/')


def simulation(row, image, args):
    folder = os.path.join(args.out, row, f"data-{image}")
    if not os.path.exists(folder):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        config = os.path.join(args.out, row, "config.toml")
        open(config, "w").write(configuration(row, args))
        truth = f"truth.index={image}"
        if args.truths:
            file = os.path.join(args.out, row, f"truth-{image}.npy")
            np.save(file, np.load(args.truths)[image])
            truth = f'truth.file="{file}"'
        program(args, "simulate", config, truth, f"seed={image}", "--out", folder)
    return folder


def tv_weight(row, args):
    """WEIGHTS, or what `--scan` found in this folder."""
    file = os.path.join(args.out, "weights.json")
    return WEIGHTS[row] if row in WEIGHTS else json.load(open(file))[row]


def run(row, image, kind, args, weight=None):
    """The run's folder; kind is score or tv."""
    data = simulation(row, image, args)
    name = f"{kind}-{image}" if weight is None else f"{kind}-{image}-{weight:.3g}"
    folder = os.path.join(args.out, row, name)
    text = configuration(row, args)
    if kind == "tv":
        sky, colour = row == "visibilities", row.endswith("colour")
        text = text[:text.index("[prior]")] + TV.format(
            channels=3 if colour else 1, weight=weight or tv_weight(row, args), lr=0.005 if sky else 0.02,
            mean=0.03 if sky else 0.3)
    config = os.path.join(args.out, row, name + ".toml")
    if not os.path.exists(os.path.join(folder, "summary.json")):
        open(config, "w").write(text)
        program(args, "run", config, f'data.file="{data}/observation.npz"', f"seed={image}",
                *(args.set if kind == "score" else []), "--out", folder)
    return folder


# ------------------------------------------------------------------ figures

def psnr(x, truth):
    return 10 * np.log10((truth.max() - min(0, truth.min())) ** 2 / np.mean((x - truth) ** 2))


def ssim(x, truth):
    """As scoreprior/stats/image_metrics.h has it; one channel."""
    w = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w /= w.sum()
    blur = lambda a: np.apply_along_axis(np.convolve, 1, np.apply_along_axis(np.convolve, 0, a, w, "valid"), w, "valid")
    span = truth.max() - min(0, truth.min())
    a, b = x[0], truth[0]
    ma, mb = blur(a), blur(b)
    va, vb, c = blur(a * a) - ma ** 2, blur(b * b) - mb ** 2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return np.mean((2 * ma * mb + c1) * (2 * c + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2)))


def coverage(draws, truth, level):
    """Share of pixels, mean above 5 % of its peak, in the central interval; order statistic (N+1) p."""
    mean, ordered, n = draws.mean(0), np.sort(draws, 0), len(draws)

    def quantile(p):
        place = min(max((n + 1) * p - 1, 0), n - 1)
        below = min(int(place), n - 2)
        return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])
    inside = (truth >= quantile((1 - level) / 2)) & (truth <= quantile((1 + level) / 2))
    return inside[mean > 0.05 * mean.max()].mean()


def ways(x, most):
    """x [...,H,W] and its half turn, with shifts up to `most` pixels: all have the same Fourier magnitudes."""
    return [np.roll(v, (i, j), (-2, -1)) for v in (x, x[..., ::-1, ::-1]) for i in range(-most, most + 1)
            for j in range(-most, most + 1)]


def nearest(x, target, most=2):
    """The one of them that is nearest."""
    return min(ways(x, most), key=lambda v: np.sum((v - target) ** 2))


def figures(row, image, args):
    """[chi^2 of draws and TV, PSNR naive TV mean draws, SSIM naive TV mean, coverage 50 90, seconds]."""
    score, tv = run(row, image, "score", args), run(row, image, "tv", args)
    s, t = (json.load(open(os.path.join(f, "summary.json"))) for f in (score, tv))
    m, mt, chi2 = s["metrics"], t["metrics"], s["chi2"]["chi2"]
    fit = [chi2["mean"], t["chi2"]["chi2"]["mean"]]
    seconds = s["seconds"]
    if row == "phase_retrieval":  # draws are turned to the first, then all of them to the truth
        draws, mean, truth, naive, other = pictures(row, image, args)
        single = np.mean([psnr(d, truth) for d in draws])
        return fit + [psnr(naive, truth), psnr(other, truth), psnr(mean, truth), single, ssim(naive, truth),
                      ssim(other, truth), ssim(mean, truth), coverage(draws, truth, 0.5),
                      coverage(draws, truth, 0.9), seconds]
    return fit + [m["PSNR of the naive image [dB]"], mt["PSNR of the mean [dB]"], m["PSNR of the mean [dB]"],
                  m["PSNR of draws, mean [dB]"], m["SSIM of the naive image"], mt["SSIM of the mean"],
                  m["SSIM of the mean"], m["pixels of the truth in the central 50 %"],
                  m["pixels of the truth in the central 90 %"], seconds]


def pictures(row, image, args):
    """draws, mean, truth, naive, TV."""
    score, tv = (run(row, image, kind, args) for kind in ("score", "tv"))
    load = lambda folder, name: np.load(os.path.join(folder, name + ".npy")).astype(float)
    draws, truth, naive, other = load(score, "draws"), load(score, "truth"), load(score, "naive"), load(tv, "mean")
    if row == "phase_retrieval":
        draws = np.stack([nearest(d, draws[0]) for d in draws])
        draws = min(ways(draws, 10), key=lambda v: np.sum((v.mean(0) - truth) ** 2))  # all of them alike
        naive, other = nearest(naive, truth, 10), nearest(other, truth, 10)
    return draws, draws.mean(0), truth, naive, other


HEADINGS = ["chi^2", "chi^2 TV", "PSNR naive", "TV MAP", "mean", "draws", "SSIM naive", "TV MAP", "mean", "in 50 %",
            "in 90 %", "s"]
DIGITS = [2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]


def table(args):
    print("| forward model | " + " | ".join(HEADINGS) + " |")
    print("|" + "---|" * (len(HEADINGS) + 1))
    for row in args.rows:
        f = np.array([figures(row, i, args) for i in args.images])
        sd = f.std(0, ddof=1) if len(f) > 1 else 0 * f[0]
        print(f"| {row} | " + " | ".join(f"{a:.{d}f} ± {b:.{d}f}" if d else f"{a:.0f}"
                                         for a, b, d in zip(f.mean(0), sd, DIGITS)) + " |", flush=True)


def calibration(args):
    """chi^2 of draws and coverage over all images, with the standard error over them."""
    print("| forward model | chi^2 of draws | in 50 % | in 90 % | images |\n|---|---|---|---|---|")
    for row in args.rows:
        f = []
        for image in args.images:
            s = json.load(open(os.path.join(run(row, image, "score", args), "summary.json")))
            m = s["metrics"]
            f.append([s["chi2"]["chi2"]["mean"], m["pixels of the truth in the central 50 %"],
                      m["pixels of the truth in the central 90 %"]])
        f = np.array(f)
        error = f.std(0, ddof=1) / np.sqrt(len(f))
        print(f"| {row} | " + " | ".join(f"{a:.3f} ± {b:.3f}" for a, b in zip(f.mean(0), error)) + f" | {len(f)} |",
              flush=True)


def scan(args):
    """PSNR of the TV MAP by weight, mean over SCAN_IMAGES; the best weight."""
    for row in args.rows:
        got = {}

        def quality(power):
            if power not in got:
                values = []
                for image in SCAN_IMAGES:
                    folder = run(row, image, "tv", args, 10 ** power)
                    x, truth = (np.load(os.path.join(folder, n + ".npy")).astype(float) for n in ("mean", "truth"))
                    values.append(psnr(nearest(x, truth, 10) if row == "phase_retrieval" else x, truth))
                got[power] = np.mean(values)
            return got[power]
        powers = list(SCAN)
        while True:  # on past an end that is the best
            best = max(powers, key=quality)
            if best == powers[0]:
                powers.insert(0, best - 0.5)
            elif best == powers[-1]:
                powers.append(best + 0.5)
            else:
                break
            if len(powers) > 10:
                break
        best = max([best - 0.25, best, best + 0.25], key=quality)
        file = os.path.join(args.out, "weights.json")
        found = json.load(open(file)) if os.path.exists(file) else {}
        found[row] = float(f"{10 ** best:.3g}")
        json.dump(found, open(file, "w"))
        print(f'    "{row}": {10 ** best:.3g},  #', {p: round(float(got[p]), 1) for p in sorted(got)}, flush=True)


def montage(args):
    from PIL import Image, ImageDraw
    scale, side, left, top, gap = args.scale, 32 * args.scale, 118, 16, 3
    names = ["truth", "naive", "TV MAP", "mean", "sd"]
    per_column = (len(args.rows) + 1) // 2
    width = left + len(names) * (side + gap)
    sheet = Image.new("RGB", (2 * width + gap, top + per_column * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, row in enumerate(args.rows):
        x0, y0 = (k // per_column) * (width + gap), top + (k % per_column) * (side + gap)
        draws, mean, truth, naive, tv = pictures(row, args.images[0], args)
        peak = truth.max()
        pen.text((x0 + 2, y0 + side // 2 - 6), ROWS[row], fill="black")
        for c, (name, a, high) in enumerate(zip(names, (truth, naive, tv, mean, draws.std(0, ddof=1)),
                                                (peak, peak, peak, peak, 0.3 * peak))):
            if k % per_column == 0:
                pen.text((x0 + left + c * (side + gap) + 2, 2), name, fill="black")
            pixels = np.clip(a / high, 0, 1) * 255
            pixels = np.repeat(pixels, 3, 0) if len(a) == 1 else pixels
            tile = Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))
            sheet.paste(tile.resize((side, side), Image.NEAREST), (x0 + left + c * (side + gap), y0))
    sheet.quantize(128).save(args.montage, optimize=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--rows", nargs="*", default=list(ROWS))
    ap.add_argument("--images", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    ap.add_argument("--kinds", nargs="*", default=[], help="only run these (score, tv), no table")
    ap.add_argument("--prefix", default="", help="command in front of the program, e.g. taskset -c 1")
    ap.add_argument("--set", nargs="*", default=[], help="settings of the posterior runs, e.g. infer.n_draws=16")
    ap.add_argument("--scan", action="store_true")
    ap.add_argument("--montage")
    ap.add_argument("--truths")
    ap.add_argument("--scale", type=int, default=2)
    args = ap.parse_args()
    args.out = os.path.abspath(args.out)
    os.makedirs(args.out, exist_ok=True)
    write_inputs(args.out)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.scan:
        scan(args)
    elif args.montage:
        montage(args)
    elif args.kinds:
        for row in args.rows:
            for kind in args.kinds:
                for image in args.images:
                    run(row, image, kind, args)
    elif args.truths:
        calibration(args)
    else:
        table(args)


if __name__ == "__main__":
    main()
