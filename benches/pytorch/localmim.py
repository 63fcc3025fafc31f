#!/usr/bin/env python3
"""LocalMIM pretraining with frozen layers in plain PyTorch: what vitfreeze is measured against.

--as-published  what the published system computes, its waste included: HOG maps once per stage and
                colour channel with a slow .norm, a trainable class token below the frozen blocks (so
                their activation backward still runs), unfused AdamW.
--repaired      the same mathematics without the waste: one HOG map, class token in layer 0, frozen
                prefix outside the graph, fused AdamW.
Shapes: B images, N patches, K visible patches, D width, G side of a stage's grid, C = 3 * bins.
"""
import argparse
import contextlib
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import nn

SIZES = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}  # width, heads; depth 12
MODES = ("as-published", "repaired")
Norm = partial(nn.LayerNorm, eps=1e-6)


def sincos(width, side):
    """Fixed position table [1, 1 + side^2, width]: a zero row for cls, then columns | rows, each sin | cos."""
    rate = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [grid.reshape(-1, 1) * rate for grid in (col, row)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float()[None]


def head(width, scale, channels):
    """Decoder tokens on the patch grid [B, width, g, g] -> prediction [B, C, g * scale, g * scale]."""
    up = lambda c: nn.ConvTranspose2d(c, c // 2, 2, stride=2)
    if scale == 4:
        layers, width = [up(width), LayerNorm2d(width // 2, eps=1e-6), nn.GELU(), up(width // 2)], width // 4
    elif scale == 2:
        layers, width = [up(width)], width // 2
    else:
        layers = [] if scale == 1 else [nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 1))


class Decoder(nn.Module):
    def __init__(self, width_in, width, heads, side, scale, channels):
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos(width, side), persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, qkv_bias=True, norm_layer=Norm)])
        self.norm = Norm(width)
        self.pred = head(width, scale, channels)

    def forward(self, x, ids_restore):
        """[B, 1 + K, D], [B, N] -> [B, G^2, C]"""
        x = self.embed(x)
        (b, n), width = ids_restore.shape, x.shape[-1]
        masked = self.mask_token.to(x.dtype).expand(b, n + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], masked], dim=1).gather(1, ids_restore[..., None].expand(-1, -1, width))
        x = torch.cat([x[:, :1], patches], dim=1) + self.pos_embed
        x = self.norm(self.blocks[0](x))[:, 1:]
        side = math.isqrt(n)
        return self.pred(x.transpose(1, 2).reshape(b, width, side, side)).flatten(2).transpose(1, 2)


