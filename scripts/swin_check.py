#!/usr/bin/env python3
"""Loads folders that `vitfreeze convert` wrote of Swin Transformers with timm (TIMM, ..) or transformers (hf:FOLDER), and compares
tokens and logits with those of the checkpoint they were made from.

    python3 scripts/swin_check.py vit/tests/fixtures/swin/timm.io.safetensors back hf:back_hf
"""
import sys

import timm
import torch
import transformers
from safetensors.torch import load_file


def run(folder, images):
    """(tokens, logits or None)"""
    if folder.startswith("hf:"):
        config = transformers.AutoConfig.from_pretrained(folder[3:])
        kind = getattr(transformers, config.architectures[0])
        model, told = kind.from_pretrained(folder[3:], output_loading_info=True)
        assert not any(told.values()), told
        model.eval()
        if hasattr(model, "classifier"):
            return model.swin(images).last_hidden_state, model(images).logits
        return model(images).last_hidden_state, None
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model.forward_features(images).flatten(1, 2), model(images) if model.num_classes else None


def main():
    io = load_file(sys.argv[1])
    for folder in sys.argv[2:]:
        with torch.no_grad():
            tokens, logits = run(folder, io["images"])
        far = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
        error = [far(tokens, io["tokens"])] + ([far(logits, io["logits"])] if logits is not None else [])
        print(folder, *(f"{e:.1e}" for e in error))
        assert max(error) < 1e-5


main()
