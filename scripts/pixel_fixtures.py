#!/usr/bin/env python3
"""Makes the fixtures of pixel targets and of plain MAE with PyTorch, timm and transformers.

    pip install torch timm transformers safetensors
    python3 scripts/pixel_fixtures.py

- pixel_tiny.safetensors: a LocalMIM of four stages with pixel targets and a learnt position table, random weights, two images:
  weights, targets, losses and gradients.
- vit_mae/: a tiny random ViTMAEForPreTraining as transformers saves it, and vit_mae.io.safetensors: images, noise, and
  what transformers computes from them.
"""
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

OUT = Path(__file__).resolve().parent.parent / "localmim/tests/fixtures"
Norm = partial(nn.LayerNorm, eps=1e-6)
PATCH, SIDE, DIM, DECODER = 8, 4, 16, 8
STAGES = [(0, 4.0), (1, 2.0), (2, 1.0), (3, 0.5)]


def sincos(dim, side):
    table = build_2d_sinusoidal_position_embedding(side, side, dim, cls_token=True)
    # MAE's order: columns first.
    return torch.cat([table[:, dim // 2:], table[:, :dim // 2]], 1)[None]


def cells(images, size):
    """MAE's cells of `size` pixels: (B, cells, size * size * 3)."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * c)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.embed = nn.Linear(DIM, DECODER)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER))
        self.blocks = nn.ModuleList([Block(DECODER, 2, 4, qkv_bias=True, norm_layer=Norm)])
        self.norm = Norm(DECODER)
        size = int(PATCH / scale)
        outputs = 3 * size * size
        self.pred = nn.Sequential(*{
            4.0: [nn.ConvTranspose2d(8, 4, 2, 2), ChannelNorm(4, eps=1e-6), nn.GELU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.Conv2d(2, outputs, 1)],
            2.0: [nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, outputs, 1)],
            1.0: [nn.Conv2d(8, outputs, 1)],
            0.5: [nn.AvgPool2d(2), nn.Conv2d(8, outputs, 1)],
        }[scale])

    def forward(self, latent, restore):
        x = self.embed(latent)
        b, n = restore.shape
        hidden = self.mask_token.expand(b, n + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], 1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, DECODER))
        x = torch.cat([x[:, :1], patches], 1) + sincos(DECODER, SIDE)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)[:, 1:].transpose(1, 2).reshape(b, DECODER, SIDE, SIDE)
        return self.pred(x).flatten(2).transpose(1, 2)


class Mim(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + SIDE * SIDE, DIM))
        self.blocks = nn.ModuleList([Block(DIM, 2, 4, qkv_bias=True, norm_layer=Norm) for _ in STAGES])
        self.norm = nn.ModuleList([Norm(DIM) for _ in STAGES])
        self.decoder = nn.ModuleList([Decoder(scale) for _, scale in STAGES])

    def forward(self, images, noise, normalise):
        order = noise.argsort(1)
        restore = order.argsort(1)
        keep = order[:, : SIDE * SIDE // 4]
        mask = torch.ones_like(noise).scatter(1, keep, 0).reshape(-1, 1, SIDE, SIDE)
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = x.gather(1, keep[..., None].expand(-1, -1, DIM))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)
        latents = []
        for block in self.blocks:
            x = block(x)
            latents.append(x)
        targets, losses = [], []
        for (block, scale), norm, decoder in zip(STAGES, self.norm, self.decoder):
            pred = decoder(norm(latents[block]), restore)
            target = cells(images, int(PATCH / scale))
            if normalise:
                target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
            m = nn.functional.interpolate(mask, scale_factor=scale, mode="nearest") if scale >= 1 else nn.functional.avg_pool2d(mask, 2)
            m = m.flatten(1)
            losses.append((((pred - target) ** 2).mean(-1) * m).sum() / m.sum())
            targets.append(target)
        return targets, torch.stack(losses)


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            is_scale = p.dim() == 1 and name.endswith("weight")
            if p.requires_grad:
                p.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)
    return model


def save(path, tensors):
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, path)
    print(path, path.stat().st_size)


def pixel():
    g = torch.Generator().manual_seed(1)
    images, noise = torch.randn(2, 3, 32, 32, generator=g), torch.rand(2, SIDE * SIDE, generator=g)
    model = randomise(Mim(), 2)
    out = {"images": images, "noise": noise}
    out |= {f"model.{name}": p for name, p in model.named_parameters()}
    for normalise, name in [(False, "raw"), (True, "normalised")]:
        model.zero_grad()
        targets, losses = model(images, noise, normalise)
        losses.sum().backward()
        out[f"{name}.losses"] = losses
        # Of the first image.
        out |= {f"{name}.target.{k}": t[0] for k, t in enumerate(targets) if normalise or k == 0}
        grads = {n: p.grad for n, p in model.named_parameters()}
        kept = grads if normalise else {n: grads[n] for n in ("pos_embed", "cls_token", "decoder.3.embed.weight")}
        out |= {f"{name}.grad.{n}": grad.clone() for n, grad in kept.items()}
    save(OUT / "pixel_tiny.safetensors", out)


def mae():
    config = ViTMAEConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
                          decoder_hidden_size=8, decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=32)
    model = randomise(ViTMAEForPreTraining(config), 3).eval()
    # Zeros in a new model of transformers 5.24; public checkpoints have MAE's fixed tables.
    model.vit.embeddings.position_embeddings.data.copy_(sincos(16, 4))
    model.decoder.decoder_pos_embed.data.copy_(sincos(8, 4))
    model.save_pretrained(OUT / "vit_mae")
    g = torch.Generator().manual_seed(4)
    images, noise = torch.randn(3, 3, 16, 16, generator=g), torch.rand(3, 16, generator=g)
    out = {"images": images, "noise": noise}
    for name, normalise in [("raw", False), ("normalised", True)]:
        model.config.norm_pix_loss = normalise
        said = model(images, noise=noise)
        out |= {f"{name}.loss": said.loss, "logits": said.logits, "mask": said.mask}
    save(OUT / "vit_mae.io.safetensors", out)


pixel()
mae()
