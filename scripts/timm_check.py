#!/usr/bin/env python3
"""Loads an exported encoder into timm, strictly, and optionally compares timm's features with ours.

ENCODER.safetensors  timm's names; its metadata may hold `vitfreeze`, a JSON object with any of
                     image_size, patch_size, embed_dim, depth, num_heads
FEATURES.safetensors images [B, 3, S, S] and our features [B, 1 + N, D], final norm applied, cls first
Exit code: 0 when it fits, 1 when it does not.
"""
import argparse
import json
import math
import sys

import timm
import torch
from safetensors import safe_open

NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224",
         1280: "vit_huge_patch14_224"}  # any other width: vit_base, its sizes overridden


def read(path):
    with safe_open(path, framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}


def shape_of(tensors, metadata):
    """The encoder's hyperparameters; where tensors and metadata both tell, they must agree."""
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    found = {"patch_size": patch, "embed_dim": width, "depth": depth}
    if "pos_embed" in tensors:
        found["image_size"] = math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch
    told = json.loads(metadata.get("vitfreeze", "{}"))
    for key, value in found.items():
        if told.get(key, value) != value:
            raise ValueError(f"metadata says {key} = {told[key]}, the tensors {value}")
    shape = {"image_size": 224, **found}
    # Only metadata can tell the number of heads: no tensor depends on it.
    shape["num_heads"] = width // 64
    for key in ("image_size", "num_heads"):
        if key in told:
            shape[key] = told[key]
        elif key == "num_heads":
            print(f"metadata lacks num_heads: taking 64 channels a head, {width // 64} heads")
    shape["mlp_ratio"] = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
    return shape


def check(args):
    tensors, metadata = read(args.encoder)
    shape = shape_of(tensors, metadata)
    name = NAMES.get(shape["embed_dim"], "vit_base_patch16_224")
    print(f"timm {timm.__version__} {name} with {shape}")
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=shape.pop("image_size"), **shape).eval()
    model.load_state_dict(tensors, strict=True)  # its error lists what is missing, unexpected, of another shape
    print(f"loaded {len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} numbers")
    if not args.features:
        return
    data, _ = read(args.features)
    with torch.no_grad():
        want = model.forward_features(data["images"])
    got = data["features"]
    if got.shape != want.shape:
        raise ValueError(f"features have shape {list(got.shape)}, timm's {list(want.shape)}")
    difference = (got - want).abs().max().item()
    tolerance = 1e-5 * max(1.0, want.abs().max().item())
    print(f"features: max |ours - timm's| = {difference:.3e}, max |timm's| = {want.abs().max().item():.4f}, "
          f"tolerance {tolerance:.3e}")
    if not difference <= tolerance:  # written so that NaN fails
        raise ValueError("the features differ")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("encoder", metavar="ENCODER.safetensors")
    ap.add_argument("--features", metavar="FILE.safetensors")
    try:
        check(ap.parse_args())
    except KeyError as e:
        sys.exit(f"FAIL: no tensor {e}")
    except Exception as e:  # a missing file, a broken one, a strict load refused
        sys.exit(f"FAIL: {e}")
    print("PASS")


if __name__ == "__main__":
    main()
