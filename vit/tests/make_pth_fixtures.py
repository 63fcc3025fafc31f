#!/usr/bin/env python3
"""Makes tests/fixtures/pth: what torch.save writes for tensors that are more than numbers.

    pip install torch numpy
    python3 vit/tests/make_pth_fixtures.py
"""
import warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")
FIXTURES = Path(__file__).parent / "fixtures"
OUT = FIXTURES / "pth"


class Mine(torch.Tensor):
    pass


def hook(grad):
    return grad


def main():
    OUT.mkdir(exist_ok=True)
    plain = torch.load(FIXTURES / "checkpoints" / "module_f16.pth")

    # The same numbers: parameters and tensors with attributes, with a hook, of a class of their own.
    state = {name: torch.nn.Parameter(tensor) for name, tensor in plain.items()}
    state["module.cls_token"].is_special = True
    state["module.pos_embed"] = plain["module.pos_embed"].clone()
    state["module.pos_embed"].origin = "sincos"
    state["module.norm.weight"].register_hook(hook)
    state["module.norm.bias"] = plain["module.norm.bias"].as_subclass(Mine)
    torch.save(state, OUT / "attributes.pth")

    # Types that no weight has, one in a place that matters.
    other = dict(plain)
    other["module.norm.bias"] = plain["module.norm.bias"].to(torch.float8_e4m3fn)
    other["module.extra.complex"] = torch.ones(3, dtype=torch.complex64)
    other["module.extra.uint16"] = torch.ones(3).to(torch.uint16)
    torch.save(other, OUT / "types.pth")

    square = torch.eye(2)
    for name, tensor in {
        "sparse_coo": square.to_sparse(),
        "sparse_csr": square.to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(square, 0.1, 0, torch.qint8),
        "quantized_channels": torch.quantize_per_channel(square, torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "meta": torch.ones(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }.items():
        torch.save({"model": {"blocks.0.w": tensor}}, OUT / f"{name}.pth")


main()
