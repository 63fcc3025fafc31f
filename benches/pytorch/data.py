#!/usr/bin/env python3
"""Images per second of a loader: vitfreeze beside torchvision with PIL, by turns in one run.

    python3 benches/pytorch/data.py --vitfreeze target/release/vitfreeze DIR [--size 224] [--workers 2] [--rounds 3]

DIR holds train/<class>/<image>. Both sides do RandomResizedCrop (scale 0.2 to 1, bicubic), flip, normalisation and
batches of 64: torchvision's ImageFolder in a DataLoader with as many processes as vitfreeze has threads. `--cache FILE`
gives vitfreeze a file made by `vitfreeze data cache DIR` instead. `--cpu` compares images per second of CPU time instead,
one thread each and no DataLoader: what to read on a machine that others use, too.
"""
import argparse
import json
import random
import resource
import statistics
import subprocess
import time

import PIL
import torch
import torchvision
from torchvision import transforms as T


def cpu_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ours(args):
    before = cpu_of_children()
    command = [args.vitfreeze, "data", "bench", args.cache or args.dir, "--json"]
    command += ["--image-size", str(args.size), "--threads", str(args.workers), "--seconds", str(args.seconds)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    if args.cpu:
        # Five batches come before the clock starts.
        return (out["images"] + 5 * 64) / (cpu_of_children() - before)
    return out["images_per_second"]


def theirs(args):
    transform = T.Compose(
        [
            T.RandomResizedCrop(args.size, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = torchvision.datasets.ImageFolder(f"{args.dir}/train", transform)
    if args.cpu:
        start, cpu, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < args.seconds:
            torch.stack([data[random.randrange(len(data))][0] for _ in range(64)])
            images += 64
        return images / (time.process_time() - cpu)
    # Endless, like ours: a small folder would otherwise be over before it is measured.
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(
        data, batch_size=64, sampler=sampler, num_workers=args.workers, prefetch_factor=4, persistent_workers=False
    )
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < args.seconds:
        images += len(next(batches)[1])
    rate = images / (time.perf_counter() - start)
    del batches
    return rate


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir")
    parser.add_argument("--vitfreeze", required=True)
    parser.add_argument("--cache")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    args.workers = 1 if args.cpu else args.workers
    unit = "images per CPU second" if args.cpu else "images/s"
    torch.set_num_threads(1)
    print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, {args.workers} workers, {args.size} px")
    rows = []
    for number in range(args.rounds):
        rows.append((ours(args), theirs(args)))
        a, b = rows[-1]
        print(f"round {number + 1}: vitfreeze {a:.0f}, torchvision {b:.0f} {unit}, ratio {a / b:.2f}", flush=True)
    a, b = (statistics.median(side) for side in zip(*rows))
    print(f"median: vitfreeze {a:.0f}, torchvision {b:.0f} {unit}, ratio of medians {a / b:.2f}")


if __name__ == "__main__":
    main()
