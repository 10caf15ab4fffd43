#!/usr/bin/python3
"""Images that are no black holes, with the flux of the shipped prior's: blob.npy, double.npy, disc.npy, noise.npy, [N,1,32,32].

    odd_images.py FOLDER [N]      needs Debian's python3-numpy; then: scoreprior logp MODEL FOLDER/blob.npy
"""
import sys
import numpy as np

SIDE, FLUX = 32, 30.72


def gaussian(y, x, fwhm):
    j = np.arange(SIDE) - (SIDE - 1) / 2
    s = fwhm / 2.3548
    return np.exp(-0.5 * ((j[:, None] - y) ** 2 + (j[None, :] - x) ** 2) / s ** 2)


def main():
    folder, n = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8
    rng = np.random.default_rng(0)
    j = np.arange(SIDE) - (SIDE - 1) / 2
    radius = np.hypot(j[:, None], j[None, :])
    kinds = {
        "blob": lambda: gaussian(*rng.uniform(-1, 1, 2), rng.uniform(8, 14)),
        "double": lambda: gaussian(-5, -4, 5) + rng.uniform(0.4, 1) * gaussian(5, 4, 5),
        "disc": lambda: 1 / (1 + np.exp((radius - rng.uniform(6, 9)) / 0.7)),
        "noise": lambda: np.abs(rng.normal(size=(SIDE, SIDE))),
    }
    for name, make in kinds.items():
        x = np.stack([make() for _ in range(n)])[:, None]
        np.save(f"{folder}/{name}.npy", (x * FLUX / x.sum(axis=(1, 2, 3), keepdims=True)).astype(np.float32))


main()