class LocalMim(nn.Module):
    def __init__(self, mode, image=224, patch=16, width=384, heads=6, depth=12,
                 decoder_width=256, decoder_heads=8, bins=9, hypot=False):
        super().__init__()
        self.repaired = {"as-published": False, "repaired": True}[mode]
        self.hypot = hypot or self.repaired
        self.image, self.patch, self.bins, self.frozen = image, patch, bins, 0
        side = image // patch
        self.stages = [1, 3, depth - 3, depth - 1]  # after which block
        self.scales = [4, 2, 1, 0.5]
        self.pools = [int(patch / s) for s in self.scales]
        self.patch_embed = nn.Module()  # only for the name patch_embed.proj
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos(width, side), persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, qkv_bias=True, norm_layer=Norm) for _ in range(depth)])
        self.norm = nn.ModuleList([Norm(width) for _ in self.stages])
        self.decoder = nn.ModuleList(
            [Decoder(width, decoder_width, decoder_heads, side, s, 3 * bins) for s in self.scales])
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("sobel", torch.stack([sobel, sobel.T])[:, None], persistent=False)
        for name, p in self.named_parameters():
            if name.endswith("_token"):
                nn.init.normal_(p, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2 or "patch_embed" in name:
                nn.init.xavier_uniform_(p.data.view(p.shape[0], -1))

    def layer_of(self, name):
        """Freezing layer of a parameter; None never freezes."""
        top, *rest = name.split(".")
        if top == "cls_token":
            return 0 if self.repaired else None
        if top == "patch_embed":
            return 0
        index = int(rest[0])
        return (index if top == "blocks" else self.stages[index]) + 1

    def freeze(self, n):
        """Freezes layers 0..n-1 (patch embedding, then blocks) and the stages they feed."""
        self.frozen = n
        for name, p in self.named_parameters():
            layer = self.layer_of(name)
            p.requires_grad_(layer is None or layer >= n)

    def record(self, layer):
        """The cut: a repaired frozen layer runs outside the graph."""
        return torch.no_grad() if self.repaired and layer < self.frozen else contextlib.nullcontext()

    def forward(self, images, noise, keep=0.25):
        """[B, 3, S, S], [B, N] -> {stage: loss}, live stages only."""
        n = noise.shape[1]
        kept = int(n * keep)
        order = noise.argsort(dim=1)
        ids_restore = order.argsort(dim=1)
        mask = (ids_restore >= kept).float()
        with self.record(0):
            x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
            x = x.gather(1, order[:, :kept, None].expand(-1, -1, x.shape[-1]))
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
            x = torch.cat([cls, x], dim=1)
        predictions = {}
        for i, block in enumerate(self.blocks):
            with self.record(i + 1):
                x = block(x)
            if i in self.stages and i + 1 >= self.frozen:
                k = self.stages.index(i)
                predictions[k] = self.decoder[k](self.norm[k](x), ids_restore)
        targets = self.targets(images, predictions)
        return {k: self.loss(p, targets[k], mask, self.scales[k]) for k, p in predictions.items()}

    @staticmethod
    def loss(pred, target, mask, scale):
        """Mean over the masked cells; a coarse cell's mask is the masked share of its patches."""
        side = math.isqrt(mask.shape[1])
        grid = mask.view(-1, 1, side, side)
        grid = F.avg_pool2d(grid, 2) if scale < 1 else F.interpolate(grid, scale_factor=scale, mode="nearest")
        grid = grid.flatten(1)
        return ((pred.float() - target).square().mean(-1) * grid).sum() / grid.sum()

    @torch.no_grad()
    def targets(self, images, live):
        """{stage: [B, G^2, C]}"""
        # In float32 in both modes: a bin is decided by an angle, which bfloat16 would round across edges.
        with torch.autocast(images.device.type, enabled=False):
            if not self.repaired:
                return {k: torch.cat([self.cells(self.hog(images[:, c:c + 1]), self.pools[k], 1)
                                      for c in range(3)], dim=-1) for k in live}
            finest = min(self.pools[k] for k in live)
            # A coarse cell is the mean of fine cells, so the full-resolution map is pooled once.
            fine = F.avg_pool2d(self.hog(images.flatten(0, 1)[:, None]), finest)
            return {k: self.cells(fine, self.pools[k] // finest, 3) for k in live}

    def hog(self, gray):
        """[M, 1, S, S] -> gradient magnitudes by orientation [M, bins, S, S]"""
        g = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="reflect"), self.sobel)
        phase = torch.atan2(g[:, :1], g[:, 1:])
        index = (phase / math.pi * self.bins).floor().long() % self.bins
        # On a CPU .norm over a dimension of 2 takes 150 times as long as hypot (pytorch issue 34279).
        length = torch.hypot(g[:, :1], g[:, 1:]) if self.hypot else g.norm(dim=1, keepdim=True)
        return g.new_zeros(g.shape[0], self.bins, *g.shape[2:]).scatter_(1, index, length)

    @staticmethod
    def cells(hog, pool, channels):
        """[B * channels, bins, ., .] -> [B, G^2, channels * bins], each cell of each channel of length 1"""
        hog = F.normalize(F.avg_pool2d(hog, pool), dim=1, eps=1e-12)
        return hog.flatten(2).unflatten(0, (-1, channels)).flatten(1, 2).transpose(1, 2)


def optimizer(model, mode, lr):
    live = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in live if p.ndim > 1], "weight_decay": 0.05},
              {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), foreach=False, fused=mode == "repaired")


