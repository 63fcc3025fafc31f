#!/usr/bin/env python3
"""Makes vit/tests/fixtures/swin and localmim/tests/fixtures/swin_masked.safetensors: tiny Swin Transformers with random weights, and what timm, transformers and PyTorch compute
from them.

    pip install torch timm transformers safetensors
    python3 scripts/swin_fixtures.py

NAME.golden.safetensors holds a timm model (`model.*`), images, the tokens after each stage, features, logits, and the gradient
of every parameter (`grad.*`) of sum(logits * weights). The other cases are checkpoints as libraries save them, each a folder or a
.pth file with images, tokens and logits beside it in NAME.io.safetensors.
"""
import argparse
import json
import shutil
from pathlib import Path

import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.swin_transformer import SwinTransformer, window_partition
from timm.models.vision_transformer import Block

OUT = Path(__file__).parent.parent / "vit" / "tests" / "fixtures" / "swin"
NAMES = ["ant", "bee", "cat", "dog", "elk"]
SMALL = dict(embed_dim=8, num_heads=(1, 2, 2, 4), mlp_ratio=2.0)


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            is_scale = p.dim() == 1 and "norm" in name and "bias" not in name
            is_table = "bias_table" in name
            p.copy_(1 + 0.2 * noise if is_scale else noise if is_table else 0.2 * noise)
    return model.eval()


