"""Makes the fixtures of tests/sources.rs: files that other programs write.

Run with Pillow, numpy, scipy and pyarrow from any folder: python make_source_fixtures.py
    sources/pyarrow.parquet    12 PNGs of 3 classes, in Hugging Face's schema, 5 rows in a group
    sources/meta.mat           synsets as in ILSVRC2012's devkit: 4 classes and a parent
    formats/NAME + NAME.rgb.png    WebP, BMP, TIFF with a palette, an EXIF rotation; and their pixels after convert("RGB")
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from make_fixtures import photo

FIXTURES = Path(__file__).parent / "fixtures"


def png(value):
    """A grey image of 4 x 3 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def parquet():
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"image": {"bytes": png(10 * i), "path": f"{i}.png"}, "label": i % 3} for i in range(12)]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"},
    }
    schema = pa.schema([("image", image), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), FIXTURES / "sources/pyarrow.parquet", row_group_size=5)


def mat():
    kind = [(name, object) for name in ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
                                        "wordnet_height", "num_train_images"]]
    rows = []
    # The ids are not in the order of the WordNet ids.
    for number, wnid, children in [(1, "n03", 0), (2, "n01", 0), (3, "n04", 0), (4, "n02", 0), (5, "n00", 2)]:
        rows.append((float(number), wnid, "a word", "a gloss", float(children), np.zeros(children), 0.0, 1300.0))
    synsets = np.array(rows, dtype=kind).reshape(-1, 1)
    savemat(FIXTURES / "sources/meta.mat", {"synsets": synsets}, do_compression=True)


def formats():
    folder = FIXTURES / "formats"
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(photo(45, 31))
    alpha = Image.merge("RGBA", (*image.split(), Image.fromarray(photo(45, 31, 4)[..., 3])))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "lossy.webp", quality=90)
    image.save(folder / "lossless.webp", lossless=True)
    alpha.save(folder / "alpha.webp", lossless=True, exact=True)
    image.save(folder / "color.bmp")
    image.quantize(16).save(folder / "palette.bmp")
    image.convert("L").save(folder / "grey.bmp")
    image.quantize(200).save(folder / "palette.tif")
    image.quantize(16).save(folder / "palette_lzw.tif", compression="tiff_lzw")
    image.save(folder / "rotated.jpg", exif=exif, quality=90)
    for path in sorted(folder.glob("*.*")):
        if not path.name.endswith(".rgb.png"):
            Image.open(path).convert("RGB").save(folder / f"{path.name}.rgb.png")


if __name__ == "__main__":
    (FIXTURES / "sources").mkdir(exist_ok=True)
    parquet()
    mat()
    formats()