def peak_bytes():
    """Peak resident memory of this process. Not ru_maxrss: that one is inherited from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def bench_row(args, frozen):
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    torch.set_default_device(device)
    cuda = device.type == "cuda"
    # Products in f32 are what PyTorch does by itself, convolutions are not.
    torch.backends.cudnn.allow_tf32 = False
    width, heads = SIZES[args.model]
    model = LocalMim(args.mode, args.image_size, args.patch_size, width, heads, hypot=args.hypot)
    model.freeze(frozen)
    opt = optimizer(model, args.mode, 1e-4)
    run = torch.compile(model) if args.compile else model
    seconds = [0.0, 0.0, 0.0]

    def now():
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    for step in range(args.steps + 1):
        images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
        if cuda and step == 1:
            torch.cuda.reset_peak_memory_stats()
        t = [now()]
        noise = torch.rand(args.batch_size, (args.image_size // args.patch_size) ** 2)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = sum(run(images, noise).values())
        t.append(now())
        loss.backward()
        t.append(now())
        opt.step()
        opt.zero_grad(set_to_none=True)
        t.append(now())
        if step > 0:  # the first step warms up: optimiser state, allocator, thread pool
            seconds = [s + (t[i + 1] - t[i]) / args.steps for i, s in enumerate(seconds)]
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"loss is {loss.item()}")
    return {"frozen": frozen, "images_per_second": args.batch_size / sum(seconds), "forward_s": seconds[0],
            "backward_s": seconds[1], "optimizer_s": seconds[2],
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else peak_bytes()}


def bench(args):
    rows = []
    for frozen in args.frozen:
        if args.device == "cpu":
            # A process per row, or a row's peak memory would be that of the largest row before it.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(bench_row, args, frozen).result())
        else:
            rows.append(bench_row(args, frozen))
        if not args.json:
            print("frozen {frozen:3}: {images_per_second:8.2f} images/s, forward {forward_s:.3f} s, backward "
                  "{backward_s:.3f} s, optimizer {optimizer_s:.3f} s, peak {peak_bytes} bytes".format(**rows[-1]))
    if args.json:
        print(json.dumps({"mode": args.mode, "rows": rows}))


def check(folder):
    """Compares both modes with numbers the original code computed; returns whether all agree."""
    from safetensors.torch import load_file

    gold, train = (load_file(Path(folder) / f"{f}.safetensors") for f in ("mim_tiny", "train5"))
    about = json.loads((Path(folder) / "mim_tiny.json").read_text())
    steps = json.loads((Path(folder) / "train5.json").read_text())
    c = about["config"]
    passed, other = True, {}

    def report(what, got, want, tolerance):
        """Largest difference, relative to the largest expected value."""
        nonlocal passed
        error = ((got - want).abs().max() / want.abs().max()).item()
        passed &= error <= tolerance
        print(f"{'PASS' if error <= tolerance else 'FAIL'}  {mode:12}  {what:26} relative error {error:.1e}")

    def new_model():
        model = LocalMim(mode, c["img_size"], c["patch_size"], c["embed_dim"], c["num_heads"], c["depth"],
                         c["decoder_embed_dim"], c["decoder_num_heads"], about["hog_nbins"])
        model.load_state_dict({k[6:]: v for k, v in gold.items() if k.startswith("model.")
                               and not k.endswith("pos_embed") and "hog_enc" not in k})
        return model

    def run(model, images, noise):
        losses = model(images, noise)
        total = sum(losses.values())
        total.backward()
        return losses, total.detach()

    for mode in MODES:
        model = new_model()
        report("position table", model.pos_embed, gold["model.pos_embed"], 1e-6)
        for k, target in model.targets(gold["imgs"], range(4)).items():
            report(f"HOG target {k}", target, gold[f"target.{k}"], 1e-5)
        losses, total = run(model, gold["imgs"], gold["noise"])
        for k, loss in losses.items():
            report(f"loss of stage {k}", loss.detach(), gold[f"loss.{k}"][0], 1e-5)
        report("loss", total, gold["loss_total"][0], 1e-5)
        want = {name: gold[f"grad.{name}"] for name, _ in model.named_parameters()}
        scaled = lambda name, g: (g / want[name].abs().max()).flatten()  # or large gradients hide small ones
        report("all gradients", torch.cat([scaled(n, p.grad) for n, p in model.named_parameters()]),
               torch.cat([scaled(n, g) for n, g in want.items()]), 1e-5)
        model = new_model()
        opt = optimizer(model, mode, steps["lr"])
        for i, want in enumerate(steps["losses"]):
            opt.zero_grad()
            _, total = run(model, train["imgs"][i], train["noise"][i])
            report(f"loss of AdamW step {i}", total, torch.tensor(want), 1e-5)
            opt.step()
        for frozen in (3, 5, 10, 12):  # no golden here: the cut must not change what is left to train
            model = new_model()
            model.freeze(frozen)
            run(model, gold["imgs"], gold["noise"])
            other[mode, frozen] = torch.cat([p.grad.flatten() for name, p in model.named_parameters()
                                             if p.grad is not None and name != "cls_token"])
    mode = "both"
    for frozen in (3, 5, 10, 12):
        report(f"gradients with {frozen} frozen", other["repaired", frozen], other["as-published", frozen], 1e-5)
    return passed


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = ap.add_mutually_exclusive_group()
    for m in MODES:
        mode.add_argument(f"--{m}", dest="mode", action="store_const", const=m)
    ap.add_argument("--check", metavar="GOLDENS", help="verify both modes against this folder, and stop")
    ap.add_argument("--model", choices=SIZES, default="vit-small")
    ap.add_argument("--image-size", type=int, default=224)
    ap.add_argument("--patch-size", type=int, default=16)
    ap.add_argument("--batch-size", type=int, default=16)
    ap.add_argument("--steps", type=int, default=3, help="timed steps per row, after one to warm up")
    ap.add_argument("--frozen", type=lambda s: [int(n) for n in s.split(",")], default=[0, 3, 5, 10, 12],
                    metavar="LIST", help="numbers of frozen layers, a row each (default 0,3,5,10,12)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--device", default="cpu", help="cpu or cuda; on cuda the peak is that of the tensors alone")
    ap.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="bf16: autocast")
    ap.add_argument("--hypot", action="store_true",
                    help="as published but for .norm, which PyTorch computes slowly on a CPU (see README)")
    ap.add_argument("--compile", action="store_true", help="torch.compile the model")
    ap.add_argument("--json", action="store_true", help="rows as one JSON object on stdout")
    args = ap.parse_args()
    if args.check:
        passed = check(args.check)
        print("PASS" if passed else "FAIL")
        sys.exit(not passed)
    if args.mode is None:
        ap.error("one of --as-published, --repaired, --check is required")
    if not all(0 <= n <= 12 for n in args.frozen):
        ap.error("--frozen: layer 12 never freezes, so 0 to 12 layers can be frozen")
    coarse = 2 * args.patch_size  # the coarsest stage's cell
    if args.patch_size % 4 or args.image_size % coarse:
        ap.error(f"patch size must be a multiple of 4 and image size of {coarse} (twice the patch)")
    bench(args)


if __name__ == "__main__":
    main()
