#!/usr/bin/env python3
"""Checkpoints of every family through `vitfreeze convert` into timm and transformers: no warning, the same numbers.

    pip install torch timm transformers safetensors
    cargo build --release -p vitfreeze-cli
    python3 vit/tests/round_trip.py target/release/vitfreeze

Exit code 0 when every conversion either gives the source's logits (or tokens, without a head) to 1e-5 of their largest
value, or is refused because the layout has no such architecture.
"""
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import load_file

FIXTURES = [Path(__file__).parent / "fixtures" / name for name in ("checkpoints", "dinov3")]
TOLERANCE = {"f32": 1e-5, "f16": 2e-2, "bf16": 1e-1}


class Seen(logging.Handler):
    """Every warning of every library."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load_timm(folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().float()
    return model, model.forward_features, model.num_classes


def load_hf(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval().float()
    transformers.AutoImageProcessor.from_pretrained(folder)
    head = "Classification" in config.architectures[0]
    base = getattr(model, model.base_model_prefix, model) if head else model
    call = (lambda x: model(x).logits) if head else None
    return call, lambda x: base(x).last_hidden_state, head


def compare(binary, path, name, layout, dtype, seen):
    io = load_file(path.parent / f"{name}.io.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [binary, "convert", str(path), str(out), "--to", layout, "--dtype", dtype]
        if path.suffix == ".pth":
            command += ["--heads", "3"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            assert done.returncode == 2 and "cannot be saved" in done.stderr, done.stderr
            return "refused: " + done.stderr.strip().split("layout: ")[-1]
        seen.lines.clear()
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            model, tokens, head = (load_timm if layout == "timm" else load_hf)(out)
            if head:
                got, want = model(io["images"]), io["logits"]
            else:
                got, want = tokens(io["images"]), io["tokens"]
        complaints = seen.lines + [str(w.message) for w in caught]
        assert not complaints, complaints
        assert got.shape == want.shape, (got.shape, want.shape)
        error = ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
        assert error <= TOLERANCE[dtype], error
        return f"{error:.1e}"


def main():
    binary = sys.argv[1]
    seen = Seen()
    for library in ("timm", "transformers"):
        logging.getLogger(library).addHandler(seen)
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    print(f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}")
    print("| checkpoint | timm f32 | hf f32 | timm f16 | hf bf16 |\n|---|---|---|---|---|")
    for io in (io for folder in FIXTURES for io in sorted(folder.glob("*.io.safetensors"))):
        name = io.name.removesuffix(".io.safetensors")
        path = io.parent / name if (io.parent / name).is_dir() else io.parent / f"{name}.pth"
        cells = []
        for layout, dtype in (("timm", "f32"), ("hf", "f32"), ("timm", "f16"), ("hf", "bf16")):
            try:
                cells.append(compare(binary, path, name, layout, dtype, seen))
            except Exception as e:  # report all of them
                failed += 1
                cells.append(f"FAILED {type(e).__name__}: {e}".replace("\n", " ")[:600])
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    sys.exit(1 if failed else 0)


main()
