#!/usr/bin/env python3
"""Makes fixtures/optim.safetensors: 100 steps of PyTorch's optimisers on a matrix and a bias (pip install torch safetensors).

    python3 freezeout/tests/make_fixtures.py

The gradient of element i at step t is ((37 i + 101 t) mod 89 - 44) / 64, which is exact in f32, so that only weights are
stored: after 1, 10 and 100 steps. AdamW and SGD are torch.optim's; LARS and Lion, which torch lacks, are written out here
from their papers' formulas.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

LR, STEPS, KEPT = 1e-3, 100, (1, 10, 100)
SHAPES = {"weight": (6, 4), "bias": (6,)}


def start():
    values = lambda n, salt: (torch.arange(n) * 13 + salt).remainder(29).float() / 29 - 0.4
    return {"weight": values(24, 5).reshape(6, 4), "bias": values(6, 11)}


def gradient(name, t):
    n = torch.Size(SHAPES[name]).numel()
    i = torch.arange(n) + (1000 if name == "bias" else 0)
    return ((37 * i + 101 * t).remainder(89) - 44).float().reshape(SHAPES[name]) / 64


def by_torch(make, clip=None):
    params = {k: torch.nn.Parameter(v) for k, v in start().items()}
    # Weight decay on matrices only, as Rust's default groups.
    opt = make([{"params": [params["weight"]]}, {"params": [params["bias"]], "weight_decay": 0.0}])
    for t in range(STEPS):
        for k, p in params.items():
            p.grad = gradient(k, t)
        if clip:
            clip(params.values())
        opt.step()
        yield t + 1, {k: p.detach().clone() for k, p in params.items()}


def by_hand(update):
    params = {k: v.clone() for k, v in start().items()}
    state = {k: torch.zeros_like(v) for k, v in params.items()}
    for t in range(STEPS):
        for k in params:
            params[k], state[k] = update(params[k], gradient(k, t), state[k], params[k].dim() > 1)
        yield t + 1, {k: v.clone() for k, v in params.items()}


def lars(p, g, m, matrix, wd=0.05, trust=0.001, momentum=0.9):
    if matrix:
        g = g + wd * p
        g = g * trust * p.norm() / g.norm()
    m = momentum * m + g
    return p - LR * m, m


def lion(p, g, m, matrix, wd=0.5, b1=0.9, b2=0.99):
    p = p * (1 - LR * (wd if matrix else 0.0))
    return p - LR * torch.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g


adamw = lambda groups: torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
sgd = lambda momentum, nesterov: lambda groups: torch.optim.SGD(
    groups, lr=LR, momentum=momentum, nesterov=nesterov, weight_decay=0.05)
runs = {
    "adamw": by_torch(adamw),
    "adamw_norm": by_torch(adamw, lambda ps: torch.nn.utils.clip_grad_norm_(ps, 0.7)),
    "adamw_value": by_torch(adamw, lambda ps: torch.nn.utils.clip_grad_value_(ps, 0.25)),
    "adamw_999": by_torch(lambda groups: torch.optim.AdamW(
        groups, lr=LR, betas=(0.95, 0.9999), eps=1e-8, weight_decay=0.05)),
    "sgd": by_torch(sgd(0.0, False)),
    "sgd_momentum": by_torch(sgd(0.9, False)),
    "sgd_nesterov": by_torch(sgd(0.9, True)),
    "lars": by_hand(lars),
    "lion": by_hand(lion),
}
out = {f"start.{k}": v for k, v in start().items()}
for name, run in runs.items():
    for t, params in run:
        if t in KEPT:
            out |= {f"{name}.{t}.{k}": v.contiguous() for k, v in params.items()}
path = Path(__file__).parent / "fixtures/optim.safetensors"
save_file(out, path)
print(path, len(out), "tensors, torch", torch.__version__)
