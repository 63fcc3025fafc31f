"""Makes the fixtures of tests/transform_eval.rs: what timm makes of synthetic images, and resizes from the goldens.

Run with Pillow, numpy, torch, torchvision and timm from any folder: python make_transform_fixtures.py GOLDENS
    eval/in_WxH.png, eval/WxH_to_HxW_PCT_FILTER.png    an image, and timm's eval transform of it
    resize_filters.txt                                 a small image through Pillow's rarer filters
    golden/in.png, golden/FILTER_WxH.png               `resize.*` of transforms.safetensors
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from timm.data.transforms_factory import transforms_imagenet_eval

from make_fixtures import photo

FIXTURES = Path(__file__).parent / "fixtures"
ONE_CALL = Image.Image.resize


def two_calls(image, size, resample=None, **rest):
    """Along the rows, then down the columns: what Pillow before 13 does in one call; later ones choose."""
    assert not rest or all(v is None for v in rest.values())
    across = ONE_CALL(image, (size[0], image.height), resample)
    return ONE_CALL(across, size, resample)


def main():
    Image.Image.resize = two_calls
    (FIXTURES / "eval").mkdir(parents=True, exist_ok=True)
    for width, height, out_h, out_w, pct, filters in [
        (96, 71, 32, 32, 0.875, ["bicubic", "bilinear"]),
        (71, 96, 32, 32, 0.9, ["bicubic"]),
        (45, 45, 48, 48, 1.0, ["bicubic"]),
        (101, 33, 24, 24, 0.96, ["bilinear"]),
        (96, 71, 24, 40, 0.875, ["bicubic"]),
        (71, 96, 40, 24, 0.8, ["bilinear"]),
        (5, 120, 16, 16, 0.875, ["bicubic"]),
        (64, 64, 56, 56, 0.875, ["bicubic"]),
    ]:
        image = Image.fromarray(photo(width, height))
        image.save(FIXTURES / "eval" / f"in_{width}x{height}.png")
        for name in filters:
            size = out_h if out_h == out_w else (out_h, out_w)
            transform = transforms_imagenet_eval(size, pct, interpolation=name, normalize=False)
            out = transform(image).permute(1, 2, 0).numpy()
            file = f"{width}x{height}_to_{out_h}x{out_w}_{pct}_{name}.png"
            Image.fromarray(out).save(FIXTURES / "eval" / file)

    y, x, c = np.mgrid[0:9, 0:13, 0:3]
    image = Image.fromarray(((x * 37 + y * 71 + c * 101 + x * y * 13) % 256).astype(np.uint8))
    lines = []
    for name, number in [("nearest", 0), ("lanczos", 1), ("box", 4), ("hamming", 5)]:
        for width, height in [(7, 5), (16, 4), (26, 18)]:
            pixels = np.asarray(image.resize((width, height), number)).tobytes()
            lines.append(f"{name} {width} {height} {pixels.hex()}\n")
    (FIXTURES / "resize_filters.txt").write_text("".join(lines))

    (FIXTURES / "golden").mkdir(exist_ok=True)
    for name, pixels in load_file(Path(sys.argv[1]) / "transforms.safetensors").items():
        if name.startswith("resize."):
            Image.fromarray(pixels).save(FIXTURES / "golden" / f"{name[7:]}.png")


if __name__ == "__main__":
    main()
