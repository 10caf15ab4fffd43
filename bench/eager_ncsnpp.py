#!/usr/bin/python3
"""NCSN++ in eager PyTorch, written the way the score-SDE codebases do (NCHW, generic FIR by zero insertion, einsum
attention): the yardstick of bench/ratios.py. As a server it reads one workload name a line and answers seconds.

    eager_ncsnpp.py --threads 2 [--once WORKLOAD]
Workloads: {large,small,shipped}_{forward,vjp,train,divgrad} (divgrad: drift, divergence of one Hutchinson probe and
the gradient of both; batch 4 for large, else 16); "flops NAME" answers with the floating-point operations of its
convolutions, matrix products and attention (2 a multiply-add; the backward pass counts once for inputs, once more for
weights; divgrad counts forward, product and the derivatives of both).
"""
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

from eager_server import serve

NETS = {  # name: (image size, channels, nf, ch_mult, blocks, attention at, batch)
    "large": (32, 3, 64, (1, 2, 2, 2), 4, (16,), 16),
    "small": (32, 1, 32, (1, 2, 2, 2), 1, (16,), 64),
    "shipped": (32, 1, 32, (1, 1, 2), 1, (8,), 64),
}


def fir_kernel(gain):
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(k, k) / 64.0 * gain


def upfirdn(x, kernel, up, down, pad):
    """Zero insertion, padding, correlation with the flipped kernel, decimation; channels folded into the batch."""
    b, c, h, w = x.shape
    y = x.reshape(b * c, 1, h, 1, w, 1)
    y = F.pad(y, [0, up - 1, 0, 0, 0, up - 1]).reshape(b * c, 1, h * up, w * up)
    y = F.pad(y, [pad[0], pad[1], pad[0], pad[1]])
    y = F.conv2d(y, kernel.flip(0, 1)[None, None].to(y))
    y = y[:, :, ::down, ::down]
    return y.reshape(b, c, y.shape[2], y.shape[3])


def downsample(x):
    return upfirdn(x, fir_kernel(1.0), 1, 2, (1, 1))


def upsample(x):
    return upfirdn(x, fir_kernel(4.0), 2, 1, (2, 1))


def norm(channels):
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.w = nn.ParameterList([nn.Parameter(torch.randn(c, c) / math.sqrt(c)) for _ in range(4)])

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (torch.einsum("bchw,cd->bdhw", y, p) for p in list(self.w)[:3])
        a = torch.einsum("bchw,bcij->bhwij", q, k) * c ** -0.5
        a = torch.softmax(a.reshape(b, h, w, h * w), -1).reshape(b, h, w, h, w)
        y = torch.einsum("bhwij,bcij->bchw", a, v)
        return (x + torch.einsum("bchw,cd->bdhw", y, self.w[3])) / math.sqrt(2)


class Block(nn.Module):
    def __init__(self, cin, cout, temb, up=False, down=False):
        super().__init__()
        self.up, self.down = up, down
        self.norm0, self.norm1 = norm(cin), norm(cout)
        self.conv0, self.conv1 = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)
        self.temb = nn.Linear(temb, cout)
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout or up or down else None

    def forward(self, x, temb):
        h = F.silu(self.norm0(x))
        if self.up:
            h, x = upsample(h), upsample(x)
        elif self.down:
            h, x = downsample(h), downsample(x)
        h = self.conv0(h) + self.temb(F.silu(temb))[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h) / math.sqrt(2)


