"""Data sets whose masks are colours, grey pictures, one file for each class, or rasters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image

from support.miniatures.drawing import SPLITS, Miniature, lines, save


def potsdam(root: Path) -> Miniature:
    classes = {"impervious surfaces": "ffffff", "building": "0000ff", "low vegetation": "00ffff", "tree": "00ff00"}
    classes |= {"car": "ffff00", "clutter": "ff0000"}
    mini = Miniature({name: tuple(bytes.fromhex(color)) for name, color in classes.items()}, (96, 96))
    columns = {2: (10, 14), 3: (10, 14), 4: (10, 15), 5: (10, 15), 6: (7, 15), 7: (7, 13)}
    for i in [(row, column) for row, (first, last) in columns.items() for column in range(first, last + 1)]:
        name = "{}_{}".format(*i)
        image, mask = mini.draw("test" if i[1] >= 13 else "train", f"top_potsdam_{name}_RGB")
        save(image, root / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif")
        save(mask, root / f"5_Labels_all/top_potsdam_{name}_label.tif")
        lines(root / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tfw", ["0.05"])
    return mini


def isaid(root: Path) -> Miniature:
    mini = Miniature(
        {"background": (0, 0, 0), "ship": (0, 0, 63), "small vehicle": (0, 0, 127), "plane": (0, 127, 255)}
        | {"harbor": (0, 100, 155), "soccer ball field": (0, 127, 191)}
    )
    numbers = iter(range(100))
    for split in SPLITS:
        for _ in range(SPLITS[split]):
            i = f"{next(numbers):04d}"
            image, mask = mini.draw(split, f"images/P{i}")
            save(image, root / split / f"images/images/P{i}.png")
            if split != "test":
                save(mask, root / split / f"Semantic_masks/images/P{i}_instance_color_RGB.png")
    return mini


def drive(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "vessel": 255}, (117, 113))  # 584 x 565
    for folder, first in {"training": 21, "test": 1}.items():
        for i in [f"{first + number:02d}" for number in range(6)]:
            image, mask = mini.draw(folder.removesuffix("ing"), f"{i}_{folder}")
            save(image, root / folder / f"images/{i}_{folder}.tif")
            save(mask, root / folder / f"1st_manual/{i}_manual1.gif", optimize=False)  # all 256 greys in the palette
            save(np.full(mask.shape, 255, np.uint8), root / folder / f"mask/{i}_{folder}_mask.gif")
            if folder == "test":
                save(mask, root / folder / f"2nd_manual/{i}_manual2.gif")
    return mini


def kvasir_seg(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "polyp": 255})
    boxes = {}
    for number in range(10):
        i = f"cju0qkwl35piu0993l0dewei{number}"
        image, mask = mini.draw("train", i, (96 + 4 * number, 128))
        save(image, root / f"images/{i}.jpg", quality=95)
        save(PIL.Image.fromarray(mask).convert("RGB"), root / f"masks/{i}.jpg", quality=95)
        boxes[i] = {
            "height": 96,
            "width": 128,
            "bbox": [{"label": "polyp", "xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9}],
        }
    (root / "kavsir_bboxes.json").write_text(json.dumps(boxes))
    return mini


def celebamask_hq(root: Path) -> Miniature:
    """Its masks are half as large as its images; the split is made by the command in the recipe's header."""
    parts = ["background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"]
    parts += ["mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"]
    mini = Miniature({name: value for value, name in enumerate(parts)}, (76, 76))
    mapping = [f"{'idx':8}{'orig_idx':16}orig_file"]
    for number in range(12):
        split, original = (("train", 162770), ("val", 162771), ("test", 182638))[max(0, number // 2 - 3)]
        image, _ = mini.draw(split, str(number))
        save(image.resize((152, 152), PIL.Image.Resampling.NEAREST), root / f"CelebA-HQ-img/{number}.jpg", quality=95)
        truth = mini.truth[split, str(number)]
        for position, name in enumerate(parts):
            mask = np.where(truth == position, 255, 0).astype(np.uint8)
            path = root / f"CelebAMask-HQ-mask-anno/{number // 2000}/{number:05d}_{name}.png"
            if name != "background" and mask.any():
                save(PIL.Image.fromarray(mask).convert("RGB"), path)
        mapping.append(f"{number:<8}{original:<16}{original + 1:06d}.jpg")
    lines(root / "CelebA-HQ-to-CelebA-mapping.txt", mapping)
    return mini


def sen1floods11(root: Path) -> Miniature:
    """13 bands of 16 bits; the lists are made by the command in the recipe's header."""
    import rasterio

    mini = Miniature({"[no data]": -1, "land": 0, "water": 1}, (64, 64))
    labelled = root / "data/flood_events/HandLabeled"
    for first, (split, name) in enumerate({"train": "train", "val": "valid", "test": "test"}.items(), start=1):
        ids = [f"{('Ghana', 'Sri-Lanka')[number % 2]}_{1000 * first + number}" for number in range(SPLITS[split])]
        for i in ids:
            _, mask = mini.draw(split, f"{i}_S2Hand")
            truth = mini.truth[split, f"{i}_S2Hand"]
            noise = mini.rng.integers(0, 99, (13, *truth.shape))
            bands = 1000 + 300 * np.arange(13)[:, None, None] + 900 * truth + noise
            place = rasterio.Affine(9e-5, 0, float(mini.rng.integers(0, 90)), 0, -9e-5, 10.0)
            for folder, layer, dtype in (("S2Hand", bands, "uint16"), ("LabelHand", mask[None], "int16")):
                path = labelled / folder / f"{i}_{folder}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                options = {"count": len(layer), "height": 64, "width": 64, "crs": "EPSG:4326", "transform": place}
                with rasterio.open(path, "w", driver="GTiff", dtype=dtype, **options) as file:
                    file.write(layer.astype(dtype))
        rows = [f"{i}_S1Hand.tif,{i}_LabelHand.tif" for i in ids]
        lines(root / f"splits/flood_handlabeled/flood_{name}_data.csv", rows)
    return mini
