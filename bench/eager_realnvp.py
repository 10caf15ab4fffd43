#!/usr/bin/python3
"""RealNVP in eager PyTorch, written the way the DPI codebases do (one module per layer, torch.optim.Adam,
clip_grad_norm_): the yardstick of bench/ratios.py. As a server it reads one workload name a line, answers seconds.

    eager_realnvp.py --threads 2 [--once WORKLOAD]
Workloads: realnvp_DIM (forward, backward, clip, Adam; batch 64, 32 flow steps, seqfrac 4), realnvp_DIM_draw.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from eager_server import serve


class ActNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))
        self.log_scale_inv = nn.Parameter(torch.zeros(1))

    def reverse(self, y):
        return y * torch.exp(self.log_scale_inv) - self.loc, y.shape[1] * self.log_scale_inv


class ZeroFC(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.fc = nn.Linear(n_in, n_out)
        self.fc.weight.data.zero_()
        self.fc.bias.data.zero_()
        self.scale = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return self.fc(x) * torch.exp(self.scale * 3)


class Coupling(nn.Module):
    def __init__(self, dim, seqfrac):
        super().__init__()
        half, hidden = dim // 2, dim // (2 * seqfrac)
        self.net = nn.Sequential(nn.Linear(half, hidden), nn.LeakyReLU(0.01), nn.BatchNorm1d(hidden, eps=1e-2),
                                 nn.Linear(hidden, hidden), nn.LeakyReLU(0.01), nn.BatchNorm1d(hidden, eps=1e-2),
                                 ZeroFC(hidden, dim))

    def reverse(self, y):
        a, b = y.chunk(2, 1)
        log_s, t = self.net(a).chunk(2, 1)
        log_s = torch.tanh(log_s)
        return torch.cat([a, b * torch.exp(-log_s) - t], 1), -log_s.sum(1)


class Step(nn.Module):
    def __init__(self, dim, seqfrac):
        super().__init__()
        self.actnorm1, self.actnorm2 = ActNorm(), ActNorm()
        self.coupling1, self.coupling2 = Coupling(dim, seqfrac), Coupling(dim, seqfrac)

    def reverse(self, x):
        logdet = 0
        x = x.flip(1)
        for coupling, actnorm, flip in ((self.coupling2, self.actnorm2, True), (self.coupling1, self.actnorm1, False)):
            x, ld = coupling.reverse(x)
            logdet = logdet + ld
            x, ld = actnorm.reverse(x)
            logdet = logdet + ld
            if flip:
                x = x.flip(1)
        return x, logdet


class RealNVP(nn.Module):
    def __init__(self, dim, n_flow=32, seqfrac=4):
        super().__init__()
        self.steps = nn.ModuleList([Step(dim, seqfrac) for _ in range(n_flow)])
        self.orders = [torch.randperm(dim) for _ in range(n_flow)]

    def reverse(self, z):
        logdet = 0
        for step, order in zip(reversed(self.steps), reversed(self.orders)):
            z, ld = step.reverse(z[:, order])
            logdet = logdet + ld
        return z, logdet


class Work:
    def __init__(self, dim, batch=64):
        torch.manual_seed(0)
        self.flow = RealNVP(dim)
        self.adam = torch.optim.Adam(self.flow.parameters(), lr=1e-5)
        self.z, self.x_bar = torch.randn(batch, dim), torch.randn(batch, dim) / batch

    def step(self):
        self.adam.zero_grad()
        x, logdet = self.flow.reverse(self.z)
        ((x * self.x_bar).sum() - logdet.mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 1.0)
        self.adam.step()

    def draw(self):
        self.flow.eval()
        with torch.no_grad():
            self.flow.reverse(self.z)
        self.flow.train()


def work_called(name):
    part = name.split("_")
    work = Work(int(part[1]))
    return work.draw if part[-1] == "draw" else work.step


if __name__ == "__main__":
    serve(__doc__, work_called)
