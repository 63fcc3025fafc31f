"""Makes the fixtures of tests/augment.rs: Pillow's results of each operation, statistics of torchvision's and timm's draws.

Run with Pillow, numpy, torch, torchvision and timm from any folder: python make_augment_fixtures.py
    ops/in.png, ops/OP_ARGUMENT_FILTER.png    an image, and what timm's operation makes of it
    augment_stats.json                        quantiles (0.02, 0.06 .. 0.98) and frequencies over 10 000 draws
"""

import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from timm.data import auto_augment, mixup
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from make_fixtures import photo

FIXTURES = Path(__file__).parent / "fixtures"
DRAWS = 10_000
OPS = {
    "AutoContrast": (auto_augment.auto_contrast, [None]),
    "Equalize": (auto_augment.equalize, [None]),
    "Invert": (auto_augment.invert, [None]),
    "Rotate": (auto_augment.rotate, [27.3, -12.5, 90.0]),
    "Posterize": (auto_augment.posterize, [1, 3, 8]),
    "Solarize": (auto_augment.solarize, [0, 26, 130, 256]),
    "SolarizeAdd": (auto_augment.solarize_add, [0, 99, 110]),
    "Color": (auto_augment.color, [0.1, 0.73, 1.0, 1.85]),
    "Contrast": (auto_augment.contrast, [0.1, 0.73, 1.85]),
    "Brightness": (auto_augment.brightness, [0.1, 0.73, 1.85]),
    "Sharpness": (auto_augment.sharpness, [0.1, 0.73, 1.85]),
    "ShearX": (auto_augment.shear_x, [0.27, -0.1]),
    "ShearY": (auto_augment.shear_y, [0.27, -0.1]),
    "TranslateX": (auto_augment.translate_x_rel, [0.41, -0.133]),
    "TranslateY": (auto_augment.translate_y_rel, [0.41, -0.133]),
    "Hue": (lambda image, turn, **_: F.adjust_hue(image, turn), [0.5, 0.2, -0.31]),
}
MOVING = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def ops():
    folder = FIXTURES / "ops"
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(photo(45, 31) // 4 * 3 + 20)
    image.save(folder / "in.png")
    for name, (function, arguments) in OPS.items():
        for argument in arguments:
            for filter in ["bicubic", "bilinear"] if name in MOVING else ["bicubic"]:
                resample = getattr(Image.Resampling, filter.upper())
                args = () if argument is None else (argument,)
                out = function(image, *args, fillcolor=(124, 116, 104), resample=resample)
                out.save(folder / f"{name}_{0 if argument is None else argument}_{filter}.png")


def quantiles(values):
    return [float(q) for q in np.quantile(values, np.arange(0.02, 1, 0.04), method="inverted_cdf")]


def crops():
    image, all = torch.zeros(3, 375, 500), {}
    for low in [0.08, 0.2]:
        boxes = [RandomResizedCrop.get_params(image, [low, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)]
        _, _, h, w = np.array(boxes).T
        all[f"crop{low}"] = {"area": quantiles(h * w / (375 * 500)), "ratio": quantiles(w / h)}
    return all


def rand_augment():
    counts, arguments = {}, {}
    augment = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (124, 116, 104)})
    for op in augment.ops:
        def count(image, *_, name=op.name, **__):
            counts[name] = counts.get(name, 0) + 1
            return image

        op.aug_fn = count
    for _ in range(DRAWS):
        augment(None)
    for op in augment.ops:
        seen = []
        op.prob = 1.0
        op.aug_fn = lambda image, *args, **_: seen.append(args[0] if args else 0)
        for _ in range(DRAWS):
            op(None)
        arguments[op.name.replace("Increasing", "").replace("Rel", "")] = quantiles(seen)
    names = {name.replace("Increasing", "").replace("Rel", ""): n / DRAWS for name, n in counts.items()}
    return {"frequencies": names, "arguments": arguments}


def erasing():
    erase, heights, widths = RandomErasing(0.25, mode="const", device="cpu"), [], []
    for _ in range(4 * DRAWS):
        image = torch.ones(1, 64, 96)
        erase(image)
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        if len(rows):
            heights.append(int(rows.max() - rows.min()) + 1)
            widths.append(int(columns.max() - columns.min()) + 1)
    h, w = np.array(heights), np.array(widths)
    return {"rate": len(h) / (4 * DRAWS), "area": quantiles(h * w / (64 * 96)), "ratio": quantiles(h / w)}


def mixing():
    mix = mixup.Mixup(0.8, 1.0, mode="batch", num_classes=10)
    blends, cuts = [], []
    real = mixup.cutmix_bbox_and_lam

    def record(*args, **kwargs):
        box, lam = real(*args, **kwargs)
        cuts.append(lam)
        return box, lam

    x = torch.zeros(2, 3, 64, 96)
    with mock.patch.object(mixup, "cutmix_bbox_and_lam", record):
        for _ in range(2 * DRAWS):
            before = len(cuts)
            lam = mix._mix_batch(x)
            if len(cuts) == before:
                blends.append(lam)
    return {"cut_rate": len(cuts) / (2 * DRAWS), "blend": quantiles(blends), "cut": quantiles(cuts)}


def targets():
    target = mixup.mixup_target(torch.tensor([0, 2, 1, 2]), 3, 0.3, 0.1)
    return target.flatten().tolist()


def main():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    ops()
    stats = {**crops(), "rand_augment": rand_augment(), "erasing": erasing(), "mixup": mixing(), "targets": targets()}
    (FIXTURES / "augment_stats.json").write_text(json.dumps(stats, indent=1))


if __name__ == "__main__":
    main()