class Ncsnpp(nn.Module):
    """biggan blocks, FIR, residual input pyramid, no output pyramid, positional embedding."""

    def __init__(self, size, channels, nf, mult, blocks, attn):
        super().__init__()
        self.nf = nf
        t = 4 * nf
        self.dense0, self.dense1 = nn.Linear(nf, t), nn.Linear(t, t)
        self.conv_in = nn.Conv2d(channels, nf, 3, padding=1)
        self.down, self.pyramid = nn.ModuleList(), nn.ModuleList()
        skips, c, pc, res = [nf], nf, channels, size
        for level, m in enumerate(mult):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(nn.ModuleList([Block(c, nf * m, t), Attention(nf * m) if res in attn else None]))
                c = nf * m
                skips.append(c)
            self.down.append(stage)
            if level + 1 < len(mult):
                stage.append(Block(c, c, t, down=True))
                self.pyramid.append(nn.Conv2d(pc, c, 3, stride=2))
                pc = c
                skips.append(c)
                res //= 2
        self.mid = nn.ModuleList([Block(c, c, t), Attention(c), Block(c, c, t)])
        self.ups = nn.ModuleList()
        for level in reversed(range(len(mult))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(Block(c + skips.pop(), nf * mult[level], t))
                c = nf * mult[level]
            stage.append(Attention(c) if res in attn else nn.Identity())
            if level:
                stage.append(Block(c, c, t, up=True))
                res *= 2
            self.ups.append(stage)
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, channels, 3, padding=1)

    def forward(self, x, label):
        half = self.nf // 2
        f = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        e = label[:, None] * f[None]
        temb = self.dense1(F.silu(self.dense0(torch.cat([e.sin(), e.cos()], 1))))
        x = 2 * x - 1
        pyramid, h = x, self.conv_in(x)
        hs = [h]
        for level, stage in enumerate(self.down):
            for m in stage:
                if isinstance(m, Block):
                    h = m(h, temb)
                    pyramid = self.pyramid[level](upfirdn(pyramid, fir_kernel(1.0), 1, 1, (2, 2)))
                    h = pyramid = (pyramid + h) / math.sqrt(2)
                else:
                    h = m[0](h, temb)
                    if m[1] is not None:
                        h = m[1](h)
                hs.append(h)
        h = self.mid[2](self.mid[1](self.mid[0](h, temb)), temb)
        for stage in self.ups:
            for m in stage:
                if isinstance(m, Block) and not m.up:
                    h = m(torch.cat([h, hs.pop()], 1), temb)
                elif isinstance(m, Block):
                    h = m(h, temb)
                else:
                    h = m(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Workload:
    def __init__(self, name):
        net, self.kind = name.split("_")
        size, channels, nf, mult, blocks, attn, batch = NETS[net]
        if self.kind == "divgrad":
            batch = 4 if net == "large" else 16
        torch.manual_seed(0)
        self.net = Ncsnpp(size, channels, nf, mult, blocks, attn)
        self.x = torch.rand(batch, channels, size, size)
        self.t = torch.rand(batch) * 999
        self.v = torch.randn_like(self.x)
        self.e = torch.randint(0, 2, self.x.shape) * 2.0 - 1
        self.net.requires_grad_(self.kind == "train")
        if self.kind == "train":
            self.adam = torch.optim.Adam(self.net.parameters(), lr=2e-4)

    def flops(self):
        total = [0]

        def dense(module, _, out):
            total[0] += 2 * module.weight[0].numel() * out.numel()

        def attention(module, inputs, _):
            b, c, h, w = inputs[0].shape
            total[0] += 2 * b * h * w * c * (4 * c + 2 * h * w)

        handles = [m.register_forward_hook(attention if isinstance(m, Attention) else dense)
                   for m in self.net.modules() if isinstance(m, (nn.Conv2d, nn.Linear, Attention))]
        with torch.no_grad():
            self.net(self.x, self.t)
        for h in handles:
            h.remove()
        return total[0] * {"forward": 1, "vjp": 2, "train": 3, "divgrad": 4}[self.kind]

    def __call__(self):
        if self.kind == "forward":
            with torch.no_grad():
                self.net(self.x, self.t)
        elif self.kind == "vjp":
            x = self.x.clone().requires_grad_(True)
            torch.autograd.grad((self.net(x, self.t) * self.v).sum(), x)
        elif self.kind == "divgrad":
            x = self.x.clone().requires_grad_(True)
            s = self.net(x, self.t)
            pull = torch.autograd.grad(s, x, self.e, create_graph=True)[0]
            torch.autograd.grad((pull * self.e).sum() + (s * self.v).sum(), x)
        else:
            self.adam.zero_grad(set_to_none=True)
            (self.net(self.x, self.t) - self.v).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.adam.step()


if __name__ == "__main__":
    serve(__doc__, Workload)
