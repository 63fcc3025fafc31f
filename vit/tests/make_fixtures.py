#!/usr/bin/env python3
"""Makes the checkpoints in tests/fixtures/checkpoints: tiny models with random weights, saved as their libraries save
them, each with images and what the library computes from them.

    pip install torch timm transformers safetensors
    python3 vit/tests/make_fixtures.py

A case is a folder (config.json + model.safetensors, or shards) or a .pth file, and beside it NAME.io.safetensors with
`images`, `tokens` (B, T, D) after the final norm, and, where there is a head, `logits`.
"""
import argparse
import json
import shutil
from pathlib import Path

import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

OUT = Path(__file__).parent / "fixtures" / "checkpoints"
SMALL = dict(embed_dim=24, depth=2, num_heads=3)
HF = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            is_scale = p.dim() == 1 and ("norm" in name or "gamma" in name or "lambda" in name) and "bias" not in name
            p.copy_(1 + 0.2 * noise if is_scale else 0.15 * noise)
    return model.eval()


def images(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def write_io(name, **tensors):
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items() if v is not None}, OUT / f"{name}.io.safetensors")


def timm_case(name, architecture, size=(32, 32), resized=None, **kw):
    args = dict(img_size=size, patch_size=8, num_classes=5, **SMALL) | kw
    model = randomise(timm.create_model(architecture, **args), len(name))
    folder = OUT / name
    kw = {k: v for k, v in args.items() if isinstance(v, (int, float, str, bool, tuple, list)) and k != "num_classes"}
    model.pretrained_cfg["input_size"] = (3, *size)
    save_for_hf(model, folder, model_config=dict(label_names=["ant", "bee", "cat", "dog", "elk"]), model_args=kw,
                safe_serialization=True)
    for other in folder.glob("pytorch_model.bin"):
        other.unlink()
    x = images(*size)
    io = dict(images=x, tokens=model.forward_features(x), logits=model(x))
    if resized:
        # timm's own resampling of the position table, when it loads into a model for another size.
        larger = timm.create_model(architecture, **(args | dict(img_size=resized))).eval()
        state, prefix = model.state_dict(), 0 if model.no_embed_class else model.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], new_size=larger.patch_embed.grid_size, old_size=model.patch_embed.grid_size, num_prefix_tokens=prefix)
        larger.load_state_dict(state)
        y = images(*resized, seed=1)
        io |= dict(resized_images=y, resized_logits=larger(y))
    write_io(name, **io)
    return model


def hf_case(name, model, size=32, **save):
    model = randomise(model, len(name))
    model.save_pretrained(OUT / name, **save)
    x = images(size, size)
    base = getattr(model, model.base_model_prefix, model)
    out = model(x)
    write_io(name, images=x, tokens=base(x).last_hidden_state, logits=getattr(out, "logits", None))


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    timm_case("timm_clip", "vit_base_patch16_clip_quickgelu_224")
    timm_case("timm_swiglu", "vit_giant_patch14_dinov2", mlp_ratio=4.0)
    timm_case("timm_nonsquare", "vit_tiny_patch16_224", size=(32, 48), global_pool="avg", qkv_bias=False, resized=(48, 40))
    timm_case("timm_distilled", "deit_tiny_distilled_patch16_224", resized=(48, 48))
    timm_case("timm_deit3", "deit3_small_patch16_224", global_pool="avg", fc_norm=False)
    registers = timm_case("timm_registers", "vit_small_patch14_reg4_dinov2", reg_tokens=3, num_classes=0)

    # DINOv2 as its authors save it: the class token's position apart, a mask token, registers under another name.
    state = registers.state_dict()
    row = 0.15 * torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(9))
    table = torch.cat([row, state.pop("pos_embed")], 1)
    state["cls_token"] = state["cls_token"] - row
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"], state["mask_token"] = table, torch.zeros(1, 24)
    # A transposed view: shares nothing, but is not row-major in its storage.
    name = "blocks.0.attn.proj.weight"
    state[name] = state[name].t().contiguous().t()
    torch.save(state, OUT / "dinov2_registers.pth")
    x = images(32, 32)
    write_io("dinov2_registers", images=x, tokens=registers.forward_features(x))

    plain = randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, **SMALL), 3)
    tokens = plain.forward_features(x)
    encoder = plain.state_dict()
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8),
               "decoder_embed.weight": torch.zeros(8, 24), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    state = {"model": encoder | decoder, "epoch": 3, "scaler": {"scale": 65536.0},
             "args": argparse.Namespace(lr=1e-3, model="mae"),
             "optimizer": {"state": {0: {"exp_avg": torch.zeros(4), "step": 7}}, "param_groups": [{"lr": 0.1}]}}
    torch.save(state, OUT / "mae.pth")
    write_io("mae", images=x, tokens=tokens)

    # The layout before PyTorch 1.6, as old files have it; teacher and student in one.
    head = {"head.mlp.0.weight": torch.zeros(4, 24), "head.last_layer.weight_g": torch.ones(4, 1)}
    state = {"student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in encoder.items()},
             "teacher": {f"backbone.{k}": v for k, v in encoder.items()} | {k: v for k, v in head.items()}}
    torch.save(state, OUT / "dino.pth", _use_new_zipfile_serialization=False)
    write_io("dino", images=x, tokens=tokens)

    torch.save({f"module.{k}": v.half() for k, v in encoder.items()}, OUT / "module_f16.pth")
    half = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, **SMALL).eval()
    half.load_state_dict({k: v.half().float() for k, v in encoder.items()})
    write_io("module_f16", images=x, tokens=half.forward_features(x))

    labels = dict(num_labels=5, id2label=dict(enumerate(["ant", "bee", "cat", "dog", "elk"])))
    wide = dict(intermediate_size=48)
    hf_case("hf_deit_teacher", hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**HF, **wide, **labels)))
    hf_case("hf_deit", hf.DeiTForImageClassification(hf.DeiTConfig(**HF, **wide, **labels)))
    hf_case("hf_vit_tanh", hf.ViTForImageClassification(hf.ViTConfig(**HF, **wide, **labels, hidden_act="gelu_pytorch_tanh", qkv_bias=False)))
    hf_case("hf_dinov2", hf.Dinov2ForImageClassification(hf.Dinov2Config(**HF, **labels, mlp_ratio=2)))
    hf_case("hf_dinov2_swiglu", hf.Dinov2Model(hf.Dinov2Config(**HF, mlp_ratio=2, use_swiglu_ffn=True)))
    hf_case("hf_dinov2_registers", hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**HF, mlp_ratio=2, num_register_tokens=3)),
            max_shard_size="20KB")
    # A mean and deviation of their own.
    (OUT / "hf_deit" / "preprocessor_config.json").write_text(json.dumps({
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40},
        "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}))
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()), "bytes")


main()
