#!/usr/bin/env python3
"""Makes vit/tests/fixtures/dinov3: tiny DINOv3 models with random weights, saved as timm, transformers and Meta's code
save them, each with images of two sizes, what the library computes of them, and its gradients.

    pip install torch timm transformers safetensors
    python3 scripts/dinov3_fixtures.py

A case is a folder (config.json + model.safetensors) or a .pth file, and beside it NAME.io.safetensors with `images`,
`tokens` (B, T, D) after the final norm, `logits` where there is a head, the same of another size under `other_*`, and
in some `weights` with `grad.NAME`: the gradients of sum(weights * tokens) by the library's names.
"""
import argparse
import shutil
from pathlib import Path

import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from timm.models import save_for_hf

OUT = Path(__file__).resolve().parent.parent / "vit" / "tests" / "fixtures" / "dinov3"
# Heads of 8 numbers: 2 periods for each axis.
SMALL = dict(embed_dim=24, depth=2, num_heads=3, num_reg_tokens=2, patch_size=8, img_size=(32, 32))
HF = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_register_tokens=2, patch_size=8, image_size=32)
SIZES = (32, 32), (48, 40)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            is_scale = p.dim() == 1 and ("norm" in name or "gamma" in name or "lambda" in name) and "bias" not in name
            # Weights of qkv large enough that attention, and so positions, matter.
            size = 0.3 if any(part in name for part in ("qkv", "q_proj", "k_proj")) and p.dim() == 2 else 0.15
            p.copy_(1 + 0.2 * noise if is_scale else size * noise)
    return model.eval()


def write_io(name, model, tokens, logits=None, gradients=True):
    io = {}
    for prefix, count, (height, width) in (("", 2, SIZES[0]), ("other_", 1, SIZES[1])):
        images = numbers(count, count, 3, height, width)
        io[prefix + "images"] = images
        io[prefix + "tokens"] = tokens(images)
        if logits:
            io[prefix + "logits"] = logits(images)
    if gradients:
        # Of the size that is not square.
        model.zero_grad()
        y = tokens(io["other_images"])
        io["weights"] = numbers(2, *y.shape)
        (y * io["weights"]).sum().backward()
        io |= {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    save_file({k: v.detach().contiguous() for k, v in io.items()}, OUT / f"{name}.io.safetensors")


def timm_case(name, architecture, seed, **kw):
    args = SMALL | dict(num_classes=0) | kw
    model = randomise(timm.create_model(architecture, **args), seed)
    model.pretrained_cfg["input_size"] = (3, *SIZES[0])
    labels = dict(label_names=["ant", "bee", "cat"]) if args["num_classes"] else None
    save_for_hf(model, OUT / name, model_config=labels, model_args={k: v for k, v in args.items() if k != "num_classes"},
                safe_serialization=True)
    for other in (OUT / name).glob("pytorch_model.bin"):
        other.unlink()
    write_io(name, model, model.forward_features, model if args["num_classes"] else None, name == "timm_plus")
    return model


def hf_case(name, seed, **kw):
    model = randomise(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**HF | kw)), seed)
    model.save_pretrained(OUT / name)
    hf.DINOv3ViTImageProcessor(size=dict(height=32, width=32)).save_pretrained(OUT / name)
    write_io(name, model, lambda x: model(x).last_hidden_state, gradients=name != "hf_plain")


def meta_case(name, like, model):
    """As facebookresearch/dinov3 names its tensors; that timm reads them so is checked."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        for ours, theirs in (("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")):
            key = key.replace(ours, theirs)
        state[key] = value
    width = SMALL["embed_dim"]
    for block in range(SMALL["depth"]):
        q, v = (state.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
        # The keys' part is masked out, whatever it is.
        state[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q, numbers(7, width), v])
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        state[f"blocks.{block}.attn.qkv.bias_mask"] = mask
    state["mask_token"] = torch.zeros(1, width)
    state["rope_embed.periods"] = model.rope.periods.bfloat16()
    torch.save(state, OUT / f"{name}.pth")
    again = timm.create_model(like, **SMALL, num_classes=0, swiglu_mlp=True, swiglu_align_to=8, mlp_ratio=2.0).eval()
    again.load_state_dict(timm.models.eva.checkpoint_filter_fn(state, again))
    images = numbers(2, 2, 3, *SIZES[0])
    assert torch.equal(again.forward_features(images), model.forward_features(images))
    write_io(name, again, again.forward_features, gradients=False)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    timm_case("timm_plain", "vit_small_patch16_dinov3", 1, mlp_ratio=2.0, global_pool="token")
    gated = timm_case("timm_plus", "vit_small_plus_patch16_dinov3_qkvb", 2, mlp_ratio=2.0)
    timm_case("timm_head", "vit_base_patch16_dinov3_qkvb", 3, mlp_ratio=2.0, num_classes=3, rope_temperature=30.0)
    hf_case("hf_plain", 4, intermediate_size=48)
    hf_case("hf_gated", 5, intermediate_size=40, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False)
    hf_case("hf_biases", 6, intermediate_size=48, key_bias=True, rope_theta=50.0)
    meta_case("meta", "vit_small_plus_patch16_dinov3_qkvb", gated)
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()), "bytes")


main()
