#!/usr/bin/python3
"""Interleaved timings of this project against eager PyTorch on the same work, as ratios.

    ratios.py --bench build/bench/bench_server [--rounds 5] [--threads 2] [WORKLOAD ...]

Three servers are kept alive and asked in turn, A B C A B C ...: ours, eager PyTorch with malloc tuned as our program
does it, eager PyTorch with the default environment. Prints medians [ms] and the ratio of medians with its range.
"""
import argparse, os, statistics, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
SCRIPTS = {"realnvp": "eager_realnvp.py"}
WORKLOADS = [f"{n}_{k}" for n in ("large", "small") for k in ("forward", "vjp", "train")] + ["realnvp_1024"]


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bench", required=True)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--no-default", action="store_true", help="leave out eager PyTorch without malloc tuning")
    ap.add_argument("workloads", nargs="*", default=WORKLOADS)
    a = ap.parse_args()
    threads = str(a.threads)
    print(f"{'workload':16s} {'ours':>9s} {'tuned':>9s} {'default':>9s}   tuned/ours (min-max)   default/ours (min-max)")
    for w in a.workloads or WORKLOADS:
        script = os.path.join(HERE, SCRIPTS.get(w.split("_")[0], "eager_ncsnpp.py"))
        eager = ["/usr/bin/python3", script, "--threads", threads]
        servers = [Server([a.bench, "--threads", threads]), Server(eager, TUNED)]
        if not a.no_default:
            servers.append(Server(eager))
        for s in servers:
            s.ask(w)  # warm-up
        t = [[s.ask(w) for s in servers] for _ in range(a.rounds)]
        for s in servers:
            s.close()
        medians = [statistics.median(c) * 1e3 for c in zip(*t)]
        row = f"{w:16s} " + " ".join(f"{m:9.1f}" for m in medians)
        for k in range(1, len(servers)):
            r = [x[k] / x[0] for x in t]
            row += f"   {statistics.median(r):6.2f}x ({min(r):.2f}-{max(r):.2f})"
        print(row, flush=True)


if __name__ == "__main__":
    main()
