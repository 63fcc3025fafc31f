#!/usr/bin/env python3
"""Makes vit/tests/fixtures/swin and localmim/tests/fixtures/swin_masked*.safetensors: tiny Swin Transformers with random weights, and what timm, transformers and PyTorch compute
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
from functools import partial
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
    """A stage's decoder on the grid of its tokens (LocalMIM on a Swin): a block, and a linear layer to each token's cell."""

    def __init__(self, width, side, outputs, dim, heads, eps):
        super().__init__()
        nn = torch.nn
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", sincos(dim, side)[None])
        norm = partial(nn.LayerNorm, eps=eps)
        self.blocks = nn.ModuleList([Block(dim, heads, 4.0, qkv_bias=True, norm_layer=norm)])
        self.norm = norm(dim)
        self.pred = nn.Linear(dim, outputs)

    def forward(self, grid, seen):
        """(B, H, W, C) of all tokens, (B, H, W) of which are visible -> (B, H W, outputs)."""
        x = torch.where(seen[..., None], self.embed(grid), self.mask_token[:, :, None])
        x = x.flatten(1, 2) + self.pos_embed
        return self.pred(self.norm(self.blocks[0](x)))


class MergingByRow(torch.nn.Module):
    """LocalMIM's: neighbours (0, 0), (0, 1), (1, 0), (1, 1) as (row, column); timm's are column by column."""

    def __init__(self, timms):
        super().__init__()
        self.norm, self.reduction = timms.norm, timms.reduction

    def forward(self, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.reduction(self.norm(x))


def repeated(keep, side):
    """(B, units) -> (B, side, side)"""
    units = int(keep.shape[1] ** 0.5)
    keep = keep.reshape(-1, units, units)
    return keep.repeat_interleave(side // units, 1).repeat_interleave(side // units, 2)


def masked_stages(model, x, keep):
    """The tokens behind each stage and the merging that follows it, (B, H, W, C), where no window attends to a token of a hidden
    unit nor to padding: whole windows, masked."""
    b = x.shape[0]
    x, out = model.patch_embed(x), []
    for stage, after in zip(model.layers, [*model.layers[1:], None]):
        seen = repeated(keep, x.shape[1])
        for block in stage.blocks:
            shift, window = block.shift_size, block.window_size
            base = block.get_attn_mask(device="cpu", dtype=torch.float32) if any(shift) else 0
            keys = torch.roll(seen, (-shift[0], -shift[1]), (1, 2)).float()
            keys = torch.nn.functional.pad(keys, (0, -keys.shape[2] % window[1], 0, -keys.shape[1] % window[0]))
            keys = window_partition(keys[..., None], window).flatten(1)
            mask = torch.where(keys[:, None] > 0, 0.0, -1e30).expand(-1, keys.shape[1], -1)
            mask = mask.reshape(b, -1, *mask.shape[1:]) + base
            # Windows differ from image to image: one mask for each window of the batch.
            block.dynamic_mask, block.get_attn_mask, own = True, lambda *_, m=mask.flatten(0, 1), **__: m, block.get_attn_mask
            x = block(x)
            block.dynamic_mask, block.get_attn_mask = False, own
        x = after.downsample(x) if after else x
        out.append(x)
    return out


def localmim(size, patch, depths, in_chans, outputs, eps, by_row):
    """A random LocalMIM on a tiny Swin, decoders 16 wide and the first half of that, 2 heads: ModuleDict(encoder, norm, decoder)."""
    args = SMALL | dict(img_size=(size, size), patch_size=patch, window_size=4, depths=depths, num_classes=0, in_chans=in_chans)
    norm = partial(torch.nn.LayerNorm, eps=eps)
    model = SwinTransformer(**args, drop_path_rate=0.0, norm_layer=norm)
    model.norm = torch.nn.Identity()
    for stage in model.layers[1:] if by_row else ():
        stage.downsample = MergingByRow(stage.downsample)
    widths, sides = [16, 32, 64, 64], [size // patch // n for n in (2, 4, 8, 8)]
    parts = zip(widths, sides, outputs, (8, 16, 16, 16))
    decoders = torch.nn.ModuleList(Decoder(w, s, o, d, 2, eps) for w, s, o, d in parts)
    norms = torch.nn.ModuleList(norm(w) for w in widths)
    return randomise(torch.nn.ModuleDict(dict(encoder=model, norm=norms, decoder=decoders)), 4)


def hidden_half(units):
    """Noise of two images, the order of the units by it, and which half is visible."""
    noise = torch.rand(2, units, generator=torch.Generator().manual_seed(5))
    order = noise.argsort(1)
    keep = torch.zeros(2, units, dtype=torch.bool)
    return noise, order, keep.scatter_(1, order[:, :units // 2], True)


def masked(name, size, depths):
    """LocalMIM with pixels, patches of 2 px: what is hidden as a whole has 16 px."""
    pools = [4, 8, 16, 16]
    whole = localmim(size, 2, depths, 1, [p * p for p in pools], 1e-5, by_row=False)
    x = images(size, size, seed=2)[:, :1].contiguous()
    units = size // 16
    noise, order, keep = hidden_half(units * units)
    out = dict(images=x, noise=noise)
    total = 0.0
    for k, (tokens, pool) in enumerate(zip(masked_stages(whole["encoder"], x, keep), pools)):
        side = tokens.shape[1]
        pred = whole["decoder"][k](whole["norm"][k](tokens), repeated(keep, side))
        target = x.reshape(2, 1, side, pool, side, pool).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        hidden = (~repeated(keep, side)).float().flatten(1)
        loss = (((pred - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()
        # Of the visible tokens, unit by unit in the order that the encoder sees them.
        a = side // units
        by_unit = tokens.reshape(2, units, a, units, a, -1).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        seen = torch.stack([by_unit[i][order[i, :keep[0].sum()]] for i in range(2)]).flatten(1, 2)
        out |= {f"tokens.{k}": seen, f"pred.{k}": pred, f"loss.{k}": loss.reshape(1)}
        total = total + loss
    total.backward()
    for parameter, p in whole.named_parameters():
        parameter = parameter.removeprefix("encoder.")
        out[f"model.{parameter}"] = p
        # The largest need no second copy: what is before them tells.
        if p.numel() < 2000:
            out[f"grad.{parameter}"] = p.grad
    write(f"../../../../localmim/tests/fixtures/{name}.safetensors", out)


def published():
    """A pretrained LocalMIM as its authors' code lays it out: mergings by row and at the end of a stage, eps 1e-6, HOG of 18 bins."""
    whole = localmim(64, 4, (2, 2, 1, 1), 3, [54] * 4, 1e-6, by_row=True)
    model, state = whole["encoder"], {}
    for k, v in whole.state_dict().items():
        if ".downsample." in k:
            stage = int(k.split(".")[2])
            k = k.replace(f"layers.{stage}.", f"layers.{stage - 1}.", 1)
        state[f"encoder.{k}" if k.startswith("norm.") else k] = v
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):
            state[f"encoder.layers.{i}.blocks.{j}.attn.relative_position_index"] = block.attn.relative_position_index.clone()
    for k in range(4):
        state |= {f"hog_enc.{k}.conv.weight": torch.zeros(2, 1, 3, 3), f"hog_enc.{k}.conv.bias": torch.zeros(2)}
    torch.save({"model": state, "epoch": 99}, OUT / "localmim.pth")
    x = images(64, 64)
    noise, _, keep = hidden_half(4)
    out = dict(images=x, tokens=whole["norm"][3](model.forward_features(x).flatten(1, 2)), noise=noise)
    for k, tokens in enumerate(masked_stages(model, x, keep)):
        out[f"pred.{k}"] = whole["decoder"][k](whole["norm"][k](tokens), repeated(keep, tokens.shape[1]))
    write("localmim.io.safetensors", out)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    # 14, 7, 4, 2 tokens a side: windows that are shifted, one window that is all, odd merging, windows as small as a stage.
    golden("square", (56, 56), window_size=7, depths=(2, 1, 2, 1))
    # 10 x 14, 5 x 7, 3 x 4, 2 x 2: padding with and without a shift, windows that are not square.
    golden("padded", (40, 56), window_size=4, depths=(2, 2, 1, 1), qkv_bias=False)
    # LocalMIM on 2 x 2 units; and on 3 x 3, where windows do not divide the stages: 24, 12, 6 (padded to 8) and 3 tokens a side.
    masked("swin_masked", 32, (2, 2, 1, 1))
    masked("swin_masked_padded", 48, (1, 1, 2, 1))
    published()

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
