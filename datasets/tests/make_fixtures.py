"""Makes tests/fixtures: small synthetic images, and what Pillow makes of them.

Run with Pillow (13.0 was used) and numpy from any folder: python make_fixtures.py
    decode/NAME.EXT + decode/NAME.rgb.png            a file, and its pixels after convert("RGB")
    bad/                                             headers that promise 65500 x 65500 pixels
    resize/in.png + resize/T_L_H_W_to_WxH.png        an image, and parts of it (top, left, height, width) resized
"""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures"


def photo(width, height, channels=3):
    """Smooth colours, sharp edges and some noise."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    planes = [128 + 90 * np.sin(9 * (x * np.cos(c) + y * np.sin(c)) + c) for c in range(channels)]
    image = np.stack(planes, axis=-1)
    image[(x - 0.5) ** 2 + (y - 0.35) ** 2 < 0.05] += 70
    image += np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85, **options)
    return file.getvalue()


def png(values, bits, color_type):
    """A PNG of a kind that Pillow cannot write. `values`: [height, width, channels]."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = values.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    if bits < 8:
        digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(digits.reshape(height, -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def decode_cases():
    rgb = Image.fromarray(photo(45, 31))
    cmyk = Image.fromarray(photo(45, 31, 4), "CMYK")
    yield "photo.jpg", jpeg(rgb)
    yield "full_color.jpg", jpeg(rgb, subsampling="4:4:4")
    yield "progressive.jpg", jpeg(rgb, progressive=True)
    yield "restart.jpg", jpeg(rgb, restart_marker_blocks=2)
    yield "grey.jpg", jpeg(rgb.convert("L"))
    yield "cmyk.jpg", jpeg(cmyk)
    # Pillow writes no YCCK; but the same numbers, called YCCK in the Adobe segment, are as good a file.
    plain = jpeg(cmyk)
    transform = plain.index(b"Adobe") + 11
    yield "ycck.jpg", plain[:transform] + b"\2" + plain[transform + 1 :]
    yield "one_pixel.jpg", jpeg(rgb.crop((5, 5, 6, 6)))

    def saved(image, **options):
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        return file.getvalue()

    small = rgb.crop((0, 0, 21, 17))
    alpha = Image.fromarray(photo(21, 17, 4)[..., 3])
    yield "color.png", saved(small)
    yield "rgba.png", saved(Image.merge("RGBA", (*small.split(), alpha)))
    yield "grey.png", saved(small.convert("L"))
    yield "grey_alpha.png", saved(Image.merge("LA", (small.convert("L"), alpha)))
    yield "black_white.png", saved(small.convert("1"))
    yield "palette.png", saved(small.quantize(16))
    yield "palette_transparent.png", saved(small.quantize(200), transparency=3)
    yield "one_pixel.png", saved(small.crop((0, 0, 1, 1)))
    wide = photo(21, 17, 4).astype(np.uint16) * 257 + np.random.default_rng(1).integers(0, 200, (17, 21, 4))
    wide = np.minimum(wide, 65535)
    yield "grey2.png", png(wide[..., :1] >> 14, 2, 0)
    yield "grey4.png", png(wide[..., :1] >> 12, 4, 0)
    yield "rgb16.png", png(wide[..., :3], 16, 2)
    yield "rgba16.png", png(wide, 16, 6)
    yield "grey16.png", png(wide[..., :1], 16, 0)


def main():
    shutil.rmtree(FIXTURES, ignore_errors=True)
    (FIXTURES / "decode").mkdir(parents=True)
    (FIXTURES / "resize").mkdir()
    for name, data in decode_cases():
        (FIXTURES / "decode" / name).write_bytes(data)
        image = Image.open(io.BytesIO(data))
        if name == "grey16.png":
            # Pillow clips 16-bit grey, which makes nearly all of it white; we take the high byte, as for colour.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.convert("RGB").save(FIXTURES / "decode" / f"{name}.rgb.png")

    (FIXTURES / "bad").mkdir()
    data = jpeg(Image.fromarray(photo(45, 31)))
    size = data.index(b"\xff\xc0") + 5
    (FIXTURES / "bad" / "huge.jpg").write_bytes(data[:size] + struct.pack(">HH", 65500, 65500) + data[size + 4 :])
    data = png(np.zeros((1, 1, 1)), 8, 0)
    header = b"IHDR" + struct.pack(">II", 65500, 65500) + data[24:29]
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    (FIXTURES / "bad" / "huge.png").write_bytes(data)

    source = Image.fromarray(photo(96, 72))
    source.save(FIXTURES / "resize" / "in.png")
    for top, left, height, width, to_width, to_height in [
        (0, 0, 72, 96, 32, 32),
        (9, 13, 50, 41, 24, 24),
        (20, 30, 12, 17, 40, 40),
        (5, 0, 60, 32, 32, 48),
        (0, 60, 72, 20, 16, 16),
        (70, 90, 1, 1, 8, 8),
    ]:
        part = source.crop((left, top, left + width, top + height))
        # In two steps, which Pillow before 13 does in one call; later ones begin with the height if the image is tall.
        part = part.resize((to_width, height), Image.Resampling.BICUBIC)
        part = part.resize((to_width, to_height), Image.Resampling.BICUBIC)
        part.save(FIXTURES / "resize" / f"{top}_{left}_{height}_{width}_to_{to_width}x{to_height}.png")


if __name__ == "__main__":
    main()
