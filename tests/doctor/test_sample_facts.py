"""Facts of samples: of data sets that are no folders of pictures too, of headers, and of the values of a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import load_segmentation_dataset, scan_dataset
from segtune.doctor.examine import Diagnosis, examine
from segtune.doctor.sample_facts import MOST_VALUES, Opener, value_facts
from segtune.recipe.recipe import Recipe

TRANSFORMS = TransformConfig(crop_size=16)


def faults(diagnosis: Diagnosis) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.files for finding in diagnosis.findings if finding.severity != "info"}


def save_images(root: Path, images: Any, number: int = 3) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(images()).save(root / f"{i}.png")


def test_rows_are_the_files_they_were_made_of(earth: Path, tmp_path: Path) -> None:
    load_segmentation_dataset(earth).save_to_disk(tmp_path / "disk")
    labels = json.loads((earth / "classes.json").read_text())["classes"]
    rows = examine(Recipe(dataset=DatasetConfig(path=str(tmp_path / "disk"), labels=labels), transforms=TRANSFORMS))
    files = examine(Recipe(dataset=DatasetConfig(path=str(earth)), transforms=TRANSFORMS))
    assert faults(rows) == faults(files) == {}
    assert rows.to_dict()["classes"][0]["pixels"] == files.to_dict()["classes"][0]["pixels"]
    digests = [sorted(f.image.digest for f in found.case.facts if f.image) for found in (rows, files)]
    assert digests[0] == digests[1] and len(digests[0]) == 170


def test_tiles_and_streams_are_examined_as_samples(earth: Path, tmp_path: Path) -> None:
    tiles = examine(Recipe(dataset=DatasetConfig(path=str(earth), tile=90), transforms=TRANSFORMS))
    assert tiles.samples == {"train": 4 * 94, "val": 4 * 39, "test": 4 * 37}
    assert "unreadable" not in faults(tiles)
    classes = json.loads((earth / "classes.json").read_text())["classes"]
    load_segmentation_dataset(earth)["val"].save_to_disk(tmp_path / "disk")
    stream = examine(
        Recipe(
            dataset=DatasetConfig(path=str(tmp_path / "disk"), labels=classes, streaming=True, val_fraction=0),
            transforms=TRANSFORMS,
        )
    )
    assert stream.samples == {"train": 39}


def test_polygons_are_examined_as_masks(noise: Any, tmp_path: Path) -> None:
    save_images(tmp_path / "images", noise)
    square = [[0, 0, 8, 0, 8, 8, 0, 8]]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 16} for i in range(3)],
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "pier"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": square, "iscrowd": 0} for i in range(3)
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    diagnosis = examine(Recipe(dataset=DatasetConfig(path=str(tmp_path), val_fraction=0), transforms=TRANSFORMS))
    assert set(faults(diagnosis)) == {"unused-class"}
    names = diagnosis.case.files(diagnosis.case.index.samples, "mask")
    assert names == tuple(f"annotations.json#{i}" for i in range(3))
    classes = {row["name"]: row["pixels"]["train"] for row in diagnosis.to_dict()["classes"]}
    assert classes["ship"] == 3 * 64 and classes["pier"] == 0


def test_arrays_of_fractions_and_of_ids(noise: Any, tmp_path: Path, stripes: np.ndarray) -> None:
    save_images(tmp_path / "images", noise)
    (tmp_path / "masks").mkdir()
    for i in range(3):
        np.save(tmp_path / "masks" / f"{i}.npy", stripes / 2 if i == 2 else stripes.astype(np.int64))
    config = DatasetConfig(path=str(tmp_path), labels=["sky", "road", "car"], val_fraction=0)
    assert faults(examine(Recipe(dataset=config, transforms=TRANSFORMS))) == {"float-mask": ("masks/2.npy",)}


def test_other_channels_need_their_statistics(tmp_path: Path, stripes: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        np.save(tmp_path / "images" / f"{i}.npy", generator.integers(0, 256, (16, 16, 5), dtype=np.uint8))
        Image.fromarray(stripes).save(tmp_path / "masks" / f"{i}.png")
    config = DatasetConfig(path=str(tmp_path), labels=["sky", "road", "car"], val_fraction=0)
    unreadable = examine(Recipe(dataset=config, transforms=TRANSFORMS)).findings[0]
    assert unreadable.code == "unreadable" and len(unreadable.files) == 3
    assert "give one for each channel" in unreadable.message
    counted = TransformConfig(crop_size=16, mean="counted", std="counted")
    assert faults(examine(Recipe(dataset=config, transforms=counted))) == {}
    given = TransformConfig(crop_size=16, mean=(0.5,) * 5, std=(0.02,) * 5)
    assert set(faults(examine(Recipe(dataset=config, transforms=given)))) == {"normalization"}


def test_headers_say_what_pixels_do_not(noise: Any, tmp_path: Path, stripes: np.ndarray) -> None:
    save_images(tmp_path / "images", noise, 1)
    (tmp_path / "masks").mkdir()
    mask = Image.fromarray(stripes)
    mask.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    mask.save(tmp_path / "masks" / "0.png")
    config = DatasetConfig(path=str(tmp_path))
    index = scan_dataset(config)
    _, header = Opener(index, config).mask(index.samples[0])
    assert (header.mode, header.format, header.orientation, header.lossy) == ("P", "PNG", 1, False)
    assert header.palette[:3] == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_values_are_counted_most_frequent_first() -> None:
    facts = value_facts(np.array([[3, 3, 3], [3, 200, 3], [0, 0, 0]]))
    assert list(facts.counts.items()) == [(3, 5), (0, 3), (200, 1)]
    assert (facts.distinct, facts.pixels, facts.is_color) == (3, 9, False)
    assert facts.specks == 1  # the 200, alone among others


def test_many_values_are_cut_but_counted() -> None:
    facts = value_facts(np.arange(4000, dtype=np.int32).reshape(40, 100))
    assert (len(facts.counts), facts.distinct) == (MOST_VALUES, 4000)


def test_rims_lie_between_both_neighbours() -> None:
    row = np.array([[0, 0, 0, 4, 8, 8, 8, 2, 1, 1]])
    facts = value_facts(np.repeat(row, 3, axis=0))
    # 4 lies between 0 and 8, 2 between 8 and 1; jumps of 2 and more are 0-4, 4-8, 8-2: three in each row
    assert (facts.rims, facts.rim_values, facts.steps) == (6, 2, 9)
    assert facts.rim_share == 6 / 15
    # three values meet at 4, at 2 and at the border of 8, 2, 1; below and above, all is the same
    assert (facts.meetings, facts.ordered_share) == (6, 1.0)


def test_classes_that_meet_in_any_order_are_told_from_interpolation() -> None:
    facts = value_facts(np.array([[0, 2, 1, 0, 1, 2]] * 3))  # 0 2 1, 2 1 0, 1 0 1 (two values), 0 1 2
    assert (facts.rims, facts.meetings) == (6, 9)
    assert facts.ordered_share == 2 / 3


def test_whole_areas_have_no_rims(stripes: np.ndarray) -> None:
    facts = value_facts(stripes)
    assert (facts.rims, facts.specks, facts.rim_share) == (0, 0, 0.0)


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_interpolation_leaves_rims(earth: Path, resampling: Image.Resampling) -> None:
    """Classes of land cover lie in the order of their ids here and there, but not on most boundaries of most masks."""
    paths = sorted((earth / "masks" / "train").glob("*.png"))[::4]
    assert len(paths) == 24
    shares: dict[str, list[float]] = {"smooth": [], "nearest": []}
    for path in paths:
        mask = Image.fromarray(np.asarray(Image.open(path)))
        shares["smooth"].append(value_facts(np.asarray(mask.resize((120, 120), resampling))).rim_share)
        shares["nearest"].append(value_facts(np.asarray(mask.resize((120, 120), Image.Resampling.NEAREST))).rim_share)
    assert np.median(shares["nearest"]) < 0.1 and np.median(shares["smooth"]) > 0.2
