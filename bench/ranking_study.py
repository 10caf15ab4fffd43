#!/usr/bin/python3
"""How well log p tells black holes from other images: area under the ROC curve by three scores.

    ranking_study.py --bin build/ci/apps/scoreprior --out runs/ranking [--count 16]

Scores of an image (more = odder), all with the noise of t0 added first:
    low       -log p under models/blackhole-32
    untypical |log p - its median over other black holes of the test split|
    ratio     log p under models/phantom-32 minus log p under models/blackhole-32
The area is the chance that an odd image scores higher than a black hole; its standard error is that of the
Mann-Whitney statistic. Needs Debian's python3-numpy.
"""
import argparse
import json
import os
import subprocess
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ODE = ["ode.steps=20", "ode.n_probes=2", "ode.solver_error=none", "images.perturb=true"]


def log_p(args, model, images, extra):
    command = [args.bin, "logp", os.path.join(HERE, "..", "models", model), images, "--method", "ode", "--json",
               "--quiet", "--threads", str(args.threads)] + ODE + extra
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return np.array(json.loads(done.stdout)["methods"]["ode"]["log_prob"])


def area(odd, usual):
    wins = (odd[:, None] > usual[None, :]) + 0.5 * (odd[:, None] == usual[None, :])
    p, n, m = wins.mean(), len(odd), len(usual)
    variance = wins.mean(1).var(ddof=1) / n + wins.mean(0).var(ddof=1) / m
    return p, np.sqrt(variance)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--count", type=int, default=16)
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    subprocess.run([sys.executable, os.path.join(HERE, "odd_images.py"), args.out, str(args.count)], check=True)
    n = [f"images.count={args.count}"]
    kinds = {
        "reference": ("blackhole", n + [f"images.first={args.count}"]),
        "black holes, test split": ("blackhole", n),
        "displaced by up to 40 uas": ("blackhole", n + ["data.offset_uas=40"]),
        "rings of 75-90 uas": ("blackhole", n + ["data.diameter_min_uas=75", "data.diameter_max_uas=90"]),
        "Gaussian blob": (f"{args.out}/blob.npy", n),
        "double source": (f"{args.out}/double.npy", n),
        "disc": (f"{args.out}/disc.npy", n),
        "phantoms": ("phantom", n + ["images.total_flux=30.72"]),
        "noise": (f"{args.out}/noise.npy", n),
    }
    own, other = {}, {}
    for kind, (images, extra) in kinds.items():
        own[kind] = log_p(args, "blackhole-32.safetensors", images, extra)
        other[kind] = log_p(args, "phantom-32.safetensors", images, extra)
    middle = np.median(own["reference"])
    scores = {
        "low": {k: -v for k, v in own.items()},
        "untypical": {k: np.abs(v - middle) for k, v in own.items()},
        "ratio": {k: other[k] - v for k, v in own.items()},
    }
    usual = "black holes, test split"
    print("| images | log p, mean (sd) | under phantom-32 | " + " | ".join(scores) + " |")
    print("|---|---|---|" + "---|" * len(scores))
    for kind in kinds:
        if kind == "reference":
            continue
        row = f"| {kind} | {own[kind].mean():.0f} ({own[kind].std(ddof=1):.0f}) | {other[kind].mean():.0f} ({other[kind].std(ddof=1):.0f}) |"
        for score in scores.values():
            a, e = area(score[kind], score[usual])
            row += " |" if kind == usual else f" {a:.2f} +- {e:.2f} |"
        print(row, flush=True)


main()
