#!/usr/bin/env python3
"""Runs `vitfreeze bench` and localmim.py by turns on this machine and prints markdown tables.

By turns (A B C, A B C, ...), so that a machine that slows down slows all of them. Any failure is fatal.
"""
import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
OURS = "vitfreeze"
BUSY = 0.05  # share of the CPU taken by others above which the numbers are not to be trusted
KEYS = ("frozen", "images_per_second", "forward_s", "backward_s", "optimizer_s", "peak_bytes")


def cpu_seconds():
    """CPU time used so far by the whole machine, and by our finished children (Linux; elsewhere None)."""
    try:
        ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return None
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = sum(ticks[:8]) - ticks[3] - ticks[4]  # all but idle and waiting for the disk
    return busy / os.sysconf("SC_CLK_TCK"), mine.ru_utime + mine.ru_stime


def measure(name, command, frozen):
    """One run's rows, and the share of the machine that other processes took meanwhile (None: not known)."""
    before, start = cpu_seconds(), time.monotonic()
    rows = run(name, command, frozen)
    after, wall = cpu_seconds(), time.monotonic() - start
    if before is None:
        return rows, None
    (all0, mine0), (all1, mine1) = before, after
    others = max(0.0, (all1 - all0) - (mine1 - mine0)) / (wall * os.cpu_count())
    # PyTorch's threads wait for each other by spinning: one busy core elsewhere costs it far more than its share.
    if others > BUSY:
        print(f"  warning: other processes took {others:.0%} of the CPU during this run", file=sys.stderr, flush=True)
    return rows, others


def run(name, command, frozen):
    """One run's rows, in the order of `frozen`."""
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as e:
        sys.exit(f"{name} did not start: {e}")
    if done.returncode != 0:
        sys.exit(f"{name} failed with code {done.returncode}:\n{done.stderr.strip()}")
    try:
        printed = json.loads(done.stdout)
        rows = {row["frozen"]: {k: float(row[k]) for k in KEYS} for row in printed["rows"]}
        if name == f"{OURS}-bf16" and printed["unit"] is None:
            sys.exit(f"{name}: this machine has no unit for bf16, f32 was measured")
    except (ValueError, KeyError, TypeError) as e:
        sys.exit(f"{name} printed something else than the expected JSON ({e!r}):\n{done.stdout[:2000]}")
    if list(rows) != frozen:
        sys.exit(f"{name} printed rows for {list(rows)} frozen layers, asked for {frozen}")
    bad = [n for n, row in rows.items() if not row["images_per_second"] > 0]
    if bad:
        sys.exit(f"{name} reports no speed with {bad} layers frozen")
    return rows


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def vitfreeze_version(path):
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else f"{OURS} (version not told)"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--vitfreeze", default="target/release/vitfreeze", metavar="PATH")
    ap.add_argument("--sides", default="vitfreeze,as-published,repaired", metavar="LIST",
                    help="what takes turns; with -bf16 behind a name, in bf16 (default: all three in f32)")
    ap.add_argument("--model", choices=("vit-tiny", "vit-small", "vit-base"), default="vit-small")
    ap.add_argument("--image-size", type=int, default=224)
    ap.add_argument("--batch-size", type=int, default=16)
    ap.add_argument("--steps", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--frozen", default="0,3,5,10,12", metavar="LIST")
    ap.add_argument("--compile", action="store_true", help="torch.compile on the PyTorch side")
    ap.add_argument("--hypot", action="store_true", help="as-published without its slow .norm (see README)")
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--pick", choices=("median", "best"), default="median", help="over the rounds, per row")
    args = ap.parse_args()
    names, frozen = args.sides.split(","), [int(n) for n in args.frozen.split(",")]
    if not {n.removesuffix("-bf16") for n in names} <= {OURS, "as-published", "repaired"}:
        ap.error(f"--sides {args.sides}: {OURS}, as-published and repaired are known, each also with -bf16")
    if args.rounds < 1:
        ap.error("--rounds must be at least 1")

    common = [f"--{k}={getattr(args, k.replace('-', '_'))}"
              for k in ("model", "image-size", "batch-size", "steps", "threads", "frozen")] + ["--json"]
    extra = [flag for flag, given in (("--compile", args.compile), ("--hypot", args.hypot)) if given]
    sides = {}
    for name in names:
        kind, dtype = name.removesuffix("-bf16"), "bf16" if name.endswith("-bf16") else "f32"
        ours = [args.vitfreeze, "bench", *common]
        theirs = [sys.executable, str(HERE / "localmim.py"), f"--{kind}", *common, *extra]
        sides[name] = [*(ours if kind == OURS else theirs), f"--dtype={dtype}"]
    rounds, shares = {name: [] for name in sides}, []
    for _ in range(args.rounds):
        for name, command in sides.items():
            rows, others = measure(name, command, frozen)
            rounds[name].append(rows)
            shares.append(others)

    speed_of = max if args.pick == "best" else statistics.median
    speed = lambda name, n: speed_of([r[n]["images_per_second"] for r in rounds[name]])
    peak = lambda name, n: max(r[n]["peak_bytes"] for r in rounds[name]) / 2**30

    print(f"{args.model}, {args.image_size} px, batch {args.batch_size}, {args.threads} threads; "
          f"{args.pick} of {args.rounds} rounds of {args.steps} steps"
          + "".join(f"; localmim.py {flag}" for flag in extra) + ".")
    print(f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()}; {datetime.date.today()}; "
          f"{vitfreeze_version(args.vitfreeze)}, torch {version('torch')}, timm {version('timm')}, "
          f"Python {platform.python_version()}.")
    known = [s for s in shares if s is not None]
    if known:
        print(f"Other processes' share of the CPU during a run: at most {max(known):.0%}.",
              "**Too much for a fair comparison.**\n" if max(known) > BUSY else "\n")
    base = "as-published" if "as-published" in sides else names[0]
    one = speed(base, frozen[0])
    table(names, frozen, "images/s", lambda s, n: f"{speed(s, n):.2f}")
    table(names, frozen, f"relative to {base} with {frozen[0]} frozen", lambda s, n: f"{speed(s, n) / one:.2f}")
    table(names, frozen, "peak GiB", lambda s, n: f"{peak(s, n):.2f}")


def table(sides, frozen, what, cell):
    print(f"{what[0].upper()}{what[1:]}:\n")
    print("| frozen | " + " | ".join(sides) + " |")
    print("|" + "---:|" * (1 + len(sides)))
    for n in frozen:
        print(f"| {n} | " + " | ".join(cell(s, n) for s in sides) + " |")
    print()


if __name__ == "__main__":
    main()
