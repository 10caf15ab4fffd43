#!/usr/bin/python3
"""One whole step of variational imaging in eager PyTorch, written the way the DPI codebases do: RealNVP (32 steps,
D = 1024), the denoising-score-matching bound of the shipped network's architecture, closure phases and log closure
amplitudes by a complex matrix product with independent errors. The yardstick of bench/ratios.py for `dpi`.

`exactdpi_*`: one step with the exact prior at the reference's denoising setting, smaller: RealNVP (32 steps, D = 3072),
log p by Heun steps of the probability-flow ODE in time with one Hutchinson probe through the large network, the
gradient by autograd through all of it (discretise, then optimise), pixels in noise of 0.2. `exactdpi_probes`: batch 32
and 16 probes, one Euler step, gradient by the adjoint equation.

    eager_dpi.py --threads 2 [--once dpi | exactdpi_direct | exactdpi_probes]
"""
import math
import torch
import torch.nn.functional as F

import eager_ncsnpp
import eager_realnvp
from eager_server import serve

BATCH, DIM = 64, 1024
EXACT_BATCH, EXACT_STEPS, EXACT_PROBES = {1: 4, 16: 32}, 2, 16  # as bench_server has them
EXACT_PIECE = 4  # images in one call of the adjoint
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

    def __call__(self):
        self.adam.zero_grad()
        u, logdet = self.flow.reverse(torch.randn(BATCH, DIM))
        x = F.softplus(u) * self.scale
        logdet = logdet + F.logsigmoid(u).sum(1)
        (self.data(x) - self.bound(x) - logdet).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()


class ExactWork:
    def __init__(self, kind):
        torch.manual_seed(0)
        self.probes = EXACT_PROBES if kind == "exactdpi_probes" else 1
        batch = EXACT_BATCH[self.probes]
        size, channels, nf, mult, blocks, attn, _ = eager_ncsnpp.NETS["large"]
        self.net = eager_ncsnpp.Ncsnpp(size, channels, nf, mult, blocks, attn).requires_grad_(False)
        self.shape = (batch, channels, size, size)
        self.dim = channels * size * size
        self.flow = eager_realnvp.RealNVP(self.dim)
        self.adam = torch.optim.Adam(self.flow.parameters(), lr=1e-5)
        self.y = torch.rand(self.shape[1:])

    def drift(self, t, x):
        """dx/dt, and the factor of the score in it."""
        b = 0.1 * t + 0.5 * 19.9 * t * t
        factor = 0.5 * (0.1 + 19.9 * t) / math.sqrt(1 - math.exp(-b))
        out = self.net(x, torch.full((x.shape[0],), 999 * t))
        return -0.5 * (0.1 + 19.9 * t) * x + factor * out

    def rate(self, t, x, e):
        """dx/dt and its divergence by the probe e."""
        v = self.drift(t, x)
        pull = torch.autograd.grad(v, x, e, create_graph=True)[0]
        return v, (pull * e).flatten(1).sum(1)

    def log_prior(self, x):
        return -0.5 * x.flatten(1).square().sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def random_signs(self, *shape):
        return torch.randint(0, 2, shape) * 2.0 - 1

    def log_prob(self, x):
        e = self.random_signs(*self.shape)
        volume, t, h = 0, 1e-3, (1 - 1e-3) / EXACT_STEPS
        for _ in range(EXACT_STEPS):
            k1, d1 = self.rate(t, x, e)
            k2, d2 = self.rate(t + h, x + h * k1, e)
            x, volume, t = x + 0.5 * h * (k1 + k2), volume + 0.5 * h * (d1 + d2), t + h
        return volume + self.log_prior(x)

    def value_and_score(self, x):
        """log p by one Euler step, and its gradient by the adjoint equation's, a few images at a time: what graphs of
        many images and probes there are together does not fit into caches, and at 32 images hardly into memory."""
        values, scores = [], []
        for piece in x.detach().split(EXACT_PIECE):
            e = self.random_signs(self.probes, *piece.shape)
            t, h = 1e-3, 1 - 1e-3
            piece = piece.clone().requires_grad_(True)
            v = self.drift(t, piece)
            volume = 0
            for k in range(self.probes):
                pull = torch.autograd.grad(v, piece, e[k], retain_graph=True)[0]
                volume = volume + (pull * e[k]).flatten(1).sum(1) / self.probes
            end = (piece + h * v).detach().requires_grad_(True)
            values.append(self.log_prior(end).detach() + h * volume)
            a = -end.detach()
            v = self.drift(t + h, end)
            back = torch.autograd.grad(v, end, a, retain_graph=True)[0]
            for k in range(self.probes):
                pull = torch.autograd.grad(v, end, e[k], create_graph=True)[0]
                back = back + torch.autograd.grad((pull * e[k]).sum() / self.probes, end, retain_graph=True)[0]
            scores.append(a + h * back)
        return torch.cat(values), torch.cat(scores)

    def __call__(self):
        self.adam.zero_grad()
        u, logdet = self.flow.reverse(torch.randn(self.shape[0], self.dim))
        x = (0.5 + 0.2 * u).view(self.shape)
        data = 0.5 * ((x - self.y) / 0.2).square().flatten(1).sum(1)
        if self.probes == 1:
            prior = self.log_prob(x)
        else:
            value, score = self.value_and_score(x)
            prior = value + ((x - x.detach()) * score).flatten(1).sum(1)
        (data - prior - logdet).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 1.0)
        self.adam.step()


if __name__ == "__main__":
    serve(__doc__, lambda name: ExactWork(name) if name.startswith("exactdpi") else Work())
