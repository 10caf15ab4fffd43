#!/usr/bin/python3
"""The black-hole demonstration over several test images: the shipped score prior against TV and TSV.

    blackhole_study.py --bin build/ci/apps/scoreprior --out runs/study [--seeds 0 1 2 3 4] [--draws 48]

For every seed: one simulated observation (configs/demo_blackhole.toml, test image number = seed), then three runs on
it: the demonstration itself, and variational inference (RealNVP) with a total-variation and a total-squared-variation
prior under the same flux and position constraints. The smoothness weights were chosen on image 100, which is not
among the seeds. Prints one table row per run, and the means. Finished runs are not repeated.
"""
import argparse, json, os, re, statistics, subprocess

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMOOTH = """
[image]
size = 32
[prior]
name = "sum"
[prior.{name}]
weight = {weight}
[prior.flux]
target_flux = 30.72
weight = 0.5
[prior.center]
weight = 0.28
[infer]
name = "dpi"
steps = {steps}
batch = 32
lr = 1e-3
n_draws = 256
start_steps = 100
start_peak = 0.165
start_fwhm = 0.4
anneal = true
anneal_pivot = 300
anneal_rate = 0.014
[infer.flow]
name = "realnvp"
softplus = true
init_mean = 0.03
init_std = 0.02
"""
WEIGHTS = {"tv": 160000.0, "tsv": 2000000.0}


def configuration(kind, args):
    text = open(os.path.join(HERE, "configs", "demo_blackhole.toml")).read()
    text = text.replace('"../models/', f'"{HERE}/models/')
    if kind == "score":
        return re.sub(r"n_draws = .*", f"n_draws = {args.draws}", text)
    return text[:text.index("[prior]")] + SMOOTH.format(name=kind, weight=WEIGHTS[kind], steps=args.steps)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    ap.add_argument("--kinds", nargs="*", default=["score", "tv", "tsv"])
    ap.add_argument("--draws", type=int, default=48)
    ap.add_argument("--steps", type=int, default=1200)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    columns = ["cphase", "logcamp", "cover90", "cover50", "NXCORR", "PSNR", "seconds"]
    print("| seed | prior | " + " | ".join(columns) + " | dirty NXCORR, PSNR | ring (90 %) and truth [uas] |")
    print("|" + "---|" * (len(columns) + 4))
    rows = {}
    for seed in args.seeds:
        for kind in args.kinds:
            folder = os.path.join(args.out, f"{kind}-{seed}")
            config = os.path.join(args.out, f"{kind}-{seed}.toml")
            simulation = os.path.join(args.out, f"simulation-{seed}")
            text = configuration(kind, args)
            simulate = os.path.join(args.out, f"simulate-{seed}.toml")
            if not os.path.exists(simulation):
                open(simulate, "w").write(text)
                subprocess.run([args.bin, "simulate", simulate, f"truth.index={seed}", f"seed={seed}", "--out",
                                simulation, "--quiet"], check=True)
            for table in ("[truth]", "[observe]"):  # the simulation's tables
                start = text.index(table)
                text = text[:start] + text[text.index("\n[", start + 1) + 1:]
            open(config, "w").write(text)
            file, truth = (os.path.abspath(os.path.join(simulation, f)) for f in ("observation.uvfits", "truth.fits"))
            subprocess.run([args.bin, "run", config, f'data.file="{file}"', f'data.truth="{truth}"', f"seed={seed}",
                            "--out", folder, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            s = json.load(open(os.path.join(folder, "summary.json")))
            m = s["metrics"]
            row = [s["chi2"]["chi2_cphase"]["mean"], s["chi2"]["chi2_logcamp"]["mean"],
                   m["pixels of the truth in the central 90 %"], m["pixels of the truth in the central 50 %"],
                   m["NXCORR of the mean"], m["PSNR of the mean [dB]"], s["inference"]["numbers"]["seconds"]]
            rows.setdefault(kind, []).append(row)
            ring = s.get("ring", {}).get("diameter_uas", {}).get("central_90")
            print(f"| {seed} | {kind} | " + " | ".join(f"{v:.2f}" for v in row) +
                  f" | {m['NXCORR of the naive image']:.2f}, {m['PSNR of the naive image [dB]']:.1f} | " +
                  (f"{ring[0]:.1f} to {ring[2]:.1f}; {s['truth_ring']['diameter_uas']:.1f}" if ring else "none") + " |",
                  flush=True)
    for kind, r in rows.items():
        print(f"| mean | {kind} | " + " | ".join(f"{statistics.mean(c):.2f}" for c in zip(*r)) + " | | |")


if __name__ == "__main__":
    main()
