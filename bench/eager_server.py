"""The loop of the eager yardsticks: one workload name a line in, the seconds it took out; see bench/ratios.py."""
import argparse, sys, time
import torch


def serve(doc, work_called):
    """work_called(name) makes what is timed when called; "flops NAME" answers with its operations."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--once", help="time this workload twice (the first call warms up) instead of reading names")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    ready = {}
    for line in [a.once] * 2 if a.once else iter(sys.stdin.readline, ""):
        name = line.strip()
        if name.startswith("flops "):
            print(work_called(name[6:]).flops(), flush=True)
            continue
        if name not in ready:
            ready[name] = work_called(name)
        start = time.perf_counter()
        ready[name]()
        print(f"{time.perf_counter() - start:.6f}", flush=True)
