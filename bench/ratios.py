#!/usr/bin/python3
"""Interleaved timings of this project against eager PyTorch on the same work, as ratios.

    ratios.py --bench build/bench/bench_server [--rounds 5] [--threads 2] [WORKLOAD ...]

Three servers are kept alive and asked in turn, A B C A B C ...: ours, eager PyTorch with malloc tuned as our program
does it, eager PyTorch with the default environment. Prints medians [ms], the median ratio with its range, our rate and
its share of the practical roof: the better of oneDNN's best convolution and the BLAS's matrix product, measured in the
same round. Operations are those of the direct convolution, so that a fast algorithm may pass 100 %.

Networks: large = NCSN++ nf 64, 4 blocks, 32x32x3, batch 16; shipped = the architecture of models/blackhole-32, batch
64; divgrad = drift, divergence of one probe and the gradient of both, batch 4 (large) or 16. realnvp_1024 = one
training step, 32 flow steps, batch 64; dpi = one whole step of variational inference; exactdpi = one with the exact
prior through the large network, batch 4, 2 Heun steps, one probe: checkpoint evaluates each right-hand side again on
the way back (memory of one), direct keeps the graphs of all, as eager PyTorch does. exactdpi_probes = the same with
batch 32, 16 probes, one Euler step and the adjoint equation (minutes a call; not among the defaults).
"""
import argparse, os, statistics, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
NETWORK, FLOW, STEP = "eager_ncsnpp.py", "eager_realnvp.py", "eager_dpi.py"
SCRIPTS = {"realnvp": FLOW, "dpi": STEP, "exactdpi": STEP}
EXACT_EVALUATIONS = 4  # two a Heun step
NETWORK_KINDS = ("forward", "vjp", "train", "divgrad")
WORKLOADS = [f"{n}_{k}" for n in ("large", "shipped") for k in NETWORK_KINDS] + [
    "realnvp_1024", "dpi", "exactdpi_checkpoint", "exactdpi_direct"]
ROOFS = {"roof_conv": 2 * 16 * 32 * 32 * 128 * 128 * 9, "roof_gemm": 2 * 2048 ** 3}  # floating-point operations


class Server:
    def __init__(self, command, env=None):
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, **(env or {})})

    def ask(self, name):
        self.p.stdin.write(name + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line:
            sys.exit(f"a server ended on {name}")
        return float(line)

    def close(self):
        self.p.stdin.close()
        self.p.wait()


def flow_operations(dim, batch=64, steps=32, seqfrac=4):
    """Forward, and backward for inputs and weights, of the couplings' matrices."""
    half, hidden = dim // 2, dim // (2 * seqfrac)
    return 3 * 2 * batch * steps * 2 * (half * hidden + hidden * hidden + hidden * dim)


def operations(workload, python):
    """Of one call."""
    family = workload.split("_")[0]
    if family == "realnvp":
        return flow_operations(int(workload.split("_")[1]))
    network = Server([python, os.path.join(HERE, NETWORK)])
    count = network.ask("flops " + {"dpi": "shipped_vjp", "exactdpi": "large_divgrad"}.get(family, workload))
    network.close()
    if workload == "exactdpi_probes":
        # In forwards of 32 images: value 1 and 16 products; way back 1, 16 products, their derivatives (2 each).
        return count / 4 * 8 * (17 + 49) + flow_operations(3072, 32)
    if family == "exactdpi":
        # divgrad counts four forwards; value and way back apart are a forward and a product more.
        return count * EXACT_EVALUATIONS * (1.5 if workload.endswith("checkpoint") else 1) + flow_operations(3072, 4)
    return count + flow_operations(1024) if family == "dpi" else count


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bench", required=True)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--no-default", action="store_true", help="leave out eager PyTorch without malloc tuning")
    ap.add_argument("--python", default="/usr/bin/python3", help="interpreter that has torch")
    ap.add_argument("workloads", nargs="*", default=WORKLOADS)
    a = ap.parse_args()
    threads = str(a.threads)
    names = ["ours", "tuned"] + ([] if a.no_default else ["default"])
    print(f"{'workload':16s} " + " ".join(f"{n:>9s}" for n in names) + "   " +
          "   ".join(f"{n + '/ours (min-max)':>22s}" for n in names[1:]) + "   GFLOP/s  of roof")
    for w in a.workloads or WORKLOADS:
        script = os.path.join(HERE, SCRIPTS.get(w.split("_")[0], NETWORK))
        eager = [a.python, script, "--threads", threads]
        servers = [Server([a.bench, "--threads", threads]), Server(eager, TUNED)]
        if not a.no_default:
            servers.append(Server(eager))
        for s in servers:
            s.ask(w)  # warm-up
        t, roofs = [], []
        for _ in range(a.rounds):
            t.append([s.ask(w) for s in servers])
            roofs.append(max(flop / min(servers[0].ask(r) for _ in range(3)) for r, flop in ROOFS.items()))
        for s in servers:
            s.close()
        medians = [statistics.median(c) * 1e3 for c in zip(*t)]
        row = f"{w:16s} " + " ".join(f"{m:9.1f}" for m in medians)
        for k in range(1, len(servers)):
            r = [x[k] / x[0] for x in t]
            row += "   " + f"{statistics.median(r):6.2f}x ({min(r):.2f}-{max(r):.2f})".rjust(22)
        rate, roof = operations(w, a.python) / (medians[0] / 1e3), statistics.median(roofs)
        print(row + f"   {rate / 1e9:7.0f}  {100 * rate / roof:5.0f} % of {roof / 1e9:.0f}", flush=True)


if __name__ == "__main__":
    main()
