#!/usr/bin/env python3
"""Cuts the tests' fixtures out of the golden vectors (computed by the original in PyTorch).

    python3 scripts/make_fixtures.py ../shared/goldens

Keeps only what a test reads. Needs nothing but the standard library.
"""
import json
import struct
import sys
from pathlib import Path


def read(path):
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    body = data[8 + n :]
    return {k: (v["dtype"], v["shape"], body[slice(*v["data_offsets"])]) for k, v in header.items()}


def write(path, tensors):
    header, offset = {}, 0
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(tensors[name][2])
    print(path, path.stat().st_size)


goldens = Path(sys.argv[1])
root = Path(__file__).resolve().parent.parent
local = root / "localmim/tests/fixtures"

# The convolution kernels of the HOG layer are constants, the position tables have a fixture of their own.
drop = ("inter.", "recal_mask.")
mim = {
    k: v
    for k, v in read(goldens / "mim_tiny.safetensors").items()
    if not k.startswith(drop) and "hog_enc" not in k and "pos_embed" not in k
}
write(local / "mim_tiny.safetensors", mim)
config = json.loads((goldens / "mim_tiny.json").read_text())
config.pop("shapes", None)
(local / "mim_tiny.json").write_text(json.dumps(config))

train = {k: v for k, v in read(goldens / "train5.safetensors").items() if not k.startswith("after1")}
write(local / "train5.safetensors", train)
config = json.loads((goldens / "train5.json").read_text())
(local / "train5.json").write_text(json.dumps({k: config[k] for k in ("lr", "betas", "eps", "weight_decay", "losses", "grad_norms")}))

hog = {k: v for k, v in read(goldens / "hog.safetensors").items() if k != "gxy" and not k.startswith("bin")}
write(local / "hog.safetensors", hog)

vit = root / "vit/tests/fixtures"
for name in ("timm_vit_tiny", "hf_vit"):
    write(vit / f"{name}.safetensors", read(goldens / f"{name}.safetensors"))
kept = tuple(f"gp.grad.{k}" for k in ("head.", "fc_norm.weight", "patch_embed.proj.bias"))
finetune = {
    k: v for k, v in read(goldens / "vit_finetune.safetensors").items() if ".grad." not in k or k.startswith(kept)
}
write(vit / "vit_finetune.safetensors", finetune)

pos = read(goldens / "pos_embed.safetensors")
write(vit / "interp.safetensors", {k: v for k, v in pos.items() if k.startswith("interp")})
write(root / "vit/tests/fixtures/sincos.safetensors", {k: pos[k] for k in ("pos_32_4_cls", "pos_48_4_cls")})

# Learning rates as f64, NaN where a layer is frozen: [setting][iteration][layer], and the global rate beside them.
schedules = json.loads((goldens / "schedules.json").read_text())
settings = schedules.pop("settings")
rates = [[[float("nan") if x is None else x for x in row] for row in s["lr"]] for s in settings]
pack = lambda values: struct.pack(f"<{len(values)}d", *values)
shape = [len(rates), len(rates[0]), len(rates[0][0])]
out = root / "freezeout/tests/fixtures"
write(out / "schedules.safetensors", {
    "lr": ("F64", shape, pack([x for s in rates for row in s for x in row])),
    "global_lr": ("F64", shape[:2], pack([x for s in settings for x in s["non_freezeout_lr"]])),
})
# FreezeOut's own estimate for two DenseNets, once per spacing and t0.
speedups = {(s["how_scale"], s["t_0"]): s["freezeout_calc_speedup"] for s in settings if s["t_0"] != 1.0}
rows = [[how, t0, v["densenet_k12_L76"], v["densenet_k12_L100"]] for (how, t0), v in speedups.items()]
(out / "freezeout_speedup.json").write_text(json.dumps(rows, separators=(",", ":")))
groups = json.loads((goldens / "param_groups_lrd_vit_b.json").read_text())
groups = {k: v for k, v in groups.items() if isinstance(v, dict)}
(out / "param_groups_lrd_vit_b.json").write_text(json.dumps(groups, separators=(",", ":")))
keep = ("iterations_per_epoch", "epochs", "warmup_epochs", "lr", "min_lr", "num_of_layers", "iterations")
schedules = {k: schedules[k] for k in keep}
schedules["settings"] = [{k: s[k] for k in ("how_scale", "t_0", "mode", "freeze_iteration")} for s in settings]
(out / "schedules.json").write_text(json.dumps(schedules, separators=(",", ":")))
