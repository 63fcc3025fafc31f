#!/usr/bin/env python3
"""Loading vit_base_patch16_224 (346 MB) and inference of 32 images: ours beside timm on PyTorch eager f32, alternating.

    cargo build --release -p candle-vit --example checkpoint_speed
    python3 benches/pytorch/checkpoint_speed.py target/release/examples/checkpoint_speed

Prints the medians of both and their ratios. Weights are random; the file is cached by the first, uncounted round.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

ROUNDS, THREADS = 5, 2


def pytorch(model, path, images):
    start = time.perf_counter()
    model.load_state_dict(load_file(path))
    loaded = time.perf_counter()
    with torch.inference_mode():
        model(images)
    return loaded - start, time.perf_counter() - loaded


def ours(binary, path):
    out = subprocess.run([binary, path, "1"], capture_output=True, text=True, check=True,
                         env={"RAYON_NUM_THREADS": str(THREADS)}).stdout
    seconds = dict(line.split() for line in out.splitlines())
    return float(seconds["load"]), float(seconds["infer"])


torch.set_num_threads(THREADS)
torch.manual_seed(0)
model = timm.create_model("vit_base_patch16_224").eval()
images = torch.ones(32, 3, 224, 224)
with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "vit_base.safetensors")
    save_file(model.state_dict(), path)
    rows = [(*ours(sys.argv[1], path), *pytorch(model, path, images)) for _ in range(ROUNDS + 1)][1:]
load, infer, their_load, their_infer = (statistics.median(column) for column in zip(*rows))
print(f"load   {load:.3f} s, PyTorch {their_load:.3f} s")
print(f"infer  {infer:.3f} s, PyTorch {their_infer:.3f} s: {their_infer / infer:.2f} x PyTorch's speed")
