#!/usr/bin/env python3
"""Runs vit/examples/swin_speed.rs and timm's Swin by turns on this machine: a batch of random images forward, and forward and
backward, f32, without an optimiser. Prints a markdown table; ratios mean something on a shared machine, seconds do not.

    cargo build --release -p candle-vit --example swin_speed
    python3 benches/pytorch/swin.py --ours target/release/examples/swin_speed --batch-size 8 --rounds 3
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def theirs(args):
    import timm
    import torch

    torch.set_num_threads(args.threads)
    name = args.model.replace("-", "_") + "_patch4_window7_224"
    model = timm.create_model(name, num_classes=1000, drop_path_rate=0.0)
    x = torch.randn(args.batch_size, 3, 224, 224)
    forward = both = 0.0
    for i in range(args.steps + 1):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = model(x).square().mean()
        middle = time.perf_counter()
        loss.backward()
        if i:  # the first one is not counted
            forward += middle - start
            both += time.perf_counter() - start
    print(json.dumps(dict(forward_s=forward / args.steps, step_s=both / args.steps)))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--ours", default="target/release/examples/swin_speed", metavar="PATH")
    ap.add_argument("--model", choices=("swin-tiny", "swin-small", "swin-base"), default="swin-tiny")
    ap.add_argument("--batch-size", type=int, default=8)
    ap.add_argument("--steps", type=int, default=3)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--timm-alone", action="store_true", help="one run of timm's, as JSON")
    args = ap.parse_args()
    if args.timm_alone:
        return theirs(args)
    given = [f for k in ("model", "batch_size", "steps") for f in (f"--{k.replace('_', '-')}", str(getattr(args, k)))]
    env = os.environ | dict(RAYON_NUM_THREADS=str(args.threads), CANDLE_NUM_THREADS="1", OMP_NUM_THREADS=str(args.threads))
    sides = dict(vitfreeze=[args.ours, *given],
                 timm=[sys.executable, __file__, "--timm-alone", "--threads", str(args.threads), *given])
    times = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, command in sides.items():
            print("+", *command, file=sys.stderr, flush=True)
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            times[name].append(json.loads(done.stdout))
    middle = lambda name, key: statistics.median(t[key] for t in times[name])
    print(f"{args.model}, 224 px, batch {args.batch_size}, {args.threads} threads, median of {args.rounds} rounds of {args.steps} steps:\n")
    print("| | vitfreeze, s | timm, s | timm / vitfreeze |\n|---|---:|---:|---:|")
    for key, what in (("forward_s", "forward"), ("step_s", "forward and backward")):
        a, b = middle("vitfreeze", key), middle("timm", key)
        print(f"| {what} | {a:.2f} | {b:.2f} | {b / a:.2f} |")


main()
