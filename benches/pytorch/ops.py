#!/usr/bin/env python3
"""Each op of a training step: vitfreeze-cli/benches/ops.rs beside the same in PyTorch, by turns; prints a markdown table.

    python3 benches/pytorch/ops.py [--rounds 3] [--threads 2] [--only linear_forward,adamw] [--dtype bf16]

Sizes are those of the Rust bench, which is built first. Times are medians of each run, then over the rounds. A backward pass
starts from ones in the result's shape and gives new gradients of input and weights, on both sides. With --dtype bf16 products
take bf16, PyTorch's under autocast; of linear layers GFLOP/s are given too.
"""
import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from compare import BUSY, cpu_model, cpu_seconds
from localmim import LocalMim, Norm, optimizer

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "adamw_memory"  # the bytes of AdamW with no arithmetic: ours only
UNITS = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}
# A line of divan's tree: name, then fastest, slowest and median with their units; a group has no times.
ROW = re.compile(r"(?:[│ ]  )?[├╰]─ (\S+)(?:\s+\S+ \S+\s+│ \S+ \S+\s+│ (\S+) (\S+))?")


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def linear(rows, inputs, outputs):
    x, w, b = leaf(rows, inputs), leaf(outputs, inputs), leaf(outputs)
    return lambda: F.linear(x, w, b), [x, w, b]


def layer_norm(rows, width):
    x, w, b = leaf(rows, width), leaf(width), leaf(width)
    return lambda: F.layer_norm(x, (width,), w, b, 1e-6), [x, w, b]


def gelu(*shape):
    x = leaf(*shape)
    return lambda: F.gelu(x), [x]


def attention(images, tokens, heads, dim):
    qkv = leaf(images, tokens, 3 * heads * dim)

    def run():
        q, k, v = qkv.reshape(images, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, heads * dim)
    return run, [qkv]


def block(images, tokens, heads, dim):
    x, model = leaf(images, tokens, heads * dim), Block(heads * dim, heads, qkv_bias=True, norm_layer=Norm)
    return lambda: model(x), [x, *model.parameters()]


def hog(*shape):
    model, images = LocalMim("repaired"), torch.randn(shape)
    return lambda: model.targets(images, range(4))


def vit_base():
    return LocalMim("repaired", width=768, heads=12)


def adamw():
    model = vit_base()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return optimizer(model, "repaired", 1e-4).step


def median_ms(run, prepare=lambda: None, seconds=1.5):
    """Median time of `run(prepare())` without `prepare`, after three runs that warm up."""
    times, until = [], time.perf_counter() + seconds
    while len(times) < 8 or time.perf_counter() < until:
        prepared = prepare()
        start = time.perf_counter()
        run(prepared)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def theirs(name, shape, bf16):
    """Milliseconds of the op that the bench calls `name`, at this size; None: there is none."""
    if name == MEMORY:
        return None
    op, _, phase = name.rpartition("_")
    if phase not in ("forward", "backward"):
        run = globals()[name](*shape)
        return median_ms(lambda _: run())
    plain, leaves = globals()[op](*shape)

    def run(*_):
        # A context for each call, as a step has one: inside it the weights are cast once, however often they are used.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return plain()
    if phase == "forward":
        return median_ms(run)
    return median_ms(lambda y: torch.autograd.grad(y, leaves, torch.ones_like(y)), run)


def flops(name, shape):
    """Of a linear layer; None for other ops."""
    op, _, phase = name.rpartition("_")
    return None if op != "linear" else {"forward": 2, "backward": 4}[phase] * math.prod(shape)


def build():
    command = ["cargo", "bench", "-p", "vitfreeze-cli", "--bench", "ops", "--no-run", "--message-format=json"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    # The program is built with it, and may come last.
    built = [json.loads(line) for line in out.splitlines()]
    return next(m["executable"] for m in built if m.get("executable") and m["target"]["name"] == "ops")


def output(bench, env, *args):
    """What the bench prints."""
    done = subprocess.run([bench, "--bench", *args], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{bench}: {done.stderr.strip()}")
    return done.stdout


def ours(bench, name, env):
    """{size: milliseconds} of one of the bench's functions."""
    out = output(bench, env, f"^ops::{name}(::|$)")
    rows = [ROW.match(line).groups() for line in out.splitlines() if ROW.match(line)]
    times = {() if row == name else tuple(int(n) for n in row.split("x")): float(median) * UNITS[unit]
             for row, median, unit in rows if median}
    return times or sys.exit(f"{bench} has no times for {name}:\n{out}")


def names(bench, env):
    return re.findall(r"^[├╰]─ (\w+)", output(bench, env, "--list"), re.MULTILINE)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bench", metavar="PATH", help="the built bench (default: cargo builds it)")
    ap.add_argument("--only", metavar="LIST", help="names of the bench's functions (default: all)")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bench = args.bench or build()
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads), "VITFREEZE_BENCH_DTYPE": args.dtype}
    known = names(bench, env)
    wanted = args.only.split(",") if args.only else known
    if not set(wanted) <= set(known):
        ap.error(f"--only {args.only}: there are {', '.join(known)}")

    start, before = (time.monotonic(), time.process_time()), cpu_seconds()
    rounds = {}
    for i in range(args.rounds):
        for name in wanted:
            print(f"round {i + 1}: {name}", file=sys.stderr, flush=True)
            for shape, ms in ours(bench, name, env).items():
                rounds.setdefault((name, shape), []).append((ms, theirs(name, shape, args.dtype == "bf16")))

    print(f"Milliseconds, {args.threads} threads, {args.dtype}; medians of {args.rounds} rounds. {cpu_model()}, {os.cpu_count()} "
          f"cores; {datetime.date.today()}; torch {version('torch')}, timm {version('timm')}, "
          f"Python {platform.python_version()}.")
    if before:
        (all0, children0), (all1, children1) = before, cpu_seconds()
        wall, own = time.monotonic() - start[0], time.process_time() - start[1]
        others = max(0.0, all1 - all0 - (children1 - children0) - own) / (wall * os.cpu_count())
        print(f"Other processes' share of the CPU: {others:.0%}.",
              "**Too much for a fair comparison.**" if others > BUSY else "")
    print("\n| op | size | vitfreeze | PyTorch | PyTorch / ours | GFLOP/s, ours | PyTorch |\n|---|---|---:|---:|---:|---:|---:|")
    medians = {}
    for (name, shape), pairs in rounds.items():
        mine = medians[name] = statistics.median(ms for ms, _ in pairs)
        row = [name, " x ".join(map(str, shape)), f"{mine:.3g}", "", "", "", ""]
        if name != MEMORY:
            other = statistics.median(ms for _, ms in pairs)
            row[3:5] = f"{other:.3g}", f"{other / mine:.2f}"
            if count := flops(name, shape):
                row[5:] = f"{count / mine / 1e6:.0f}", f"{count / other / 1e6:.0f}"
        print("| " + " | ".join(row) + " |")
    if {"adamw", MEMORY} <= set(medians):
        count = sum(p.numel() for p in vit_base().parameters())
        (size,), = (shape for name, shape in rounds if name == MEMORY)
        allowed = medians[MEMORY] * count / size
        print(f"\nAdamW on {count / 1e6:.1f} million parameters takes {medians['adamw'] / allowed:.2f} times what their bytes take "
              f"({28e-6 * count / allowed:.1f} GB/s).")


if __name__ == "__main__":
    main()
