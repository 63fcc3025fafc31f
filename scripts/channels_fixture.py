#!/usr/bin/env python3
"""Makes the fixtures of images with other channels than RGB, a few kB, beside what timm, Pillow and NumPy make of them:

    vit/tests/fixtures/channels/        patch embeddings that timm adapts, a checkpoint of timm with two channels
    datasets/tests/fixtures/bands/      PNG, TIFF and .npy files, their values, and resized images

    pip install numpy pillow torch timm safetensors
    python3 scripts/channels_fixture.py
"""
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv, save_for_hf

ROOT = Path(__file__).resolve().parent.parent
VIT = ROOT / "vit/tests/fixtures"
BANDS = ROOT / "datasets/tests/fixtures/bands"
rng = np.random.default_rng(5)


def tokens(model, channels):
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(channels))
    with torch.no_grad():
        return x, model.forward_features(x)


def patch_embeddings():
    out = VIT / "channels"
    out.mkdir(parents=True, exist_ok=True)
    weight = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    adapted = {"weight": weight, "half": weight.half()}
    for n in (1, 2, 4, 5, 13):
        adapted[f"weight_{n}"] = adapt_input_conv(n, weight.clone())
        adapted[f"half_{n}"] = adapt_input_conv(n, weight.half())
    # A whole model: the encoder of another fixture, loaded as timm loads it for other images.
    folder = VIT / "checkpoints/timm_registers"
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    for n in (1, 4):
        args = config["model_args"] | dict(in_chans=n, num_classes=0)
        model = timm.create_model(config["architecture"], **args).eval()
        name = "patch_embed.proj.weight"
        model.load_state_dict(state | {name: adapt_input_conv(n, state[name])})
        adapted[f"images_{n}"], adapted[f"tokens_{n}"] = tokens(model, n)
    save_file({k: v.contiguous() for k, v in adapted.items()}, out / "adapted.safetensors")

    args = dict(img_size=(32, 32), patch_size=8, embed_dim=24, depth=2, num_heads=3, in_chans=2)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **args).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.1 * torch.randn(p.shape, generator=g))
    model.pretrained_cfg |= dict(input_size=(2, 32, 32), mean=(0.25, 0.5), std=(0.125, 0.25))
    save_for_hf(model, out / "two", model_args=args, safe_serialization=True)
    for other in (out / "two").glob("pytorch_model.bin"):
        other.unlink()
    x, y = tokens(model, 2)
    save_file({"images": x, "tokens": y.contiguous()}, out / "two.io.safetensors")


def png(name, array):
    """Height, width and 1 to 4 channels of 8 or 16 bits."""
    height, width, channels = array.shape
    bits, colour = 8 * array.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (BANDS / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff(name, array, order="<", planar=False, kind=1):
    """One strip, or one for each channel; not compressed. `kind`: 1 whole numbers, 3 floating-point ones."""
    height, width, channels = array.shape
    planes = [array[..., c] for c in range(channels)] if planar else [array]
    data = [p.astype(array.dtype.newbyteorder(order)).tobytes() for p in planes]
    bits = 8 * array.dtype.itemsize
    # (tag, 3 = short or 4 = long, values)
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [1]),
               (273, 4, None), (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(d) for d in data]),
               (284, 3, [2 if planar else 1]), (338, 3, [0] * (channels - 1)), (339, 3, [kind] * channels)]
    entries = [e for e in entries if e[2] is None or e[2]]
    tail = 8 + 2 + 12 * len(entries) + 4
    sizes = {3: 2, 4: 4}

    def length(kind, values):
        n = sizes[kind] * (len(data) if values is None else len(values))
        return n + n % 2 if n > 4 else 0

    start = tail + sum(length(kind, values) for _, kind, values in entries)
    offsets = [start + sum(map(len, data[:i])) for i in range(len(data))]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for tag, kind_, values in entries:
        values = offsets if values is None else values
        packed = struct.pack(order + "HI"[kind_ == 4] * len(values), *values)
        directory += struct.pack(order + "HHI", tag, kind_, len(values))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "I", tail + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
    (BANDS / name).write_bytes(head + directory + b"\0\0\0\0" + extra + b"".join(data))


def sources():
    BANDS.mkdir(parents=True, exist_ok=True)
    values = {}

    def integers(channels, dtype):
        top = np.iinfo(dtype).max
        return rng.integers(0, top, (5, 6, channels), dtype=dtype, endpoint=True)

    def keep(name, array):
        parts = {"u": lambda a: a / np.float32(np.iinfo(a.dtype).max)}.get(array.dtype.kind, lambda a: a)
        values[name] = parts(array).astype(np.float32).reshape(5, 6, -1)

    for name, channels, dtype in [("grey16.png", 1, np.uint16), ("greya8.png", 2, np.uint8),
                                  ("rgb16.png", 3, np.uint16), ("rgba8.png", 4, np.uint8)]:
        array = integers(channels, dtype)
        png(name, array)
        keep(name, array)
    five, two, floats = integers(5, np.uint16), integers(2, np.uint8), rng.normal(size=(5, 6, 4)).astype(np.float32)
    tiff("five16.tif", five)
    tiff("five16_planar.tif", five, planar=True)
    tiff("two8.tif", two, order=">")
    tiff("float.tif", floats, kind=3)
    for name, array in [("five16.tif", five), ("five16_planar.tif", five), ("two8.tif", two), ("float.tif", floats)]:
        keep(name, array)
    for name, array in [
        ("u1.npy", integers(4, np.uint8)),
        ("u2_big.npy", integers(5, np.uint16).astype(">u2")),
        ("i2.npy", rng.integers(-3000, 9000, (5, 6, 2)).astype(np.int16)),
        ("f4.npy", rng.normal(size=(5, 6, 13)).astype(np.float32)),
        ("f8_flat.npy", rng.normal(size=(5, 6))),
        ("rgb.npy", integers(3, np.uint8)),
    ]:
        np.save(BANDS / name, array)
        keep(name, array.astype(array.dtype.newbyteorder("=")))
    # Pillow's mode F: antialiased, not rounded.
    image = rng.normal(size=(23, 17)).astype(np.float32)
    values["resize.in"] = image
    for filter_ in ("BICUBIC", "BILINEAR", "LANCZOS", "BOX"):
        for width, height in ((9, 8), (31, 29)):
            part = Image.fromarray(image).crop((2, 3, 16, 20))
            resized = part.resize((width, height), getattr(Image.Resampling, filter_))
            values[f"resize.{filter_.lower()}_{width}x{height}"] = np.asarray(resized)
    save_arrays(values, BANDS / "values.safetensors")


patch_embeddings()
sources()
for folder in (VIT / "channels", BANDS):
    print(folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), "bytes")
