#!/usr/bin/python3
"""One whole step of variational imaging in eager PyTorch, written the way the DPI codebases do: RealNVP (32 steps,
D = 1024), the denoising-score-matching bound of the shipped network's architecture, closure phases and log closure
amplitudes by a complex matrix product with independent errors. The yardstick of bench/ratios.py for `dpi`.

    eager_dpi.py --threads 2 [--once dpi]
"""
import argparse, math, sys, time
import torch
import torch.nn.functional as F

import eager_ncsnpp
import eager_realnvp

BATCH, DIM = 64, 1024
VISIBILITIES, TIMES, SITES = 846, 49, 7  # about a night of the EHT 2017, as bench_server has it


class Work:
    def __init__(self):
        torch.manual_seed(0)
        self.flow = eager_realnvp.RealNVP(DIM)
        self.scale = torch.nn.Parameter(torch.tensor(0.03))
        self.parameters = list(self.flow.parameters()) + [self.scale]
        self.adam = torch.optim.Adam(self.parameters, lr=1e-5)
        size, channels, nf, mult, blocks, attn, _ = eager_ncsnpp.NETS["shipped"]
        self.net = eager_ncsnpp.Ncsnpp(size, channels, nf, mult, blocks, attn).requires_grad_(False)
        self.matrix = torch.exp(1j * 2 * math.pi * torch.rand(DIM, VISIBILITIES)) * 0.02
        # Minimal sets: (N-1)(N-2)/2 triangles and N(N-3)/2 quadrangles a time.
        phases, amplitudes = TIMES * (SITES - 1) * (SITES - 2) // 2, TIMES * SITES * (SITES - 3) // 2
        self.triples = torch.randint(VISIBILITIES, (3, phases))
        self.quads = torch.randint(VISIBILITIES, (4, amplitudes))
        self.phase, self.logamp = torch.rand(phases), torch.rand(amplitudes)

    def data(self, x):
        v = x.to(torch.complex64) @ self.matrix
        bispectrum = v[:, self.triples[0]] * v[:, self.triples[1]] * v[:, self.triples[2]]
        phase = (1 - torch.cos(bispectrum.angle() - self.phase)).sum(1)
        a = torch.log(v.abs() + 1e-12)
        logamp = a[:, self.quads[0]] + a[:, self.quads[1]] - a[:, self.quads[2]] - a[:, self.quads[3]]
        return phase + 0.5 * (logamp - self.logamp).square().sum(1)

    def bound(self, x):
        x = x.view(BATCH, 1, 32, 32)
        t = torch.rand(BATCH) * (1 - 1e-3) + 1e-3
        b = 0.1 * t + 0.5 * 19.9 * t * t
        alpha, std = torch.exp(-0.5 * b), torch.sqrt(1 - torch.exp(-b))
        z = torch.randn_like(x)
        noisy = alpha[:, None, None, None] * x + std[:, None, None, None] * z
        score = -self.net(noisy, t * 999) / std[:, None, None, None]
        g2 = 0.1 + 19.9 * t
        sm = (score * std[:, None, None, None] + z).square().flatten(1).sum(1) / std.square()
        return -0.5 * g2 * sm - 0.5 * x.flatten(1).square().sum(1) * math.exp(-10.05)

    def step(self):
        self.adam.zero_grad()
        u, logdet = self.flow.reverse(torch.randn(BATCH, DIM))
        x = F.softplus(u) * self.scale
        logdet = logdet + F.logsigmoid(u).sum(1)
        (self.data(x) - self.bound(x) - logdet).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--once")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    work = Work()
    work.step()
    for _ in [a.once] if a.once else iter(sys.stdin.readline, ""):
        start = time.perf_counter()
        work.step()
        print(f"{time.perf_counter() - start:.6f}", flush=True)


if __name__ == "__main__":
    main()