def images(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def write(name, tensors):
    save_file({k: v.detach().float().contiguous().clone() for k, v in tensors.items()}, OUT / name)


def golden(name, size, **kw):
    args = SMALL | dict(img_size=size, num_classes=5) | kw
    model = randomise(SwinTransformer(**args, drop_path_rate=0.0), len(name))
    x = images(*size)
    final, stages = model.forward_intermediates(x)
    logits = model(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    (logits * weights).sum().backward()
    tokens = lambda t: t.flatten(2).transpose(1, 2)
    out = dict(images=x, features=final.flatten(1, 2), logits=logits, weights=weights)
    out |= {f"stage.{i}": tokens(s) for i, s in enumerate(stages)}
    out |= {f"model.{k}": v for k, v in model.named_parameters()}
    out |= {f"grad.{k}": v.grad for k, v in model.named_parameters()}
    write(f"{name}.golden.safetensors", out)


def sincos(dim, side):
    """(side * side, dim): columns in the first half, rows in the second (MAE)."""
    w = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    at = torch.arange(side, dtype=torch.float64)[:, None] * w
    one = torch.cat([at.sin(), at.cos()], 1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat([columns, rows], -1).reshape(side * side, dim).float()


class Decoder(torch.nn.Module):
    """A stage's decoder: cells of at most 2 x 2 a unit, a block, transposed convolutions up to the stage's tokens."""

    def __init__(self, width, across, outputs, dim=16, heads=2):
        super().__init__()
        nn = torch.nn
        self.across, self.cells = across, min(2, across)
        self.embed = nn.Linear((across // self.cells) ** 2 * width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, 4.0, qkv_bias=True, norm_layer=nn.LayerNorm)])
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        steps = []
        for i in range((across // self.cells).bit_length() - 1):
            if i:
                steps += [ChannelNorm(dim), nn.GELU()]
            steps += [nn.ConvTranspose2d(dim, dim // 2, 2, 2)]
            dim //= 2
        self.pred = nn.Sequential(*steps, nn.Conv2d(dim, outputs, 1))

    def forward(self, grid, keep):
        """(B, H, W, C) of all tokens, (B, units) of which are visible -> (B, cells, outputs)."""
        b, h, w, c = grid.shape
        part = self.across // self.cells
        cells = grid.reshape(b, h // part, part, w // part, part, c).permute(0, 1, 3, 2, 4, 5).flatten(3)
        x = self.embed(cells)
        units = h // self.across
        visible = keep.reshape(b, units, units, 1).repeat_interleave(self.cells, 1).repeat_interleave(self.cells, 2)
        x = torch.where(visible, x, self.mask_token[:, :, None])
        side = x.shape[1]
        x = x.flatten(1, 2) + sincos(x.shape[-1], side)
        x = self.norm(self.blocks[0](x))
        return self.pred(x.transpose(1, 2).reshape(b, -1, side, side)).flatten(2).transpose(1, 2)


class ChannelNorm(torch.nn.LayerNorm):
    def __init__(self, dim):
        super().__init__(dim, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def masked_stages(model, x, keep):
    """The tokens after each stage, (B, H, W, C), where no window attends to a token of a hidden unit: whole windows, masked."""
    b, units = x.shape[0], int(keep.shape[1] ** 0.5)
    x, out = model.patch_embed(x), []
    for stage in model.layers:
        x = stage.downsample(x)
        side = x.shape[1]
        seen = keep.reshape(b, units, units).repeat_interleave(side // units, 1).repeat_interleave(side // units, 2)
        for block in stage.blocks:
            shift, window = block.shift_size, block.window_size
            base = block.get_attn_mask(device="cpu", dtype=torch.float32) if any(shift) else 0
            keys = window_partition(torch.roll(seen, (-shift[0], -shift[1]), (1, 2))[..., None].float(), window).flatten(1)
            mask = torch.where(keys[:, None] > 0, 0.0, -1e30).expand(-1, keys.shape[1], -1)
            mask = mask.reshape(b, -1, *mask.shape[1:]) + base
            # Windows differ from image to image: one mask for each window of the batch.
            block.dynamic_mask, block.get_attn_mask, own = True, lambda *_, m=mask.flatten(0, 1), **__: m, block.get_attn_mask
            x = block(x)
            block.dynamic_mask, block.get_attn_mask = False, own
        out.append(x)
    return out


def masked():
    """LocalMIM with pixels on a Swin: 64 px are 2 x 2 units, two of which each image shows."""
    args = SMALL | dict(img_size=(64, 64), window_size=4, depths=(2, 2, 1, 1), num_classes=0, in_chans=1)
    model = SwinTransformer(**args, drop_path_rate=0.0)
    model.norm = torch.nn.Identity()
    widths, across = [8, 16, 32, 64], [8, 4, 2, 1]
    norms = torch.nn.ModuleList(torch.nn.LayerNorm(w) for w in widths)
    decoders = torch.nn.ModuleList(Decoder(w, a, (32 // a) ** 2) for w, a in zip(widths, across))
    whole = randomise(torch.nn.ModuleDict(dict(encoder=model, norm=norms, decoder=decoders)), 4)
    x = images(64, 64, seed=2)[:, :1].contiguous()
    noise = torch.rand(2, 4, generator=torch.Generator().manual_seed(5))
    order = noise.argsort(1)
    keep = torch.zeros(2, 4, dtype=torch.bool)
    keep.scatter_(1, order[:, :2], True)
    out = dict(images=x, noise=noise)
    total = 0.0
    for k, tokens in enumerate(masked_stages(model, x, keep)):
        side, pool = tokens.shape[1], 32 // across[k]
        pred = decoders[k](norms[k](tokens), keep)
        target = x.reshape(2, 1, side, pool, side, pool).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        hidden = (~keep).float().reshape(2, 2, 2).repeat_interleave(across[k], 1).repeat_interleave(across[k], 2).flatten(1)
        loss = (((pred - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()
        # Of the visible tokens, unit by unit in the order that the encoder sees them.
        a = across[k]
        by_unit = tokens.reshape(2, 2, a, 2, a, -1).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        seen = torch.stack([by_unit[i][order[i, :2]] for i in range(2)]).flatten(1, 2)
        out |= {f"tokens.{k}": seen, f"pred.{k}": pred, f"loss.{k}": loss.reshape(1)}
        total = total + loss
    total.backward()
    for name, p in whole.named_parameters():
        name = name.removeprefix("encoder.")
        out[f"model.{name}"] = p
        # The largest need no second copy: what is before them tells.
        if p.numel() < 2000:
            out[f"grad.{name}"] = p.grad
    write("../../../../localmim/tests/fixtures/swin_masked.safetensors", out)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    # 14, 7, 4, 2 tokens a side: windows that are shifted, one window that is all, odd merging, windows as small as a stage.
    golden("square", (56, 56), window_size=7, depths=(2, 1, 2, 1))
    # 10 x 14, 5 x 7, 3 x 4, 2 x 2: padding with and without a shift, windows that are not square.
    golden("padded", (40, 56), window_size=4, depths=(2, 2, 1, 1), qkv_bias=False)
    masked()

    # timm as it saves.
    args = SMALL | dict(img_size=(64, 64), window_size=4, depths=(1, 2, 1, 1), num_classes=5)
    model = randomise(timm.create_model("swin_tiny_patch4_window7_224", **args), 1)
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    save_for_hf(model, OUT / "timm", model_config=dict(label_names=NAMES),
                model_args={k: v for k, v in args.items() if k != "num_classes"}, safe_serialization=True)
    for other in (OUT / "timm").glob("pytorch_model.bin"):
        other.unlink()
    x = images(64, 64)
    io = dict(images=x, tokens=model.forward_features(x).flatten(1, 2), logits=model(x))
    # A stage so small that its windows are smaller: its table by PyTorch's bicubic, as the authors' code has it.
    small = timm.create_model("swin_tiny_patch4_window7_224", **(args | dict(img_size=(48, 48)))).eval()
    state, own = model.state_dict(), small.state_dict()
    for k, v in state.items():
        if v.shape != own[k].shape:
            (rows, heads), side = v.shape, int(own[k].shape[0] ** 0.5)
            old = int(rows ** 0.5)
            v = torch.nn.functional.interpolate(v.T.reshape(1, heads, old, old), size=(side, side), mode="bicubic")
            state[k] = v.reshape(heads, side * side).T
    small.load_state_dict(state)
    y = images(48, 48, seed=1)
    write("timm.io.safetensors", io | dict(resized_images=y, resized_logits=small(y)))

    # The authors': a merging at the end of a stage, tables that follow from the sizes, the head without 'fc'.
    state = {}
    for k, v in model.state_dict().items():
        if ".downsample." in k:
            stage = int(k.split(".")[1])
            k = k.replace(f"layers.{stage}.", f"layers.{stage - 1}.", 1)
        state[k.replace("head.fc.", "head.")] = v
    for stage, block in [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]:
        attn = model.layers[stage].blocks[block].attn
        state[f"layers.{stage}.blocks.{block}.attn.relative_position_index"] = attn.relative_position_index.clone()
    state["layers.1.blocks.1.attn_mask"] = model.layers[1].blocks[1].get_attn_mask() \
        if any(model.layers[1].blocks[1].shift_size) else torch.zeros(4, 16, 16)
    torch.save({"model": state, "epoch": 299, "max_accuracy": 81.2}, OUT / "authors.pth")
    write("authors.io.safetensors", dict(images=x, tokens=model.forward_features(x).flatten(1, 2), logits=model(x)))

    # transformers: windows no larger than its smallest stage, as it needs.
    config = hf.SwinConfig(image_size=64, window_size=2, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 4], embed_dim=8, mlp_ratio=2.0,
                           num_labels=5, id2label=dict(enumerate(NAMES)))
    model = randomise(hf.SwinForImageClassification(config), 2)
    model.save_pretrained(OUT / "hf")
    out = model.swin(x)
    write("hf.io.safetensors", dict(images=x, tokens=out.last_hidden_state, logits=model(x).logits))
    base = hf.SwinModel(config, use_mask_token=True)
    base.load_state_dict(model.swin.state_dict(), strict=False)
    base.eval().save_pretrained(OUT / "hf_base")
    write("hf_base.io.safetensors", dict(images=x, tokens=base(x).last_hidden_state))
    (OUT / "hf" / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "do_resize": True, "image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4], "resample": 3, "size": {"height": 64, "width": 64}}))
    for f in sorted(OUT.rglob("*")):
        if f.is_file():
            print(f.stat().st_size, f.relative_to(OUT))


main()
